"""Encoding of large corpora, block by block, into rows that are kept in the cache; see ``store`` and ``rows.TokenRows``.

The ids are those of ``batches.encode``. The tokenizers that this library makes split a text at its blanks before anything else,
so that the ids of a text are those of its words, one after the other: each word is encoded once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import pyarrow  # type: ignore[import-untyped]
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from diffusionlm.data.batches import Encoded, Packing, TooLong, encodings, no_full_row, none_left, one_too_long
from diffusionlm.data.large import arrow_file
from diffusionlm.data.packing import Packer
from diffusionlm.data.pieces import Borders, Pieces
from diffusionlm.data.rows import FILE, Block, Ids, Lengths, Texts, TokenRows, words_of
from diffusionlm.data.store import stored
from diffusionlm.data.tokenizers import splits_at_blanks, tokenizer_digest
from diffusionlm.progress import intervals

MOST_WORDS = 2**20  # whose ids are kept
FEATURES = datasets.Features({"ids": datasets.List(datasets.Value("int32")), "text": datasets.Value("int64")})


def encode_large(
    texts: Texts, tokenizer: PreTrainedTokenizerFast, max_length: int, too_long: TooLong, split: str = "texts",
    context: int = 0, packing: Packing = "none",
) -> Encoded:  # fmt: skip
    """Return what ``encode`` returns, from the cache; ``split`` names the texts in the progress bar.

    Raises:
        UserError: as ``encode``; the cache cannot be written.
    """
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.split_special_tokens]
    key = {"texts": texts.digest, "tokenizer": tokenizer_digest(tokenizer), "special": special}
    framing = Framing(Borders.of(tokenizer, context), Pieces(max_length, context), too_long)
    if packing == "wrap":
        framing = PackedFraming(framing.borders, framing.pieces)
    frame = [max_length, framing.too_long, *([context] if context else [])]
    entry = stored("rows", {**key, "framing": frame}, partial(_write, texts, tokenizer, framing, split))
    rows = TokenRows(entry, context, framing.borders.inner)
    return Encoded(rows, rows.texts, entry.facts["too_long"], entry.facts["empty"])


def _write(texts: Texts, tokenizer: PreTrainedTokenizerFast, framing: Framing, split: str, folder: Path) -> dict[str, Any]:
    words = WordIds(tokenizer) if splits_at_blanks(tokenizer) else None
    digest, counts, long, empty, number, total = hashlib.sha256(), Counts(), 0, 0, 0, 0
    with arrow_file(folder / FILE, FEATURES) as write, _bar(f"encoding {split}", len(texts)) as bar:
        for block in texts.blocks():
            ids, lengths = _encoded(block, tokenizer) if words is None else words.encode(block)
            above = framing.above(lengths)
            long, empty = long + int(above.sum()), empty + int((lengths == 0).sum())
            if framing.too_long == "error" and long:
                first = int(above.argmax())
                raise one_too_long(number + first, int(lengths[first]), framing.pieces.max_length, block[first].as_py())
            ids, lengths, origins = framing.frame(ids, lengths, number)
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            counts.add(ids, framing.new(ids, lengths))
            digest.update(np.insert(ids, offsets[:-1], lengths).astype(np.int32).tobytes())
            rows = pyarrow.ListArray.from_arrays(pyarrow.array(offsets, pyarrow.int32()), pyarrow.array(ids, pyarrow.int32()))
            write(pyarrow.table({"ids": rows, "text": pyarrow.array(origins, pyarrow.int64())}))
            number, total = number + len(block), total + len(lengths)
            bar.update(len(block))
    if not total and isinstance(framing, PackedFraming):
        raise no_full_row(len(framing.packer.rest), empty, framing.pieces.max_length)
    if not total:
        raise none_left(len(texts), empty, long, framing.pieces.max_length)
    return {"too_long": long, "empty": empty, "sha256": digest.hexdigest(), "token_counts": [*counts.found.items()]}


def _bar(name: str, total: int) -> Any:
    return tqdm(desc=name, total=total, unit=" texts", unit_scale=True, leave=False, **intervals())


def _encoded(block: pyarrow.StringArray, tokenizer: PreTrainedTokenizerFast) -> Block:
    found = [encoding.ids for encoding in encodings(block.to_pylist(), tokenizer)]
    return np.array([i for ids in found for i in ids], np.int32), np.array([*map(len, found)], np.int64)


class WordIds:
    """Encodes texts with a tokenizer that ``splits_at_blanks``, each word once."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._forget()

    def _forget(self) -> None:
        self.known: dict[str, int] = {}
        self.ids, self.starts = np.zeros(0, np.int32), np.zeros(1, np.int64)

    def encode(self, texts: pyarrow.StringArray) -> Block:
        """Return the ids of all texts, without BOS and EOS, and their number in each."""
        words, per_text = words_of(texts)
        names = words.dictionary.to_pylist()
        if len(self.known) > MOST_WORDS:
            self._forget()
        if new := [name for name in names if name not in self.known]:
            self._learn(new)
        place = np.array([self.known[name] for name in names], np.int64)[words.indices.to_numpy()]
        sizes = self.starts[place + 1] - self.starts[place]
        ends = np.cumsum(sizes)
        ids = self.ids[np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.starts[place] - (ends - sizes), sizes)]
        return ids, np.diff(np.concatenate([[0], ends])[np.concatenate([[0], np.cumsum(per_text)])])

    def _learn(self, words: list[str]) -> None:
        ids = [encoding.ids for encoding in encodings(words, self.tokenizer)]
        self.known.update(zip(words, range(len(self.known), len(self.known) + len(words)), strict=True))
        self.ids = np.concatenate([self.ids, np.array([i for each in ids for i in each], np.int32)])
        self.starts = np.concatenate([self.starts, self.starts[-1] + np.cumsum([len(each) for each in ids])])


