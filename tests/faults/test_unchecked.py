"""Controls that cannot be checked: an evaluation says so, and counts them neither as failed nor as passed."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusionlm.controls import Binding, Control, Length, read_control
from diffusionlm.data.annotators import Plain
from diffusionlm.evaluation.control.metrics import ALL, SCORE, target_metrics, unchecked_controls
from diffusionlm.evaluation.control.tasks import Target
from diffusionlm.evaluation.report import EvaluationRow, Report
from diffusionlm.evaluation.text_metrics import Diversity
from diffusionlm.pipelines.auto import open_pipeline

GOLDEN = Path(__file__).parent.parent / "golden" / "format-1"
TAGS = read_control('PartsOfSpeech("DET NOUN")')


@pytest.fixture(scope="module")
def binding() -> Binding:
    pipeline = open_pipeline(GOLDEN)
    return Binding(pipeline.model, pipeline.tokenizer, None, Plain())


def test_no_share_of_passed_texts_is_given_where_a_control_cannot_be_checked(binding: Binding) -> None:
    found = target_metrics(Target((Length(2), TAGS)), ["a pub", "a cheap pub"], binding)
    assert ALL not in found  # that the second text fails is known, that the first one passes is not
    assert found[SCORE][0] == 1 and (found[SCORE][1] or 0) < 1  # of the length alone
    assert unchecked_controls(Target((Length(2), TAGS)), binding) == [TAGS]


@pytest.mark.parametrize("controls", [(TAGS,), (Length(2), TAGS)])
def test_a_target_that_the_model_cannot_satisfy_counts_0_only_where_it_could_be_checked(
    controls: tuple[Control, ...], binding: Binding
) -> None:
    found = target_metrics(Target(controls), [], binding)
    assert ALL not in found and (SCORE in found) == (len(controls) == 2)
    assert target_metrics(Target((Length(2),)), [], binding)[ALL] == []


def test_controls_that_are_all_checked_have_a_share_as_before(binding: Binding) -> None:
    assert target_metrics(Target((Length(2),)), ["a pub", "a cheap pub"], binding)[ALL] == [1.0, 0.0]


def test_comparisons_in_the_json_file_name_their_frontiers() -> None:
    def row(system: str, temperature: float, perplexity: float, entropy: float) -> EvaluationRow:
        measured = Diversity(2, entropy, 0, 0, 0, 0, 0, 0, 0, 0)
        return EvaluationRow(system, "model", 4, temperature, perplexity, 0.1, measured, {}, 1.0, {}, "", {})

    rows = [row(system, t, 10 * t + n, 4 + t) for n, system in enumerate(["one", "two"]) for t in (0.5, 1.0)]
    (found,) = Report({}, rows=rows).plain()["comparisons"]
    assert found["frontiers"] == ["two, 4 steps", "one, 4 steps"]
    assert found["one"][0] == pytest.approx(6) and found["other"][0] == pytest.approx(5)
