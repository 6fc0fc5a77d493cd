"""Corpora: the user's files, the E2E challenge, datasets of the Hugging Face hub.

A corpus loads as ``datasets.Dataset`` splits with a string column ``text`` and, where known, a column ``attributes`` of
mappings string -> string whose keys may differ from row to row (feature type ``Json``). Files are read by ``reading`` and not
by ``datasets.load_dataset``, which caches a converted copy, reads the text "NA" as missing, and reports no line numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import datasets  # type: ignore[import-untyped]
import numpy as np

from diffusionlm.config import Component, UserError, nearest
from diffusionlm.data.annotators import Annotator, Plain
from diffusionlm.data.class_labels import named_labels
from diffusionlm.data.columns import names_in, pair_columns, text_column
from diffusionlm.data.large import ALL_HELD_OUT, Source, is_held_out, large_splits, size_of
from diffusionlm.data.reading import Table, collected_reports, nfc, read_table
from diffusionlm.data.rows import Texts, texts_of
from diffusionlm.data.shards import files_of, is_pattern, read_tables
from diffusionlm.data.store import is_cached
from diffusionlm.data.streams import BUFFER, FIRST, OF_LIBRARIES, TextStream, stream_of_files
from diffusionlm.data.tables import tidy
from diffusionlm.data.tables import to_dataset as to_dataset
from diffusionlm.files import SUFFIXES

# A number for each text, None where the metric does not apply; the reported figure is the mean over the others.
TextMetric = Callable[[Sequence[str]], list[float | None]]
OF_TEXTS, OF_PAIRS = "data.corpus.text", "data.corpus.source and data.corpus.target name them"


class Corpus(Component, family="corpus"):
    """Base of the corpora. A path in place of a name is the training file of ``files``.

    ``language`` is the ISO 639 code of the language of all its texts, where the corpus itself decides it.
    """

    language: ClassVar[str | None] = None

    def load(self) -> dict[str, datasets.Dataset]:
        """Return "train" and, where they exist, "validation" and "test". Raises UserError for missing or broken texts."""
        raise NotImplementedError

    @property
    def streams(self) -> bool:
        """Whether the training texts are streamed; "train" of ``load`` then has the first of them."""
        return False

    def stream(self) -> TextStream | None:
        """Return the training texts where they are streamed."""
        return None

    @property
    def dataset(self) -> str | None:
        """The name of the corpus on the Hugging Face hub; None where it is not from there."""
        return None

    def annotator(self) -> Annotator:
        """Return what reads a text of this corpus where the user names no annotator."""
        return Plain()

    def metrics(self, training: Collection[str]) -> dict[str, TextMetric]:
        """Return the figures that are special to this corpus, by name; ``training`` are its training texts."""
        return {}

    @classmethod
    def described(cls, plain: object) -> tuple[type[Self], dict[str, Any]]:
        plain = {"name": plain} if isinstance(plain, str) else plain
        if isinstance(plain, Mapping) and isinstance(path := plain.get("name"), str) and path not in cls.members:
            if path.lower().endswith(SUFFIXES) or is_pattern(path) or (path and Path(path).expanduser().exists()):
                plain = {**plain, "name": "files", "train": path}
        return super().described(plain)


@dataclass(frozen=True)
class Files(Corpus, name="files"):
    """The user's files: .txt (a text per line), .csv, .tsv, .jsonl or .json (an object per line), and .parquet.

    All but the last may be packed, as .gz or .zst. ``train``, ``validation`` and ``test`` each name a file, a folder of files,
    or a pattern such as ``texts/*.txt``, whose files have the same columns. Large ones are read once and cached, see ``store``.

    ``text`` is the column to read, see ``columns`` without a "text"; the columns ``attributes`` become one column of that
    name, other columns are kept. Without a ``validation`` file, ``validation_share`` of the training texts are held out by a
    hash of the text: a text and its copies stay in their split when others are added.

    With ``streaming`` the training texts are read while a model is trained, and shuffled in a ``shuffle_buffer`` of texts; what
    is needed before, and the held-out texts, are taken from the ``first_texts``.
    """

    train: str
    validation: str | None = None
    test: str | None = None
    text: str = "text"
    attributes: tuple[str, ...] = ()
    validation_share: float = 0.05
    streaming: bool = False
    first_texts: int = FIRST
    shuffle_buffer: int = BUFFER

    def __post_init__(self) -> None:
        _check_share(self.validation_share)
        _check_streaming(self)

    @property
    def streams(self) -> bool:
        return self.streaming

    def stream(self) -> TextStream | None:
        if not self.streams:
            return None
        with collected_reports():  # ``load`` makes them
            paths = files_of(self.train)
            column = column_of(paths[0], self.text, OF_TEXTS)
        share = self.validation_share if self.validation is None else 0.0
        return stream_of_files(paths, self.train, column, share, self.shuffle_buffer)

    def load(self) -> dict[str, datasets.Dataset]:
        names = {"train": self.train, "validation": self.validation, "test": self.test}
        files = {split: files_of(name) for split, name in names.items() if name is not None}
        text = column_of(files["train"][0], self.text, OF_TEXTS)
        if (stream := self.stream()) is not None:
            del files["train"]
            others = {split: tidy(read_tables(paths, text), None, text) for split, paths in files.items()}
            return _first_splits(stream, self.first_texts, others)
        if not is_cached(size_of(files)):
            splits = {name: tidy(read_tables(paths, text), None, text, self.attributes) for name, paths in files.items()}
            return _hold_out(splits, self.validation_share, self.train)
        return large_splits(files, Source(self.train, text, self.attributes, self.validation_share))


@dataclass(frozen=True)
class E2E(Corpus, name="e2e"):
    """The E2E NLG challenge (Novikova et al. 2017) in ``folder``, its meaning representations as attributes and ``source``."""

    language: ClassVar[str | None] = "en"

    folder: str

    def load(self) -> dict[str, datasets.Dataset]:
        """Read trainset.csv, devset.csv and testset_w_refs.csv."""
        names = {"train": "trainset.csv", "validation": "devset.csv", "test": "testset_w_refs.csv"}
        return {split: self._read(Path(self.folder) / name) for split, name in names.items()}

    def _read(self, path: Path) -> datasets.Dataset:
        table = read_table(path, "ref")
        pairs = zip(table.column("ref"), table.column("mr"), strict=True)
        rows = [{"text": text, "attributes": meaning(mr, table.place(i)), "source": mr} for i, (text, mr) in enumerate(pairs)]
        return tidy(Table(table.name, {"text": table.column("ref")}, table.numbers), to_dataset(rows, str(path)))


@dataclass(frozen=True)
class Pairs(Corpus, name="pairs"):
    """Sources and targets in ``path``: a folder with train.jsonl, valid.jsonl and test.jsonl, or one file.

    ``source`` and ``target`` name the columns, by default those of DiffuSeq's form; they become "source" and "text". Without
    them another usual pair is read, see ``columns``. Other formats of ``files`` are read too. Without a validation file,
    ``validation_share`` of the training texts are held out.
    """

    path: str
    source: str = "src"
    target: str = "trg"
    validation_share: float = 0.05

    def __post_init__(self) -> None:
        _check_share(self.validation_share)

    def load(self) -> dict[str, datasets.Dataset]:
        files, columns = self._files(), (self.source, self.target)
        if columns == (Pairs.source, Pairs.target):
            found = pair_columns(str(files["train"]), names_in(files["train"], columns), columns, OF_PAIRS)
            columns = columns if found is None else found
        splits = {split: _read_pairs(path, *columns) for split, path in files.items()}
        return _hold_out(splits, self.validation_share, self.path)

    def _files(self) -> dict[str, Path]:
        folder = Path(self.path)
        if not folder.is_dir():
            return {"train": folder}
        found: dict[str, Path] = {}
        for split, names in {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}.items():
            files = [file for file in sorted(folder.iterdir()) if file.name.lower().endswith(SUFFIXES)]
            own = [file for file in files if file.name.partition(".")[0].lower() in names]
            if len(own) > 1:
                raise UserError(f"{folder}: expected one file of the {split} split, got {', '.join(file.name for file in own)}")
            found |= {split: own[0]} if own else {}
        if "train" not in found:
            raise UserError(f"{folder}: expected a file train.jsonl, or another of {', '.join(SUFFIXES)}")
        return found


@dataclass(frozen=True)
class Hub(Corpus, name="hub"):
    """The dataset ``path`` (configuration ``config``) of the Hugging Face hub, or a local folder in the hub's layout.

    ``text`` may be a part of a column, as ``translation.en`` in the data sets of translations; its other parts then are columns
    too. Where there is no column "text", see ``columns``. Labels are words where the data set names them. ``train``,
    ``validation`` and ``test`` name its splits; without a validation split ``validation_share`` of the training texts is held
    out. ``take`` keeps the first texts of each split; with ``streaming`` no others are downloaded.

    The columns ``attributes`` become one column of that name.

    With ``streaming`` and without ``take`` the training texts are read while a model is trained; ``first_texts`` and
    ``shuffle_buffer`` as in ``files``, and the other splits are their first texts, as many.
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
    first_texts: int = FIRST
    shuffle_buffer: int = BUFFER

    def __post_init__(self) -> None:
        _check_share(self.validation_share)
        if self.take is not None and self.take < 1:
            raise UserError(f"take: expected 1 or more, got {self.take}")
        _check_streaming(self)

    @property
    def streams(self) -> bool:
        return self.streaming and self.take is None

    @property
    def dataset(self) -> str | None:
        return None if Path(self.path).exists() else self.path

    def stream(self) -> TextStream | None:
        if not self.streams:
            return None
        found = self._opened()
        with collected_reports():  # ``load`` makes them
            column = self._column(found[self.train])
        share = 0.0 if self.validation in found else self.validation_share
        name = f"{self.path}, split {self.train}"
        return TextStream(name, lambda random: self._opened()[self.train], share, self.shuffle_buffer, column)

    def load(self) -> dict[str, datasets.Dataset]:
        """Download (once) or stream it."""
        names = {"train": self.train, "validation": self.validation, "test": self.test}
        stream, found = self.stream(), self._opened()
        read = [split for split, name in names.items() if name in found and (stream is None or split != "train")]
        try:
            splits = {split: self._first(found[names[split]]) for split in read}
        except OF_LIBRARIES as error:
            raise self._unreadable(error) from None
        known = replace(self, text=self._column(found[self.train]))
        tidy = {split: known._tidied(rows, f"{self.path}, split {names[split]}") for split, rows in splits.items()}
        if stream is not None:
            return _first_splits(stream, self.first_texts, tidy)
        return _hold_out(tidy, self.validation_share, self.path)

    def _opened(self) -> Any:
        """Return the splits by name."""
        try:
            found = datasets.load_dataset(self.path, self.config, streaming=self.streaming)
        except OF_LIBRARIES as error:
            raise self._unreadable(error) from None
        if self.train not in found:
            raise UserError(f"{self.path}: no split is called {self.train!r}{nearest(self.train, found)}")
        return found

    def _column(self, split: Any) -> str:
        """Return the column of the texts in a split."""
        if self.text != Hub.text:
            return self.text
        try:
            features = split.features or datasets.Features.from_dict({})
            row: Mapping[str, Any] = {} if features else next(iter(split), {})
        except OF_LIBRARIES as error:
            raise self._unreadable(error) from None
        names = {nfc(name): getattr(feature, "dtype", "") in ("string", "large_string") for name, feature in features.items()}
        names |= {nfc(name): isinstance(value, str) for name, value in row.items()}
        return text_column(f"{self.path}, split {self.train}", names, self.text, OF_TEXTS)

    def _unreadable(self, error: Exception) -> UserError:
        reason = str(error).strip().partition("\n")[0]
        return UserError(f"{self.path}: cannot load a dataset from here: {reason}")

    def _tidied(self, rows: datasets.Dataset, place: str) -> datasets.Dataset:
        rows = named_labels(rows)
        column, dot, _ = self.text.partition(".")
        if dot and column in rows.column_names and self.text not in rows.column_names:
            rows = rows.flatten()
        columns: dict[str, Sequence[Any]] = {nfc(name): [] for name in rows.column_names}
        for name in rows.column_names:
            if nfc(name) in map(nfc, self.attributes):
                columns[nfc(name)] = rows[name][:]
            elif nfc(name) == nfc(self.text):
                columns[nfc(name)] = _values(rows, name)
        return tidy(Table(place, columns, range(1, len(rows) + 1), "row"), rows, self.text, self.attributes)

    def _first(self, split: Any) -> datasets.Dataset:
        if self.streaming:
            return datasets.Dataset.from_list(list(split.take(self.take or self.first_texts)), features=split.features)
        if self.take is None:
            return split
        return split.select(range(min(self.take, len(split))))


def _values(rows: datasets.Dataset, name: str) -> Sequence[Any]:
    """Return a column, of which as little is in memory at once as of a large corpus where it is text."""
    column = rows.data.column(name)
    if rows.features[name] != datasets.Value("string") or not is_cached(column.nbytes):
        return rows[name][:]
    return Texts(rows.select_columns(name).rename_columns({name: "text"}))


def column_of(path: str | Path, wanted: str, setting: str) -> str:
    """Return the column of the texts of a file, see ``columns.text_column``."""
    return text_column(str(path), names_in(path, (wanted,)), wanted, setting) if wanted == "text" else wanted


def read_texts(path: str, column: str = "text", setting: str = "column") -> list[tuple[str, str]]:
    """Read the texts of a file in one of the formats of ``files``, or the lines of standard input where it is ``-``.

    Each text comes with its place, such as "reviews.csv, line 7"; rows without text are dropped. Where there is no column
    "text", see ``columns``. Raises as ``read_file``; the ``setting`` is what names the column for the user.
    """
    column = column_of(path, column, setting)
    table = read_table(path, column)
    return [(table.place(row), table.column(column)[row]) for row in table.texts(column)]


def read_file(path: str | Path, text: str = "text", attributes: Sequence[str] = ()) -> datasets.Dataset:
    """Return a file in one of the formats of ``files``, its column ``text`` as "text", ``attributes`` gathered in one column.

    Raises UserError for a missing or broken file or column, or where there is no text.
    """
    return tidy(read_table(Path(path), text), None, text, attributes)


def _read_pairs(path: Path, source: str, target: str) -> datasets.Dataset:
    table = read_table(path, target)
    rows = tidy(table, None, target)
    if source == "source":
        return rows
    sources = table.column(source)
    rows = rows.remove_columns({"source"} & {*rows.column_names})
    return rows.add_column("source", [sources[row] for row in table.texts(target)])


def _hold_out(splits: dict[str, datasets.Dataset], share: float, place: str) -> dict[str, datasets.Dataset]:
    """Return ``splits``; where there is no "validation", a ``share`` of the training texts is."""
    if "validation" in splits:
        return splits
    rows = splits["train"]
    held = np.fromiter((is_held_out(text, share) for text in texts_of(rows)), bool, len(rows))
    if held.all():
        raise UserError(f"{place}: {ALL_HELD_OUT}")
    if not held.any():
        return splits
    return {**splits, "train": rows.select(np.flatnonzero(~held)), "validation": rows.select(np.flatnonzero(held))}


def _first_splits(stream: TextStream, number: int, others: dict[str, datasets.Dataset]) -> dict[str, datasets.Dataset]:
    """Return the first texts of a ``stream``, those held out as validation texts, unless these are among the ``others``."""
    train, held = (to_dataset([{"text": text} for text in texts]) for texts in stream.first(number))
    return {"train": train, **({"validation": held} if len(held) else {}), **others}


def _check_streaming(corpus: Files | Hub) -> None:
    corpus.expect("at least 1", "first_texts", "shuffle_buffer")
    given = [name for name, usual in (("first_texts", FIRST), ("shuffle_buffer", BUFFER)) if getattr(corpus, name) != usual]
    if given and not corpus.streams:
        raise UserError(f"{given[0]}: it has no effect on a corpus that is not streamed; set streaming, or leave it out")
    if corpus.streams and corpus.attributes:
        raise UserError("attributes: of a corpus that is streamed only the texts are read; leave them out")


def _check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise UserError(f"validation_share: expected a share from 0 to below 1, got {share}")


def meaning(text: str, place: str) -> dict[str, str]:
    """Parse "key[value], key[value]"; a value may hold commas."""
    pairs = re.findall(r"\s*([^,\[\]]+)\[([^\[\]]*)\]\s*(?:,|$)", text)
    if not pairs or re.sub(r"\s", "", ",".join(f"{k}[{v}]" for k, v in pairs)) != re.sub(r"\s", "", text):
        raise UserError(f"{place}: expected 'key[value], key[value]', got {text!r}")
    return {key.strip(): value.strip() for key, value in pairs}
