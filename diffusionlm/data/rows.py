"""Texts and encoded texts of large corpora: sequences that read from memory-mapped Arrow what is asked for.

Of small corpora both are lists. The functions here compute the same from either.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import datasets  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import pyarrow  # type: ignore[import-untyped]
import pyarrow.compute  # type: ignore[import-untyped]

from diffusionlm.data.pieces import given_tokens
from diffusionlm.data.store import Entry, is_cached, stored

BLOCK, BLOCK_BYTES = 100_000, 2**24  # the most texts, and about the most bytes of them, that are processed at once
FILE = "ids.arrow"  # of an entry of encoded texts
Ids = npt.NDArray[np.int32]
Lengths = npt.NDArray[np.int64]
Block = tuple[Ids, Lengths]  # the token ids of consecutive rows, and the number of each row's


class Texts(Sequence[str]):
    """The column "text" of a dataset."""

    def __init__(self, rows: datasets.Dataset) -> None:
        self.rows = rows.select_columns("text")

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.rows[index]["text"]

    def __iter__(self) -> Iterator[str]:
        for block in self.blocks():
            yield from block.to_pylist()

    def blocks(self, progress: Callable[[int], object] | None = None) -> Iterator[pyarrow.StringArray]:
        """Yield the texts in blocks; ``progress`` receives the number of texts of each that was processed."""
        size = BLOCK_BYTES * len(self) // max(1, self.rows.data.column("text").nbytes)
        for part in self.rows.with_format("arrow").iter(max(1, min(BLOCK, size))):
            yield part.column("text").combine_chunks().cast(pyarrow.string())
            if progress is not None:
                progress(len(part))

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the texts and of their lengths, which does not depend on the blocks."""
        lengths, characters = hashlib.sha256(), hashlib.sha256()
        for block in self.blocks():
            _, offsets, data = block.buffers()
            ends = np.frombuffer(offsets, np.int32)[block.offset : block.offset + len(block) + 1]
            lengths.update(np.diff(ends).tobytes())
            characters.update(memoryview(data)[ends[0] : ends[-1]] if data else b"")
        return lengths.hexdigest() + characters.hexdigest()


def texts_of(rows: datasets.Dataset, beside: Iterable[datasets.Dataset] = ()) -> Sequence[str]:
    """Return the texts of a dataset, as a list if there are few in it and in each of those ``beside`` it."""
    large = any(is_cached(each.data.column("text").nbytes) for each in (rows, *beside))
    return Texts(rows) if large else list(rows["text"][:])


def words_of(texts: pyarrow.StringArray) -> tuple[pyarrow.DictionaryArray, Lengths]:
    """Return what is between the blanks of all texts, and how many such words each text has."""
    split = pyarrow.compute.split_pattern(texts, " ")
    return split.flatten().dictionary_encode(), np.diff(split.offsets.to_numpy())


def word_counts(blocks: Iterable[pyarrow.StringArray]) -> Mapping[str, int]:
    """Return how often each word occurs, as it stands between blanks."""
    found: Counter[str] = Counter()
    for block in blocks:
        words, _ = words_of(block)
        numbers = np.bincount(words.indices.to_numpy(), minlength=len(words.dictionary)).tolist()
        found.update(dict(zip(words.dictionary.to_pylist(), numbers, strict=True)))
    return found


