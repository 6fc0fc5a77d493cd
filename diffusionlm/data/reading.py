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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

from diffusionlm.config import UserError, nearest
from diffusionlm.data.class_labels import classes_in, label_name
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
        rows = TextRows(name)
        kept = rows.of(self)
        rows.report(self.name)
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


class TextRows:
    """Finds the rows with a text in the column ``name`` of tables, which may be consecutive parts of one."""

    def __init__(self, name: str) -> None:
        self.name, self.found, self.empty, self.first_empty = name, 0, 0, ""
        self.suspects = Remarks(WRONG_ENCODING)

    def of(self, table: Table) -> list[int]:
        """Return the numbers of such rows in ``table``, counted from 0.

        Raises UserError where a value is no text, or holds a control character.
        """
        kept: list[int] = []
        for row, value in enumerate(table.column(self.name) if table.numbers else []):
            if value is None or (isinstance(value, str) and (not value or value.isspace())):
                self.first_empty = self.first_empty or table.place(row)
                self.empty += 1
                continue
            if not isinstance(value, str):
                raise UserError(f"{table.place(row)}: column {self.name!r} should hold text, got {str(value)[:60]}")
            if wrong := wrong_character(value):
                raise UserError(f"{table.place(row)}: {wrong}")
            kept.append(row)
            self.suspects.read(value, partial(table.place, row))
        self.found += len(kept)
        return kept

    def report(self, source: str) -> None:
        """Report on the rows that were read from a ``source``. Raises UserError where there was no text at all."""
        if not self.found:
            raise UserError(f"{source}: there is no text in it")
        if self.empty:
            _report(self.first_empty, f"there is no text in {self.name!r}, and the row is left out", self.empty)
        self.suspects.report()


Rows = Iterator[tuple[int, dict[str, Any]]]  # each with the number of its first line


def read_table(path: str | Path, column: str = "text") -> Table:
    """Return the rows of a file with one of ``SUFFIXES`` (in capitals too), or the lines of standard input where it is ``-``.

    ``column`` is what the caller will read: a table's delimiter is the first of ``DELIMITERS`` with which its header has that
    column; a parquet file's columns of bytes are left out. Raises UserError for a missing or broken file.
    """
    if path == "-":
        text = decode(sys.stdin.buffer.read(), "standard input")
        return table_of(_text_rows(lines_of(text), "standard input", column), "standard input")
    path = Path(path).expanduser()
    check_suffix(path)
    data = read_bytes(path)
    if kind_of(path) == "parquet":
        with parquet_errors(str(path)):
            file = pyarrow.parquet.ParquetFile(io.BytesIO(data))
            return parquet_table(file.read(), str(path), range(1, file.metadata.num_rows + 1))
    return table_of(rows_of(lines_of(decode(data, str(path))), str(path), column), str(path))


def check_suffix(path: Path) -> None:
    """Raise UserError unless the name of a file ends in one of ``SUFFIXES``."""
    if not path.name.lower().endswith(SUFFIXES):
        raise UserError(f"{path}: expected a file ending in one of {', '.join(SUFFIXES)}")


def kind_of(path: str | Path) -> str:
    """Return the format that the name of a file says, such as "csv", packed or not."""
    name = str(path).lower()
    return name.removesuffix(next((packed for packed in PACKED if name.endswith(packed)), "")).rpartition(".")[2]


def rows_of(lines: Iterable[str], name: str, column: str) -> Rows:
    """Return the rows in the ``lines`` of a file of text, in the format that its ``name`` says; ``column`` as ``read_table``.

    Raises UserError, while rows are taken, where the lines are not of this format.
    """
    read = {"txt": _text_rows, "csv": _table_rows, "tsv": _table_rows}.get(kind_of(name), json_rows)
    return read(lines, name, nfc(column))


def table_of(rows: Rows, name: str) -> Table:
    """Return the table of ``rows``; a value that a row lacks is None."""
    found = list(rows)
    names = dict.fromkeys(key for _, row in found for key in row)
    return Table(name, {key: [row.get(key) for _, row in found] for key in names}, [line for line, _ in found])


