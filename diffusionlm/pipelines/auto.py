"""The pipeline of each model family, by the ``model_type`` in the model's config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from diffusionlm.config import UserError
from diffusionlm.models.classifier import ClassifierModelConfig
from diffusionlm.models.diffusion import DiffusionLMConfig
from diffusionlm.models.io import model_config, model_folder
from diffusionlm.models.masked import MaskedLMConfig
from diffusionlm.pipelines.base import BasePipeline
from diffusionlm.pipelines.causal import CausalPipeline
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.pipelines.masked import MaskedPipeline
from diffusionlm.pipelines.pieces import check_single
from diffusionlm.pipelines.seq2seq import Seq2SeqPipeline

PIPELINES: dict[str, type[BasePipeline[Any]]] = {
    DiffusionLMConfig.model_type: Pipeline,
    MaskedLMConfig.model_type: MaskedPipeline,
    "llama": CausalPipeline,
    "t5": Seq2SeqPipeline,
}


def pipeline_of(model: PreTrainedModel) -> type[BasePipeline[Any]]:
    """Return the pipeline class of ``model``."""
    return PIPELINES[model.config.model_type]


def open_pipeline(
    folder: str | Path, device: str = "cpu", dtype: str = "fp32", adapter: str | Path | None = None
) -> BasePipeline[Any]:
    """Load a model folder of any family; the arguments are those of ``BasePipeline.from_pretrained``.

    Raises:
        UserError: not a model folder, damaged, of an unknown family or a newer format; an unknown device or dtype; an adapter
            of another model.
    """
    folder = model_folder(folder)
    kind = str(model_config(folder).get("model_type"))
    if kind == ClassifierModelConfig.model_type:
        raise UserError(f"{folder}: expected a model that generates text, but this is a classifier")
    return PIPELINES.get(kind, Pipeline).from_pretrained(folder, device, dtype, adapter)  # which reports what is wrong


def open_models(
    folders: Sequence[str | Path], device: str, dtype: str, adapter: str | Path | None
) -> list[tuple[str | Path, BasePipeline[Any]]]:
    """Open models for a report, each with the folder that describes it; an ``adapter`` describes the one model it changes.

    Raises:
        UserError: as ``open_pipeline``; an adapter for no model, or for several; a model that was trained on packed rows.
    """
    if adapter is not None and len(folders) != 1:
        raise UserError(f"adapter: expected one model, its base, got {len(folders)}")
    opened = [(folder if adapter is None else adapter, open_pipeline(folder, device, dtype, adapter)) for folder in folders]
    for folder, pipeline in opened:
        if not pipeline.exact_likelihood:
            check_single(pipeline.model, str(folder))
    return opened
