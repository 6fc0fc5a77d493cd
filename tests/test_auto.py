"""``diffusionlm.auto``: models, and the task text-diffusion, of transformers."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hub_server import connected, files_of
from tiny_runs import ROOT
from tiny_sources import trained
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel
from transformers.pipelines import PIPELINE_REGISTRY

import diffusionlm.auto
from diffusionlm import Pipeline
from diffusionlm.config import UserError
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.models.io import model_folder

pipeline: Any = transformers.pipeline  # whose types know its own tasks alone
MODEL = ROOT / "tests" / "golden" / "format-1"


def test_the_auto_classes_load_a_model_folder() -> None:
    assert isinstance(AutoModel.from_pretrained(MODEL), DiffusionLM)
    assert AutoTokenizer.from_pretrained(MODEL).get_vocab() == Pipeline.from_pretrained(MODEL).tokenizer.get_vocab()


def test_the_task_returns_the_samples_of_the_pipeline_as_dictionaries() -> None:
    task, own = pipeline("text-diffusion", model=str(MODEL), device="cpu", steps=2), Pipeline.from_pretrained(MODEL)
    assert isinstance(task, diffusionlm.auto.TextDiffusionPipeline) and task.tokenizer is not None
    rows = own(3, steps=2, seed=5)
    expected = [{"generated_text": row.text, "index": row.index, "seed": 5, "length": row.length} for row in rows]
    assert task(3, seed=5) == expected
    found = task(1, controls="food=Japanese")
    assert found[0]["generated_text"] == own(1, "food=Japanese", steps=2)[0].text and found[0]["controls"]
    assert task(2, batch_size=1) == pipeline("text-diffusion", model=task.model, device="cpu", batch_size=1)(2, steps=2)


def test_a_source_has_a_list_and_several_have_a_list_each(tmp_path: Path) -> None:
    run = trained(tmp_path, "source")
    task, own = pipeline("text-diffusion", model=str(run / "model"), device="cpu"), Pipeline.from_pretrained(run)
    texts = [row.text for row in own(2, source=["1 2", "3 4 1"])]
    assert [row["generated_text"] for row in task("1 2", count=2)] == texts[:2]
    found = task(iter(["1 2", "3 4 1"]), count=2)
    assert [[row["source"] for row in rows] for rows in found] == [["1 2"] * 2, ["3 4 1"] * 2]
    assert [row["generated_text"] for rows in found for row in rows] == texts


def test_a_model_of_the_hub_has_its_settings_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with connected(tmp_path, monkeypatch) as hub:
        first = hub.put("user/model", files_of(MODEL))
        hub.put("user/model", files_of(MODEL) | {"sampling.json": b'{"format_version": 2, "steps": 1}'})
        names = ("user/model", str(model_folder(f"user/model@{first}")))
        newest, old = (pipeline("text-diffusion", model=name, device="cpu") for name in names)
    assert newest.sampler.sampling.steps == 1 and old.sampler.sampling == Pipeline.from_pretrained(MODEL).sampling


def test_bfloat16_is_the_precision_of_the_arithmetic() -> None:
    task = pipeline("text-diffusion", model=str(MODEL), device="cpu", dtype=torch.bfloat16, steps=2)
    assert task.sampler.dtype == torch.bfloat16 and task.model.dtype == torch.float32
    assert len(task(2)) == 2


def test_what_the_task_refuses() -> None:
    config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    with pytest.raises(UserError, match="text-diffusion: expected a diffusion model of this library, got BertModel"):
        diffusionlm.auto.TextDiffusionPipeline(BertModel(config))
    model = DiffusionLM.load(MODEL)
    task = diffusionlm.auto.TextDiffusionPipeline(model, device="cpu")
    with pytest.raises(UserError, match="source: "):
        task("a source")
    with pytest.raises(UserError, match="text-diffusion: count is given twice"):
        task(2, count=3)
    model.name_or_path = model.config._name_or_path = ""
    with pytest.raises(UserError, match="expected a model that was loaded from a folder"):
        diffusionlm.auto.TextDiffusionPipeline(model)


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, diffusionlm; sys.exit(bool({'torch', 'transformers', 'huggingface_hub'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert "text-diffusion" in PIPELINE_REGISTRY.get_supported_tasks()
