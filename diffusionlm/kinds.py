"""Which pipeline writes with which kind of model, by the ``model_type`` in its config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from diffusionlm.causal import CausalPipeline
from diffusionlm.masked import MaskedLMConfig
from diffusionlm.model import DiffusionLMConfig
from diffusionlm.pipeline import Pipeline, Writer, model_folder
from diffusionlm.unmasking import MaskedPipeline

PIPELINES: dict[str, type[Writer[Any]]] = {
    DiffusionLMConfig.model_type: Pipeline,
    MaskedLMConfig.model_type: MaskedPipeline,
    "llama": CausalPipeline,
}


def pipeline_of(model: PreTrainedModel) -> type[Writer[Any]]:
    """Return the class that writes with ``model``."""
    return PIPELINES[model.config.model_type]


def open_pipeline(folder: str | Path, device: str = "cpu", dtype: str = "fp32") -> Writer[Any]:
    """Read a model folder of any of the library's kinds; ``dtype`` is that of the network's arithmetic, fp32 or bf16.

    Raises:
        UserError: not a model folder, damaged, of an unknown kind or newer format; an unknown device or dtype.
    """
    folder = model_folder(folder)
    try:
        kind = json.loads((folder / "config.json").read_text())["model_type"]
        found = PIPELINES[kind]
    except (OSError, ValueError, KeyError, TypeError):
        found = Pipeline  # which says what is wrong
    return found.from_pretrained(folder, device, dtype)
