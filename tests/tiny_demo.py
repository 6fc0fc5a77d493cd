"""Models for the tests of the demo."""

import shutil
from pathlib import Path

import tiny_conditions

from diffusionlm.models.named import bundled_models
from diffusionlm.training.run import RunConfig, claim


def make_models(folder: Path) -> Path:
    """Make a run with the bundled model in ``folder``, and tiny models of other families; return ``folder``."""
    claim(RunConfig(), folder / "run")
    shutil.copytree(bundled_models()["restaurants"], folder / "run" / "model")
    for name in ("several", "masked", "causal"):
        tiny_conditions.trained(folder, name)
    return folder
