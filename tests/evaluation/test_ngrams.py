"""Kneser-Ney: distributions, a case worked out by hand, and what is refused."""

import itertools
import math

import pytest

from diffusionlm.config import UserError
from diffusionlm.evaluation.ngrams import END, UNKNOWN, NGrams

TEXTS = ["the cat sat .", "the dog sat .", "the cat ran to the dog .", "a cat sat .", "a bird ran ."]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_sum_to_one_after_any_history(order: int) -> None:
    found = NGrams(TEXTS, order)
    words = [*sorted(found.known), UNKNOWN, END]
    for history in itertools.product(words, repeat=order - 1):
        assert sum(found.probability((*history, word)) for word in words) == pytest.approx(1)


def test_a_bigram_by_hand() -> None:
    """Bigrams of "a a", "a b" and their beginnings: [S] a twice; a a, a [E], a b, b [E] once, so d = 4 / (4 + 2) = 2 / 3.

    As ends of different bigrams: a 2, [E] 2, b 1. Once 1, twice 2: d = 1 / 5. The uniform probability is 1 / (2 + 2).
    """
    found = NGrams(["a a", "a b"], 2, least=1)
    lower = (2 - 1 / 5) / 5 + 1 / 5 * 3 / 5 / 4
    assert found.probability(("a", "a")) == pytest.approx((1 - 2 / 3) / 3 + 2 / 3 * 3 / 3 * lower)


def test_a_text_of_the_language_is_more_probable_than_its_reverse() -> None:
    likely, unlikely = NGrams(TEXTS).score(["the cat sat .", ". sat cat the"])
    assert likely.nats < unlikely.nats and likely.tokens == unlikely.tokens == 5
    assert math.isfinite(unlikely.nats)


def test_unknown_words_are_counted() -> None:
    (scored,) = NGrams(TEXTS).score(["the elephant sat ."])
    assert scored.unknown == 1


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(UserError, match="no word occurs 2 times"):
        NGrams(["one two", "three"])
    with pytest.raises(UserError, match="order: expected 1 or more"):
        NGrams(TEXTS, 0)