def lines_of(text: str) -> io.StringIO:
    """Return an iterator over the lines of ``text`` with their ends, as the module csv expects them."""
    return io.StringIO(text, newline="")


def _text_rows(lines: Iterable[str], name: str, column: str) -> Rows:
    separators, begun = Remarks(NO_LINE_END), False
    for number, line in enumerate(lines, 1):
        if stripped := line.strip():
            if not begun:
                check_lines(line, name, column)
                begun = True
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


def json_rows(lines: Iterable[str], name: str, column: str = "") -> Rows:
    """Yield the objects of JSON lines. Raises UserError where a line holds none."""
    for number, line in enumerate(lines, 1):
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


class _Recorded(Iterator[str]):
    """Lines; those since the last row are kept in ``row``."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines, self.row = iter(lines), list[str]()

    def __next__(self) -> str:
        self.row.append(next(self.lines))
        return self.row[-1]


def _table_rows(lines: Iterable[str], name: str, column: str) -> Rows:
    """Yield the rows of comma-separated values, or of values with another of ``DELIMITERS``."""
    header: list[str] = []
    recorded = _Recorded(lines)
    delimiter, reader, begin = ",", csv.reader(()), 1
    try:
        first = next((line for line in recorded if line.strip()), "")
        delimiter = _delimiter(first, name, column)
        recorded = _Recorded(chain(recorded.row, recorded.lines))
        reader = csv.reader(recorded, delimiter=delimiter, strict=True)
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
            recorded.row.clear()
    except csv.Error as error:
        start = begin + _lines_before_cell(recorded.row[: reader.line_num + 1 - begin], delimiter)
        reason = _CSV_REASONS.get(str(error).partition(" (")[0], str(error))
        where = f", on line {reader.line_num}" if reason == str(error) and reader.line_num > start else ""
        raise UserError(f"{name}, line {start}: not valid CSV: in the cell that begins here, {reason}{where}") from None


def _delimiter(header: str, name: str, column: str) -> str:
    """Return the first delimiter with which the header has the column, else that of the file's format."""
    cells = header_cells(header, name)
    return next((each for each, names in cells.items() if column in names), next(iter(cells)))


def header_cells(header: str, name: str) -> dict[str, list[str]]:
    """Return the names in the header of a table by the delimiter, in the order in which delimiters are tried."""
    tried = "\t" + DELIMITERS if kind_of(name) == "tsv" else DELIMITERS
    return {each: nfc(next(csv.reader([header], delimiter=each), [])) for each in tried}


def _line_ends(cell: str) -> int:
    return len(LINE_END.findall(cell))


def _lines_before_cell(lines: Sequence[str], delimiter: str) -> int:
    """Return the number of lines of a row before that on which the cell with the most lines begins."""
    try:  # tolerantly: strict reading stops at a mistake without a row
        cells = [_line_ends(cell) for cell in next(csv.reader(lines, delimiter=delimiter), [])]
    except csv.Error:  # a cell above the size limit of the module csv
        return 0
    return sum(cells[: cells.index(max(cells))]) if cells else 0


@contextmanager
def parquet_errors(name: str) -> Iterator[None]:
    """Turn a failure to read a parquet file into a UserError."""
    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: the file is damaged: {' '.join(str(error).split())}") from None


def parquet_table(part: Any, name: str, numbers: Sequence[int]) -> Table:
    """Return rows of a parquet file, an Arrow table or record batch, without columns of bytes. Raises as ``read_table``."""
    parts = list(zip(map(nfc, part.schema.names), part.columns, strict=True))
    of_bytes = [key for key, values in parts if _BINARY.search(str(values.type))]
    if repeated := [key for i, (key, _) in enumerate(parts) if key in dict(parts[:i])]:
        raise UserError(f"{name}: it has two columns {repeated[0]!r}; rename one of them")
    columns = {key: values.to_pylist() for key, values in parts if key not in of_bytes}
    for key, names in classes_in(part.schema.metadata).items():
        if (key := nfc(key)) in columns:
            columns[key] = [label_name(value, names) for value in columns[key]]
    return Table(name, columns, numbers, "row", tuple(of_bytes))
