"""Read text: bytes to characters, files to tables of rows, with the place of each mistake.

Every text of the user enters here: corpora, texts to score or evaluate, targets, settings, standard input. The rules:

- Text is UTF-8, or what its byte order mark says (UTF-8, UTF-16, UTF-32). A mark is no part of the text. Another encoding, NUL
  characters and other formats are refused with the probable cause; nothing is replaced.
- A line ends with ``\\n``, ``\\r\\n`` or ``\\r``, and with nothing else: other separators of Unicode are white space.
- Texts stay as they are, so that a likelihood is that of the file. Labels, attributes, names of columns and controls are
  brought to the normal form C (``nfc``): in another form the same word would be another value.
- Control characters in a text are refused, signs of a wrong encoding are reported on stderr.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

from diffusionlm.config import UserError, nearest
from diffusionlm.files import LINE_END, PACKED, SUFFIXES, decode, read_bytes
from diffusionlm.files import read_text as read_text

DELIMITERS = ",;\t|"  # of tables, in the order in which a header is tried with them
MOST_LINES = 100  # of a cell in quotes; one that spans more is most probably a quote that was not closed

_CSV_REASONS = {  # messages of the module csv
    "unexpected end of data": "a quote is never closed",
    "field larger than field limit": "more than 131072 characters; close its quote, or give such texts as .jsonl",
}
NO_LINE_END = re.compile("[\x0b\x0c\x85\u2028\u2029]")
CONTROL = re.compile("[\0-\x08\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_BINARY = re.compile(r"binary(_view)?(?!\w*:)")  # in a parquet type; a colon ends the name of a field
WRONG_ENCODING = re.compile("[\x80-\x84\x86-\x9f\ufeff\ufffd]")


@dataclass(frozen=True)
class Table:
    """Columns of values, None where a row has none; ``numbers`` are the lines (or rows) of the source where rows begin."""

    name: str
    columns: dict[str, Sequence[Any]]
    numbers: Sequence[int]
    noun: str = "line"
    of_bytes: tuple[str, ...] = ()  # names of columns that are left out

    def place(self, row: int) -> str:
        """Return the place of a row, such as "reviews.csv, line 7"."""
        return f"{self.name}, {self.noun} {self.numbers[row]}"

    def column(self, name: str) -> Sequence[Any]:
        """Return a column. Raises UserError where there is none of that name, or it holds bytes."""
        if (name := nfc(name)) in self.of_bytes:
            raise UserError(f"{self.name}: column {name!r} holds bytes, expected text or numbers")
        if name not in self.columns:
            shown = ", ".join(repr(known[:40]) for known in self.columns)
            raise UserError(f"{self.name}: no column {name!r} among {shown}{nearest(name, self.columns, listed=False)}")
        return self.columns[name]

    def texts(self, name: str) -> list[int]:
        """Return the numbers of the rows with a text in the column ``name``, counted from 0.

        Raises UserError where a value is no text, or holds a control character, and where there is no text at all.
        """
        kept: list[int] = []
        empty: list[int] = []
        suspects = Remarks(WRONG_ENCODING)
        for row, value in enumerate(self.column(name) if self.numbers else []):
            if value is None or (isinstance(value, str) and (not value or value.isspace())):
                empty.append(row)
                continue
            if not isinstance(value, str):
                raise UserError(f"{self.place(row)}: column {name!r} should hold text, got {str(value)[:60]}")
            if wrong := wrong_character(value):
                raise UserError(f"{self.place(row)}: {wrong}")
            kept.append(row)
            suspects.read(value, partial(self.place, row))
        if not kept:
            raise UserError(f"{self.name}: there is no text in it")
        if empty:
            _report(self.place(empty[0]), f"there is no text in {name!r}, and the row is left out", len(empty))
        suspects.report()
        return kept


def wrong_character(text: str) -> str:
    """Describe the first control character that is no white space, or half a surrogate pair, in ``text``; "" for none."""
    if not (found := CONTROL.search(text)):
        return ""
    what = "half a surrogate pair, which is no character" if "\ud800" <= found[0] <= "\udfff" else "a control character"
    return f"{_code(found[0])}, {what}, in {text[max(0, found.start() - 30) :][:60]!r}"


def nfc(value: Any) -> Any:
    """Return ``value`` with its text, and that inside lists and mappings, in Unicode's normal form C."""
    if isinstance(value, str):
        return value if value.isascii() else unicodedata.normalize("NFC", value)
    if isinstance(value, Mapping):
        return {nfc(key): nfc(inner) for key, inner in value.items()}
    return type(value)(map(nfc, value)) if isinstance(value, list | tuple) else value


