"""Provenance of figures: the machine, a model's fingerprint, its training and its corpus."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import torch
from transformers import PreTrainedModel

from diffusionlm.config import UserError, nearest
from diffusionlm.data.corpora import Corpus
from diffusionlm.evaluation.text_metrics import TrainingTexts
from diffusionlm.files import read_text
from diffusionlm.models.io import fingerprint
from diffusionlm.models.named import named_folder
from diffusionlm.training.run import read_config


def machine() -> dict[str, Any]:
    """Return the machine's description and the versions of the software."""
    version = None
    with suppress(importlib.metadata.PackageNotFoundError):  # run from a checkout that is not installed
        version = importlib.metadata.version("diffusion-lm")
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusion-lm": version,
    }


def _processor() -> str:
    """Return the CPU's name and number of cores, as far as the system names them."""
    with suppress(OSError):
        names = [
            line.partition(": ")[2]
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if "model name" in line
        ]
        return f"{names[0]}, {len(names)} cores" if names else platform.machine()
    return platform.processor() or platform.machine()


def config_of(folders: Sequence[str | Path]) -> Path | None:
    """Return the first ``config.yaml`` among ``folders`` of runs, of the models inside runs, or of bundled models.

    That of a model of the hub is not read: building its components imports their modules.
    """
    named = [named_folder(Path(folder)) for folder in folders]
    paths = [path / "config.yaml" for folder in named for path in (folder, folder.resolve().parent)]
    return next((path for path in paths if path.is_file()), None)


def corpus_of(folders: Sequence[str | Path]) -> Corpus:
    """Return the corpus of the first run among ``folders``. Raises UserError where none of them is a run's folder."""
    if path := config_of(folders):
        return read_config([path]).data.corpus
    named = " and ".join(str(folder) for folder in folders)
    raise UserError(f"corpus: expected a run's folder with a config.yaml, got {named}; say --data.corpus, or --config FILE")


class LoadedCorpus:
    """A corpus's splits, its training texts and its own metrics, loaded once."""

    def __init__(self, corpus: Corpus) -> None:
        self.splits = corpus.load()
        texts = self.splits["train"]["text"][:]
        self.training, self.metrics = TrainingTexts(texts), corpus.metrics(texts)

    def split(self, name: str) -> datasets.Dataset:
        """Return a split. Raises UserError where the corpus has no such split."""
        if name not in self.splits:
            raise UserError(f"split: this corpus has no split {name!r}{nearest(name, self.splits)}")
        return self.splits[name]


def training_of(folder: str | Path) -> dict[str, Any]:
    """Return a run's training steps, tokens, seconds and CPU seconds over all its sessions, from its log; {} without one."""
    logged = []
    with suppress(OSError, ValueError):
        if config := config_of([folder]):
            lines = read_text(config.with_name("log.jsonl")).splitlines()
            logged = [row for row in map(json.loads, lines) if "tokens" in row]
    if not logged:
        return {}
    last = logged[-1]
    seconds = {f"training_{name}": round(last[name], 1) for name in ("seconds", "processor_seconds") if name in last}
    return {"training_steps": last["step"], "training_tokens": last["tokens"], **seconds}


def described(folder: str | Path, model: PreTrainedModel) -> dict[str, Any]:
    """Return a report's description of a model: its folder, family, size and training."""
    return {
        "folder": str(folder),
        "fingerprint": fingerprint(folder),
        "family": model.config.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **training_of(folder),
    }
