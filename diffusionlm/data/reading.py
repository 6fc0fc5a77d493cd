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

import codecs
import csv
import gzip
import io
import json
import math
import re
import sys
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

from diffusionlm.config import UserError, nearest

KINDS = ("txt", "jsonl", "json", "csv", "tsv")
SUFFIXES = (*(f".{kind}{packed}" for packed in ("", ".gz") for kind in KINDS), ".parquet")
DELIMITERS = ",;\t|"  # of tables, in the order in which a header is tried with them
MOST_LINES = 100  # of a cell in quotes; one that spans more is most probably a quote that was not closed

_MARKS = (  # UTF-32 before UTF-16, whose mark its own begins with
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"), (codecs.BOM_UTF8, "UTF-8-SIG"),
    (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"),
)  # fmt: skip
_FORMATS = (  # how files begin that are no text
    (b"\x1f\x8b", "gzip data (its name should end in .gz)"), (b"PK\x03\x04", "a zip archive, such as .xlsx or .docx"),
    (b"PAR1", "a parquet file (its name should end in .parquet)"), (b"%PDF", "a PDF file"), (b"{\\rtf", "an RTF file"),
    (b"version https://git-lfs", "a Git LFS pointer (git lfs pull downloads the file)"),
    (b"<!DOCTYPE html", "an HTML page"), (b"<!doctype html", "an HTML page"), (b"<html", "an HTML page"),
    (b"BZh", "bzip2 data"), (b"\xfd7zXZ", "xz data"), (b"\x28\xb5\x2f\xfd", "zstd data"),
)  # fmt: skip
_CSV_REASONS = {  # messages of the module csv
    "unexpected end of data": "a quote is never closed",
    "field larger than field limit": "more than 131072 characters; close its quote, or give such texts as .jsonl",
}
_LINE_END = re.compile(r"\r\n|\r|\n")
_NO_LINE_END = re.compile("[\x0b\x0c\x85\u2028\u2029]")
_CONTROL = re.compile("[\0-\x08\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_BINARY = re.compile(r"binary(_view)?(?!\w*:)")  # in a parquet type; a colon ends the name of a field
_WRONG_ENCODING = re.compile("[\x80-\x84\x86-\x9f\ufeff\ufffd]")


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
        suspects: list[tuple[int, str]] = []
        for row, value in enumerate(self.column(name) if self.numbers else []):
            if value is None or (isinstance(value, str) and (not value or value.isspace())):
                empty.append(row)
                continue
            if not isinstance(value, str):
                raise UserError(f"{self.place(row)}: column {name!r} should hold text, got {str(value)[:60]}")
            if wrong := wrong_character(value):
                raise UserError(f"{self.place(row)}: {wrong}")
            kept.append(row)
            suspects += [(row, found[0])] if (found := _WRONG_ENCODING.search(value)) else []
        if not kept:
            raise UserError(f"{self.name}: there is no text in it")
        if empty:
            _report(self.place(empty[0]), f"there is no text in {name!r}, and the row is left out", len(empty))
        if suspects:
            codes = ", ".join(sorted({_code(character) for _, character in suspects}))
            _report(
                self.place(suspects[0][0]), f"{codes}, a sign of a wrong encoding; the text is kept as it is", len(suspects)
            )
        return kept


def wrong_character(text: str) -> str:
    """Describe the first control character that is no white space, or half a surrogate pair, in ``text``; "" for none."""
    if not (found := _CONTROL.search(text)):
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


def _report(place: str, what: str, count: int) -> None:
    others = f", and so are {count - 1} more" if count > 1 else ""
    print(f"{place}: {what}{others}", file=sys.stderr)


def read_text(path: str | Path) -> str:
    """Return the characters of a text file, unpacked where its name ends in .gz. Raises UserError with the reason."""
    path = Path(path).expanduser()
    return decode(_read_bytes(path), str(path))


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise UserError(f"{path}: expected a file, got a folder")
    if not path.exists():
        raise UserError(f"{path}: there is no such file{_nearest_file(path)}")
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: the file is damaged: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor its folder {path.parent}"
    kinds = (*SUFFIXES, ".yaml", ".yml")
    hint = nearest(path.name, [other.name for other in path.parent.iterdir() if other.name.lower().endswith(kinds)])
    return hint if hint.startswith("; did you mean") or len(hint) < 200 else ""  # a full folder is not listed


def decode(data: bytes, place: str) -> str:
    """Return bytes as text, without byte order marks. Raises UserError where they are no text in Unicode."""
    if kind := next((kind for start, kind in _FORMATS if data.startswith(start)), ""):
        raise UserError(f"{place}: expected text, got {kind}")
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "UTF-8")
    if encoding.startswith("UTF-8") and (nul := data.find(b"\0")) >= 0:
        line = 1 + data.count(b"\n", 0, nul)
        raise UserError(f"{place}, line {line}: NUL, a character that no text has; the file is {_with_nul(data)}")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if not encoding.startswith("UTF-8"):
            raise UserError(f"{place}: its byte order mark says {encoding}, but the text is not: {error.reason}") from None
        raise UserError(_not_utf8(error, place)) from None
    # Files that were joined have marks inside, each at the start of a line.
    return re.sub("(^|[\r\n])\ufeff+", r"\1", text) if "\ufeff" in text else text


def _line_of(text: str, index: int) -> int:
    return 1 + len(_LINE_END.findall(text, 0, index))


def _not_utf8(error: UnicodeDecodeError, place: str) -> str:
    """Say where bytes stop to be UTF-8, and what they may be instead."""
    data = error.object
    before, rest = data[: error.start].decode("utf-8", "ignore"), data[error.start :]
    sentence = f"{place}, line {_line_of(before, len(before))}: expected UTF-8 text, got the byte {data[error.start]:#x}"
    if not (before + rest.decode("utf-8", "ignore")).isascii():
        cut = error.end == len(data) and error.reason == "unexpected end of data"
        other = "the file was cut inside its last character" if cut else "so the file mixes two encodings"
        return f"{sentence}; other characters are UTF-8, {other}"
    try:
        line = re.split(r"[\r\n]", before)[-1][-30:] + re.split(rb"[\r\n]", rest)[0][:30].decode("windows-1252")
    except UnicodeDecodeError:
        return f"{sentence}; convert the file to UTF-8, for example with iconv"
    return f"{sentence}; if {line!r} is right, convert it: iconv -f windows-1252 -t utf-8"


def _with_nul(data: bytes) -> str:
    for name in ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE"):
        text = data.decode(name, "replace")
        if sum(map(text.count, " \n")) > 0.08 * len(text):  # in another order of bytes there are no blanks
            return f"probably {name} without a byte order mark; convert it: iconv -f {name} -t utf-8"
    return "probably binary"


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
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    data = _read_bytes(path)
    if kind == "parquet":
        return _parquet(data, str(path))
    read = {"txt": _text_rows, "csv": _table_rows, "tsv": _table_rows}.get(kind, json_rows)
    return _table(str(path), read(decode(data, str(path)), str(path), nfc(column)))


def _table(name: str, rows: Rows) -> Table:
    found = list(rows)
    names = dict.fromkeys(key for _, row in found for key in row)
    return Table(name, {key: [row.get(key) for _, row in found] for key in names}, [line for line, _ in found])


def _lines(text: str) -> io.StringIO:
    return io.StringIO(text, newline="")  # lines with their ends, as the module csv expects them


def _text_rows(text: str, name: str, column: str) -> Rows:
    first = next((line for line in _lines(text) if line.strip()), "")
    if kind := _table_kind(first, column):
        raise UserError(f"{name}: expected one text on each line, got {kind}: {first.strip()[:60]}")
    separated: list[tuple[int, str]] = []
    for number, line in enumerate(_lines(text), 1):
        separated += [(number, found[0])] if (found := _NO_LINE_END.search(line.strip())) else []
        if line.strip():
            yield number, {"text": line.strip()}
    if separated:
        number, character = separated[0]
        _report(f"{name}, line {number}", f"{_code(character)} is white space here and ends no line", len(separated))


def _table_kind(line: str, column: str) -> str:
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
    tried = "\t" + DELIMITERS if name.lower().removesuffix(".gz").endswith(".tsv") else DELIMITERS
    header = next((line for line in _lines(text) if line.strip()), "")
    cells = {each: next(csv.reader([header], delimiter=each), []) for each in tried}
    return next((each for each in tried if column in map(nfc, cells[each])), tried[0])


def _line_ends(cell: str) -> int:
    return len(_LINE_END.findall(cell))


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