def is_nan(value: object) -> bool:
    """Return whether ``value`` is the number that stands for a missing one in tables."""
    return isinstance(value, float) and math.isnan(value)


def _code(character: str) -> str:
    return f"U+{ord(character):04X}"


_COLLECTED: ContextVar[list[str] | None] = ContextVar("collected reports", default=None)


@contextmanager
def collected_reports() -> Iterator[list[str]]:
    """Collect the reports on what is read, instead of printing them on stderr."""
    found: list[str] = []
    token = _COLLECTED.set(found)
    try:
        yield found
    finally:
        _COLLECTED.reset(token)


def report(sentence: str) -> None:
    """Print a sentence about what was read on stderr, unless reports are collected."""
    if (collected := _COLLECTED.get()) is None:
        print(sentence, file=sys.stderr)
    else:
        collected.append(sentence)


def _report(place: str, what: str, count: int) -> None:
    report(f"{place}: {what}" + (f", and so are {count - 1} more" if count > 1 else ""))


class Remarks:
    """What is remarkable in texts that are kept as they are: separators that end no line, or signs of a wrong encoding."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.pattern, self.first, self.count = pattern, "", 0
        self.characters: dict[str, None] = {}  # in the order of the texts

    def read(self, text: str, place: Callable[[], str]) -> None:
        """Take notice of a text."""
        if found := self.pattern.search(text):
            self.first = self.first or place()
            self.characters[found[0]] = None
            self.count += 1

    def report(self) -> None:
        """Report on the texts that were read."""
        if self.count and self.pattern is NO_LINE_END:
            what = f"{_code(next(iter(self.characters)))} is white space here and ends no line"
            _report(self.first, what, self.count)
        elif self.count:
            codes = ", ".join(sorted(map(_code, self.characters)))
            _report(self.first, f"{codes}, a sign of a wrong encoding; the text is kept as it is", self.count)


Rows = Iterator[tuple[int, dict[str, Any]]]  # each with the number of its first line


def read_table(path: str | Path, column: str = "text") -> Table:
    """Return the rows of a file with one of ``SUFFIXES`` (in capitals too), or the lines of standard input where it is ``-``.

    ``column`` is what the caller will read: a table's delimiter is the first of ``DELIMITERS`` with which its header has that
    column; a parquet file's columns of bytes are left out. Raises UserError for a missing or broken file.
    """
    if path == "-":
        return _table("standard input", _text_rows(decode(sys.stdin.buffer.read(), "standard input"), "standard input", column))
    path = Path(path).expanduser()
    if not path.name.lower().endswith(SUFFIXES):
        raise UserError(f"{path}: expected a file ending in one of {', '.join(SUFFIXES)}")
    kind = kind_of(path)
    data = read_bytes(path)
    if kind == "parquet":
        return _parquet(data, str(path))
    read = {"txt": _text_rows, "csv": _table_rows, "tsv": _table_rows}.get(kind, json_rows)
    return _table(str(path), read(decode(data, str(path)), str(path), nfc(column)))


def kind_of(path: str | Path) -> str:
    """Return the format that the name of a file says, such as "csv", packed or not."""
    name = str(path).lower()
    return name.removesuffix(next((packed for packed in PACKED if name.endswith(packed)), "")).rpartition(".")[2]


def _table(name: str, rows: Rows) -> Table:
    found = list(rows)
    names = dict.fromkeys(key for _, row in found for key in row)
    return Table(name, {key: [row.get(key) for _, row in found] for key in names}, [line for line, _ in found])


def _lines(text: str) -> io.StringIO:
    return io.StringIO(text, newline="")  # lines with their ends, as the module csv expects them


def _text_rows(text: str, name: str, column: str) -> Rows:
    check_lines(next((line for line in _lines(text) if line.strip()), ""), name, column)
    separators = Remarks(NO_LINE_END)
    for number, line in enumerate(_lines(text), 1):
        if stripped := line.strip():
            separators.read(stripped, partial("{}, line {}".format, name, number))
            yield number, {"text": stripped}
    separators.report()


def check_lines(first: str, name: str, column: str) -> None:
    """Raise UserError where the ``first`` line that is not empty shows a table, and no texts."""
    if kind := table_kind(first, column):
        raise UserError(f"{name}: expected one text on each line, got {kind}: {first.strip()[:60]}")


def table_kind(line: str, column: str) -> str:
    """Return what a first line shows a file without a format to be: a table with the column, or "" for lines of text."""
    if line.lstrip().startswith("{"):
        try:
            return "JSON lines" if column in json.loads(line) else ""
        except (ValueError, RecursionError):
            return ""
    words = [cell.strip('"') for cell in re.split(f"[{DELIMITERS}]", line.strip())]
    header = len(words) > 1 and column in words and all(re.fullmatch(r"[\w.-]*", word) for word in words)
    return "a table with a header" if header else ""


def json_rows(text: str, name: str, column: str = "") -> Rows:
    """Yield the objects of JSON lines. Raises UserError where a line holds none."""
    for number, line in enumerate(_lines(text), 1):
        try:
            row = json.loads(line, object_pairs_hook=_unique) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise UserError(f"{name}, line {number}: expected a JSON object on each line: {reason}") from None
        if not isinstance(row, dict):
            raise UserError(f"{name}, line {number}: expected a JSON object on each line, got {line.strip()[:60]}")
        if row:
            yield number, row


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    row = {nfc(key): value for key, value in pairs}
    if len(row) < len(pairs):
        keys = [nfc(key) for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return row


def _table_rows(text: str, name: str, column: str) -> Rows:
    """Yield the rows of comma-separated values, or of values with another of ``DELIMITERS``."""
    header: list[str] = []
    delimiter, reader, begin = ",", csv.reader(()), 1
    try:
        delimiter = _delimiter(text, name, column)
        reader = csv.reader(_lines(text), delimiter=delimiter, strict=True)
        for row in reader:
            if reader.line_num - begin > MOST_LINES and max(map(_line_ends, row)) > MOST_LINES:
                raise csv.Error(f"a quote is closed only {max(map(_line_ends, row))} lines later, which .jsonl allows")
            if row and not header:
                header = [nfc(cell) for cell in row]
                if repeated := [key for key in header if key and header.count(key) > 1]:
                    raise UserError(f"{name}: its header names {repeated[0]!r} twice; rename one of the columns")
            elif row:
                if len(row) != len(header):
                    got = f"expected {len(header)} columns ({', '.join(header)}), got {len(row)}"
                    raise UserError(f"{name}, line {begin}: {got}")
                yield begin, dict(zip(header, row, strict=True))
            begin = reader.line_num + 1
    except csv.Error as error:
        start = _cell_line(text, delimiter, begin, reader.line_num)
        reason = _CSV_REASONS.get(str(error).partition(" (")[0], str(error))
        where = f", on line {reader.line_num}" if reason == str(error) and reader.line_num > start else ""
        raise UserError(f"{name}, line {start}: not valid CSV: in the cell that begins here, {reason}{where}") from None


def _delimiter(text: str, name: str, column: str) -> str:
    """Return the first delimiter with which the header has the column, else that of the file's format."""
    tried = "\t" + DELIMITERS if kind_of(name) == "tsv" else DELIMITERS
    header = next((line for line in _lines(text) if line.strip()), "")
    cells = {each: next(csv.reader([header], delimiter=each), []) for each in tried}
    return next((each for each in tried if column in map(nfc, cells[each])), tried[0])


