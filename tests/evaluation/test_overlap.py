"""NIST and ROUGE-L by hand."""

from __future__ import annotations

import math

import numpy
import pytest
from nltk.translate.nist_score import corpus_nist

from diffusionlm.evaluation.overlap import (
    information,
    longest_common,
    nist,
    nist_statistics,
    rouge_l,
    rouge_scorer,
    treebank,
    words_13a,
)


def score(pairs: list[tuple[str, list[str]]]) -> float:
    outputs, references = [pair[0].split() for pair in pairs], [[text.split() for text in pair[1]] for pair in pairs]
    weights = information(references)
    rows = [nist_statistics(output, texts, weights) for output, texts in zip(outputs, references, strict=True)]
    return nist(numpy.sum(rows, axis=0))


def test_nist_by_hand() -> None:
    # Three words, each once among three: log2(3) bits; longer n-grams follow from their first words and add nothing.
    assert score([("a b c", ["a b c"])]) == pytest.approx(math.log2(3))
    # a: log2(4/2), c: log2(4/1), "a c": log2(2/1).
    assert score([("a c", ["a b", "a c"])]) == pytest.approx((1 + 2) / 2 + 1)


def test_nist_matches_all_references_where_nltk_takes_one() -> None:
    pair = ("b c", ["a b", "a c"])
    assert score([pair]) == pytest.approx((2 + 2) / 2)
    assert corpus_nist([[text.split() for text in pair[1]]], [pair[0].split()], n=2) == pytest.approx(1)


def test_nist_agrees_with_nltk_for_one_reference() -> None:
    pairs = [
        ("the cat sat on the mat", ["the cat is on the mat now"]),
        ("a dog ran to the big park", ["one dog ran to the park"]),
    ]
    expected = corpus_nist([[texts[0].split()] for _, texts in pairs], [output.split() for output, _ in pairs], n=5)
    assert score(pairs) == pytest.approx(expected)


def test_nist_is_halved_at_two_thirds_of_the_mean_length() -> None:
    assert score([("a b", ["a b c"])]) == pytest.approx(0.5 * math.log2(3))
    assert score([("a b", ["a b c d", "a b"])]) == pytest.approx(0.5 * 2 * math.log2(6 / 2) / 2 + 0)
    assert score([("", ["a"])]) == 0


def test_rouge_l_takes_the_best_precision_and_the_best_recall_apart() -> None:
    references = [["a", "b"], ["a", "b", "c", "x", "y", "z"]]  # precision and recall 2/4 and 1, then 3/4 and 3/6
    assert rouge_l(["a", "b", "c", "d"], references) == pytest.approx(2.44 * 0.75 / (1 + 1.44 * 0.75))
    assert rouge_l(["a", "b"], references) == 1
    assert rouge_l([], references) == rouge_l(["q"], references) == 0
    assert longest_common(["a", "x", "b", "y", "c"], ["a", "b", "c"]) == 3


def test_the_words_of_the_metrics() -> None:
    assert words_13a("It's £20-25, isn't it?") == ("it's", "£20", "-", "25", ",", "isn't", "it", "?")
    assert treebank()("The Oak isn't cheap. It's near (the) Café; good!") == (
        "the", "oak", "is", "n't", "cheap", "it", "'s", "near", "(", "the", ")", "café", "good"
    )  # fmt: skip


def test_rouge_is_that_of_the_best_reference() -> None:
    rouge = rouge_scorer()
    assert rouge("the oak is cheap", ["the oak is cheap", "nothing alike"]) == [1, 1, 1]
    assert rouge("a b c d", ["a b", "c d e f"])[0] == pytest.approx(2 / 3)
