"""Names that columns of texts, and of pairs of texts, usually have: what is read of a table that has no column "text".

The column that is taken is reported on stderr. Where several may be meant, none is taken.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

import pyarrow.parquet  # type: ignore[import-untyped]

from diffusionlm.config import UserError, nearest
from diffusionlm.data.blocks import ROWS
from diffusionlm.data.lines import text_parts
from diffusionlm.data.reading import header_cells, kind_of, lines_of, nfc, parquet_errors, report, rows_of
from diffusionlm.files import SUFFIXES, open_bytes

TEXTS = {
    "text", "texts", "sentence", "content", "document", "review", "body", "article", "story", "comment", "tweet", "post",
    "message", "paragraph", "passage", "utterance", "caption", "quote", "description", "review_text", "review_body",
    "reviewtext", "full_text", "raw_text",
}  # fmt: skip
PAIRS = (  # of a source and a target
    ("source", "target"), ("mr", "ref"), ("src", "trg"), ("src", "tgt"), ("input", "output"), ("question", "answer"),
    ("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response"),
    ("document", "summary"), ("article", "highlights"), ("article", "summary"), ("dialogue", "summary"), ("text", "summary"),
)  # fmt: skip
Names = Mapping[str, bool]  # of columns, and whether each holds texts


def text_column(place: str, names: Names, wanted: str, setting: str) -> str:
    """Return the column to read of a table with the columns ``names``, which is ``wanted`` unless that is a missing "text".

    Raises:
        UserError: several columns may be meant, or none; the sentence names the ``setting`` that names one.
    """
    if wanted != "text" or "text" in names or not names:
        return wanted
    usual = [name for name, holds in names.items() if holds and name.casefold() in TEXTS]
    paired = list(chain.from_iterable(_pairs(names)))
    if len(usual) == 1 and not paired:
        report(f"{place}: it has no column 'text'; the texts are those of the column {usual[0]!r}")
        return usual[0]
    if not usual and not paired:
        hint = nearest(wanted, names, listed=False)
        rest = f"{hint} The setting" if hint else "; the setting"
        raise UserError(f"{place}: no column 'text' among {_shown(names)}{rest} {setting} names the column of texts")
    which = " or ".join(map(repr, dict.fromkeys([*usual, *paired])))
    found = f"expected a column 'text', or one that is clearly meant, but it may be {which}, of the columns {_shown(names)}"
    raise UserError(f"{place}: {found}; the setting {setting} names the column of texts")


def pair_columns(place: str, names: Names, wanted: tuple[str, str], setting: str) -> tuple[str, str] | None:
    """Return the columns of sources and targets: ``wanted``, else the only usual pair that the columns ``names`` have, or None.

    Raises:
        UserError: there are several such pairs; the sentence names the ``setting`` that names one.
    """
    if not {*wanted} - {*names}:
        return wanted
    found = _pairs(names)
    if len(found) > 1:
        which = " or ".join(f"{source!r} and {target!r}" for source, target in found)
        raise UserError(f"{place}: the sources and targets may be {which}, of the columns {_shown(names)}; {setting}")
    for source, target in found:
        report(f"{place}: the sources are those of the column {source!r}, the targets those of {target!r}")
    return found[0] if found else None


def _pairs(names: Names) -> list[tuple[str, str]]:
    by_name = {name.casefold(): name for name, holds in names.items() if holds}
    return [(by_name[source], by_name[target]) for source, target in PAIRS if source in by_name and target in by_name]


def _shown(names: Names) -> str:
    return ", ".join(repr(name[:40]) for name in names)


def names_in(path: str | Path, wanted: Sequence[str]) -> Names:
    """Return the columns of a file, as far as its beginning shows them; none where it has lines of text.

    Raises:
        UserError: the file is missing or broken.
    """
    path = Path(path).expanduser()
    if str(path) == "-" or kind_of(path) == "txt" or not path.name.lower().endswith(SUFFIXES):
        return {}
    if kind_of(path) == "parquet":
        with open_bytes(path) as opened, parquet_errors(str(path)):
            return {nfc(field.name): _is_text(field.type) for field in pyarrow.parquet.ParquetFile(opened).schema_arrow}
    lines = chain.from_iterable(map(lines_of, text_parts(path)))
    if kind_of(path) in ("csv", "tsv"):
        return _header(next((line for line in lines if line.strip()), ""), str(path), wanted)
    names: dict[str, bool] = {}
    for _, row in islice(rows_of(lines, str(path), ""), ROWS):
        names |= {name: names.get(name, False) or isinstance(value, str) for name, value in row.items()}
        if not {*wanted} - {*names}:
            break
    return names


def _is_text(kind: pyarrow.DataType) -> bool:
    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


def _header(line: str, name: str, wanted: Sequence[str]) -> Names:
    """Return the names in the header of a table, whose delimiter is one with which it has a known name, if there is one."""
    try:
        cells = [] if line.count('"') % 2 else list(header_cells(line, name).values())
    except csv.Error:
        cells = []
    if not cells:  # the header is longer than its line, or broken, which is refused where the table is read
        return {}
    usual = TEXTS.union(*PAIRS)
    known = [
        [each for each in cells if not {*wanted} - {*each}],
        [each for each in cells if usual & {*map(str.casefold, each)}],
    ]
    return dict.fromkeys(next(chain(*known, cells)), True)
