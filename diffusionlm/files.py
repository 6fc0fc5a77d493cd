"""Reading and atomic writing of UTF-8 files: one finds either the previous file or the new one, never a part of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from diffusionlm.config import UserError

STAGED = ".staged"  # in a folder that ``write_folder`` prepares: without it, the folder is not ours to remove


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file. Raises UserError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text, but byte {error.start} is none") from None


def read_json(path: Path) -> Any:
    """Return the value of a JSON file. Raises UserError where it cannot be read or is damaged."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected JSON, but the file is damaged: {error}") from None


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Create or replace ``path``: ``save(staged)`` writes a neighbouring file, which is then renamed.

    Raises:
        UserError: the disk is full, the permission is missing.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f"{path.name}.{os.getpid()}.new")  # each of several processes stages its own
        try:
            save(staged)
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Create or replace a text file in UTF-8; see ``write``."""
    write(path, lambda staged: staged.write_text(text, encoding="utf-8"))


def write_folder(folder: Path, save: Callable[[Path], object], trial: bool = False) -> None:
    """Create or replace the files in ``folder`` that ``save(staged)`` writes to a neighbouring folder.

    ``trial`` leaves ``folder`` as it is: the call only shows whether saving is possible.

    Raises:
        UserError: a file cannot be written, each is then either the old or the new one; the neighbour holds other files.
    """
    staged = folder.with_name(f"{folder.name}.new")
    if staged.is_symlink() or (staged.exists() and not (staged / STAGED).is_file()):
        raise UserError(f"{staged}: this place is needed to prepare {folder.name}/; rename or move what is there")
    with disk_errors(folder):
        try:
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True)
            (staged / STAGED).touch()
            save(staged)
            open_permissions(staged)
            if not trial:
                folder.mkdir(exist_ok=True)
                for file in sorted(path for path in staged.iterdir() if path.name != STAGED):
                    os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def open_permissions(folder: Path) -> None:
    """Give the files in ``folder`` the permissions of the umask: safetensors makes files that only their owner can read."""
    mask = os.umask(0o077)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


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
