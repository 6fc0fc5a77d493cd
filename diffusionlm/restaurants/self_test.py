"""A test of the installation: train a tiny model on texts of the restaurants corpus, and sample from it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusionlm.config import UserError
from diffusionlm.data.batches import DataConfig
from diffusionlm.data.corpora import Files
from diffusionlm.models.backbones import Transformer
from diffusionlm.models.diffusion import ModelConfig
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.restaurants.corpus import packaged
from diffusionlm.training.run import RunConfig, train
from diffusionlm.training.trainer import TrainingConfig

TEXTS, STEPS = 200, 10
CONTROL = 'Length(8, 12) & Words("food")'


def self_test() -> dict[str, Any]:
    """Return the seconds that training a tiny model in a temporary folder and sampling from it took, and a sample.

    Raises:
        UserError: as ``check``; the corpus is not here; as ``train``.
        KeyboardInterrupt: Ctrl-C while the model was trained.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="diffusionlm-") as place:
        folder = Path(place)
        texts = folder / "texts.txt"
        texts.write_text("\n".join(packaged("validation")["text"][:TEXTS]), encoding="utf-8")
        if not train(_config(texts), folder / "run", write_samples=False, quiet=True):
            raise KeyboardInterrupt
        pipeline = Pipeline.from_pretrained(folder / "run")
        samples, again = pipeline(2, CONTROL), pipeline(2, CONTROL)
    check(samples, again)
    return {"result": "OK", "seconds": round(time.perf_counter() - started, 1), "sample": samples[0].text}


def check(samples: Sequence[Any], again: Sequence[Any]) -> None:
    """Raise UserError where controlled samples of one seed differ, or one does not pass its control."""
    for first, second in zip(samples, again, strict=True):
        if first.text != second.text:
            raise UserError(f"expected the same sample from the same seed, got {first.text!r}, then {second.text!r}")
        for outcome in first.controls:
            if not outcome.passed:
                raise UserError(f"expected a sample with {outcome.control}, got {first.text!r}")


def _config(texts: Path) -> RunConfig:
    return RunConfig(
        DataConfig(Files(str(texts))),
        ModelConfig(dimension=8, backbone=Transformer(layers=1, width=16, heads=2)),
        training=TrainingConfig(steps=STEPS, threads=1, log_every=STEPS, evaluate_every=STEPS, save_every=STEPS),
        sampling=SamplingConfig(steps=4, passes=1, sweeps=0),
    )
