"""Initial word vectors from co-occurrence: words that occur in the same contexts start close together.

Noise then confuses words that can replace each other first, so that sampling decides the class of each word before the word
itself. The vectors factorise the positive pointwise mutual information with the words one and two positions to the left and
right (Levy and Goldberg 2014, section 5). Shape letters: V words, D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

OFFSETS = (-2, -1, 1, 2)
CONTEXT_WORDS = 500
MOST_DENSE = 16_384  # words whose mutual information is one matrix; that of more would take gigabytes
ROWS = 1024  # words of which it is computed at once


def cooccurrence(rows: Sequence[Sequence[int]], vocabulary: int) -> Tensor:
    """Count how often each word occurs at each offset from each of the most frequent words, int32 (V, offsets * words)."""
    frequency = sum(
        (torch.bincount(flat, minlength=vocabulary) for flat, _ in _blocks(rows)), torch.zeros((), dtype=torch.long)
    )
    contexts = frequency.argsort(descending=True, stable=True)[:CONTEXT_WORDS]
    column = torch.full((vocabulary,), -1)
    column[contexts] = torch.arange(len(contexts))
    counts = torch.zeros(vocabulary * len(OFFSETS) * len(contexts), dtype=torch.int32)
    for cell in _cells(rows, column):
        counts.index_add_(0, cell, torch.ones(len(cell), dtype=torch.int32))
    return counts.view(vocabulary, -1)


def _cells(rows: Sequence[Sequence[int]], column: Tensor) -> Iterator[Tensor]:
    """Yield the place in the flattened counts of each pair of tokens; ``column`` (V,) has that of each frequent word."""
    contexts = int(column.max()) + 1
    for flat, text in _blocks(rows):
        for place, offset in enumerate(OFFSETS):
            at = (slice(None, -offset), slice(offset, None)) if offset > 0 else (slice(-offset, None), slice(None, offset))
            here, there = at
            known = (text[here] == text[there]) & (column[flat[there]] >= 0)
            yield (flat[here][known] * len(OFFSETS) + place) * contexts + column[flat[there][known]]


def _blocks(rows: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the token ids of consecutive rows, and the number of each one's row; ``rows`` of large corpora have blocks."""
    if (blocks := getattr(rows, "blocks", None)) is None:
        flat, lengths = torch.tensor([i for row in rows for i in row]), torch.tensor([len(row) for row in rows])
        yield flat, torch.repeat_interleave(torch.arange(len(rows)), lengths)
        return
    for ids, sizes in blocks():
        yield torch.tensor(ids, dtype=torch.long), torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


def mutual_information(counts: Tensor) -> Iterator[Tensor]:
    """Yield the positive pointwise mutual information of ``counts`` (V, C), in float64, ``ROWS`` words at a time."""
    of_word, of_context = (counts.sum(axis, keepdim=True).double() for axis in (1, 0))
    total = of_context.sum().clamp(min=1)
    for part, words in zip(counts.split(ROWS), of_word.split(ROWS), strict=True):
        yield torch.where(part > 0, part / (words * of_context / total), 1.0).log().clamp(min=0)


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
    counts = cooccurrence(rows, vocabulary)
    whole = [torch.cat([*mutual_information(counts)])] if vocabulary <= MOST_DENSE else None

    def information() -> Iterable[Tensor]:  # of many words in float32, which halves the time of the products
        return (part.float() for part in mutual_information(counts)) if whole is None else whole

    products = sum(((part.T @ part).double() for part in information()), torch.zeros((), dtype=torch.float64))
    values, vectors = torch.linalg.eigh(products)
    rank = min(dimension, len(values))
    # Left singular vectors times the root of their singular values, without a decomposition of the tall matrix.
    scale = values[-rank:].clamp(min=1e-12) ** -0.25
    factors = torch.cat([part @ vectors[:, -rank:].to(part) for part in information()])
    return F.pad(factors * scale, (0, dimension - rank)).float()
