"""Honest figures for generated texts: how varied they are, how many are copies, what a grammar says of them.

Texts are read with the word tokenizer of the embedded corpus, so that figures do not depend on a model's tokens.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from diffusionlm.grammar import accepts, tokenize


def unigram_entropy(texts: Sequence[str]) -> float:
    """Return the entropy of the words' frequencies, in nats."""
    counts = Counter(word for text in texts for word in tokenize(text))
    total = sum(counts.values())
    return -sum(n / total * math.log(n / total) for n in counts.values())


@dataclass(frozen=True)
class GrammarReport:
    """What the grammar and the counts say of ``texts`` texts; shares between 0 and 1, entropies in nats.

    ``new`` is the share of the accepted texts that the training texts do not hold.
    """

    accepted: float
    new: float
    distinct: float
    entropy: float
    entropy_real: float
    texts: int


def grammar_report(texts: Sequence[str], training: Sequence[str], real: Sequence[str]) -> GrammarReport:
    """Judge ``texts`` of the embedded corpus; ``real`` are held-out texts, of which as many are compared."""
    known = set(training)
    right = [text for text in texts if accepts(text)]
    return GrammarReport(
        accepted=len(right) / len(texts),
        new=sum(text not in known for text in right) / max(len(right), 1),
        distinct=len(set(texts)) / len(texts),
        entropy=unigram_entropy(texts),
        entropy_real=unigram_entropy(real[: len(texts)]),
        texts=len(texts),
    )


def trigram_texts(training: Sequence[str], count: int, seed: int) -> list[str]:
    """Write texts with a word-trigram model of ``training``: what the grammar says of them is a figure to beat."""
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
