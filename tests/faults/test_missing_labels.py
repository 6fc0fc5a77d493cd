"""Conditions and labels that a corpus or a command line does not have: one sentence each, no figure that means nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tiny_config, tiny_plain
from torch import Tensor, nn

from diffusionlm import Pipeline, UserError
from diffusionlm.config import build
from diffusionlm.models.attributes import Label, Number
from diffusionlm.models.conditions import Condition, Conditioning
from diffusionlm.training.run import RunConfig, train

QUICK = {"steps": 2, "evaluate_every": 2, "sample_every": 2, "save_every": 2}


class OneHot(nn.Module):
    def forward(self, label: Tensor) -> Conditioning:
        return Conditioning(features=nn.functional.one_hot(label, 4)[:, 1:].float())


@dataclass(frozen=True)
class Mood(Condition):
    """The entry ``key`` of a text's attributes, as text; like careless third-party code it checks nothing."""

    field: str = "mood"
    labels: tuple[str, ...] = ("no", "yes", "2024")
    size: int = 3

    def build(self, model: Any) -> nn.Module:
        return OneHot()

    def values(self, rows: Any) -> list[Any]:
        return [each.get(self.field) for each in rows["attributes"]]

    def collate(self, values: Sequence[Any]) -> dict[str, Tensor]:
        return {"label": torch.tensor([0 if value is None else 1 + self.labels.index(value) for value in values])}


def corpus(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path = folder / "texts.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"the food is good {'x ' * (i % 3)}", **row}) + "\n" for i, row in enumerate(rows))
    )
    return path


def refusal(folder: Path, rows: Sequence[Mapping[str, Any]], condition: Any) -> str:
    data = {"corpus": str(corpus(folder, rows))}
    with pytest.raises(UserError) as caught:
        train(tiny_config(folder, data=data, model={"condition": condition}, training=QUICK), folder / "run", quiet=True)
    assert not (folder / "run").exists() and "\n" not in str(caught.value)
    return str(caught.value)


MOODS = [{"attributes": {"mood": mood}} for mood in ["no", "yes"] * 4]


def test_a_condition_of_which_no_training_text_has_a_value_is_refused(tmp_path: Path) -> None:
    found = refusal(tmp_path, MOODS, {"name": "test_missing_labels:Mood", "field": "mod"})
    assert found == "model.condition: no training text has a value for 'condition'"


def test_a_column_that_the_corpus_does_not_have_is_named(tmp_path: Path) -> None:
    found = refusal(tmp_path, [{"attribute": {}}] * 8, {"name": "label", "field": "attributes"})
    assert found == "model.condition: the corpus has no column 'attributes'; did you mean 'attribute'?"
    found = refusal(tmp_path, [{"attribute": {}}] * 8, "test_missing_labels:Mood")
    assert "test_missing_labels:Mood cannot use the " in found and "attributes" in found


def test_a_value_that_the_condition_cannot_use_is_named_with_its_text(tmp_path: Path) -> None:
    found = refusal(tmp_path, [*MOODS, {"attributes": None}], "test_missing_labels:Mood")
    assert found.startswith("condition: test_missing_labels:Mood cannot use the ") and "'NoneType' object has no" in found
    found = refusal(tmp_path, [*MOODS, {"attributes": {"mood": "so"}}], "test_missing_labels:Mood")
    assert found.startswith("condition: test_missing_labels:Mood cannot use the rows of train") and "ValueError" in found


def test_a_label_of_the_command_line_stays_text_and_a_number_is_read_as_one() -> None:
    tokenizer: Any = None
    for text in ("no", "yes", "2024", "a: b", "[x", "null"):
        assert Label("mood", ("no", "yes")).read(text) == text
    assert Number("stars").encoded([Number("stars").read("7")], tokenizer) == [7.0]
    with pytest.raises(UserError, match="condition: stars: expected a number, got 'seven'"):
        Number("stars").encoded(["seven"], tokenizer)


def test_a_value_that_a_trained_condition_cannot_use_is_one_sentence(tmp_path: Path) -> None:
    data = {"corpus": str(corpus(tmp_path, MOODS))}
    config = tiny_config(tmp_path, data=data, model={"condition": "test_missing_labels:Mood"}, training=QUICK)
    assert train(config, tmp_path / "run", write_samples=False, quiet=True)
    pipe = Pipeline.from_pretrained(tmp_path / "run")
    assert len(pipe(1, condition="no")) == 1
    for value in (3, [1], "n"):
        with pytest.raises(UserError, match=r"condition: test_missing_labels:Mood cannot use .*: ValueError"):
            pipe(1, condition=value)


# Labels of classifiers


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    data = {"corpus": str(corpus(folder, [{}] * 30))}
    assert train(tiny_config(folder, data=data, training=QUICK), folder / "denoiser", write_samples=False, quiet=True)
    return folder / "denoiser"


def classifier(folder: Path, denoiser: Path, held_out: Sequence[Mapping[str, Any]], **training: Any) -> RunConfig:
    rows = [{"mood": mood, "food": food} for mood in "ab" for food in "cd"] * 5
    (folder / "train").mkdir()
    (folder / "held").mkdir()
    data = {"name": "files", "train": str(corpus(folder / "train", rows)), "validation": str(corpus(folder / "held", held_out))}
    model = {
        "name": "classifier", "denoiser": str(denoiser), "labels": ["food", "mood"], "min_count": 2, "features": 8,
        "backbone": {"name": "transformer", "layers": 1, "width": 8, "heads": 2},
    }  # fmt: skip
    plain = tiny_plain(folder, data={"corpus": data}, objective={"name": "classification"}, training={**QUICK, **training})
    return build(RunConfig, {**plain, "model": model})


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["eval_loss"] for row in rows if "eval_loss" in row]


def test_validation_texts_without_labels_are_left_out_of_the_loss(tmp_path: Path, denoiser: Path) -> None:
    nothing = [{"mood": None, "food": None}] * 6
    config = classifier(tmp_path, denoiser, [*nothing, {"mood": "a", "food": None}, *nothing])
    assert train(config, tmp_path / "run", quiet=True)
    assert [math.isfinite(loss) and loss > 0.3 for loss in losses(tmp_path / "run")] == [True]


def test_a_validation_set_without_any_label_is_said_and_measures_no_loss(
    tmp_path: Path, denoiser: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = classifier(tmp_path, denoiser, [{"mood": None, "food": "unheard"}] * 6)
    assert train(config, tmp_path / "run", quiet=True)
    assert losses(tmp_path / "run") == []
    assert (
        "validation: no text has a label that the training texts have, so no loss is measured on it" in capsys.readouterr().err
    )


def test_patience_needs_a_loss_that_can_be_measured(tmp_path: Path, denoiser: Path) -> None:
    config = classifier(tmp_path, denoiser, [{"mood": None, "food": None}] * 6, patience=2)
    with pytest.raises(UserError, match="training.patience: expected 0, since there is no validation set"):
        train(config, tmp_path / "run", quiet=True)
