"""Where the rows of the log go: without TensorBoard nothing else of a run changes; unknown and missing trackers are refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import tiny_runs
import torch
from safetensors.torch import load_file

from diffusionlm.config import UserError, build
from diffusionlm.training.run import train
from diffusionlm.training.tracking import check_trackers
from diffusionlm.training.trainer import TrainingConfig


def test_without_tensorboard_a_run_is_the_same(tmp_path: Path) -> None:
    models = []
    for name, trackers in (("with", ["tensorboard"]), ("without", [])):
        config = tiny_runs.tiny_config(tmp_path, training={"steps": 3, "report_to": trackers})
        assert train(config, tmp_path / name, quiet=True)
        assert (tmp_path / name / "tensorboard").exists() == bool(trackers)
        assert (tmp_path / name / "figures" / "schedule.png").exists()
        models.append(load_file(tmp_path / name / "model" / "model.safetensors"))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_unknown_trackers_are_refused() -> None:
    with pytest.raises(UserError, match="^training.report_to.0: expected 'tensorboard', 'wandb' or 'trackio', got 'wandbb'"):
        build(TrainingConfig, {"report_to": ["wandbb"]}, "training")
    with pytest.raises(UserError, match="^training.report_to: 'tensorboard' is given twice"):
        check_trackers(["tensorboard", "tensorboard"])


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_missing_trackers_are_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    config = tiny_runs.tiny_config(tmp_path, training={"report_to": [name]})
    with pytest.raises(
        UserError, match=rf"^training.report_to: {name} is not installed: pip install 'diffusion-lm\[tracking\]'"
    ):
        train(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
