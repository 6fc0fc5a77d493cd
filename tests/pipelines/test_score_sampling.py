"""The samplers of the score family on a trained model: controls, given tokens and processes as with any, and what they report."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_runs import ROOT

from diffusionlm.cli import main
from diffusionlm.core.process import VariancePreserving
from diffusionlm.pipelines.cost import metered
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.recipe.processes import VarianceExploding

MODEL = ROOT / "tests" / "golden" / "format-1"
SAMPLERS: list[tuple[Any, int]] = [  # and the denoiser's evaluations in three steps
    ("heun", 5),
    ({"name": "annealed-langevin", "inner_steps": 2}, 7),
    ("predictor-corrector", 6),
    ({"name": "predictor-corrector", "predictor": "ancestral", "corrections": 2}, 9),
]


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained(MODEL)


@pytest.mark.parametrize(("sampler", "evaluations"), SAMPLERS, ids=str)
def test_controls_hold_and_evaluations_are_counted(pipe: Pipeline, sampler: Any, evaluations: int) -> None:
    with metered(pipe) as meter:
        rows = pipe(2, ['Prefix("The Old")', "Length(9)"], sampler=sampler, steps=3, passes=1, sweeps=0)
    assert all(outcome.passed for row in rows for outcome in row.controls)  # type: ignore[attr-defined]
    assert meter.evaluations == 2 * evaluations


def test_the_flow_follows_controls_too_and_a_coarse_one_needs_few_evaluations(pipe: Pipeline) -> None:
    found = []
    for tolerance in (0.1, 1e-3):
        sampler = {"name": "flow", "rtol": tolerance, "atol": tolerance}
        with metered(pipe) as meter:
            (row,) = pipe(1, ["Length(9)", 'Words("cheap")'], sampler=sampler, steps=1, passes=1, sweeps=0)
        assert all(outcome.passed for outcome in row.controls)  # type: ignore[attr-defined]
        found.append(meter.evaluations)
    coarse, fine = found
    assert 5 < coarse < fine < 1000


@pytest.mark.parametrize("sampler", ["heun", "annealed-langevin", "flow"])
def test_samples_are_the_same_under_both_processes(sampler: str) -> None:
    pipe, found = Pipeline.from_pretrained(MODEL), []
    for kind in (VariancePreserving, VarianceExploding):
        pipe.model.process = kind(pipe.model.process.schedule)
        found.append([row.text for row in pipe(2, sampler=sampler, steps=2, passes=1, sweeps=0, length=7)])
    assert found[0] == found[1]


def test_a_sample_does_not_depend_on_the_batch(pipe: Pipeline) -> None:
    for sampler in ("heun", "annealed-langevin", "predictor-corrector"):
        together, alone = (pipe(3, sampler=sampler, steps=3, sweeps=0, batch_size=size) for size in (3, 1))
        assert together == alone


def test_generate_says_how_often_the_network_was_evaluated_for_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Two passes in each of Heun's five evaluations, and one or eleven in a sweep; three candidates take three times as many."""
    pipe = Pipeline.from_pretrained(MODEL)
    with metered(pipe) as meter:
        pipe(2, steps=3, passes=2, sweeps=1, length=6, sampler="heun", candidates=3, batch_size=4)
    expected = 3 * (5 * 2 + (1 if pipe.model.excludes_self else 11))
    assert meter.evaluations == 2 * expected and meter.cost(2, 3).per_candidate == expected / 3
    arguments = ["--steps", "3", "--passes", "2", "--sweeps", "1", "--length", "6", "--candidates", "3", "--batch-size", "4"]
    for sampler, said in (("heun", f"heun: {expected} network evaluations per text\n"), ("ddim", "")):
        assert main(["generate", str(MODEL), "--count", "2", "--sampler", sampler, *arguments]) == 0
        err = capsys.readouterr().err
        assert err.endswith(said) and ("evaluations" in err) == bool(said)
