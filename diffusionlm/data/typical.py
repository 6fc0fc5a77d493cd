"""The most typical of the texts that a corpus has for a source.

A source with many texts teaches a model all ways of saying the same, and a model that predicts tokens independently mixes them.
The texts that agree most with the others leave fewer ways to mix: what sequence-level distillation (Kim and Rush 2016) does
for such models by texts of a teacher, without a teacher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy
import sacrebleu
from numpy.typing import NDArray
from tqdm import tqdm

from diffusionlm.config import UserError
from diffusionlm.data.references import grouped
from diffusionlm.processes import is_first
from diffusionlm.progress import intervals

AT_ONCE = 2**22  # numbers in a matrix of texts and n-grams at once


def agreements(texts: Sequence[str], chosen: Sequence[int] | None = None) -> list[float]:
    """Return for each of the ``chosen`` numbers (all) the sum of the BLEU of its text against each of the other ``texts``.

    It is 0 for two texts, of which neither is better.
    """
    chosen = range(len(texts)) if chosen is None else chosen
    if len(texts) < 3:
        return [0.0] * len(chosen)
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    row = {text: i for i, text in enumerate(dict.fromkeys(texts[number] for number in chosen))}
    scores = sentence_bleu([*row], [*place])
    columns = [place[text] for text in texts]
    return [sum(scores[row[texts[n]]][column] for i, column in enumerate(columns) if i != n) for n in chosen]


def sentence_bleu(outputs: Sequence[str], references: Sequence[str]) -> list[list[float]]:
    """Return ``sacrebleu.sentence_bleu`` of each of ``outputs`` against each of ``references`` alone.

    Texts are tokenized once, and n-grams of all pairs are matched by matrix products.
    """
    metric = sacrebleu.BLEU(effective_order=True)
    ours, theirs = ([metric.tokenizer(text.rstrip()).split() for text in texts] for texts in (outputs, references))
    orders = range(1, metric.max_ngram_order + 1)
    matched = numpy.stack([matching_ngrams(ours, theirs, n) for n in orders], -1).tolist()

    @cache
    def score(correct: tuple[int, ...], length: int, other: int) -> float:
        total = [max(0, length - n + 1) for n in orders]
        return float(metric.compute_bleu([*correct], total, length, other, metric.smooth_method, None, True).score)

    return [
        [score(tuple(correct), len(own), len(other)) for correct, other in zip(row, theirs, strict=True)]
        for own, row in zip(ours, matched, strict=True)
    ]


def matching_ngrams(ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]], n: int) -> NDArray[numpy.int64]:
    """Return how many n-grams each of ``ours`` has in common with each of ``theirs``, (ours, theirs).

    The second occurrence of an n-gram in a text counts as another n-gram, so that the smaller of two counts is in common.
    """
    number: dict[tuple[Any, ...], int] = {}
    found = numpy.zeros((len(ours), len(theirs)), dtype=numpy.int64)
    tables = [_occurrences(texts, n, number) for texts in (ours, theirs)]
    width = max(1, AT_ONCE // (len(ours) + len(theirs)))
    for first in range(0, len(number), width):
        one, other = (_presence(table, first, min(width, len(number) - first)) for table in tables)
        found += (one @ other.T).astype(numpy.int64)
    return found


def _occurrences(texts: Sequence[Sequence[str]], n: int, number: dict[tuple[Any, ...], int]) -> list[list[int]]:
    """Return the numbers of the n-grams of each text, in order of first use; new ones are added to ``number``."""
    found = []
    for words in texts:
        seen: Counter[tuple[str, ...]] = Counter()
        own = []
        for gram in zip(*(words[i:] for i in range(n)), strict=False):
            own.append(number.setdefault((gram, seen[gram]), len(number)))
            seen[gram] += 1
        found.append(own)
    return found


def _presence(table: Sequence[Sequence[int]], first: int, width: int) -> NDArray[numpy.float32]:
    """Return 1 where a text has the n-gram, for ``width`` n-grams from number ``first`` on, (texts, width)."""
    rows = numpy.repeat(numpy.arange(len(table)), [len(own) for own in table])
    columns = numpy.fromiter(chain.from_iterable(table), dtype=numpy.int64) - first
    inside = (columns >= 0) & (columns < width)
    found = numpy.zeros((len(table), width), dtype=numpy.float32)
    found[rows[inside], columns[inside]] = 1
    return found


def typical_rows(rows: datasets.Dataset, sources: Sequence[str], count: int) -> datasets.Dataset:
    """Return the rows of at most ``count`` distinct texts for each of the ``sources``, one for each row, in their order.

    They are those of the highest mean BLEU against the other distinct texts of the source; of equals, the first.

    Raises:
        UserError: no source has more texts.
    """
    texts = rows["text"][:]
    kept: set[tuple[str, str]] = set()
    groups = grouped(sources, texts).items()
    for source, own in tqdm(groups, "typical texts", unit="source", leave=False, disable=not is_first(), **intervals()):
        distinct = list(dict.fromkeys(own))
        gains = dict(zip(distinct, agreements(distinct), strict=True))
        kept |= {(source, text) for text in sorted(distinct, key=lambda text: -gains[text])[:count]}
    first = {pair: number for number, pair in reversed([*enumerate(zip(sources, texts, strict=True))]) if pair in kept}
    if len(first) == len(texts):
        raise UserError(f"data.typical: no source has more than {count} texts, so this setting has no effect; leave it out")
    return rows.select(sorted(first.values()))
