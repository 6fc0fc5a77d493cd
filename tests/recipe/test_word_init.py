import math

import pytest
import torch
from tiny_runs import restaurant_texts

from diffusionlm.data.batches import encode
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.recipe import word_init
from diffusionlm.recipe.word_init import OFFSETS, cooccurrence, word_vectors_from


def test_cooccurrence_counts_words_at_their_offsets() -> None:
    counts = cooccurrence([[4, 5, 4], [5, 6]], 7).view(7, len(OFFSETS), -1)
    frequent = [4, 5, 6]  # by falling frequency, the lower id first among equals
    order = {offset: i for i, offset in enumerate(OFFSETS)}
    assert counts[4, order[1], frequent.index(5)] == 1
    assert counts[4, order[-1], frequent.index(5)] == 1
    assert counts[4, order[2], frequent.index(4)] == 1
    assert counts[5, order[1], frequent.index(6)] == 1
    assert counts[4, order[1], frequent.index(6)] == 0  # nothing is counted across texts
    assert int(counts.sum()) == 2 * (2 + 1 + 1)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_rows_have_the_norm_of_the_process(share: float) -> None:
    vectors = word_vectors_from([[2, 4, 5, 3], [2, 5, 6, 3]], 7, 8, share)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.full((7,), math.sqrt(8)))


def test_words_that_can_replace_each_other_are_close_and_still_apart() -> None:
    texts = restaurant_texts(5000, "train")
    tokenizer = WordTokenizer(min_count=5).make(texts)
    vectors = word_vectors_from(encode(texts, tokenizer).ids, len(tokenizer), 64, 0.85)

    def cosine(one: str, other: str) -> float:
        first, second = (vectors[tokenizer.convert_tokens_to_ids(f"▁{word}")] for word in (one, other))
        return float(first @ second) / 64

    for one, alike, unlike in [
        ("Greek", "Mexican", "the"),
        ("owners", "waiters", "five"),
        ("cheap", "inexpensive", "visitors"),
    ]:
        assert 0.3 < cosine(one, alike) < 0.97
        assert cosine(one, unlike) < cosine(one, alike) - 0.3


def test_the_vectors_of_many_words_are_those_of_one_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [torch.randint(40, (12,)).tolist() for _ in range(50)]

    def distances() -> torch.Tensor:
        torch.manual_seed(1)
        vectors = word_vectors_from(rows, 40, 8, 0.85)
        return vectors @ vectors.T

    expected = distances()
    monkeypatch.setattr(word_init, "MOST_DENSE", 0)
    monkeypatch.setattr(word_init, "ROWS", 16)
    torch.testing.assert_close(distances(), expected, rtol=1e-4, atol=1e-4)
