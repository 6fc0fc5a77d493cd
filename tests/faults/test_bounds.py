"""What would take hours or all memory is refused before it begins, or is made fast; the sentence names the bound."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest
from tiny_runs import ROOT

from diffusionlm import Pipeline, RunConfig, UserError
from diffusionlm.config import build
from diffusionlm.constraints.spelling import spelling
from diffusionlm.controls import read_controls
from diffusionlm.evaluation.benchmark import EvaluationConfig
from diffusionlm.evaluation.scoring import ScoringConfig
from diffusionlm.pipelines.base import SamplingConfig


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained(ROOT / "tests" / "golden" / "format-1")


def states(pipe: Pipeline, expression: str) -> int:
    (control,) = read_controls([expression])
    automaton = control.compile(pipe.binding).automaton
    assert automaton is not None
    return len(automaton.step)


@pytest.mark.parametrize(
    ("place", "plain", "message"),
    [
        (SamplingConfig, {"candidates": 10**9}, "candidates: expected 1 to 10000, got 1000000000"),
        (SamplingConfig, {"passes": 10**9}, "passes: expected 1 to 10000"),
        (SamplingConfig, {"sweeps": 10**9}, "sweeps: expected 0 to 10000"),
        (SamplingConfig, {"particles": {"count": 10**9}}, "particles.count: expected 1 to 10000"),
        (
            RunConfig,
            {"model": {"name": "diffusion", "backbone": {"name": "transformer", "layers": 10**6}}},
            "expected 1 to 1000",
        ),
        (RunConfig, {"model": {"name": "diffusion", "dimension": 10**9}}, "model.dimension: expected 1 to 100000"),
        (RunConfig, {"model": {"name": "causal", "layers": 10**6}}, "model.layers: expected 1 to 1000"),
        (RunConfig, {"training": {"batch_tokens": 10**11}}, "training.batch_tokens: expected 1 to 10000000"),
        (RunConfig, {"training": {"learning_rate": 1}}, "training.learning_rate: there is no such setting"),
    ],
)
def test_sizes_beyond_any_use_are_refused(place: Any, plain: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(place, plain)


def test_repetitions_beyond_the_longest_text_are_alike(pipe: Pipeline) -> None:
    assert states(pipe, 'Pattern(".{512}")') == states(pipe, 'Pattern(".{200}")') < 100
    assert states(pipe, 'Pattern(".{3,512}")') < 100
    with pytest.raises(UserError, match=r"no sequence of at most 62 tokens, this model's limit, satisfies Pattern"):
        pipe(1, 'Pattern(".{512}")')


def test_nested_repetitions_are_refused_before_they_are_built(pipe: Pipeline) -> None:
    with pytest.raises(UserError, match="the constraint automaton needs more than 20,000 states; combine fewer constraints"):
        states(pipe, 'Pattern("((.{1,60}){1,60}){1,60}")')


@pytest.mark.parametrize("pattern", ["(a{1,200}){1,200}", "((a|pub){1,60} cheap{0,60}){1,60}"])
def test_nested_repetitions_are_built_or_refused_in_seconds(pattern: str, pipe: Pipeline) -> None:
    before = time.process_time()
    with suppress(UserError):
        states(pipe, f'Pattern("{pattern}")')
    assert time.process_time() - before < 10


@pytest.mark.parametrize("draws", [{"strata": 10**9}, {"orders": 10**9}])
def test_draws_beyond_any_use_are_refused(draws: dict[str, Any]) -> None:
    for kind in (ScoringConfig, EvaluationConfig):
        with pytest.raises(UserError, match=f"{next(iter(draws))}: expected at most 10+, got 1000000000"):
            kind(**draws)


def test_hundreds_of_alternatives_are_one_automaton(pipe: Pipeline) -> None:
    words = sorted(word for word in spelling(pipe.tokenizer).words if word.isalpha())[:500]
    automaton = read_controls([f'Pattern("{"|".join(words)}")'])[0].compile(pipe.binding).automaton
    assert automaton is not None
    text = pipe.tokenizer(f"{words[7]}", add_special_tokens=False)["input_ids"]
    assert automaton.contains(text) and not automaton.contains([*text, *text])
    each = [read_controls([f'Pattern("{word}")'])[0].compile(pipe.binding).automaton for word in words[:3]]
    several = read_controls([f'Pattern("{"|".join(words[:3])}")'])[0].compile(pipe.binding).automaton
    assert several is not None and None not in each
    assert several == each[0] | each[1] | each[2]  # type: ignore[operator]
