"""Initial word vectors from co-occurrence: words that occur in the same contexts start close together.

Noise then confuses words that can replace each other first, so that sampling decides the class of each word before the word
itself. The vectors factorise the positive pointwise mutual information with the words one and two positions to the left and
right (Levy and Goldberg 2014, section 5). Shape letters: V words, D dimension.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

OFFSETS = (-2, -1, 1, 2)
CONTEXT_WORDS = 500
MOST_DENSE = 16_384  # words whose counts are one matrix; more would take gigabytes
ROWS = 1024  # of such a matrix that are computed at once


def cooccurrence(rows: Sequence[Sequence[int]], vocabulary: int) -> Tensor:
    """Count how often each word occurs at each offset from each of the most frequent words, (V, offsets * words).

    The counts of many words are a sparse tensor.
    """
    frequency = sum(
        (torch.bincount(flat, minlength=vocabulary) for flat, _ in _blocks(rows)), torch.zeros((), dtype=torch.long)
    )
    contexts = frequency.argsort(descending=True, stable=True)[:CONTEXT_WORDS]
    column = torch.full((vocabulary,), -1)
    column[contexts] = torch.arange(len(contexts))
    size = (vocabulary, len(OFFSETS) * len(contexts))
    if vocabulary > MOST_DENSE:
        total = torch.sparse_coo_tensor(
            torch.zeros(2, 0, dtype=torch.long), torch.zeros(0).double(), size, check_invariants=False
        )
        for place, cell in _cells(rows, column):
            index = torch.stack([cell // len(contexts), cell % len(contexts) + place * len(contexts)])
            ones = torch.ones(len(cell)).double()
            total = (total + torch.sparse_coo_tensor(index, ones, size, check_invariants=False)).coalesce()
        return total
    counts = torch.zeros(len(OFFSETS), vocabulary * len(contexts), dtype=torch.long)
    for place, cell in _cells(rows, column):
        counts[place] += torch.bincount(cell, minlength=counts.shape[1])
    return torch.cat([count.view(vocabulary, -1) for count in counts], 1)


def _cells(rows: Sequence[Sequence[int]], column: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of an offset, and word times contexts plus context of each pair of tokens at it; ``column`` (V,)."""
    contexts = int(column.max()) + 1
    for flat, text in _blocks(rows):
        for place, offset in enumerate(OFFSETS):
            at = (slice(None, -offset), slice(offset, None)) if offset > 0 else (slice(-offset, None), slice(None, offset))
            here, there = at
            known = (text[here] == text[there]) & (column[flat[there]] >= 0)
            yield place, flat[here][known] * contexts + column[flat[there][known]]


def _blocks(rows: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the token ids of consecutive rows, and the number of each one's row; ``rows`` of large corpora have blocks."""
    if (blocks := getattr(rows, "blocks", None)) is None:
        flat, lengths = torch.tensor([i for row in rows for i in row]), torch.tensor([len(row) for row in rows])
        yield flat, torch.repeat_interleave(torch.arange(len(rows)), lengths)
        return
    for ids, sizes in blocks():
        yield torch.tensor(ids, dtype=torch.long), torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


def mutual_information(counts: Tensor) -> Tensor:
    """Return the positive pointwise mutual information (V, C) of ``counts``, in float64, dense or sparse as they are."""
    if not counts.is_sparse:
        counts = counts.double()
        of_word, of_context, total = counts.sum(1, keepdim=True), counts.sum(0, keepdim=True), counts.sum().clamp(min=1)
        information = torch.empty_like(counts)
        for part, words, found in zip(counts.split(ROWS), of_word.split(ROWS), information.split(ROWS), strict=True):
            found[:] = torch.where(part > 0, part / (words * of_context / total), 1.0).log().clamp(min=0)
        return information
    (word, context), found = counts.indices(), counts.values().double()
    sizes = zip(counts.shape, (word, context), strict=True)
    of_word, of_context = (found.new_zeros(size).index_add(0, index, found) for size, index in sizes)
    values = (found / (of_word[word] * of_context[context] / found.sum())).log().clamp(min=0)
    return torch.sparse_coo_tensor(counts.indices(), values, counts.shape, check_invariants=False, is_coalesced=True)


def word_vectors_from(rows: Sequence[Sequence[int]], vocabulary: int, dimension: int, share: float) -> Tensor:
    """Return vectors (V, D) of norm sqrt(D), with the ``share`` of the squared length from co-occurrence, the rest random."""
    factors = context_vectors(rows, vocabulary, dimension)
    rotation = torch.linalg.qr(torch.randn(dimension, dimension))[0]  # so that no coordinate is special
    meaning = F.normalize((factors - factors.mean(0)) @ rotation, dim=-1)
    own = F.normalize(torch.randn(vocabulary, dimension), dim=-1)
    mixed = math.sqrt(share) * meaning + math.sqrt(1 - share) * own
    return F.normalize(mixed, dim=-1) * math.sqrt(dimension)


def context_vectors(rows: Sequence[Sequence[int]], vocabulary: int, dimension: int) -> Tensor:
    """Return the factors (V, D) of the positive pointwise mutual information; those of a large corpus are kept with it."""
    if (remember := getattr(rows, "remember", None)) is None:
        return _factors(rows, vocabulary, dimension)
    # Threads decide on the last bits.
    name = f"co-occurrence, {vocabulary} words, {dimension} dimensions, {torch.get_num_threads()} threads"
    return torch.from_numpy(remember(name, lambda: _factors(rows, vocabulary, dimension).numpy()))


def _factors(rows: Sequence[Sequence[int]], vocabulary: int, dimension: int) -> Tensor:
    information = mutual_information(cooccurrence(rows, vocabulary))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # products of sparse tensors are in beta state
        products = information.T @ information
    values, vectors = torch.linalg.eigh(products.to_dense())
    rank = min(dimension, len(values))
    # Left singular vectors times the root of their singular values, without a decomposition of the tall matrix.
    scale = values[-rank:].clamp(min=1e-12) ** -0.25
    return F.pad((information @ vectors[:, -rank:]) * scale, (0, dimension - rank)).float()
