"""Start values of words that a trained model lacks: a mean over words that it has, with similar contexts in new texts.

    e_w = sum_k  a_wk e_k / |sum_k a_wk e_k|        a_wk ~ cos(c_w, c_k)^3 of the 10 known words k with the largest cosine

c are the context vectors of ``word_init`` in the new texts. What else a model has for each word, such as the rows of its output
layer, starts as the mean with the same weights. Shape letters: V known words, N new ones, K terms of a mean, D dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS = 10
SHARPNESS = 3
CHUNK = 1024  # words whose cosines are computed at once


@dataclass(frozen=True)
class Means:
    """Means over known words: their ids ``index`` (N, K), and ``weights`` (N, K) that sum to 1 in each row."""

    index: Tensor
    weights: Tensor

    def of(self, table: Tensor) -> Tensor:
        """Return the means (N, ...) of the rows of ``table`` (V, ...)."""
        flat = table.reshape(len(table), -1).float()
        found = F.embedding_bag(self.index, flat, per_sample_weights=self.weights, mode="sum")
        return found.view(len(self.index), *table.shape[1:]).to(table)


def mean_of(terms: list[tuple[list[int], list[float]]]) -> Means:
    """Return the mean of each of ``terms``: ids, and weights of any sum above 0."""
    longest = max(len(ids) for ids, _ in terms)
    index = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids, _ in terms])
    weights = torch.tensor([[*given, *[0.0] * (longest - len(given))] for _, given in terms])
    return Means(index, weights / weights.sum(1, keepdim=True))


def nearest(contexts: Tensor, known: Tensor, new: Tensor) -> list[tuple[list[int], list[float]]]:
    """Return the ids among ``known`` whose rows of ``contexts`` are nearest to that of each of ``new``, and their weights.

    A word of which no known word has similar contexts has no ids.
    """
    found: list[tuple[list[int], list[float]]] = []
    units = F.normalize(contexts, dim=-1)
    for part in new.split(CHUNK):
        cosines, place = (units[part] @ units[known].T).topk(min(NEIGHBOURS, len(known)), 1)
        for row, ids in zip(cosines.tolist(), known[place].tolist(), strict=True):
            pairs = [(i, cosine**SHARPNESS) for i, cosine in zip(ids, row, strict=True) if cosine > 0]
            found.append(([i for i, _ in pairs], [weight for _, weight in pairs]))
    return found


def placed_vectors(vectors: Tensor, means: Means, shares: Tensor) -> Tensor:
    """Return a vector (N, D) for each of ``means`` of the known ``vectors`` (V, D), as long as those are in the mean.

    ``shares`` (N,) of the squared length are that of the mean direction, the rest is random: words with the same contexts must
    differ, or their noisy vectors would not tell them apart.
    """
    direction = F.normalize(means.of(F.normalize(vectors, dim=-1)), dim=-1)
    own = F.normalize(torch.randn(direction.shape), dim=-1)
    mixed = shares.sqrt()[:, None] * direction + (1 - shares).sqrt()[:, None] * own
    return F.normalize(mixed, dim=-1) * means.of(vectors.norm(dim=-1))[:, None]
