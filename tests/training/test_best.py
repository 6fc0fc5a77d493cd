"""Which weights a run's model has: those of the evaluation with the lowest validation loss, or the last."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tiny_config

from diffusionlm.training.checkpoints import BEST
from diffusionlm.training.run import train

# A rate at which the loss rises from one evaluation to the next.
WILD: dict[str, Any] = {
    "select": "best", "steps": 4, "evaluate_every": 2, "keep": 9, "warmup": 0, "decay": "constant", "ema": 0.0,
    "optimizer": {"name": "muon", "matrix_learning_rate": 1.0, "learning_rate": 0.3},
}  # fmt: skip


def losses(run: Path) -> dict[int, float]:
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row["eval_loss"] for row in logged if "eval_loss" in row}


def network(run: Path) -> torch.Tensor:
    return load_file(run / "model" / "model.safetensors")["network.down.weight"]


def averaged(run: Path, step: int) -> torch.Tensor:
    return load_file(run / "checkpoints" / f"checkpoint-{step}" / "ema.safetensors")["module.model.network.down.weight"]


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wild")
    assert train(tiny_config(folder, training=WILD), folder / "run", quiet=True)
    return folder / "run"


def test_the_model_is_that_of_the_lowest_validation_loss(wild: Path) -> None:
    found = losses(wild)
    best = min(found, key=found.__getitem__)
    assert best != max(found), found  # else this tests nothing
    assert torch.equal(network(wild), averaged(wild, best))
    assert not torch.equal(network(wild), averaged(wild, 4))


def test_a_run_that_stops_early_goes_on_with_its_best_weights(wild: Path, tmp_path: Path) -> None:
    run = shutil.copytree(wild, tmp_path / "run")
    (run / "model" / "finished").unlink()
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    assert (run / "checkpoints" / "checkpoint-2" / BEST).exists()
    assert train(tiny_config(wild.parent, training=WILD), run, quiet=True)
    assert torch.equal(network(run), network(wild))


def test_the_last_weights_where_they_are_asked_for(wild: Path, tmp_path: Path) -> None:
    assert train(tiny_config(wild.parent, training={**WILD, "select": "last"}), tmp_path / "run", quiet=True)
    assert torch.equal(network(tmp_path / "run"), averaged(wild, 4))
    assert not (tmp_path / "run" / "checkpoints" / "checkpoint-4" / BEST).exists()


def test_the_end_of_training_is_evaluated(tmp_path: Path) -> None:
    assert train(tiny_config(tmp_path, training={"steps": 5, "evaluate_every": 3}), tmp_path / "run", quiet=True)
    assert list(losses(tmp_path / "run")) == [3, 5]
