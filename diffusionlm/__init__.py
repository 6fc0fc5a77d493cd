"""Continuous-embedding text diffusion: train on your texts, write sentences, steer them.

The public names below are imported when first used, so that ``import diffusionlm`` and the command line's help are quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusionlm.classifier import Classifier as Classifier
    from diffusionlm.config import UserError as UserError
    from diffusionlm.diffusion import GaussianDiffusion as GaussianDiffusion
    from diffusionlm.frontier import EvaluationConfig as EvaluationConfig
    from diffusionlm.frontier import evaluate as evaluate
    from diffusionlm.judge import Judge as Judge
    from diffusionlm.judge import perplexity as perplexity
    from diffusionlm.kinds import open_pipeline as open_pipeline
    from diffusionlm.likelihood import Bound as Bound
    from diffusionlm.likelihood import bound as bound
    from diffusionlm.masked import MaskedConfig as MaskedConfig
    from diffusionlm.masked import MaskedLM as MaskedLM
    from diffusionlm.masked_bound import masked_bound as masked_bound
    from diffusionlm.model import DiffusionLM as DiffusionLM
    from diffusionlm.model import DiffusionLMConfig as DiffusionLMConfig
    from diffusionlm.model import ModelConfig as ModelConfig
    from diffusionlm.pipeline import Pipeline as Pipeline
    from diffusionlm.run import RunConfig as RunConfig
    from diffusionlm.run import read_config as read_config
    from diffusionlm.run import train as train
    from diffusionlm.sampling import sample as sample
    from diffusionlm.scoring import ScoringConfig as ScoringConfig
    from diffusionlm.scoring import score as score
    from diffusionlm.unmasking import MaskedPipeline as MaskedPipeline
    from diffusionlm.writer import SamplingConfig as SamplingConfig

__version__ = "0.1.0"

_HOMES = {
    "Classifier": "classifier",
    "UserError": "config",
    "GaussianDiffusion": "diffusion",
    "EvaluationConfig": "frontier",
    "evaluate": "frontier",
    "Judge": "judge",
    "perplexity": "judge",
    "open_pipeline": "kinds",
    "Bound": "likelihood",
    "bound": "likelihood",
    "MaskedConfig": "masked",
    "MaskedLM": "masked",
    "masked_bound": "masked_bound",
    "DiffusionLM": "model",
    "DiffusionLMConfig": "model",
    "ModelConfig": "model",
    "Pipeline": "pipeline",
    "SamplingConfig": "writer",
    "RunConfig": "run",
    "read_config": "run",
    "train": "run",
    "sample": "sampling",
    "ScoringConfig": "scoring",
    "score": "scoring",
    "MaskedPipeline": "unmasking",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'diffusionlm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diffusionlm.{_HOMES[name]}"), name)
