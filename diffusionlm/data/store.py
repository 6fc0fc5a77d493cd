"""A cache on disk of what is made from large corpora: texts, tokenizers, encoded rows.

An entry is a folder named by the digest of its key, which holds all that its content depends on: another file or setting is
another entry. It is complete with its marker, which is written last into a neighbouring folder that is then renamed. A file
that is not what the marker says (its size, its CRC-32) makes the entry damaged; it is then made again. Of several processes
the first makes an entry, and the others wait for it.

The cache is the folder ``diffusionlm`` in the cache of ``datasets`` (HF_HOME, HF_DATASETS_CACHE), or the folder that the
environment variable DIFFUSIONLM_CACHE names; ``off`` there disables it. Each entry may be deleted at any time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

from diffusionlm.config import UserError
from diffusionlm.progress import say

FORMAT = 1  # of the entries: another number makes all of them again
LARGE = 2**23  # bytes of texts from which on they are cached; less is read and encoded in seconds
MARKER = "complete.json"
VARIABLE = "DIFFUSIONLM_CACHE"


@dataclass(frozen=True)
class Entry:
    """The folder of an entry, and the ``facts`` about its content that were stored with it."""

    folder: Path
    facts: Mapping[str, Any]


def cache_folder() -> Path | None:
    """Return the folder of the cache, None where it is disabled."""
    place = os.environ.get(VARIABLE, "")
    if place == "off":
        return None
    return Path(place).expanduser() if place else Path(datasets.config.HF_DATASETS_CACHE) / "diffusionlm"


def is_cached(size: int) -> bool:
    """Return whether texts of ``size`` bytes are cached."""
    return size >= LARGE and cache_folder() is not None


def stored(kind: str, key: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]) -> Entry:
    """Return the entry of ``key``; where there is none, ``make(folder)`` writes its files and returns its facts.

    The versions of the libraries that the content depends on are part of each key.

    Raises:
        UserError: the cache cannot be written; whatever ``make`` raises.
    """
    root = cache_folder()
    assert root is not None, "callers ask is_cached before"
    libraries = {name: version(name) for name in ("datasets", "tokenizers", "transformers")}
    plain = json.dumps({"format": FORMAT, **libraries, **key}, sort_keys=True)
    folder = root / f"{kind}-{hashlib.sha256(plain.encode()).hexdigest()[:32]}"
    if found := _intact(folder):
        return found
    with _written(root):
        root.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if found := _intact(folder):
                return found
            if folder.exists():
                say(f"{folder}: this entry of the cache is damaged, and is made again")
            return _make(folder, make)


def _make(folder: Path, make: Callable[[Path], Mapping[str, Any]]) -> Entry:
    staged = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(staged, ignore_errors=True)  # of a process that was killed: the lock is ours
    staged.mkdir()
    try:
        facts = make(staged)
        files = {path.name: [path.stat().st_size, _checksum(path)] for path in sorted(staged.iterdir())}
        (staged / MARKER).write_text(json.dumps({"files": files, "facts": facts}), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    found = _intact(folder)
    if found is None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return found


def _intact(folder: Path) -> Entry | None:
    """Return the entry in ``folder``, None where there is none, or a file of it is not as it was written."""
    try:
        plain = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        for name, (size, checksum) in plain["files"].items():
            if (folder / name).stat().st_size != size or _checksum(folder / name) != checksum:
                return None
        return Entry(folder, plain["facts"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:  # not mapped: all of its pages would count as memory of this process
        while block := file.read(2**22):
            checksum = zlib.crc32(block, checksum)
    return checksum


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of an entry; the operating system releases it when the process ends, however it ends."""
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        say(f"{folder}: another process is making this entry of the cache; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _written(root: Path) -> Iterator[None]:
    """Turn a failure to write the cache into a UserError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise UserError(
            f"{root}: the cache of large corpora cannot be written: {reason}; set {VARIABLE} to a folder with room, or to off"
        ) from None
