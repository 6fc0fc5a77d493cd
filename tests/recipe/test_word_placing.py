"""New words start at the known words with the same contexts, with vectors as long as those."""

from __future__ import annotations

import math

import torch

from diffusionlm.recipe.word_init import context_vectors
from diffusionlm.recipe.word_placing import NEIGHBOURS, Means, mean_of, nearest, placed_vectors


def test_means_are_weighted_sums_of_rows() -> None:
    means = mean_of([([0, 2], [3.0, 1.0]), ([1], [5.0])])
    table = torch.arange(12.0).view(3, 2, 2)
    assert torch.allclose(means.of(table), torch.stack([0.75 * table[0] + 0.25 * table[2], table[1]]))


def test_a_word_in_the_place_of_another_one_is_nearest_to_it() -> None:
    texts = [[2, a, 20 + a, 30, 3] for a in range(5, 10) for _ in range(3)]
    replaced = [[40 if i == 7 else i for i in row] for row in texts]  # 40 is the new word, where 7 would stand
    contexts = context_vectors(texts + replaced, 42, 16)
    (ids, weights), (none, _) = nearest(contexts, torch.tensor([5, 6, 7, 8, 9]), torch.tensor([40, 41]))
    assert ids[0] == 7 and weights[0] == max(weights) and math.isclose(weights[0], 1, abs_tol=1e-4)
    assert len(ids) <= NEIGHBOURS and none == []


def test_vectors_have_the_length_of_their_neighbours_and_the_share_of_their_direction() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(6, 2000) * torch.tensor([1.0, 2.0, 3.0, 1.0, 1.0, 1.0])[:, None]
    means = Means(torch.tensor([[0, 1], [2, 2]]), torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    lengths = vectors.norm(dim=1)
    exact = placed_vectors(vectors, means, torch.ones(2))
    assert torch.allclose(exact[1], vectors[2], rtol=1e-4, atol=1e-4)
    mixed = placed_vectors(vectors, means, torch.tensor([0.85, 0.0]))
    assert torch.allclose(mixed.norm(dim=1), torch.stack([(lengths[0] + lengths[1]) / 2, lengths[2]]), rtol=1e-4)
    cosines = torch.nn.functional.cosine_similarity(mixed, exact)
    assert math.isclose(cosines[0], math.sqrt(0.85), abs_tol=0.03) and abs(cosines[1]) < 0.1
