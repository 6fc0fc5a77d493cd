"""Data of conditional generation: sources with their references, and the outputs of a system for them.

An *item* is a source text with all of its references. Rows with the same source are references of one item, wherever they
stand; items keep the order in which their sources first appear.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusionlm.config import UserError, nearest
from diffusionlm.data.columns import names_in, pair_columns
from diffusionlm.data.corpora import meaning
from diffusionlm.data.reading import Table, kind_of, read_table, read_text, table_kind, wrong_character

COLUMNS = (("source", "target"), ("mr", "ref"), ("src", "trg"))  # the general names, the E2E challenge's, DiffuSeq's


@dataclass(frozen=True)
class Item:
    """A source with its references; ``slots`` are its slots and values where the sources are meaning representations."""

    source: str
    references: tuple[str, ...]
    slots: Mapping[str, str] | None = None


def grouped(sources: Iterable[str], references: Iterable[str]) -> dict[str, list[str]]:
    """Return the references of each distinct source, in the order of its first row.

    Raises:
        ValueError: the two have different lengths.
    """
    found: dict[str, list[str]] = {}
    for source, reference in zip(sources, references, strict=True):
        found.setdefault(source, []).append(reference)
    return found


def read_items(path: str | Path) -> list[Item]:
    """Read items from a table or JSON lines with the columns of one of ``COLUMNS``; a target may be a list of references.

    Raises:
        UserError: the file is missing or broken, or has none of the pairs of columns, or a value is no text.
    """
    return _items(*source_table(path, with_targets=True))


def _items(table: Table, source: str, target: str) -> list[Item]:
    path, table = table.name, _expanded(table, source, target)
    kept = sorted({*table.texts("source")} & {*table.texts("target")})
    if not kept:
        raise UserError(f"{path}: no row has both a source and a reference")
    sources, targets = table.column("source"), table.column("target")
    items = grouped((sources[row] for row in kept), (targets[row] for row in kept))
    slots = _meanings(items, path)
    return [Item(source, tuple(texts), None if slots is None else slots[source]) for source, texts in items.items()]


def read_sources(path: str) -> list[Item]:
    """Read sources in their order: the lines of a .txt file or of standard input ("-"), or rows with a column of ``COLUMNS``.

    Where there are references, too, rows of equal sources are one item, which may have none; else equal sources stay apart.

    Raises:
        UserError: the file is missing or broken, or has none of the columns; a source is empty.
    """
    if _has_lines(path):
        return _lines(path)
    table, source, target = source_table(path)
    items = _alone(table, source)
    kept = [row for row, value in enumerate(table.columns.get(target, ())) if value not in (None, "", [])]
    if not kept:
        return items
    rows: dict[str, Sequence[Any]] = {name: [table.column(name)[row] for row in kept] for name in (source, target)}
    found = _items(Table(table.name, rows, [table.numbers[row] for row in kept], table.noun), source, target)
    return [*({item.source: item for item in items} | {item.source: item for item in found}).values()]


def read_source_of_each(path: str) -> list[str]:
    """Return the source of each line or row of a file that ``read_sources`` reads, whether or not it has references."""
    if _has_lines(path):
        return [item.source for item in _lines(path)]
    table, source, _ = source_table(path)
    return [item.source for item in _alone(table, source)]


def _has_lines(path: str) -> bool:
    return path == "-" or kind_of(path) == "txt"


def _lines(path: str) -> list[Item]:
    table = read_table(path, "text")
    first = next(iter(table.columns.get("text", ())), "")
    if kind := "".join(dict.fromkeys(table_kind(first, source) for source, _ in COLUMNS)):
        raise UserError(f"{table.name}: expected a source on each line, got {kind}: {first[:60]}; give a .jsonl or .csv file")
    skipped = next((line for row, line in enumerate(table.numbers, 1) if row != line), None)
    if skipped is not None:  # outputs are lined up with sources by their number
        raise UserError(f"{table.name}: expected a source on each line before line {skipped}, got an empty one")
    return _alone(table, "text")


def source_table(path: str | Path, with_targets: bool = False) -> tuple[Table, str, str]:
    """Return a table or JSON lines with the names of its column of sources and of the column that would hold the targets.

    Raises:
        UserError: the file is missing or broken, has none of the columns of ``COLUMNS``, or not both ``with_targets``, or has
            several, of which not one alone has its column of targets.
    """
    table, failed = None, None
    for source, _ in COLUMNS:
        try:  # the name of a column decides which delimiter a table has
            table = read_table(Path(path), source)
        except UserError as error:
            failed = failed or error
            continue
        pairs = [pair for pair in COLUMNS if pair[0] in table.columns and (pair[1] in table.columns or not with_targets)]
        complete = [pair for pair in pairs if pair[1] in table.columns]
        if len(pairs) > 1 and len(complete) != 1:
            names = ", ".join(repr(pair[0]) for pair in pairs)
            raise UserError(f"{path}: expected one column of sources, got {names}; rename the others")
        if pairs:
            return table, *(complete or pairs)[0]
    if failed and (table is None or with_targets):
        raise failed
    known = names_in(path, COLUMNS[0]) if table is not None and table.columns else {}
    if pair := pair_columns(str(path), known, COLUMNS[0], "rename the others"):
        return read_table(Path(path), pair[0]), *pair
    found = ", ".join(map(repr, table.columns)) if table is not None else ""
    wanted = f"a column of sources, {' or '.join(source for source, _ in COLUMNS)}"
    if with_targets:
        wanted = f"the columns {'; '.join(' and '.join(pair) for pair in COLUMNS)}"
    raise UserError(f"{path}: expected {wanted}, got {found or 'none'}")


def read_pairs(path: str, column: str) -> tuple[list[str], list[str], list[str]]:
    """Return the places, the texts in ``column`` and the sources of the rows of a file that have a text.

    Raises:
        UserError: as ``source_table``; a row with a text has no source.
    """
    table, source, _ = source_table(path)
    rows, sources = table.texts(column), table.column(source)
    kept = Table(table.name, {source: [sources[row] for row in rows]}, [table.numbers[row] for row in rows], table.noun)
    found = [item.source for item in _alone(kept, source)]
    return [table.place(row) for row in rows], [table.column(column)[row] for row in rows], found


def _alone(table: Table, column: str) -> list[Item]:
    if not table.numbers:
        raise UserError(f"{table.name}: there is no text in it")
    sources = table.column(column)
    for row, source in enumerate(sources):
        if source is None or source == "" or (isinstance(source, str) and not source.strip()):
            raise UserError(f"{table.place(row)}: expected a source text, got none")
    table.texts(column)  # checks the rest, such as control characters
    return [Item(source, ()) for source in sources]


def _expanded(table: Table, source: str, target: str) -> Table:
    """Return a table with the columns "source" and "target" and one row for each reference."""
    rows = []
    for number, one, value in zip(table.numbers, table.column(source), table.column(target), strict=True):
        if isinstance(value, list) and not value:
            raise UserError(f"{table.name}, {table.noun} {number}: column {target!r} is an empty list, expected references")
        rows += [(number, one, each) for each in (value if isinstance(value, list) else [value])]
    numbers, sources, targets = zip(*rows, strict=True) if rows else ((), (), ())
    return Table(table.name, {"source": sources, "target": targets}, numbers, table.noun)


def _meanings(sources: Iterable[str], path: str) -> dict[str, dict[str, str]] | None:
    """Return the slots of each source, None where one of them is no meaning representation."""
    try:
        return {source: meaning(source, path) for source in sources}
    except UserError:
        return None


def read_outputs(path: str | Path, items: Sequence[Item]) -> list[list[str]]:
    """Return a system's outputs for each of ``items``, in their order.

    A .txt file has one output on each line, in the order of the items; an empty line is an empty output. In tables and JSON
    lines the column ``text`` holds the outputs: several for a source where a column ``source`` (or ``mr``, ``src``) names it,
    else one for each item in order.

    Raises:
        UserError: the file is missing or broken, their numbers differ, or a source is unknown or has no output.
    """
    table = read_table(Path(path), "text")
    if kind_of(path) == "txt":
        lines = [line.strip() for line in io.StringIO(read_text(path), newline="")]
        table = Table(table.name, {"text": lines}, range(1, len(lines) + 1))
    texts = _texts(table)
    names = [source for source, _ in COLUMNS if source in table.columns]
    if names:
        return _by_source(table, texts, names[0], items)
    if len(texts) != len(items):
        rows = sum(len(item.references) for item in items)
        hint = "; that is one for each reference" if len(texts) == rows else ""
        several = "; rows with the columns source and text may hold several outputs of a source"
        expected = f"expected {len(items)} outputs, one for each distinct source in the order of the data"
        raise UserError(f"{path}: {expected}, got {len(texts)}{hint}{several}")
    return [[text] for text in texts]


def _texts(table: Table) -> list[str]:
    texts, empty = table.column("text"), []
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{table.place(row)}: column 'text' should hold text, got {str(text)[:60]}")
        if wrong := wrong_character(text):
            raise UserError(f"{table.place(row)}: {wrong}")
        empty += [row] if not text.strip() else []
    if len(empty) == len(texts):
        raise UserError(f"{table.name}: there is no text in it")
    if empty:
        others = f", and so are {len(empty) - 1} more" if len(empty) > 1 else ""
        print(f"{table.place(empty[0])}: an empty output, and it is scored as one{others}", file=sys.stderr)
    return [text.strip() for text in texts]


def _by_source(table: Table, texts: Sequence[str], column: str, items: Sequence[Item]) -> list[list[str]]:
    places = {item.source: number for number, item in enumerate(items)}
    found: list[list[str]] = [[] for _ in items]
    for row, (source, text) in enumerate(zip(table.column(column), texts, strict=True)):
        if source not in places:
            hint = nearest(str(source), places, listed=False)
            raise UserError(f"{table.place(row)}: the source {str(source)[:80]!r} is not in the references{hint}")
        found[places[source]].append(text)
    if missing := [item.source for item, outputs in zip(items, found, strict=True) if not outputs]:
        raise UserError(f"{table.name}: no output for {len(missing)} of {len(items)} sources, such as {missing[0][:80]!r}")
    return found


def paired(items: Sequence[Item], outputs: Sequence[Sequence[str]]) -> list[tuple[int, Item, str]]:
    """Return each output with the number of its item and the item."""
    return [(number, item, text) for number, (item, texts) in enumerate(zip(items, outputs, strict=True)) for text in texts]
