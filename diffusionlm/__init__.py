"""Continuous-embedding text diffusion: train on your texts, write sentences, steer them.

The public names below are imported when first used, so that ``import diffusionlm`` and the command line's help are quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusionlm.config import UserError as UserError
    from diffusionlm.core.process import GaussianDiffusion as GaussianDiffusion
    from diffusionlm.core.sampler import sample as sample
    from diffusionlm.evaluation.benchmark import EvaluationConfig as EvaluationConfig
    from diffusionlm.evaluation.benchmark import evaluate as evaluate
    from diffusionlm.evaluation.judge import Judge as Judge
    from diffusionlm.evaluation.judge import perplexity as perplexity
    from diffusionlm.evaluation.likelihood import Bound as Bound
    from diffusionlm.evaluation.likelihood import bound as bound
    from diffusionlm.evaluation.masked_likelihood import masked_bound as masked_bound
    from diffusionlm.evaluation.scoring import ScoringConfig as ScoringConfig
    from diffusionlm.evaluation.scoring import score as score
    from diffusionlm.models.classifier import LatentClassifier as LatentClassifier
    from diffusionlm.models.diffusion import DiffusionLM as DiffusionLM
    from diffusionlm.models.diffusion import DiffusionLMConfig as DiffusionLMConfig
    from diffusionlm.models.diffusion import ModelConfig as ModelConfig
    from diffusionlm.models.masked import MaskedConfig as MaskedConfig
    from diffusionlm.models.masked import MaskedLM as MaskedLM
    from diffusionlm.pipelines.auto import open_pipeline as open_pipeline
    from diffusionlm.pipelines.base import SamplingConfig as SamplingConfig
    from diffusionlm.pipelines.diffusion import Pipeline as Pipeline
    from diffusionlm.pipelines.masked import MaskedPipeline as MaskedPipeline
    from diffusionlm.training.run import RunConfig as RunConfig
    from diffusionlm.training.run import read_config as read_config
    from diffusionlm.training.run import train as train

if TYPE_CHECKING:
    Classifier = LatentClassifier

__version__ = "0.2.0"

_HOMES = {
    "Classifier": "models.classifier:LatentClassifier",
    "LatentClassifier": "models.classifier",
    "UserError": "config",
    "GaussianDiffusion": "core.process",
    "EvaluationConfig": "evaluation.benchmark",
    "evaluate": "evaluation.benchmark",
    "Judge": "evaluation.judge",
    "perplexity": "evaluation.judge",
    "open_pipeline": "pipelines.auto",
    "Bound": "evaluation.likelihood",
    "bound": "evaluation.likelihood",
    "MaskedConfig": "models.masked",
    "MaskedLM": "models.masked",
    "masked_bound": "evaluation.masked_likelihood",
    "DiffusionLM": "models.diffusion",
    "DiffusionLMConfig": "models.diffusion",
    "ModelConfig": "models.diffusion",
    "Pipeline": "pipelines.diffusion",
    "SamplingConfig": "pipelines.base",
    "RunConfig": "training.run",
    "read_config": "training.run",
    "train": "training.run",
    "sample": "core.sampler",
    "ScoringConfig": "evaluation.scoring",
    "score": "evaluation.scoring",
    "MaskedPipeline": "pipelines.masked",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'diffusionlm' has no attribute {name!r}")
    module, _, own_name = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"diffusionlm.{module}"), own_name or name)
