"""Large corpora: files whose texts are read once and kept in the cache, as memory-mapped Arrow; see ``store``."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import pyarrow  # type: ignore[import-untyped]
from datasets.arrow_writer import ArrowWriter  # type: ignore[import-untyped]
from tqdm import tqdm

from diffusionlm.config import UserError
from diffusionlm.data.blocks import table_blocks
from diffusionlm.data.lines import text_blocks
from diffusionlm.data.reading import Table, TextRows, collected_reports, kind_of
from diffusionlm.data.shards import joined
from diffusionlm.data.store import stored
from diffusionlm.data.tables import Columns, tidy_part
from diffusionlm.progress import intervals, say

ALL_HELD_OUT = "all of its texts fell to validation: give a validation file, or a smaller share"
Splits = dict[str, datasets.Dataset]
Files = Mapping[str, Sequence[Path]]  # by split


def is_held_out(text: str, share: float) -> bool:
    """Return whether a text belongs to the ``share`` that is held out for validation, by its CRC-32."""
    return zlib.crc32(text.encode()) < share * 2**32


def size_of(files: Files) -> int:
    """Return the bytes of all ``files`` together; missing ones, which are refused where they are read, have none."""
    return sum(path.stat().st_size for paths in files.values() for path in paths if path.is_file())


@dataclass(frozen=True)
class Source:
    """How the files of a corpus are read; see ``corpora.Files``. ``name`` is what the user calls the training files."""

    name: str
    text: str
    attributes: tuple[str, ...]
    validation_share: float


def large_splits(files: Files, source: Source) -> Splits:
    """Return the splits of a corpus from the cache, made from its ``files`` where they, or the settings, are new.

    Files are read in blocks. Where no validation split has files, the share of the training texts is held out. Reports on the
    texts are repeated each time.

    Raises:
        UserError: as ``corpora.Files.load``; the cache cannot be written.
    """
    named = {split: [[str(path), _digest(path)] for path in paths] for split, paths in files.items()}
    settings = {name: value for name, value in asdict(source).items() if name != "name"}
    entry = stored("texts", {"files": named, "settings": settings}, partial(_write, files, source))
    for sentence in entry.facts["reports"]:
        say(sentence)
    return {split: datasets.Dataset.from_file(str(entry.folder / f"{split}.arrow")) for split in entry.facts["splits"]}


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _write(files: Files, source: Source, folder: Path) -> dict[str, Any]:
    """Write the texts of all splits, and return the names of these and the reports on them."""
    counts: Counter[str] = Counter()
    bar = tqdm(desc="reading texts", unit=" texts", unit_scale=True, leave=False, **intervals())
    with collected_reports() as reports, bar:
        for split, paths in files.items():
            share = source.validation_share if split == "train" and "validation" not in files else 0.0
            lines = all(kind_of(path) == "txt" for path in paths)
            with ExitStack() as stack:
                write = _Writers(folder, [split, "validation"] if share else [split], stack)
                for part in _lines(paths, source.text) if lines else _rows(paths, source):
                    held = np.array([share > 0 and is_held_out(text, share) for text in part.column("text").to_pylist()], bool)
                    counts.update(write.split(part, held))
                    bar.update(len(part))
    if not counts["train"]:
        raise UserError(f"{source.name}: {ALL_HELD_OUT}")
    return {"reports": reports, "splits": [name for name in (*files, *({"validation"} - {*files})) if counts[name]]}


def _lines(paths: Sequence[Path], column: str) -> Iterator[pyarrow.Table]:
    """Yield the texts of files of lines in blocks."""
    for texts in chain.from_iterable(text_blocks(path, column) for path in paths):
        yield pyarrow.table({"text": pyarrow.array(texts, pyarrow.string())})


def _rows(paths: Sequence[Path], source: Source) -> Iterator[pyarrow.Table]:
    """Yield the rows with a text of the table in files, in blocks, all of the same types; the files are read twice.

    Raises UserError where a value is none of its column: first of all for a text, as if the table were read as a whole.
    """
    head, features = _columns(paths, source.text)
    other: UserError | None = None
    for path in paths:
        texts = TextRows(source.text)
        for block in _silently(table_blocks(path, source.text)):
            missing = [None] * len(block.numbers)
            block = replace(block, columns={name: block.columns.get(name, missing) for name in head.columns})
            kept = texts.of(block)
            if other is None:
                try:
                    part = tidy_part(block, head, features, kept, source.text, source.attributes)
                except UserError as error:
                    other = error
                else:
                    yield part.with_format("arrow")[:]
        texts.report(str(path))
    if other is not None:
        raise other


def _columns(paths: Sequence[Path], column: str) -> tuple[Table, datasets.Features]:
    """Return the name and the columns of the table in files, without its rows, and the types of all values.

    Raises UserError where a file is broken, or has other columns.
    """
    heads, types = [], Columns()
    for path in paths:
        rows, names, of_bytes = 0, dict[str, Sequence[Any]](), dict[str, None]()
        for block in table_blocks(path, column):
            types.with_rows(block.columns)
            rows += len(block.numbers)
            names |= {name: [] for name in block.columns}
            of_bytes |= dict.fromkeys(block.of_bytes)
        heads.append(Table(str(path), names, range(rows), of_bytes=tuple(of_bytes)))
    return replace(joined(heads), numbers=range(0)), types.features()


def _silently(blocks: Iterator[Table]) -> Iterator[Table]:
    """Yield ``blocks`` without the reports on what is between the texts, which were made when the columns were read."""
    while True:
        with collected_reports():
            block = next(blocks, None)
        if block is None:
            return
        yield block


class _Writers:
    """Files of the splits ``names``, the first of texts to train on, the second, if there is one, of those held out."""

    def __init__(self, folder: Path, names: Sequence[str], stack: ExitStack) -> None:
        self.folder, self.names, self.stack = folder, names, stack
        self.writers: list[Callable[[pyarrow.Table], None]] = []

    def split(self, part: pyarrow.Table, held: npt.NDArray[np.bool_]) -> dict[str, int]:
        """Write the rows of ``part`` and return how many each split received."""
        if not self.writers:  # whose types are those of the first part
            features = datasets.Features.from_arrow_schema(part.schema)
            places = [self.folder / f"{name}.arrow" for name in self.names]
            self.writers = [self.stack.enter_context(arrow_file(place, features)) for place in places]
        chosen = dict(zip(self.names, (~held, held), strict=False))
        for write, mask in zip(self.writers, chosen.values(), strict=True):
            write(part.filter(pyarrow.array(mask)))
        return {name: int(mask.sum()) for name, mask in chosen.items()}


@contextmanager
def arrow_file(path: Path, features: datasets.Features) -> Iterator[Callable[[pyarrow.Table], None]]:
    """Yield a function that adds a table to the Arrow file ``path``, which ``datasets.Dataset.from_file`` reads."""
    writer = ArrowWriter(path=str(path), features=features)
    try:
        yield lambda table: writer.write_table(table, writer_batch_size=len(table) or None)
        writer.finalize()
    finally:
        writer.close()
