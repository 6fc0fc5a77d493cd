"""Metrics of one output against several references that sacrebleu does not have: NIST, ROUGE-L of the E2E script, METEOR.

NIST (Doddington 2002, equations 2 and 3). nltk's ``corpus_nist`` is not used because it differs from that formula and from
``mteval-v13a.pl`` where a text has several references: for each order it takes the single reference with the most information
instead of matching against all of them, and divides by the length of that reference instead of the mean length; it also fails
where no output has five words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

ORDER = 5
_PENALTY = -numpy.log(0.5) / numpy.log(1.5) ** 2  # the factor is 0.5 where the outputs have 2/3 of the references' words
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])  # as coco-caption removes it
Words = Sequence[str]
_tokenizer: Callable[[str], str] = Tokenizer13a()  # type: ignore[no-untyped-call]


@lru_cache(maxsize=1 << 16)
def words_13a(text: str) -> tuple[str, ...]:
    """Return the words of a text as mteval-v13a.pl without -c has them: its tokens, in lower case."""
    return tuple(_tokenizer(text).lower().split())


def ngrams(words: Words, n: int) -> Counter[tuple[str, ...]]:
    """Return the n-grams of ``words`` with their counts."""
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def information(references: Sequence[Sequence[Words]]) -> dict[tuple[str, ...], float]:
    """Return log2(count of the first n-1 words / count of the n-gram) of each n-gram in the references (equation 2)."""
    counts: Counter[tuple[str, ...]] = Counter()
    for words in (words for texts in references for words in texts):
        counts[()] += len(words)
        for n in range(1, ORDER + 1):
            counts.update(ngrams(words, n))
    return {gram: float(numpy.log2(counts[gram[:-1]] / count)) for gram, count in counts.items() if gram}


def nist_statistics(output: Words, references: Sequence[Words], weights: dict[tuple[str, ...], float]) -> list[float]:
    """Return the statistics of one output: information matched, n-grams of each order, its words, words per reference."""
    matched, totals = [], []
    for n in range(1, ORDER + 1):
        most: Counter[tuple[str, ...]] = Counter()
        for words in references:
            most |= ngrams(words, n)
        own = ngrams(output, n)
        matched.append(sum(weights[gram] * count for gram, count in (own & most).items()))
        totals.append(float(sum(own.values())))
    return [*matched, *totals, len(output), sum(map(len, references)) / len(references)]


def nist(statistics: numpy.ndarray) -> float:
    """Return the NIST score of a sum of statistics (equation 3)."""
    matched, totals = statistics[:ORDER], statistics[ORDER : 2 * ORDER]
    ratio = min(statistics[-2] / max(statistics[-1], 1e-9), 1.0)
    if ratio <= 0:
        return 0.0
    return float((matched / numpy.maximum(totals, 1)).sum() * numpy.exp(-_PENALTY * numpy.log(ratio) ** 2))


def longest_common(one: Words, other: Words) -> int:
    """Return the length of the longest common subsequence of two lists of words."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for i, each in enumerate(other, 1):
            before, row[i] = row[i], before + 1 if word == each else max(row[i], row[i - 1])
    return row[-1]


def rouge_l(output: Words, references: Sequence[Words], beta: float = 1.2) -> float:
    """Return ROUGE-L as coco-caption has it: F-beta of the highest precision and the highest recall over the references."""
    common = [longest_common(output, words) for words in references]
    precision = max(common) / max(len(output), 1)
    recall = max(n / max(len(words), 1) for n, words in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def treebank() -> Callable[[str], tuple[str, ...]]:
    """Return a function from a text to its Penn Treebank tokens, in lower case without punctuation. Raises ImportError.

    coco-caption calls the tokenizer of Stanford CoreNLP; nltk's follows the same conventions, sentence by sentence. They differ
    in abbreviations and rare symbols. Brackets stay: the list of what coco-caption removes has their names in capitals only.
    """
    from nltk.tokenize import TreebankWordTokenizer

    split = TreebankWordTokenizer().tokenize

    @lru_cache(maxsize=1 << 16)
    def words(text: str) -> tuple[str, ...]:
        found = (word.lower() for sentence in _SENTENCE_END.split(text.strip()) for word in split(sentence))
        return tuple(word for word in found if word not in _PUNCTUATION)

    return words


def rouge_scorer() -> Callable[[str, Sequence[str]], list[float]]:
    """Return a function to the F1 of ROUGE-1, 2 and L (0 to 1), each the highest over references. Raises ImportError."""
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL"]
    scorer: Any = RougeScorer(names, use_stemmer=False)
    return lambda output, references: [float(scorer.score_multi(references, output)[name].fmeasure) for name in names]


def meteor_scorer() -> Callable[[str, Sequence[str]], float]:
    """Return a function to METEOR (0 to 1) by nltk. Raises ImportError without nltk, LookupError without its WordNet data."""
    from nltk.corpus import wordnet
    from nltk.translate.meteor_score import meteor_score

    wordnet.ensure_loaded()
    words = treebank()
    return lambda output, references: float(meteor_score([list(words(text)) for text in references], list(words(output))))