class TokenRows(Sequence[list[int]]):
    """Rows of token ids, BOS and EOS included, in the file ``ids.arrow`` of an entry of the cache.

    ``lengths`` has the number of tokens of each row; ``token_counts`` has how often each token but BOS and EOS occurs, in the
    order of the first occurrences; ``sha256`` is the digest that a run keeps of its training texts; ``texts`` has the
    number of the text that each row is (a piece of). Pieces have ``context`` tokens behind a border ``inner`` to their text.
    """

    def __init__(self, entry: Entry, context: int = 0, inner: int = -1) -> None:
        self._context, self._inner = context, inner
        self.sha256: str = entry.facts["sha256"]
        self.token_counts: Mapping[int, int] = dict(entry.facts["token_counts"])
        table = datasets.Dataset.from_file(str(entry.folder / FILE)).data
        self._blocks = [(part.offsets.to_numpy(), part.values.to_numpy()) for part in table.column("ids").chunks]
        self._starts = np.cumsum([0, *(len(offsets) - 1 for offsets, _ in self._blocks)]).tolist()
        sizes = [np.diff(offsets) for offsets, _ in self._blocks]
        self.lengths: npt.NDArray[np.int32] = np.concatenate(sizes) if sizes else np.zeros(0, np.int32)
        self.texts: Sequence[int] = Numbers([part.to_numpy() for part in table.column("text").chunks], self._starts)

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        block, row = _located(index, self._starts)
        offsets, values = self._blocks[block]
        return given_tokens(values[offsets[row] : offsets[row + 1]].tolist(), self._context, self._inner)

    def __iter__(self) -> Iterator[list[int]]:
        for offsets, values in self._blocks:
            for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
                yield given_tokens(values[start:end].tolist(), self._context, self._inner)

    def blocks(self) -> Iterator[Block]:
        """Yield the rows in blocks."""
        for offsets, values in self._blocks:
            yield values[offsets[0] : offsets[-1]], np.diff(offsets).astype(np.int64)

    def remember(self, name: str, make: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Return an array that was computed from these rows once before, or ``make()`` it; its ``name`` says what it is."""

        def save(folder: Path) -> dict[str, Any]:
            np.save(folder / "array.npy", make(), allow_pickle=False)
            return {}

        entry = stored("array", {"rows": self.sha256, "name": name}, save)
        return np.load(entry.folder / "array.npy", allow_pickle=False)


def _located(index: int, starts: Sequence[int]) -> tuple[int, int]:
    """Return the part in which an element is, and its place there; ``starts`` are the parts' first indices, and the end."""
    if not -starts[-1] <= index < starts[-1]:
        raise IndexError(f"{index} of {starts[-1]}")
    part = bisect_right(starts, index := index % starts[-1]) - 1
    return part, index - starts[part]


class Numbers(Sequence[int]):
    """Numbers in several arrays, the first of each with the index in ``starts``."""

    def __init__(self, parts: Sequence[npt.NDArray[Any]], starts: Sequence[int]) -> None:
        self.parts, self.starts = parts, starts

    def __len__(self) -> int:
        return self.starts[-1]

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        part, place = _located(index, self.starts)
        return int(self.parts[part][place])

    def __iter__(self) -> Iterator[int]:
        for part in self.parts:
            yield from part.tolist()


def lengths_of(rows: Sequence[Sequence[int]]) -> npt.NDArray[Any]:
    """Return the number of tokens of each row."""
    return rows.lengths if isinstance(rows, TokenRows) else np.fromiter(map(len, rows), np.int64, len(rows))


def digest_of(rows: Sequence[Sequence[int]]) -> str:
    """Return the SHA-256 of all rows, each with its length before it."""
    if isinstance(rows, TokenRows):
        return rows.sha256
    return hashlib.sha256(b"".join(np.array([len(row), *row], np.int32).tobytes() for row in rows)).hexdigest()


def token_counts(rows: Sequence[Sequence[int]]) -> Mapping[int, int]:
    """Return how often each token other than BOS, EOS and given ones occurs, in the order of the first occurrences."""
    return rows.token_counts if isinstance(rows, TokenRows) else Counter(i for row in rows for i in _new(row))


def _new(row: Sequence[int]) -> Iterable[int]:
    known = getattr(row, "known", None)
    return row[1:-1] if known is None else (i for i, given in zip(row[1:-1], known[1:-1], strict=True) if not given)


def blocks_of(rows: Sequence[Sequence[int]]) -> Iterable[Block]:
    """Return all rows in blocks."""
    if isinstance(rows, TokenRows):
        return rows.blocks()
    return [(np.array([i for row in rows for i in row], np.int32), lengths_of(rows))]