@dataclass(frozen=True)
class Framing:
    """BOS and EOS around each text, which is cut, dropped or split in ``pieces`` where it is too long for a row."""

    borders: Borders
    pieces: Pieces
    too_long: str

    def above(self, lengths: Lengths) -> npt.NDArray[np.bool_]:
        """Return which of ``lengths`` are too long for a row."""
        return lengths > self.pieces.room

    def frame(self, ids: Ids, lengths: Lengths, number: int) -> tuple[Ids, Lengths, Lengths]:
        """Return the rows of the texts from ``number`` on, of ``lengths``: ids and lengths with BOS and EOS, and its text."""
        room, ends = self.pieces.room, np.cumsum(lengths)
        begins = ends - lengths
        if self.too_long == "drop":
            lengths = np.where(lengths > room, 0, lengths)
        elif self.too_long == "truncate":
            lengths = np.minimum(lengths, room)
        counts = self.pieces.counts(lengths)
        origins = np.repeat(np.arange(len(lengths)), counts)
        firsts = (np.arange(len(origins)) - np.repeat(np.cumsum(counts) - counts, counts)) * self.pieces.stride
        left = lengths[origins] - firsts
        sizes = np.minimum(left, room)
        offsets = np.cumsum(sizes) - sizes
        words = ids[np.arange(int(sizes.sum())) + np.repeat(begins[origins] + firsts - offsets, sizes)]
        inside = (firsts > 0, left > room) if self.pieces.context else (None, None)
        return self._enclosed(words, sizes + 2, *inside), sizes + 2, origins + number

    def _enclosed(self, words: Ids, lengths: Lengths, later: Any, open: Any) -> Ids:
        framed = np.empty(int(lengths.sum()), np.int32)
        framed[self._inner(lengths)] = words
        ends = np.cumsum(lengths)
        inner = self.borders.inner
        framed[ends - lengths] = self.borders.start if later is None else np.where(later, inner, self.borders.start)
        framed[ends - 1] = self.borders.end if open is None else np.where(open, inner, self.borders.end)
        return framed

    def _inner(self, lengths: Lengths) -> Any:
        ends = np.cumsum(lengths)
        inner = np.ones(int(ends[-1]) if len(ends) else 0, bool)
        inner[ends - lengths] = inner[ends - 1] = False
        return inner

    def new(self, ids: Ids, lengths: Lengths) -> Any:
        """Return which ``ids`` of rows of ``lengths`` are neither at the ends of a row nor the context of a piece."""
        new, begins = self._inner(lengths), np.cumsum(lengths) - lengths
        if self.pieces.context:
            later = begins[ids[begins] == self.borders.inner]
            new[(later[:, None] + 1 + np.arange(self.pieces.context)).ravel()] = False
        return new


@dataclass(frozen=True)
class PackedFraming(Framing):
    """The rows of ``packing``, for which no text is too long."""

    too_long: str = "wrap"

    @cached_property
    def packer(self) -> Packer:
        """The texts that no row has yet."""
        return Packer(self.borders.start, self.borders.end, self.pieces.max_length)

    def above(self, lengths: Lengths) -> npt.NDArray[np.bool_]:
        return np.zeros(len(lengths), bool)

    def frame(self, ids: Ids, lengths: Lengths, number: int) -> tuple[Ids, Lengths, Lengths]:
        return self.packer.pack(ids, lengths, number)


class Counts:
    """Counts tokens, in the order of their first occurrences."""

    def __init__(self) -> None:
        self.found: dict[int, int] = {}

    def add(self, ids: Ids, inner: Any) -> None:
        """Count those of the ``ids`` that are ``inner``."""
        own = ids[inner]
        numbers = np.bincount(own)
        if any(i not in self.found for i in np.flatnonzero(numbers).tolist()):
            self.found |= dict.fromkeys((i for i in dict.fromkeys(own.tolist()) if i not in self.found), 0)
        for i in np.flatnonzero(numbers).tolist():
            self.found[i] += int(numbers[i])
