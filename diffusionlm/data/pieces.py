"""Long texts in pieces: how the words of a text are laid out in rows of a maximum length, each with words before it as context.

    BOS w1 ... wR PAD        PAD w(R-N+1) ... wR  w(R+1) ... PAD        PAD (N words)  ... wn EOS

A row has R = max_length - 2 words. Those of the next one begin with the last N, which are given there: never noised, never in
the loss. BOS and EOS are where the text begins and ends; PAD, which no complete row contains, stands in their place at a border
inside the text, and is given too. Without context (N = 0) each piece is a text of its own, between BOS and EOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError

LONGEST = 10_000_000  # tokens of a text whose length a model counts; longer ones count as such


class Example(list[int]):
    """The token ids of a text with the value of its ``condition`` and its ``known`` tokens (a boolean for each)."""

    condition: Any = None
    known: Sequence[bool] | None = None


@dataclass(frozen=True)
class Pieces:
    """The layout of texts in rows of at most ``max_length`` tokens, each later one with ``context`` given words."""

    max_length: int
    context: int = 0

    @property
    def room(self) -> int:
        """The largest number of words in a row."""
        return self.max_length - 2

    @property
    def stride(self) -> int:
        """The number of words between the first ones of consecutive rows."""
        return self.room - self.context

    def counts(self, words: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the number of rows of texts with so many ``words``."""
        return -(-np.maximum(words - self.context, np.minimum(words, 1)) // self.stride)

    def spans(self, words: int) -> list[tuple[int, int, int]]:
        """Return for each row of a text the numbers of its first word, its first new word, and the word behind its last."""
        firsts = range(0, max(words - self.context, min(words, 1)), self.stride)
        return [(first, first + self.context * (first > 0), min(first + self.room, words)) for first in firsts]

    def rows(self, words: Sequence[int], special: Borders) -> list[list[int]]:
        """Return the rows of a text of ``words``, token ids."""
        found: list[list[int]] = []
        for first, _, end in self.spans(len(words)):
            begin = special.start if first == 0 or not self.context else special.inner
            close = special.end if end == len(words) or not self.context else special.inner
            found.append(given_tokens([begin, *words[first:end], close], self.context, special.inner))
        return found


@dataclass(frozen=True)
class Borders:
    """The ids of BOS, EOS, and of the token at a border inside a text."""

    start: int
    end: int
    inner: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, context: int) -> Borders:
        """Return those of a tokenizer. Raises UserError where ``context`` needs a PAD that it lacks."""
        start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        if context and (pad is None or pad in (start, end)):
            raise UserError("data.context: expected a tokenizer with a PAD of its own, which marks where a piece goes on")
        return cls(start, end, -1 if pad is None else pad)


def given_tokens(row: list[int], context: int, inner: int) -> list[int]:
    """Return a ``row`` with its ``known`` tokens: borders ``inner`` to a text, and ``context`` behind one at its begin."""
    if not context or inner not in (row[0], row[-1]):
        return row
    ahead = (context + 1) * (row[0] == inner)
    found = Example(row)
    found.known = [*[True] * ahead, *[False] * (len(row) - 1 - ahead), row[-1] == inner]
    return found


def text_lengths(blocks: Any, context: int, inner: int) -> npt.NDArray[np.int64]:
    """Return the number of tokens of each text, BOS and EOS counted, from the ``blocks`` of rows that are its pieces."""
    later, new = [], []
    for ids, lengths in blocks:
        behind = ids[np.cumsum(lengths) - lengths] == inner
        later.append(behind)
        new.append(lengths - 2 - context * behind)
    number = np.cumsum(~np.concatenate(later)) - 1
    return np.bincount(number, np.concatenate(new)).astype(np.int64) + 2
