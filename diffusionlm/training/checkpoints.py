"""The checkpoints of a run's folder, and the log up to one of them."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from diffusionlm.files import write_text
from diffusionlm.recipe.frozen import Frozen

MARKER = "complete.json"  # of a checkpoint, written last


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the run's checkpoints that have their marker, oldest first."""
    found = [marker.parent for marker in (folder / "checkpoints").glob(f"checkpoint-*/{MARKER}")]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, if there is one."""
    return next(reversed(complete_checkpoints(folder)), None)


def copied_teachers(objective: nn.Module) -> nn.ModuleDict:
    """Return the objective's teachers that started as copies of the model, which a checkpoint must hold, by attribute."""
    places = [(f"{place}/{name}", value) for place, module in objective.named_modules() for name, value in vars(module).items()]
    teachers = {place: value.module for place, value in places if isinstance(value, Frozen) and value.copied}
    return nn.ModuleDict({place.replace(".", "/"): module for place, module in teachers.items()})


def trim_log(path: Path, step: int) -> None:
    """Drop the rows of ``log.jsonl`` after ``step``, and an incomplete last row: the resumed run logs these steps again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            break
    write_text(path, "".join(kept))
