"""A run's folder: which checkpoints are whole and the log up to one of them."""

from __future__ import annotations

import json
from pathlib import Path

from diffusionlm.files import disk_errors as disk_errors

MARKER = "complete.json"  # of a checkpoint, written last


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the run's checkpoints that have their marker, oldest first."""
    found = [marker.parent for marker in (folder / "checkpoints").glob(f"checkpoint-*/{MARKER}")]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint, if there is one."""
    return next(reversed(complete_checkpoints(folder)), None)


def trim_log(path: Path, step: int) -> None:
    """Drop the rows of ``log.jsonl`` after ``step``, and a half-written last row: they are about to be written anew."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            break
    replacement = path.with_suffix(".new")
    replacement.write_text("".join(kept))
    replacement.replace(path)
