"""Encoding of large corpora, block by block, into rows that are kept in the cache; see ``store`` and ``rows.TokenRows``.

The ids are those of ``batches.encode``. The tokenizers that this library makes split a text at its blanks before anything else,
so that the ids of a text are those of its words, one after the other: each word is encoded once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy as np
import pyarrow  # type: ignore[import-untyped]
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from diffusionlm.data.batches import Encoded, TooLong, encodings, none_left, one_too_long
from diffusionlm.data.large import arrow_file
from diffusionlm.data.rows import FILE, Block, Ids, Lengths, Texts, TokenRows, words_of
from diffusionlm.data.store import stored
from diffusionlm.data.tokenizers import splits_at_blanks, tokenizer_digest
from diffusionlm.progress import intervals

MOST_WORDS = 2**20  # whose ids are kept
FEATURES = datasets.Features({"ids": datasets.List(datasets.Value("int32")), "text": datasets.Value("int64")})


def encode_large(
    texts: Texts, tokenizer: PreTrainedTokenizerFast, max_length: int, too_long: TooLong, split: str = "texts"
) -> Encoded:
    """Return what ``encode`` returns, from the cache; ``split`` names the texts in the progress bar.

    Raises:
        UserError: as ``encode``; the cache cannot be written.
    """
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.split_special_tokens]
    key = {"texts": texts.digest, "tokenizer": tokenizer_digest(tokenizer), "special": special}
    framing = Framing(tokenizer.bos_token_id, tokenizer.eos_token_id, max_length, too_long)
    entry = stored("rows", {**key, "framing": [max_length, too_long]}, partial(_write, texts, tokenizer, framing, split))
    rows = TokenRows(entry)
    return Encoded(rows, rows.texts, entry.facts["too_long"], entry.facts["empty"])


def _write(texts: Texts, tokenizer: PreTrainedTokenizerFast, framing: Framing, split: str, folder: Path) -> dict[str, Any]:
    words = WordIds(tokenizer) if splits_at_blanks(tokenizer) else None
    digest, counts, long, empty, number, total = hashlib.sha256(), Counts(), 0, 0, 0, 0
    with arrow_file(folder / FILE, FEATURES) as write, _bar(f"encoding {split}", len(texts)) as bar:
        for block in texts.blocks():
            ids, lengths = _encoded(block, tokenizer) if words is None else words.encode(block)
            above = lengths > framing.room
            long, empty = long + int(above.sum()), empty + int((lengths == 0).sum())
            if framing.too_long == "error" and long:
                first = int(above.argmax())
                raise one_too_long(number + first, int(lengths[first]), framing.max_length, block[first].as_py())
            ids, lengths, origins = framing.frame(ids, lengths)
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            counts.add(ids, framing.inner(lengths))
            digest.update(np.insert(ids, offsets[:-1], lengths).astype(np.int32).tobytes())
            rows = pyarrow.ListArray.from_arrays(pyarrow.array(offsets, pyarrow.int32()), pyarrow.array(ids, pyarrow.int32()))
            write(pyarrow.table({"ids": rows, "text": pyarrow.array(origins + number, pyarrow.int64())}))
            number, total = number + len(block), total + len(lengths)
            bar.update(len(block))
    if not total:
        raise none_left(len(texts), empty, long, framing.max_length)
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
    """BOS and EOS around each text, which is cut, split or dropped where it has more than ``max_length`` tokens with them."""

    start: int
    end: int
    max_length: int
    too_long: TooLong

    @property
    def room(self) -> int:
        """The largest number of a text's own tokens in a row."""
        return self.max_length - 2

    def frame(self, ids: Ids, lengths: Lengths) -> tuple[Ids, Lengths, Lengths]:
        """Return the rows of texts of ``lengths``: ids and lengths with BOS and EOS, and the number of each row's text."""
        long = lengths > self.room
        if self.too_long == "drop":
            ids, lengths = ids[np.repeat(~long, lengths)], np.where(long, 0, lengths)
        elif self.too_long == "truncate":
            place = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            ids, lengths = ids[place < self.room], np.minimum(lengths, self.room)
        pieces = -(-lengths // self.room)
        origins = np.repeat(np.arange(len(lengths)), pieces)
        last = np.cumsum(pieces)[pieces > 0] - 1
        sizes = np.full(len(origins), self.room)
        sizes[last] = (lengths - (pieces - 1) * self.room)[pieces > 0]
        return self._enclosed(ids, sizes + 2), sizes + 2, origins

    def _enclosed(self, ids: Ids, lengths: Lengths) -> Ids:
        framed = np.empty(int(lengths.sum()), np.int32)
        inner = self.inner(lengths)
        framed[inner] = ids
        ends = np.cumsum(lengths)
        framed[ends - lengths], framed[ends - 1] = self.start, self.end
        return framed

    def inner(self, lengths: Lengths) -> Any:
        """Return which of the ids of rows of ``lengths`` are neither BOS nor EOS at the ends of a row."""
        ends = np.cumsum(lengths)
        inner = np.ones(int(ends[-1]) if len(ends) else 0, bool)
        inner[ends - lengths] = inner[ends - 1] = False
        return inner


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
