"""The rows of ``generate`` and ``score``: JSON lines on stdout, or in a file that grows again after an interruption."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from diffusionlm.arguments import option
from diffusionlm.config import UserError
from diffusionlm.files import decode, disk_errors, read_bytes, write, write_text
from diffusionlm.processes import agreed, leads

OUT = option("--out", "write the rows to this file; after an interruption the same command goes on", "FILE")
OF_NO_ROW = ("out", "processes", "watch", "run", "known", "example", "imports", "device")  # options that determine no row
READ = ("file", "source", "targets")  # options that name a file


@dataclass
class Rows:
    """The rows of a call; ``stored`` are those that an interrupted call left, ``path`` is the file of the others."""

    stored: list[dict[str, Any]] = field(default_factory=list)
    path: Path | None = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row at once."""
        line = json.dumps(row, ensure_ascii=False)
        if self.path is None:
            print(line, flush=True)
            return
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def call_of(options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """Return what determines the rows of a call: its options, hashes of the files that they name, and ``more``."""
    given = {name: value for name, value in vars(options).items() if name not in OF_NO_ROW}
    paths = {name: Path(value).expanduser() for name in READ if isinstance(value := given.get(name), str)}
    read = {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in paths.items() if path.is_file()}
    plain: dict[str, Any] = json.loads(json.dumps({**given, "read": read, **more}, default=str))
    return plain


@contextmanager
def rows_of(out: str | None, call: Mapping[str, Any]) -> Iterator[Rows]:
    """Give the rows of a call a place: stdout, or the file ``out``, which is there once all rows are.

    Until then they are in ``out`` with .part at its end, after a line with the ``call`` that makes them.

    Raises:
        UserError: the file is there already, or a folder is; another call writes it, or has left rows of other settings; a
            damaged row.
    """
    if out is None:
        yield Rows()
        return
    path, part = Path(out).expanduser(), Path(f"{out}.part").expanduser()
    if out.endswith(os.sep) or path.is_dir():
        raise UserError(f"{out}: expected a file for the rows, got a folder")
    if not leads():
        none: list[dict[str, Any]] = []
        yield Rows(agreed(none))
        return
    lock = FileLock(f"{path}.lock")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise UserError(f"{out}: another call is writing this file; wait for its end, or choose another --out") from None
    try:
        if path.exists():
            raise UserError(f"{out}: this file is there already, and complete; choose another --out")
        header = json.dumps(call, sort_keys=True, ensure_ascii=False)
        stored = agreed(_stored(part, call))
        write_text(part, "\n".join([header, *(json.dumps(row, ensure_ascii=False) for row in stored), ""]))
        yield Rows(stored, part)
        write(path, lambda staged: _without_header(part, staged))
        part.unlink()
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _without_header(part: Path, path: Path) -> None:
    with part.open("rb") as source, path.open("wb") as target:
        source.readline()
        shutil.copyfileobj(source, target)


def _stored(part: Path, call: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the complete rows that an interrupted ``call`` left. Raises UserError where they are another call's."""
    if not part.exists():
        return []
    whole, end, _ = read_bytes(part).rpartition(b"\n")  # what follows the last line end was cut short, perhaps in a character
    header, *lines = decode(whole, str(part)).split("\n") if end else ["{}"]
    try:
        other, rows = json.loads(header), [json.loads(line) for line in lines]
    except ValueError:
        raise UserError(f"{part}: expected rows of an interrupted call, but the file is damaged; delete it") from None
    if differing := [name for name in {**call, **other} if call.get(name) != other.get(name)]:
        name = differing[0]
        what = f"its {name} is {json.dumps(other.get(name))[:60]}, not {json.dumps(call.get(name))[:60]}"
        raise UserError(f"{part}: holds rows of another call ({what}); delete it, or choose another --out")
    if rows:
        print(f"{len(rows)} rows are in {part} already", file=sys.stderr)
    return rows
