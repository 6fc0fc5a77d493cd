"""A number of evaluations is spent on steps, passes and sweeps, and no more are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_conditions import trained
from tiny_runs import ROOT

from diffusionlm.cli import main
from diffusionlm.config import UserError
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import BasePipeline
from diffusionlm.pipelines.cost import metered
from diffusionlm.pipelines.gradient import Gradient
from diffusionlm.recipe.samplers import DDIM

GOLDEN = ROOT / "tests" / "golden" / "format-1"  # its backbone excludes each position's own input


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("source", "masked"):
        trained(folder, name)
    return folder


@pytest.fixture(scope="module")
def golden() -> BasePipeline[Any]:
    return open_pipeline(GOLDEN)


def settings(pipe: BasePipeline[Any], evaluations: int, **changes: Any) -> tuple[int, int, int]:
    found = pipe.changed({**changes, "evaluations": evaluations})
    return found.steps, found.passes, found.sweeps


@pytest.mark.parametrize(
    ("evaluations", "split"),
    [(1, (1, 1, 0)), (2, (1, 1, 1)), (4, (4, 1, 0)), (8, (6, 1, 2)), (16, (7, 2, 2)), (32, (14, 2, 4)), (62, (27, 2, 8))],
)
def test_the_split_of_a_model_with_cheap_sweeps(
    golden: BasePipeline[Any], evaluations: int, split: tuple[int, int, int]
) -> None:
    assert settings(golden, evaluations) == split


def test_exactly_as_many_evaluations_are_made(golden: BasePipeline[Any]) -> None:
    for evaluations in (1, 2, 7, 11):
        with metered(golden) as meter:
            golden(3, evaluations=evaluations)
        assert meter.evaluations == 3 * evaluations


def test_sweeps_in_blocks_and_guidance_have_their_price(folder: Path) -> None:
    pipe = open_pipeline(folder / "source")
    assert settings(pipe, 16) == (8, 2, 0)  # a sweep in blocks takes 11
    assert settings(pipe, 96) == (42, 2, 1)
    assert settings(pipe, 16, cfg=2.0) == (8, 1, 0)
    with metered(pipe) as meter:
        pipe(1, source="ant bee", cfg=2.0, evaluations=17)
    assert meter.evaluations == 16
    masked = open_pipeline(folder / "masked")
    assert settings(masked, 9)[0] == 9 and settings(masked, 9, cfg=2.0)[0] == 4
    with pytest.raises(UserError, match="evaluations: expected at least 2 with guidance"):
        settings(masked, 1, cfg=2.0)


def test_a_distilled_model_takes_its_steps_and_sweeps_with_the_rest(golden: BasePipeline[Any]) -> None:
    pipe = replace(golden, model=golden.model.student(4), sampling=replace(golden.sampling, sampler=DDIM()))
    assert [settings(pipe, n) for n in (2, 4, 6)] == [(2, 1, 0), (4, 1, 0), (4, 1, 2)]


def test_few_steps_from_a_source_are_taken_at_more_noise(folder: Path, golden: BasePipeline[Any]) -> None:
    pipe = open_pipeline(folder / "source")
    shifts = {n: pipe.changed({"evaluations": n}).noise_shift for n in (8, 16, 32)}
    assert shifts == {8: 3, 16: 2, 32: 0}
    assert pipe.changed({"evaluations": 8, "noise_shift": 0.0}).noise_shift == 0
    assert pipe.changed({"evaluations": 32, "noise_shift": 1.0}).noise_shift == 1
    assert golden.changed({"evaluations": 8}).noise_shift == 0  # without a source
    masked = open_pipeline(folder / "masked")
    assert masked.changed({"evaluations": 8}).noise_shift == 0 and len(masked(1, evaluations=4)) == 1
    assert pipe(1, source="ant bee", evaluations=4)[0].text == pipe(1, source="ant bee", evaluations=4)[0].text


def test_no_gradient_passes_through_the_network_unless_it_is_asked_for(golden: BasePipeline[Any]) -> None:
    def guidance(**changes: Any) -> tuple[float, float, float]:
        found: Any = golden.changed(changes).guidance
        return found.denoiser_scale, found.constraint_scale, found.draft

    assert guidance() == (10, 1, 0.4)
    assert guidance(evaluations=8) == (0, 0, 0) and guidance(evaluations=32) == (0, 0, 0.4)
    assert guidance(evaluations=8, guidance={"denoiser_scale": 3.0}) == (3, 0, 0)
    assert guidance(evaluations=8, guidance=Gradient(draft=0.2)) == (10, 1, 0.2)
    asked: list[tuple[dict[str, Any], int]] = [({}, 0), ({"guidance": {"denoiser_scale": 3.0}}, 3 * 5)]  # of six steps
    for changes, backwards in asked:
        with metered(golden) as meter:
            golden(3, "food=Japanese", evaluations=8, length=12, **changes)
        assert (meter.evaluations, meter.backwards) == (3 * 8, backwards)


def test_refusals(golden: BasePipeline[Any], capsys: pytest.CaptureFixture[str]) -> None:
    for changes, sentence in (
        ({"evaluations": 0}, "evaluations: expected a whole number from 1 to 10000, got 0"),
        ({"evaluations": 2.5}, "evaluations: expected a whole number from 1 to 10000, got 2.5"),
        ({"evaluations": 8, "passes": 1}, "passes: evaluations decides steps, passes and sweeps; leave it out, or"),
        ({"evaluations": 1, "self_cfg": 2.0}, "evaluations: expected at least 2 with guidance (cfg, self_cfg), got 1"),
        ({"evaluations": 8, "sampler": "heun"}, "evaluations: the sampler 'heun' takes several evaluations in a step; give"),
    ):
        with pytest.raises(UserError) as error:
            golden(1, **changes)
        assert str(error.value).startswith(sentence)
    assert main(["generate", str(GOLDEN), "-n", "1", "--evaluations", "8", "--steps", "3"]) == 2
    assert capsys.readouterr().err.startswith("diffusionlm: steps: evaluations decides steps, passes and sweeps")
