"""Adapters: a part of the weights is trained and saved, and loads onto the base model."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import tiny_config
from transformers import PreTrainedModel

from diffusionlm.config import UserError, to_plain
from diffusionlm.models.adapters import Adapter, P
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.training.run import train


@dataclass(frozen=True)
class Biases(Adapter):
    """The biases alone."""

    def wrap(self, model: P) -> P:
        for name, weight in model.named_parameters():
            weight.requires_grad_(name.endswith("bias"))
        return model

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        weights = {name: weight for name, weight in model.state_dict().items() if name.endswith("bias")}
        save_file(weights, folder / "biases.safetensors")

    def load(self, model: P, folder: Path) -> P:
        model.load_state_dict(load_file(folder / "biases.safetensors"), strict=False)
        return model


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a base model, then its biases."""
    folder = tmp_path_factory.mktemp("adapted")
    assert train(tiny_config(folder), folder / "base", quiet=True)
    plain = {"init_from": str(folder / "base"), "adapter": to_plain(Biases())}
    assert train(tiny_config(folder, **plain), folder / "tuned", quiet=True)
    return folder


def test_only_the_adapter_is_trained_and_saved(tuned: Path) -> None:
    saved = tuned / "tuned" / "model"
    assert {"adapter.json", "biases.safetensors", "config.json"} <= {file.name for file in saved.iterdir()}
    assert not (saved / "model.safetensors").exists()
    assert json.loads((saved / "adapter.json").read_text())["base"] == str(tuned / "base")
    base, model = DiffusionLM.load(tuned / "base" / "model").state_dict(), DiffusionLM.load(saved).state_dict()
    changed = {name for name in base if not torch.equal(base[name], model[name])}
    assert changed and all(name.endswith("bias") for name in changed)
    averaged = load_file(tuned / "tuned" / "checkpoints" / "checkpoint-8" / "ema.safetensors")
    assert all(torch.equal(model[name], averaged[f"module.model.{name}"]) for name in changed)


def test_an_adapted_model_samples_and_its_run_resumes(tuned: Path, tmp_path: Path) -> None:
    texts = [row.text for row in open_pipeline(tuned / "tuned").stream(2)]
    assert len(texts) == 2
    shutil.copytree(tuned / "tuned", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-8")
    config = tiny_config(tuned, init_from=str(tuned / "base"), adapter=to_plain(Biases()))
    assert train(config, tmp_path / "run", quiet=True)
    one, other = (load_file(run / "model" / "biases.safetensors") for run in (tuned / "tuned", tmp_path / "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_adapter_needs_a_base_model(tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^init_from: expected a base model, since the adapter 'test_adapters:Biases'"):
        train(tiny_config(tuned, adapter=to_plain(Biases())), tmp_path / "run", quiet=True)
    shutil.copytree(tuned / "tuned" / "model", tmp_path / "model")
    (tmp_path / "model" / "adapter.json").write_text('{"format_version": 2}')
    with pytest.raises(UserError, match=r"adapter\.json: expected the keys base and adapter, got format_version"):
        DiffusionLM.load(tmp_path / "model")
