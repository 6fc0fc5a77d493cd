"""What a run folder holds: its config, log, samples, checkpoints, model and evaluations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from diffusionlm.config import UserError
from diffusionlm.files import read_json, read_text
from diffusionlm.models.io import model_folder
from diffusionlm.training.checkpoints import BEST, STATE, checkpoint_step, newest_checkpoint
from diffusionlm.training.run import RunConfig, read_config

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A run folder, with the folders of ``evaluations`` that are not in it."""

    folder: Path
    evaluations: Sequence[Path] = ()

    def __post_init__(self) -> None:
        """Raise UserError where the folder is none of a run."""
        expected = "expected the folder of a training run"
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: {expected}, but there is no such folder")
        if not (self.folder / "config.yaml").is_file():
            is_model = (self.folder / "config.json").is_file()
            found = "this is a model folder, which has no log" if is_model else "it has no config.yaml"
            raise UserError(f"{self.folder}: {expected}, but {found}")
        if not any((self.folder / name).exists() for name in ("data.json", "log.jsonl", "model")):
            raise UserError(f"{self.folder}: {expected}, but it has only a config.yaml, and neither a log nor a model")

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @cached_property
    def config(self) -> RunConfig:
        """The settings of the run."""
        return read_config([self.folder / "config.yaml"])

    @cached_property
    def log(self) -> list[Row]:
        """The rows of ``log.jsonl``, without a last one that is still being written.

        Raises:
            UserError: another row is damaged.
        """
        path, rows = self.folder / "log.jsonl", list[Row]()
        lines = read_text(path).split("\n") if path.exists() else []
        for number, line in enumerate(lines[:-1], start=1):
            try:
                row = json.loads(line)
                rows.append({**row, "step": int(row["step"])})
            except (ValueError, TypeError, KeyError, RecursionError):
                raise UserError(f"{path}:{number}: expected a row of the log, got {line[:60]!r}") from None
        return rows

    @property
    def training(self) -> list[Row]:
        """The rows of the log with the training loss."""
        return [row for row in self.log if "loss" in row]

    @property
    def validation(self) -> list[Row]:
        """The rows of the log with the validation loss."""
        return [row for row in self.log if "eval_loss" in row]

    @property
    def lowest(self) -> Row | None:
        """The first row with the lowest validation loss."""
        return min(self.validation, key=lambda row: float(row["eval_loss"]), default=None)

    @property
    def finished(self) -> bool:
        """Whether the run has reached its end."""
        return (self.folder / "model" / "finished").exists()

    @cached_property
    def kept_step(self) -> int | None:
        """The step whose weights ``model/`` has; None where no checkpoint is left that tells it."""
        checkpoint = newest_checkpoint(self.folder)
        if checkpoint is None:
            return None
        if (checkpoint / BEST).exists():
            return int(read_json(checkpoint / STATE).get("best_global_step") or 0) or None
        return checkpoint_step(checkpoint)

    @cached_property
    def samples(self) -> list[tuple[int, list[str]]]:
        """The samples of each step at which the run has saved some, in order."""
        named = [(re.fullmatch(r"step-(\d+)\.txt", path.name), path) for path in (self.folder / "samples").glob("step-*.txt")]
        steps = sorted((int(match[1]), path) for match, path in named if match)
        return [(step, read_text(path).splitlines()) for step, path in steps]

    @cached_property
    def model(self) -> PreTrainedModel:
        """The saved model. Raises UserError where there is none yet, or it cannot be loaded."""
        folder = model_folder(self.folder)
        if folder == self.folder:
            raise UserError("the run has not saved a model yet")
        return self.config.model.load(folder)

    @cached_property
    def data(self) -> Row:
        """What the run has recorded of its training texts."""
        path = self.folder / "data.json"
        found = read_json(path) if path.exists() else {}
        return found if isinstance(found, dict) else {}

    def evaluated(self, name: str) -> Iterator[Path]:
        """Yield the evaluations whose file has a ``name``: those in the run folder, then the others."""
        yield from sorted(self.folder.glob(f"*/{name}"))
        yield from (folder / name for folder in self.evaluations if (folder / name).is_file())
