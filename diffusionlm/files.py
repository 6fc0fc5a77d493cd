"""Atomic file writing: a reader or a resumed run finds either the previous file or the new one, never a part of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from diffusionlm.config import UserError


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Create or replace ``path``: ``save(staged)`` writes a neighbouring file, which is then renamed.

    Raises:
        UserError: the disk is full, the permission is missing.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f"{path.name}.{os.getpid()}.new")  # each of several processes stages its own
        save(staged)
        staged.replace(path)


def write_text(path: Path, text: str) -> None:
    """Create or replace a text file; see ``write``."""
    write(path, lambda staged: staged.write_text(text, encoding="utf-8"))


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a failure to write ``path`` (a full disk, no permission) into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError is what torch.save raises
        if isinstance(error, RuntimeError) and "write" not in str(error).lower():
            raise
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be written: {reason}; what was saved before is intact") from error
