"""Tables read in blocks of rows, so that a large file is never in memory as a whole.

Rows, refusals and reports are those of ``reading.read_table`` for the same file.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pyarrow.parquet  # type: ignore[import-untyped]

from diffusionlm.data.lines import text_parts
from diffusionlm.data.reading import (
    Rows,
    Table,
    check_suffix,
    kind_of,
    lines_of,
    parquet_errors,
    parquet_table,
    rows_of,
    table_of,
)
from diffusionlm.files import open_bytes

ROWS, CHARACTERS = 10_000, 2**24  # of a block; its last row may exceed the characters


def table_blocks(path: Path, column: str = "text") -> Iterator[Table]:
    """Yield the rows of a file in the order of the file, as tables of consecutive rows; ``column`` as ``read_table``.

    Raises:
        UserError: the file is missing, damaged, or not in the format that its name says.
    """
    check_suffix(path)
    if kind_of(path) == "parquet":
        yield from _parquet_blocks(path)
        return
    name = str(path)
    lines = _Counted(chain.from_iterable(map(lines_of, text_parts(path))))
    rows = rows_of(lines, name, column)
    while block := _next_rows(rows, lines):
        yield table_of(iter(block), name)


class _Counted(Iterator[str]):
    """Lines, of which the ``characters`` are counted."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.lines, self.characters = lines, 0

    def __next__(self) -> str:
        line = next(self.lines)
        self.characters += len(line)
        return line


def _next_rows(rows: Rows, lines: _Counted) -> list[tuple[int, dict[str, object]]]:
    end, found = lines.characters + CHARACTERS, []
    for row in rows:
        found.append(row)
        if len(found) >= ROWS or lines.characters >= end:
            break
    return found


def _parquet_blocks(path: Path) -> Iterator[Table]:
    with open_bytes(path) as opened, parquet_errors(str(path)):
        file = pyarrow.parquet.ParquetFile(opened)
        metadata = file.metadata
        size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        rows = max(1, min(ROWS, CHARACTERS * metadata.num_rows // max(1, size)))
        number = 1
        for part in file.iter_batches(rows):
            yield parquet_table(part, str(path), range(number, number + len(part)))
            number += len(part)
