import math
import random

import pytest

from diffusionlm.evaluation.text_metrics import (
    TrainingTexts,
    at_entropy,
    compare,
    distinct,
    diversity,
    length_distance,
    mean_error,
    self_bleu,
    word_counts,
)


def test_distinct_n_counts_ngrams_within_texts() -> None:
    texts = ["a b a b", "a b."]  # unigrams a b a b a b . ; bigrams ab ba ab ab b.
    assert distinct(texts, 1) == 3 / 7
    assert distinct(texts, 2) == 3 / 5
    assert distinct(["a b c"], 3) == 1
    assert distinct(["a"], 2) == 0


def test_self_bleu_of_copies_is_100_and_of_unrelated_texts_near_0() -> None:
    assert self_bleu(["the food is good ."] * 5) == pytest.approx(100)
    unrelated = [" ".join(f"w{i}x{j}" for j in range(8)) for i in range(5)]
    assert self_bleu(unrelated) < 5
    assert self_bleu(unrelated[:1]) == 0
    # Two of four texts are alike: they score 100 each; the two others share no word with any.
    assert self_bleu([unrelated[0], unrelated[0], *unrelated[1:3]]) == pytest.approx(50, abs=3)


def test_self_bleu_takes_the_same_sample_for_a_seed_and_no_more() -> None:
    draw = random.Random(1)
    texts = [" ".join(draw.choices("abcdefgh", k=9)) for _ in range(60)]
    assert self_bleu(texts, seed=3, sample=20) == self_bleu(texts, seed=3, sample=20)
    assert self_bleu(texts, seed=3, sample=20) != self_bleu(texts, seed=4, sample=20)
    assert self_bleu(texts, sample=60) > self_bleu(texts, sample=10)  # more references find more


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ({3: 5}, {3: 1}, 0),
        ({3: 1}, {7: 9}, 4),
        ({1: 1, 3: 1}, {2: 2}, 1),
        ({0: 1}, {4: 1, 0: 3}, 1),
    ],
)
def test_the_distance_of_lengths_is_how_far_words_move(one: dict[int, int], other: dict[int, int], words: float) -> None:
    assert length_distance(one, other) == pytest.approx(words)
    assert length_distance(other, one) == pytest.approx(words)


def test_a_copy_is_one_whatever_its_spaces() -> None:
    training = TrainingTexts(["Good food, here.", "Bad food."])
    assert training.copied(["Good food , here .", "Bad food", "Bad food.", "bad food."]) == 0.5
    assert training.lengths == {5: 1, 3: 1} == word_counts(["Good food, here.", "Bad food."])


def test_diversity_counts_copies_and_distinct_texts() -> None:
    training = TrainingTexts(["a b", "a b c d"])
    found = diversity(["a b", "a b", "c d e f", "c d e f g h"], training)
    assert (found.texts, found.unique, found.copied, found.words) == (4, 0.75, 0.5, 3.5)
    assert found.distinct_1 == 8 / 14
    assert found.length_distance == pytest.approx(0.5)
    shares = [2, 2, 2, 2, 2, 2, 1, 1]
    assert found.entropy == pytest.approx(-sum(n / 14 * math.log(n / 14) for n in shares))


def test_the_standard_error_of_a_mean_over_texts() -> None:
    # With equal sizes it is that of the mean of the totals.
    totals = [1.0, 2.0, 4.0, 5.0]
    deviation = math.sqrt(sum((t - 3) ** 2 for t in totals) / 3)
    assert mean_error(totals, [1, 1, 1, 1]) == pytest.approx(deviation / 2)
    assert mean_error([2.0, 4.0, 6.0], [1, 2, 3]) == 0  # always two a token
    draw = random.Random(0)
    means = []
    for _ in range(400):
        sizes = [draw.randint(1, 20) for _ in range(50)]
        sample = [draw.gauss(2 * n, math.sqrt(n)) for n in sizes]
        means.append((sum(sample) / sum(sizes), mean_error(sample, sizes)))
    center = sum(mean for mean, _ in means) / 400
    seen = math.sqrt(sum((mean - center) ** 2 for mean, _ in means) / 399)
    assert sum(error for _, error in means) / 400 == pytest.approx(seen, rel=0.15)


def test_between_two_temperatures_perplexity_is_log_linear() -> None:
    line = [(5.0, 18.0), (4.0, 2.0)]
    assert at_entropy(line, 4.5) == pytest.approx(6)  # the geometric mean of 2 and 18
    assert at_entropy(line, 4.25) == pytest.approx(2 * 9**0.25)
    assert [at_entropy(line, x) for x in (4.0, 5.0)] == pytest.approx([2, 18])
    assert at_entropy(line, 3.99) is None and at_entropy(line, 5.01) is None


def test_frontiers_are_compared_where_both_are_known() -> None:
    def line(low: float, high: float, scale: float) -> list[tuple[float, float]]:
        return [(low + (high - low) * i / 4, scale * math.exp(2 * (low + (high - low) * i / 4))) for i in range(5)]

    found = compare(line(4.0, 5.0, 3.0), line(4.5, 5.5, 1.5), places=3)
    assert found is not None
    assert found.entropies == pytest.approx((4.5, 4.75, 5.0))
    assert found.ratio == pytest.approx(2)
    assert found.one == pytest.approx(tuple(3 * math.exp(2 * x) for x in found.entropies))
    assert [a / b for a, b in zip(found.one, found.other, strict=True)] == pytest.approx([2] * 3)
    # log(one / other) is 4 - x between 4 and 6: its mean is -1.
    crossing = compare([(4.0, 1.0), (6.0, math.exp(-2))], [(3.0, 1.0), (7.0, 1.0)])
    assert crossing is not None and crossing.ratio == pytest.approx(math.exp(-1))
    assert compare(line(4.0, 4.4, 1.0), line(4.5, 5.0, 1.0)) is None
