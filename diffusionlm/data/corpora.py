"""Corpora: the user's files, the E2E challenge, datasets of the Hugging Face hub.

A corpus loads as ``datasets.Dataset`` splits with a string column ``text`` and, where known, a column ``attributes`` of
mappings string -> string whose keys may differ from row to row (feature type ``Json``). The user's files are read here and not
by ``datasets.load_dataset``, which caches a converted copy, reads the text "NA" as missing, and reports no line numbers.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import datasets  # type: ignore[import-untyped]
import numpy as np
import pyarrow.parquet  # type: ignore[import-untyped]

from diffusionlm.config import Component, UserError, nearest
from diffusionlm.data.annotators import Annotator, Plain

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".txt.gz", ".jsonl.gz", ".json.gz", ".csv.gz", ".parquet")
# A number for each text, None where the metric does not apply; the reported figure is the mean over the others.
TextMetric = Callable[[Sequence[str]], list[float | None]]


class Corpus(Component, family="corpus"):
    """Base of the corpora. A path in place of a name is the training file of ``files``."""

    def load(self) -> dict[str, datasets.Dataset]:
        """Return "train" and, where they exist, "validation" and "test". Raises UserError for missing or broken texts."""
        raise NotImplementedError

    def annotator(self) -> Annotator:
        """Return what reads a text of this corpus where the user names no annotator."""
        return Plain()

    def metrics(self, training: Collection[str]) -> dict[str, TextMetric]:
        """Return the figures that are special to this corpus, by name; ``training`` are its training texts."""
        return {}

    @classmethod
    def _from_plain(cls, value: object) -> Self:
        plain = {"name": value} if isinstance(value, str) else value
        if isinstance(plain, Mapping) and isinstance(path := plain.get("name"), str) and path not in cls.members:
            if path.endswith(SUFFIXES) or Path(path).is_file():
                plain = {**plain, "name": "files", "train": path}
        return super()._from_plain(plain)


@dataclass(frozen=True)
class Files(Corpus, name="files"):
    """The user's files: .txt (one text per line), .csv, .jsonl or .json (one object per line), each also .gz, and .parquet.

    ``text`` is the column to read; the columns ``attributes`` become one column of that name, other columns are kept. Without a
    ``validation`` file, ``validation_share`` of the training texts are held out by a hash of the text: a text and its copies
    stay in their split when others are added.
    """

    train: str
    validation: str | None = None
    test: str | None = None
    text: str = "text"
    attributes: tuple[str, ...] = ()
    validation_share: float = 0.05

    def __post_init__(self) -> None:
        _check_share(self.validation_share)

    def load(self) -> dict[str, datasets.Dataset]:
        paths = {"train": self.train, "validation": self.validation, "test": self.test}
        splits = {split: read_file(Path(path), self.text, self.attributes) for split, path in paths.items() if path}
        return _hold_out(splits, self.validation_share, self.train)


@dataclass(frozen=True)
class E2E(Corpus, name="e2e"):
    """The E2E NLG challenge (Novikova et al. 2017) in ``folder``, its meaning representations as attributes."""

    folder: str

    def load(self) -> dict[str, datasets.Dataset]:
        """Read trainset.csv, devset.csv and testset_w_refs.csv."""
        names = {"train": "trainset.csv", "validation": "devset.csv", "test": "testset_w_refs.csv"}
        return {split: self._read(Path(self.folder) / name) for split, name in names.items()}

    def _read(self, path: Path) -> datasets.Dataset:
        rows = []
        for line, row in _rows(path):
            if missing := {"mr", "ref"} - row.keys():
                raise UserError(f"{path}: no column {min(missing)!r}: expected mr and ref, got {', '.join(row)}")
            rows.append({"text": row["ref"], "attributes": _meaning(row["mr"], f"{path}, line {line}")})
        return _tidy(to_dataset(rows, str(path)), str(path))


@dataclass(frozen=True)
class Hub(Corpus, name="hub"):
    """The dataset ``path`` (configuration ``config``) of the Hugging Face hub, or a local folder in the hub's layout.

    ``train``, ``validation`` and ``test`` name its splits; without a validation split ``validation_share`` of the
    training texts is held out. ``take`` keeps the first texts of each split; with ``streaming`` no others are downloaded.
    """

    path: str
    config: str | None = None
    text: str = "text"
    attributes: tuple[str, ...] = ()
    train: str = "train"
    validation: str = "validation"
    test: str = "test"
    streaming: bool = False
    take: int | None = None
    validation_share: float = 0.05

    def __post_init__(self) -> None:
        _check_share(self.validation_share)
        if self.streaming and self.take is None:
            raise UserError("take: streaming needs the number of texts to take from each split, and it is not set")
        if self.take is not None and self.take < 1:
            raise UserError(f"take: expected 1 or more, got {self.take}")

    def load(self) -> dict[str, datasets.Dataset]:
        """Download (once) or stream it."""
        names = {"train": self.train, "validation": self.validation, "test": self.test}
        try:
            found = datasets.load_dataset(self.path, self.config, streaming=self.streaming)
            splits = {split: self._first(found[name]) for split, name in names.items() if name in found}
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{self.path}: cannot load a dataset from here: {reason}") from None
        if self.train not in found:
            raise UserError(f"{self.path}: no split is called {self.train!r}{nearest(self.train, found)}")
        tidy = {k: _tidy(v, f"{self.path}, split {names[k]}", self.text, self.attributes) for k, v in splits.items()}
        return _hold_out(tidy, self.validation_share, self.path)

    def _first(self, split: Any) -> datasets.Dataset:
        if self.take is None:
            return split
        if self.streaming:
            return datasets.Dataset.from_list(list(split.take(self.take)), features=split.features)
        return split.select(range(min(self.take, len(split))))


def read_texts(path: str, column: str = "text") -> list[tuple[str, str]]:
    """Read the texts of a file in one of the formats of ``files``, or the lines of standard input where it is ``-``.

    Each text comes with its place, such as "reviews.csv, line 7"; rows without text are dropped. Raises as ``read_file``.
    """
    name = "standard input" if path == "-" else path
    rows = list(_text_rows(sys.stdin, Path(name)) if path == "-" else _rows(Path(path).expanduser()))
    _tidy(to_dataset([row for _, row in rows], name), name, column)
    found = [(f"{name}, line {line}", row.get(column)) for line, row in rows]
    return [(place, text) for place, text in found if text and not text.isspace()]


def read_file(path: Path, text: str = "text", attributes: Sequence[str] = ()) -> datasets.Dataset:
    """Return a file in one of the formats of ``files``, its column ``text`` as "text", ``attributes`` gathered in one column.

    Raises UserError for a missing or broken file or column, or where there is no text.
    """
    path = path.expanduser()
    return _tidy(to_dataset([row for _, row in _rows(path)], str(path)), str(path), text, attributes)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a file, each with the number of its last line."""
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path}: expected a file ending in one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file{_nearest_file(path)}")
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    try:
        if kind == "parquet":
            yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1)
            return
        read = {"txt": _text_rows, "csv": _csv_rows}.get(kind, _json_rows)
        opened = gzip.open(path, "rt", encoding="utf-8-sig", newline="") if path.suffix == ".gz" else None
        with opened or path.open(encoding="utf-8-sig", newline="") as file:
            yield from read(file, path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text, got the byte {error.object[error.start]:#x}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, pyarrow.ArrowInvalid) as error:
        raise UserError(f"{path}: the file is damaged: {error}") from None


def _text_rows(file: Iterable[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(file, 1):
        yield line, {"text": text.strip()}


def _json_rows(file: Iterable[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(file, 1):
        try:
            row = json.loads(text) if text.strip() else {}
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {line}: expected a JSON object on each line: {error.msg}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {line}: expected a JSON object on each line, got {text.strip()[:60]}")
        if row:
            yield line, row


def _csv_rows(file: Iterable[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(file, strict=True)
    try:
        header = next(reader, [])
        for row in filter(None, reader):
            if len(row) != len(header):
                got = f"expected {len(header)} columns ({', '.join(header)}), got {len(row)}"
                raise UserError(f"{path}, line {reader.line_num}: {got}")
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV: {error}") from None


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor its folder {path.parent}"
    hint = nearest(path.name, [other.name for other in path.parent.iterdir() if other.name.endswith(SUFFIXES)])
    return hint if hint.startswith("; did you mean") or len(hint) < 200 else ""  # a full folder is not listed


def to_dataset(rows: Sequence[Mapping[str, Any]], place: str = "texts") -> datasets.Dataset:
    """Return the columns of ``rows``; a value that a row lacks is None. Raises UserError for what is not Unicode."""
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}
    features = datasets.Features({name: _feature(values) for name, values in columns.items()})
    try:
        return datasets.Dataset.from_dict(columns, features=features)
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: half a surrogate pair, which is not a character, in {error.object[:60]!r}") from None


def _feature(values: Sequence[Any]) -> Any:
    if all(isinstance(value, str) for value in values):
        return datasets.Value("string")
    if all(isinstance(value, list) and all(isinstance(item, str) for item in value) for value in values):
        return datasets.List(datasets.Value("string"))
    return datasets.Json()  # any value


def _tidy(rows: datasets.Dataset, place: str, text: str = "text", attributes: Sequence[str] = ()) -> datasets.Dataset:
    """Rename the text column to "text", gather the columns ``attributes`` in one, drop rows without text."""
    for column in (text, *attributes):
        if len(rows) and column not in rows.column_names:
            shown = ", ".join(repr(name[:40]) for name in rows.column_names)
            hint = nearest(column, rows.column_names)
            raise UserError(f"{place}: no column {column!r} among {shown}{hint if 'did you mean' in hint else ''}")
    texts = rows[text][:] if len(rows) else []
    if wrong := [value for value in texts if not isinstance(value, str | None)]:
        raise UserError(f"{place}: column {text!r} should hold text, got {wrong[0]!r}")
    kept = [i for i, value in enumerate(texts) if value and not value.isspace()]
    if not kept:
        raise UserError(f"{place}: there is no text in it")
    if attributes:
        columns = zip(*(rows[name][:] for name in attributes), strict=True)
        named = [{k: str(v) for k, v in zip(attributes, row, strict=True) if v not in (None, "")} for row in columns]
        rows = rows.remove_columns(({*attributes, "attributes"} - {text}) & {*rows.column_names})
        rows = datasets.concatenate_datasets([rows, to_dataset([{"attributes": row} for row in named])], axis=1)
    if text != "text":
        rows = rows.remove_columns({"text"} & {*rows.column_names}).rename_column(text, "text")
    return rows if len(kept) == len(rows) else rows.select(kept)


def _hold_out(splits: dict[str, datasets.Dataset], share: float, place: str) -> dict[str, datasets.Dataset]:
    """Return ``splits``; where there is no "validation", a ``share`` of the training texts is."""
    if "validation" in splits:
        return splits
    rows = splits["train"]
    held = np.array([zlib.crc32(text.encode()) < share * 2**32 for text in rows["text"][:]])
    if held.all():
        raise UserError(f"{place}: all of its texts fell to validation: give a validation file, or a smaller share")
    if not held.any():
        return splits
    return {**splits, "train": rows.select(np.flatnonzero(~held)), "validation": rows.select(np.flatnonzero(held))}


def _check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise UserError(f"validation_share: expected a share from 0 to below 1, got {share}")


def _meaning(text: str, place: str) -> dict[str, str]:
    """Parse "key[value], key[value]"; a value may hold commas."""
    pairs = re.findall(r"\s*([^,\[\]]+)\[([^\[\]]*)\]\s*(?:,|$)", text)
    if not pairs or re.sub(r"\s", "", ",".join(f"{k}[{v}]" for k, v in pairs)) != re.sub(r"\s", "", text):
        raise UserError(f"{place}: expected 'key[value], key[value]', got {text!r}")
    return {key.strip(): value.strip() for key, value in pairs}
