"""Several files as one: a folder of files (shards), or a pattern such as ``texts/*.txt``."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusionlm.config import UserError
from diffusionlm.data.reading import Table, read_table, report
from diffusionlm.files import SUFFIXES


def is_pattern(name: str) -> bool:
    """Return whether ``name`` has a wildcard (``*``, ``?`` or ``[...]``) and is no file or folder itself."""
    return glob.has_magic(name) and not Path(name).expanduser().exists()


def files_of(name: str) -> list[Path]:
    """Return the files that a path, a folder or a pattern names, in the order of their names.

    Of a folder these are the files in it that end in one of ``SUFFIXES``; others are reported, but for hidden ones. A path of
    one file is returned as it is, also where there is no such file.

    Raises:
        UserError: a pattern matches nothing, or a folder; a folder has no such file.
    """
    path = Path(name).expanduser()
    if is_pattern(name):
        found = sorted(map(Path, glob.glob(str(path), recursive=True)))
        if not found:
            raise UserError(f"{name}: no file has a name of this pattern")
        if folder := next((each for each in found if each.is_dir()), None):
            raise UserError(
                f"{name}: expected files, but this pattern also matches the folder {folder}; write {name}.txt or such"
            )
        return found
    if not name or not path.is_dir():
        return [path]
    there = sorted(each for each in path.iterdir() if not each.name.startswith("."))
    found = [each for each in there if each.is_file() and each.name.lower().endswith(SUFFIXES)]
    if not found:
        raise UserError(f"{path}: expected files ending in one of {', '.join(SUFFIXES)}, but this folder has none")
    if others := [each.name for each in there if each not in set(found)]:
        report(f"{path}: {len(others)} of {len(there)} names in this folder are left out, such as {others[0]}")
    return found


@dataclass(frozen=True)
class Joined(Table):
    """The tables of several files, one after the other; a place is that in the row's own file."""

    parts: tuple[Table, ...] = ()

    def place(self, row: int) -> str:
        for part in self.parts:
            if row < len(part.numbers):
                return part.place(row)
            row -= len(part.numbers)
        raise IndexError(row)

    def texts(self, name: str) -> list[int]:
        kept: list[int] = []
        start = 0
        for part in self.parts:
            kept += [start + row for row in part.texts(name)]
            start += len(part.numbers)
        return kept


def read_tables(paths: Sequence[Path], column: str = "text") -> Table:
    """Return the rows of all files; see ``read_table``. Raises UserError where they do not have the same columns."""
    return joined([read_table(path, column) for path in paths])


def joined(parts: Sequence[Table]) -> Table:
    """Return one table of all ``parts``. Raises UserError where they do not have the same columns."""
    first, *others = parts
    if not others:
        return first
    for part in parts:
        if not part.numbers:
            raise UserError(f"{part.name}: there is no text in it")
        if differ := sorted({*part.columns} ^ {*first.columns}):
            having = part if differ[0] in part.columns else first
            raise UserError(f"{part.name}: expected the columns of {first.name}, but only {having.name} has {differ[0]!r}")
    columns: dict[str, Sequence[Any]] = {
        name: [value for part in parts for value in part.columns[name]] for name in first.columns
    }
    of_bytes = tuple(dict.fromkeys(name for part in parts for name in part.of_bytes))
    return Joined(
        f"{first.name} to {parts[-1].name}",
        columns,
        range(sum(len(part.numbers) for part in parts)),
        "row",
        of_bytes,
        tuple(parts),
    )
