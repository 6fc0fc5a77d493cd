"""A model to try a seam on: the one named on the command line, or the bundled model ``restaurants``.

    python examples/tiny.py             print some samples of the bundled model
    python examples/tiny.py my-run      print some samples of ``my-run``

What needs a model of its own trains a small one here, in a few seconds.

The other examples import ``config`` and ``model`` from here, so that each of them shows its seam and little else.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from diffusionlm import Pipeline, RunConfig, train
from diffusionlm.config import build, merge

BUNDLED = "restaurants"
CONFIG: dict[str, Any] = {
    "data": {"max_length": 48},
    "model": {"dimension": 24, "backbone": {"name": "leave-one-out", "layers": 1, "query_layers": 1, "width": 48, "heads": 4}},
    "training": {"steps": 300, "batch_tokens": 512, "warmup": 30, "threads": 1, "precision": "fp32", "evaluation_texts": 50},
    "sampling": {"steps": 16, "sweeps": 3, "temperature": 1.1, "step_temperature": 0.5},
}


def config(**changes: Any) -> RunConfig:
    """Return the settings of a small run; ``changes`` are merged into the plain data, as a YAML file's would be."""
    return build(RunConfig, merge(CONFIG, changes))


def trained(**changes: Any) -> Path:
    """Train a small run in a new folder and return the folder."""
    folder = Path(tempfile.mkdtemp(prefix="example-")) / "run"
    settings = config(**changes)
    print(f"training {settings.training.steps} steps in {folder} ...", file=sys.stderr)
    train(settings, folder, write_samples=False, quiet=True)
    return folder


def model(folder: str | Path | None = None, **changes: Any) -> Pipeline:
    """Return the pipeline of the run or model in ``folder``, or of a small run trained with ``changes``, or the bundled one."""
    torch.set_num_threads(1)
    if folder is None:
        folder = trained(**changes) if changes else BUNDLED
    return Pipeline.from_pretrained(folder)


def main(folder: str | None = None) -> None:
    """Print five samples."""
    for row in model(folder)(5):
        print(row.text)


if __name__ == "__main__":
    main(*sys.argv[1:])
