"""Noise by seed and row, so that samples depend neither on the other rows of the batch nor on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor


def generator_of(seed: Sequence[int]) -> torch.Generator:
    """Return a CPU generator seeded with a sequence of integers, such as (seed, index)."""
    state = numpy.random.SeedSequence(list(seed)).generate_state(1, numpy.uint64)[0]
    return torch.Generator().manual_seed(int(state))


class RowNoise:
    """Standard normal noise in which each row depends only on its own seed and length.

    It is drawn on the CPU, so that a seed gives the same noise on every device.
    """

    def __init__(self, seeds: Sequence[Sequence[int]], lengths: Sequence[int]) -> None:
        """Start a stream for each row; a seed is a sequence of integers such as (seed, index)."""
        self.generators = [generator_of(seed) for seed in seeds]
        self.lengths = list(lengths)

    def __call__(self, like: Tensor) -> Tensor:
        """Draw noise like ``like`` (B, L, D); positions beyond a row's length are 0."""
        drawn = torch.zeros(like.shape, dtype=torch.float32)
        for row, (generator, length) in enumerate(zip(self.generators, self.lengths, strict=True)):
            drawn[row, :length] = torch.randn(length, like.shape[-1], generator=generator)
        return drawn.to(like)
