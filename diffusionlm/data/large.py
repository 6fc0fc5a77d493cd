"""Large corpora: files whose texts are read once and kept in the cache, as memory-mapped Arrow; see ``store``."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pyarrow  # type: ignore[import-untyped]
from datasets.arrow_writer import ArrowWriter  # type: ignore[import-untyped]
from tqdm import tqdm

from diffusionlm.config import UserError
from diffusionlm.data.lines import text_blocks
from diffusionlm.data.reading import collected_reports, kind_of
from diffusionlm.data.store import stored
from diffusionlm.progress import intervals, say

ALL_HELD_OUT = "all of its texts fell to validation: give a validation file, or a smaller share"
TEXT = datasets.Features({"text": datasets.Value("string")})
Splits = dict[str, datasets.Dataset]
Files = Mapping[str, Sequence[Path]]  # by split


def is_held_out(text: str, share: float) -> bool:
    """Return whether a text belongs to the ``share`` that is held out for validation, by its CRC-32."""
    return zlib.crc32(text.encode()) < share * 2**32


def size_of(files: Files) -> int:
    """Return the bytes of all ``files`` together; missing ones, which are refused where they are read, have none."""
    return sum(path.stat().st_size for paths in files.values() for path in paths if path.is_file())


def large_splits(files: Files, settings: Mapping[str, Any], share: float, column: str, load: Callable[[], Splits]) -> Splits:
    """Return the splits of a corpus from the cache, made from its ``files`` where they, or its ``settings``, are new.

    Lines of text are read in blocks, and the ``share`` is held out for validation where no such split has files; the splits
    of files in other formats are those that ``load()`` returns. Reports on the texts are repeated each time.

    Raises:
        UserError: as ``load``; the cache cannot be written.
    """
    named = {split: [[str(path), _digest(path)] for path in paths] for split, paths in files.items()}
    entry = stored("texts", {"files": named, "settings": dict(settings)}, partial(_write, files, share, column, load))
    for sentence in entry.facts["reports"]:
        say(sentence)
    return {split: datasets.Dataset.from_file(str(entry.folder / f"{split}.arrow")) for split in entry.facts["splits"]}


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _write(files: Files, share: float, column: str, load: Callable[[], Splits], folder: Path) -> dict[str, Any]:
    with collected_reports() as reports:
        if all(kind_of(path) == "txt" for paths in files.values() for path in paths):
            splits = _write_lines(files, share, column, folder)
        else:
            splits = _write_splits(load(), folder)
    return {"reports": reports, "splits": splits}


def _write_lines(files: Files, share: float, column: str, folder: Path) -> list[str]:
    """Write the texts of all splits, and return the names of these."""
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(desc="reading texts", unit=" texts", unit_scale=True, leave=False, **intervals()))
        for split, paths in files.items():
            held_share = share if split == "train" and "validation" not in files else 0.0
            names = [split, "validation"] if held_share else [split]
            writers = [stack.enter_context(arrow_file(folder / f"{name}.arrow", TEXT)) for name in names]
            for texts in chain.from_iterable(text_blocks(path, column) for path in paths):
                held = [is_held_out(text, held_share) for text in texts] if held_share else [False] * len(texts)
                for name, write, wanted in zip(names, writers, (False, True), strict=False):
                    part = [text for text, other in zip(texts, held, strict=True) if other is wanted]
                    write(pyarrow.table({"text": pyarrow.array(part, pyarrow.string())}))
                    counts[name] += len(part)
                bar.update(len(texts))
    if not counts["train"]:
        raise UserError(f"{files['train'][0]}: {ALL_HELD_OUT}")
    return [name for name in (*files, *({"validation"} - {*files})) if counts[name]]


def _write_splits(splits: Splits, folder: Path) -> list[str]:
    for split, rows in splits.items():
        with arrow_file(folder / f"{split}.arrow", rows.features) as write:
            for part in rows.with_format("arrow").iter(10_000):
                write(part)
    return [*splits]


@contextmanager
def arrow_file(path: Path, features: datasets.Features) -> Iterator[Callable[[pyarrow.Table], None]]:
    """Yield a function that adds a table to the Arrow file ``path``, which ``datasets.Dataset.from_file`` reads."""
    writer = ArrowWriter(path=str(path), features=features)
    try:
        yield lambda table: writer.write_table(table, writer_batch_size=len(table) or None)
        writer.finalize()
    finally:
        writer.close()
