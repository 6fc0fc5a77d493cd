"""The models that come with the package are built, rounded and measured by one command; here after two steps each."""

import json
from pathlib import Path

import pytest
import torch
from build_embedded_model import CLASSIFIERS, FEW, MODEL, MOST_BYTES, main
from safetensors.torch import load_file

from diffusionlm.evaluation.provenance import corpus_of
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.pipelines.rows import Controlled
from diffusionlm.restaurants.corpus import Restaurants


def test_the_models_are_small_and_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "models"
    folders = ["--runs", str(tmp_path / "runs"), "--out", str(out), "--results", str(tmp_path)]
    assert main([*folders, "--texts", "2", "--steps", "2"]) == 0
    figures = json.loads((tmp_path / "embedded-model.json").read_text())
    assert json.loads(capsys.readouterr().out) == {name: value for name, value in figures.items() if name != "machine"}
    assert figures[MODEL]["bytes"] + figures[FEW]["bytes"] < MOST_BYTES
    assert {*figures["classifiers"]} == {*CLASSIFIERS}
    weights = load_file(out / MODEL / "model.safetensors")
    assert {weight.dtype for weight in weights.values() if weight.ndim > 1} == {torch.bfloat16}
    assert sorted(path.name for path in (out / FEW).glob("*.safetensors")) == ["joint_head.safetensors"]
    assert corpus_of([out / MODEL]) == Restaurants()
    text = "".join(path.read_text() for path in out.rglob("*.*") if path.suffix in (".json", ".yaml", ".md"))
    assert str(tmp_path) not in text
    for name in (MODEL, FEW):
        assert "- meet `food=Japanese`: " in (out / name / "README.md").read_text()
        pipe = Pipeline.from_pretrained(out / name)
        rows = pipe(1, ["food=Japanese", "Length(8, 12)"], seed=3)
        assert isinstance(rows[0], Controlled) and rows[0].controls[1].passed
    assert pipe.model.joint is not None
