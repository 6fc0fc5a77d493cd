"""Diversity of generated texts: entropy, distinct n-grams, self-BLEU, copies of training texts, lengths.

Texts are split into words by ``tokenize``, so that the figures do not depend on a model's tokenizer. All but shares of
single texts depend on the number of texts: compare figures of equally many texts only.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
import sacrebleu

from diffusionlm.data.copies import KnownTexts, tokenized

SELF_BLEU_TEXTS = 100


def unigram_entropy(texts: Sequence[str]) -> float:
    """Return the entropy of the words' frequencies, in nats."""
    counts = Counter(word for words in tokenized(texts) for word in words)
    total = sum(counts.values())
    return -sum(n / total * math.log(n / total) for n in counts.values())


def distinct(texts: Sequence[str], n: int) -> float:
    """Return the share of the n-grams of words that are distinct (distinct-n, Li et al. 2016, section 5)."""
    grams = [gram for words in tokenized(texts) for gram in zip(*(words[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / max(len(grams), 1)


def self_bleu(texts: Sequence[str], seed: int = 0, sample: int = SELF_BLEU_TEXTS) -> float:
    """Return the mean BLEU-4 (0 to 100) of each text against all others, 0 for a single text (Zhu et al. 2018, section 3.2).

    It grows with the number of texts, and its cost with their square, so a random ``sample`` of them is compared.
    """
    chosen = random.Random(seed).sample(tokenized(texts), min(sample, len(texts)))
    words = [" ".join(each) for each in chosen]
    if len(words) == 1:
        return 0.0
    bleu = sacrebleu.BLEU(tokenize="none", effective_order=True)
    scores = [bleu.sentence_score(text, words[:i] + words[i + 1 :]).score for i, text in enumerate(words)]
    return sum(scores) / len(scores)


def length_distance(one: Mapping[int, int], other: Mapping[int, int]) -> float:
    """Return the earth mover's distance between two histograms of lengths, in words.

    Total variation is not used because it is large between two small samples of one distribution.
    """
    longest = max([*one, *other])
    shares = [numpy.bincount(list(h), list(h.values()), longest + 1) / sum(h.values()) for h in (one, other)]
    return float(numpy.abs(numpy.cumsum(shares[0] - shares[1])).sum())


def word_counts(texts: Sequence[str]) -> Counter[int]:
    """Return the histogram of lengths in words: length to number of texts."""
    return Counter(map(len, tokenized(texts)))


class TrainingTexts(KnownTexts):
    """The training texts, for counting copies, and their lengths."""

    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__(texts)
        self.lengths = word_counts(texts)


@dataclass(frozen=True)
class Diversity:
    """Diversity of ``texts`` texts: shares between 0 and 1, entropy in nats, self-BLEU 0 to 100, ``words`` on average.

    ``copied`` is the share of training texts among them, ``length_distance`` the distance to the training texts' lengths.
    """

    texts: int
    entropy: float
    distinct_1: float
    distinct_2: float
    distinct_3: float
    self_bleu: float
    unique: float
    copied: float
    words: float
    length_distance: float


def diversity(texts: Sequence[str], training: TrainingTexts, seed: int = 0) -> Diversity:
    """Compute the diversity of ``texts``; ``seed`` selects the texts of self-BLEU."""
    lengths = word_counts(texts)
    return Diversity(
        texts=len(texts),
        entropy=unigram_entropy(texts),
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
        distinct_3=distinct(texts, 3),
        self_bleu=self_bleu(texts, seed),
        unique=len({tuple(words) for words in tokenized(texts)}) / len(texts),
        copied=training.copied(texts),
        words=sum(n * count for n, count in lengths.items()) / len(texts),
        length_distance=length_distance(lengths, training.lengths),
    )


def mean_error(totals: Sequence[float], sizes: Sequence[float]) -> float:
    """Return the standard error of sum(totals) / sum(sizes), such as nats per token, over independent texts."""
    t, n = numpy.asarray(totals), numpy.asarray(sizes)
    mean = t.sum() / n.sum()
    return float(numpy.sqrt((t - mean * n).var(ddof=1) * len(t)) / n.sum()) if len(t) > 1 else math.nan


Point = tuple[float, float]  # entropy in nats, perplexity


def at_entropy(line: Sequence[Point], entropy: float) -> float | None:
    """Return the perplexity of a frontier at ``entropy``, log-linear between its points; None outside them."""
    log = interpolated([(x, math.log(y)) for x, y in line], entropy)
    return None if log is None else math.exp(log)


def interpolated(line: Sequence[Point], x: float) -> float | None:
    """Return the value of a line at ``x``, linear between its points; None outside them."""
    xs, ys = zip(*sorted(line), strict=True)
    return float(numpy.interp(x, xs, ys)) if xs[0] <= x <= xs[-1] else None


@dataclass(frozen=True)
class Comparison:
    """Two frontiers over their common range: perplexities ``one`` and ``other`` at the same ``entropies`` (nats).

    ``ratio`` is the geometric mean of one / other over that range: below 1, ``one`` is more fluent at equal diversity.
    """

    entropies: tuple[float, ...]
    one: tuple[float, ...]
    other: tuple[float, ...]
    ratio: float


def compare(one: Sequence[Point], other: Sequence[Point], places: int = 101) -> Comparison | None:
    """Compare two frontiers over the entropies that both cover; None where they do not overlap."""
    low = max(min(x for x, _ in line) for line in (one, other))
    high = min(max(x for x, _ in line) for line in (one, other))
    if low >= high:
        return None
    grid = tuple(min(float(x), high) for x in numpy.linspace(low, high, places))
    values = [tuple(y for x in grid if (y := at_entropy(line, x)) is not None) for line in (one, other)]
    ratio = math.exp(float(numpy.trapezoid(numpy.log(values[0]) - numpy.log(values[1]), grid)) / (high - low))
    return Comparison(grid, values[0], values[1], ratio)


def mean_present(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None; None without any."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
