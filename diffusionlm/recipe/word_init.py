"""Initial word vectors from co-occurrence: words that occur in the same contexts start close together.

Noise then confuses words that can replace each other first, so that sampling decides the class of each word before the word
itself. The vectors factorise the positive pointwise mutual information with the words one and two positions to the left and
right (Levy and Goldberg 2014, section 5). Shape letters: V words, D dimension.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

OFFSETS = (-2, -1, 1, 2)
CONTEXT_WORDS = 500


MOST_DENSE = 16_384  # words whose counts are one matrix; more would take gigabytes


def cooccurrence(rows: Sequence[Sequence[int]], vocabulary: int) -> Tensor:
    """Count how often each word occurs at each offset from each of the most frequent words, (V, offsets * words).

    The counts of many words are a sparse tensor.
    """
    flat = torch.tensor([i for row in rows for i in row])
    text = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row) for row in rows]))
    frequency = torch.bincount(flat, minlength=vocabulary)
    contexts = frequency.argsort(descending=True, stable=True)[:CONTEXT_WORDS]
    column = torch.full((vocabulary,), -1)
    column[contexts] = torch.arange(len(contexts))
    counts, cells = [], []
    for place, offset in enumerate(OFFSETS):
        here, there = (slice(None, -offset), slice(offset, None)) if offset > 0 else (slice(-offset, None), slice(None, offset))
        known = (text[here] == text[there]) & (column[flat[there]] >= 0)
        cell = flat[here][known] * len(contexts) + column[flat[there][known]]
        if vocabulary > MOST_DENSE:
            cells.append(torch.stack([cell // len(contexts), cell % len(contexts) + place * len(contexts)]))
        else:
            counts.append(torch.bincount(cell, minlength=vocabulary * len(contexts)).view(vocabulary, -1))
    if counts:
        return torch.cat(counts, 1)
    indices = torch.cat(cells, 1)
    size = (vocabulary, len(OFFSETS) * len(contexts))
    return torch.sparse_coo_tensor(indices, torch.ones(indices.shape[1]).double(), size, check_invariants=False).coalesce()


def mutual_information(counts: Tensor) -> Tensor:
    """Return the positive pointwise mutual information (V, C) of ``counts``, in float64, dense or sparse as they are."""
    if not counts.is_sparse:
        counts = counts.double()
        expected = counts.sum(1, keepdim=True) * counts.sum(0, keepdim=True) / counts.sum().clamp(min=1)
        return torch.where(counts > 0, counts / expected, 1.0).log().clamp(min=0)
    (word, context), found = counts.indices(), counts.values().double()
    sizes = zip(counts.shape, (word, context), strict=True)
    of_word, of_context = (found.new_zeros(size).index_add(0, index, found) for size, index in sizes)
    values = (found / (of_word[word] * of_context[context] / found.sum())).log().clamp(min=0)
    return torch.sparse_coo_tensor(counts.indices(), values, counts.shape, check_invariants=False, is_coalesced=True)


def word_vectors_from(rows: Sequence[Sequence[int]], vocabulary: int, dimension: int, share: float) -> Tensor:
    """Return vectors (V, D) of norm sqrt(D), with the ``share`` of the squared length from co-occurrence, the rest random."""
    information = mutual_information(cooccurrence(rows, vocabulary))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # products of sparse tensors are in beta state
        products = information.T @ information
    values, vectors = torch.linalg.eigh(products.to_dense())
    rank = min(dimension, len(values))
    # Left singular vectors times the root of their singular values, without a decomposition of the tall matrix.
    scale = values[-rank:].clamp(min=1e-12) ** -0.25
    factors = F.pad((information @ vectors[:, -rank:]) * scale, (0, dimension - rank)).float()
    rotation = torch.linalg.qr(torch.randn(dimension, dimension))[0]  # so that no coordinate is special
    meaning = F.normalize((factors - factors.mean(0)) @ rotation, dim=-1)
    own = F.normalize(torch.randn(vocabulary, dimension), dim=-1)
    mixed = math.sqrt(share) * meaning + math.sqrt(1 - share) * own
    return F.normalize(mixed, dim=-1) * math.sqrt(dimension)
