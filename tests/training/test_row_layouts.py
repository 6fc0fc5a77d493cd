"""Runs on pieces with context and on packed rows: after an interruption they end with the same bits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tiny_config

from diffusionlm.training.run import train

TRAINING = {"steps": 4, "save_every": 2, "evaluate_every": 4, "sample_every": 100}


@pytest.mark.parametrize(
    "data", [{"packing": "wrap"}, {"too_long": "split", "context": 4, "max_length": 16}], ids=["packed", "context"]
)
def test_a_run_resumes_with_the_same_bits(data: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data=data, model={"cooccurrence": 0}, training=TRAINING)
    weights = []
    for _ in range(2):
        assert train(config, tmp_path / "run", quiet=True, write_samples=False)
        weights.append(load_file(tmp_path / "run" / "model" / "model.safetensors"))
        (tmp_path / "run" / "model" / "finished").unlink()
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-4")
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
