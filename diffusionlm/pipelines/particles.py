"""Feynman-Kac steering: copies of a sample are resampled by a reward without a gradient (Singhal et al. 2025)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusionlm.config import Settings
from diffusionlm.core.guidance import check_strength


@dataclass(frozen=True)
class Particles(Settings):
    """Particles of Feynman-Kac steering (Singhal et al. 2025), for controls that only score texts.

    Args:
        count: copies of each sample; each costs as much as a sample.
        strength: lambda in the weights exp(lambda (r_s - r_t)) between two scorings.
        every: steps between two scorings.
    """

    count: int = 8
    strength: float = 5.0
    every: int = 4

    def __post_init__(self) -> None:
        self.expect("1 to 10000", "count")
        self.expect("at least 1", "every")
        check_strength(self.strength)


class ParticleFilter:
    """The particles of a batch: rows g * count to (g + 1) * count - 1 are those of sample g.

    Resampling draws from ``generators``, one per sample, so that the noise of the sampling stays the same.
    """

    def __init__(self, particles: Particles, generators: Sequence[torch.Generator]) -> None:
        self.particles, self.generators = particles, list(generators)
        self.log_weights = torch.zeros(len(self.generators), particles.count, dtype=torch.float64)
        self.rewards = torch.zeros_like(self.log_weights)

    def select(self, step: int, steps: int, rewards: Callable[[], Tensor]) -> Tensor | None:
        """Update the weights every so many steps, and resample (not after the last); ``rewards`` computes them (rows,)."""
        if step != steps and step % self.particles.every:
            return None
        self.weigh(rewards())
        return None if step == steps else self.resample()

    def weigh(self, rewards: Tensor) -> None:
        """Update the weights with new ``rewards`` (rows,), log-probabilities or any score."""
        fresh = rewards.double().view_as(self.log_weights)
        self.log_weights += self.particles.strength * (fresh - self.rewards)
        self.rewards = fresh

    def resample(self) -> Tensor | None:
        """Return the row (rows,) that each row continues from, or None where no sample has lost half of its effective size."""
        weights = self.log_weights.softmax(-1)
        count = self.particles.count
        poor = 1 / weights.square().sum(-1) < count / 2
        if not bool(poor.any()):
            return None
        kept = torch.arange(count).expand_as(weights).clone()
        for g in poor.nonzero().flatten().tolist():
            # Systematic resampling: one draw for all, so that a particle of weight w has w n copies, rounded up or down.
            places = (torch.arange(count) + torch.rand((), generator=self.generators[g], dtype=torch.float64)) / count
            kept[g] = torch.searchsorted(weights[g].cumsum(-1), places).clamp(max=count - 1)
        self.log_weights[poor] = 0.0
        self.rewards = self.rewards.gather(-1, kept)
        return (kept + count * torch.arange(len(kept))[:, None]).flatten()

    def chosen(self) -> list[int]:
        """Draw one row of each sample by its weight."""
        weights = self.log_weights.softmax(-1)
        picks = [int(torch.multinomial(w, 1, generator=g)) for w, g in zip(weights, self.generators, strict=True)]
        return [g * self.particles.count + pick for g, pick in enumerate(picks)]
