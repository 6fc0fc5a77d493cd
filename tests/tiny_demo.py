"""Models for the tests of the demo."""

import shutil
from pathlib import Path

import tiny_conditions
from tiny_runs import ROOT

from diffusionlm.training.run import RunConfig, claim

STORED = ROOT / "tests" / "golden" / "format-1"


def make_models(folder: Path) -> Path:
    """Make a run of the restaurants corpus in ``folder``, and tiny models of other families; return ``folder``."""
    claim(RunConfig(), folder / "run")
    shutil.copytree(STORED, folder / "run" / "model")
    for name in ("several", "masked", "causal"):
        tiny_conditions.trained(folder, name)
    return folder
