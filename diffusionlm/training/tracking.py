"""Trackers of experiments, ``training.report_to``: Weights & Biases and trackio receive the rows of the log, like TensorBoard.

Both read their own environment variables, such as WANDB_MODE=offline, WANDB_PROJECT or TRACKIO_DIR. Each session of a run that
was interrupted is a run of theirs, all in one group.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import rewrite_logs

from diffusionlm.config import UserError, read_yaml
from diffusionlm.data.reading import read_text

Tracking = Literal["tensorboard", "wandb", "trackio"]
PROJECT = "diffusionlm"


def check_trackers(names: Sequence[Tracking]) -> None:
    """Raise UserError where a tracker is named twice, or its package is not installed."""
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"training.report_to: {name!r} is given twice")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"training.report_to: {name} is not installed: pip install 'diffusion-lm[tracking]'")


class Tracker(TrainerCallback):
    """Passes the rows of a run's log to ``wandb`` or ``trackio``, whose functions have the same names."""

    def __init__(self, name: str, folder: Path) -> None:
        """Begin a run in the tracker, with the settings of the run in ``folder``. Raises UserError where that fails."""
        self.name, self.library = name, importlib.import_module(name)
        given: dict[str, Any] = {"project": PROJECT}
        if name == "wandb":
            given = {"project": os.environ.get("WANDB_PROJECT", PROJECT), "dir": os.environ.get("WANDB_DIR", str(folder))}
        config = folder / "config.yaml"
        settings = read_yaml(read_text(config), str(config)) if config.exists() else {}
        try:
            run = folder.resolve().name
            self.library.init(name=run, group=run, config=settings, **given)
        except Exception as error:  # the library's own kinds, and those of the network
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"training.report_to: {name} cannot begin a run: {reason}") from None

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Pass on a row, under the names that it has in TensorBoard."""
        if "train_runtime" not in logs:  # the Trainer's summary
            self.library.log(rewrite_logs(logs), step=state.global_step)


@contextmanager
def tracked(names: Sequence[Tracking], folder: Path) -> Iterator[list[Tracker]]:
    """Yield the trackers of ``names`` beside TensorBoard, and end their runs."""
    trackers: list[Tracker] = []
    try:
        for name in names:
            if name != "tensorboard":
                trackers.append(Tracker(name, folder))
        yield trackers
    finally:
        for tracker in trackers:
            tracker.library.finish()
