"""A run's folder: which checkpoints are whole, the log up to one of them, and a sentence where the disk is full."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from diffusionlm.config import UserError

MARKER = "complete.json"  # of a checkpoint, written last


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a failure to write ``path`` (a full disk, no permission) into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written: {_reason(error)}; what was saved before is whole") from error
    except RuntimeError as error:  # torch.save's way to say the same
        if "PytorchStreamWriter" in str(error) or "write" in str(error).lower():
            raise UserError(f"{path}: cannot be written: {_reason(error)}; what was saved before is whole") from error
        raise


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error).splitlines()[0]


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
