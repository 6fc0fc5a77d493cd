"""Count copies of training texts among generated texts, word for word, in the same way in training and evaluation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError
from diffusionlm.data.batches import check_list, encodings
from diffusionlm.data.rows import TokenRows


def tokenize(text: str) -> list[str]:
    """Split a text into words, hyphenated words kept together, and single punctuation marks."""
    return re.findall(r"[\w£]+(?:[-&/][\w£]+)*|[^\w\s]", text)


def tokenized(texts: Sequence[str]) -> list[list[str]]:
    """Return the words of each text. Raises UserError where ``texts`` is no list of texts, or empty."""
    check_list(texts)
    if not len(texts):
        raise UserError("texts: expected at least one text, got none")
    return [tokenize(text) for text in texts]


class KnownTexts:
    """The training texts as hashes of their words, with the number of times that each occurs; white space is ignored."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.known = Counter(hash(tuple(words)) for words in tokenized(texts))

    def copied(self, texts: Sequence[str]) -> float:
        """Return the share of ``texts`` that are training texts, word for word."""
        return sum(hash(tuple(words)) in self.known for words in tokenized(texts)) / len(texts)

    @property
    def repeated(self) -> float:
        """The share of the training texts that occur in them more than once.

        It estimates the probability that a further text of the same source is one of them (Good 1953: all that occur but once
        stand for what is new).
        """
        return sum(count for count in self.known.values() if count > 1) / max(self.known.total(), 1)


class KnownRows:
    """The rows of a large corpus as sorted hashes of their token ids; a text is one of them if its own ids are."""

    def __init__(self, rows: TokenRows, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.known = np.sort(np.concatenate([_hashes(ids, lengths) for ids, lengths in rows.blocks()]))

    def copied(self, texts: Sequence[str]) -> float:
        """Return the share of ``texts`` that are training texts, token for token."""
        frame = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        rows = [[frame[0], *encoding.ids, frame[1]] for encoding in encodings(texts, self.tokenizer)]
        found = _hashes(np.array([i for row in rows for i in row], np.int32), np.array([*map(len, rows)]))
        place = np.minimum(np.searchsorted(self.known, found), len(self.known) - 1)
        return float(np.mean(self.known[place] == found))

    @cached_property
    def repeated(self) -> float:
        """The share of the rows that occur more than once, see ``KnownTexts``."""
        same = np.concatenate([[False], self.known[1:] == self.known[:-1], [False]])
        return float(np.mean(same[1:] | same[:-1]))


def _hashes(ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Return a hash of the ids of each row: the sum of their mixed bits times powers of an odd number (modulo 2^64)."""
    starts = np.cumsum(lengths) - lengths
    mixed = ids.astype(np.uint64) + np.uint64(1)
    for multiplier in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):  # of splitmix64 (Steele et al. 2014)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(multiplier)
    powers = np.cumprod(np.full(int(lengths.max()), 0x9E3779B97F4A7C15, np.uint64))
    place = np.arange(len(ids)) - np.repeat(starts, lengths)
    return np.add.reduceat(mixed * powers[place], starts)
