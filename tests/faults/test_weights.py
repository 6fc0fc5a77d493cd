"""Weights that are NaN or infinite make every text and figure worthless: loading refuses them, as it does numbers like that."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_code import bound, gpt2, sequence_classifier
from tiny_runs import ROOT, TINY, tiny_plain

from diffusionlm.config import UserError, build
from diffusionlm.evaluation.judge import Judge
from diffusionlm.models.classifier import LatentClassifier
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.training.run import RunConfig, train

SMALL: dict[str, Any] = TINY
STORED = ROOT / "tests" / "golden" / "format-1"


def stored(folder: Path) -> Path:
    return Path(shutil.copytree(STORED, folder))


def stored_classifier(folder: Path) -> Path:
    return Path(shutil.copytree(STORED / "classifiers" / "attributes", folder))


def of_family(model: dict[str, Any], **changes: Any) -> Callable[[Path], Path]:
    runs: list[Path] = []

    def make(folder: Path) -> Path:
        """Return a copy of the model, which is trained at the first call."""
        if not runs:
            plain = {**tiny_plain(folder.parent), **changes, "model": model}
            plain["training"] = {**SMALL["training"], "steps": 1}
            assert train(build(RunConfig, plain), folder.parent / "trained", write_samples=False, quiet=True)
            runs.append(folder.parent / "trained")
        return Path(shutil.copytree(runs[0] / "model", folder))

    return make


MASKED = of_family({**SMALL["model"], "name": "masked"}, objective="masked", sampling={"sampler": "ancestral"})
CAUSAL = of_family({"name": "causal", "layers": 1, "width": 16, "heads": 2}, objective="causal", sampling={})
SEQ2SEQ = of_family(
    {"name": "seq2seq", "layers": 1, "width": 16, "heads": 2, "condition": {"column": "text", "layers": 1}},
    objective="seq2seq",
    sampling={},
)
READERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "a diffusion model": (stored, open_pipeline),
    "the model to start from": (stored, DiffusionLM.load),
    "a masked model": (MASKED, open_pipeline),
    "an autoregressive model": (CAUSAL, open_pipeline),
    "an encoder-decoder": (SEQ2SEQ, open_pipeline),
    "a classifier": (stored_classifier, LatentClassifier.load),
    "a judge": (gpt2, Judge.load),
    "a sequence classifier": (sequence_classifier, lambda folder: bound().sequence_classifier(str(folder))),
}


@pytest.mark.parametrize("reader", READERS)
def test_weights_that_are_not_finite_are_refused(reader: str, tmp_path: Path) -> None:
    make, use = READERS[reader]
    folder = make(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name, weight in weights.items() if weight.is_floating_point() and weight.numel() > 1)
    for number in (float("nan"), float("inf"), -float("inf")):
        weights[name].view(-1)[-1] = number
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match="expected finite weights, but .* holds NaN or infinity; the model") as caught:
            use(folder)
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_weights_that_are_missing_or_too_many_are_refused(reader: str, tmp_path: Path) -> None:
    make, use = READERS[reader]
    folder = make(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    fewer = {name: weight for name, weight in weights.items() if name != [*weights][-1]}
    for changed in (fewer, {**weights, "another": torch.ones(2)}):
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match="the weights do not fit the config"):
            use(folder)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("file", ["config.json", "sampling.json", "tokenizer_config.json"])
def test_numbers_of_json_files_that_are_not_finite_are_refused(file: str, number: str, tmp_path: Path) -> None:
    folder = stored(tmp_path / "model")
    plain = json.loads((folder / file).read_text())
    plain["settings" if file == "config.json" else "temperature"] = {"dimension": "HERE"} if file == "config.json" else "HERE"
    (folder / file).write_text(json.dumps(plain).replace('"HERE"', number))
    with pytest.raises(
        UserError, match=f"{file}: expected JSON, but the file is damaged: expected finite numbers, got {number}"
    ):
        open_pipeline(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "it gives numbers that are NaN or infinite"),
        ({"max_position_embeddings": -1}, "it gives a context of -1 tokens"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: expected at most 10000, got 1000000000"),
        ({"hidden_act": "os.system"}, "the model is damaged or incomplete"),
    ],
)
def test_a_config_of_an_autoregressive_model_that_gives_no_numbers_is_refused(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = CAUSAL(tmp_path / "model")
    plain = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**plain, **changes}))
    with pytest.raises(UserError, match=sentence):
        open_pipeline(folder)