def _line_ends(cell: str) -> int:
    return len(LINE_END.findall(cell))


def _cell_line(text: str, delimiter: str, begin: int, end: int) -> int:
    """Return the line on which the cell with the most lines begins, in the row of the lines ``begin`` to ``end``."""
    try:  # tolerantly: strict reading stops at a mistake without a row
        cells = [_line_ends(cell) for cell in next(csv.reader([*_lines(text)][begin - 1 : end], delimiter=delimiter), [])]
    except csv.Error:  # a cell above the size limit of the module csv
        return begin
    return begin + sum(cells[: cells.index(max(cells))]) if cells else begin


def _parquet(data: bytes, name: str) -> Table:
    try:
        table = pyarrow.parquet.ParquetFile(io.BytesIO(data)).read()
        parts = list(zip(map(nfc, table.column_names), table.columns, strict=True))
        of_bytes = [key for key, part in parts if _BINARY.search(str(part.type))]
        columns = {key: part.to_pylist() for key, part in parts if key not in of_bytes}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: the file is damaged: {' '.join(str(error).split())}") from None
    if repeated := [key for i, (key, _) in enumerate(parts) if key in dict(parts[:i])]:
        raise UserError(f"{name}: it has two columns {repeated[0]!r}; rename one of them")
    return Table(name, columns, range(1, table.num_rows + 1), "row", tuple(of_bytes))
