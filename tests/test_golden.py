"""A model folder of format 1, written by version 0.1.0, goes on giving the texts and scores that it gave then.

``golden/samples.json`` holds 20 unguided and 20 controlled samples and the likelihood bound of each, computed in fp32 on one
thread by 0.1.0 with the settings below.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from diffusionlm import Pipeline, ScoringConfig, score
from diffusionlm.data.annotators import Annotator

GOLDEN = Path(__file__).parent / "golden"
SAMPLES = json.loads((GOLDEN / "samples.json").read_text())
SEED = 7


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    pipe = Pipeline.from_pretrained(GOLDEN / "format-1")  # the folder has no run that would name the corpus
    pipe.binding = replace(pipe.binding, annotator=Annotator.find("grammar")())
    return pipe


def test_unguided_samples_are_the_same(pipe: Pipeline) -> None:
    assert [row.text for row in pipe(20, seed=SEED)] == SAMPLES["unguided"]


@pytest.mark.parametrize("control", list(dict.fromkeys(row["control"] for row in SAMPLES["controlled"])))
def test_controlled_samples_and_their_checks_are_the_same(pipe: Pipeline, control: str) -> None:
    expected = [row for row in SAMPLES["controlled"] if row["control"] == control]
    rows = pipe(len(expected), [control], seed=SEED)
    found = [{"control": control, "text": row.text, **_check(row)} for row in rows]
    assert found == expected


def _check(row: object) -> dict[str, object]:
    (outcome,) = row.controls  # type: ignore[attr-defined]
    return {"passed": outcome.passed, "score": outcome.score}


def test_the_bound_of_each_sample_is_the_same() -> None:
    texts = [*SAMPLES["unguided"], *(row["text"] for row in SAMPLES["controlled"])]
    bounds = score(GOLDEN / "format-1", texts, ScoringConfig(strata=16, seed=SEED))
    assert [bound.nats for _, bound in bounds] == pytest.approx(SAMPLES["scores"], rel=1e-6)
