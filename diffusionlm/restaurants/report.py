"""Figures of the restaurants corpus for the quickstart: grammatical and new texts, beside a trigram model's."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from diffusionlm.evaluation.text_metrics import mean_present, unigram_entropy
from diffusionlm.restaurants.corpus import Restaurants
from diffusionlm.restaurants.grammar import tokenize


@dataclass(frozen=True)
class GrammarReport:
    """Shares (0 to 1) and entropies (nats) of ``texts`` texts.

    ``accepted`` is the share of texts in the grammar's language, ``new`` the share of those that are no training texts.
    """

    accepted: float
    new: float
    distinct: float
    entropy: float
    entropy_real: float
    texts: int


def grammar_report(texts: Sequence[str], training: Sequence[str], real: Sequence[str]) -> GrammarReport:
    """Compute the report of ``texts``; ``real`` are held-out texts, of which as many are compared."""
    shares = {name: mean_present(metric(texts)) for name, metric in Restaurants().metrics(training).items()}
    return GrammarReport(
        accepted=shares["accepted"] or 0.0,
        new=shares["new"] or 0.0,
        distinct=len(set(texts)) / len(texts),
        entropy=unigram_entropy(texts),
        entropy_real=unigram_entropy(real[: len(texts)]),
        texts=len(texts),
    )


def trigram_texts(training: Sequence[str], count: int, seed: int) -> list[str]:
    """Sample texts from a word-trigram model of ``training``, the baseline of the accepted share."""
    draw = random.Random(seed)
    following: dict[tuple[str, str], list[str]] = defaultdict(list)
    for text in training:
        words = ["", "", *tokenize(text), ""]
        for first, second, third in zip(words, words[1:], words[2:], strict=False):
            following[first, second].append(third)
    texts = []
    for _ in range(count):
        words = ["", ""]
        while word := draw.choice(following[words[-2], words[-1]]):
            words.append(word)
        texts.append(" ".join(words[2:]).replace(" ,", ",").replace(" .", "."))
    return texts
