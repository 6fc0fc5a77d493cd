"""Count copies of training texts among generated texts, word for word, in the same way in training and evaluation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from diffusionlm.config import UserError
from diffusionlm.data.batches import check_list


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
