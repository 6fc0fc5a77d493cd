"""The information-uniform schedule, fitted to the cross-entropy that training measures at each noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.core.schedule import NoiseSchedule


@dataclass(frozen=True)
class Gumbel(NoiseSchedule, name="gumbel"):
    """The information-uniform schedule: as much is learned about the words between any two neighbouring times.

    gamma(t) is linear in t; training and sampling times follow the density of dH/dgamma, where the cross-entropy
    at gamma is fitted by H(gamma) = entropy * exp(-exp(-(gamma - location) / scale)), the Gumbel curve of LangFlow
    (2026); the idea is CDCD's time warping (Dieleman et al. 2022, section 4.2). ``location``, ``scale`` and
    ``entropy`` are learned in training. ``end`` is where sampling stops: below it every word is already decided.
    Training draws gamma ``training_shift`` below the learned density: most of the information is in words that are free
    (a name, a dish), while words that must agree with others, where sampling errs, are settled at less noise.
    """

    location: float = 2.0
    scale: float = 0.9
    entropy: float = 5.0
    low: float = -6.0
    high: float = 9.0
    end: float = 0.5
    uniform_share: float = 0.1
    training_shift: float = 1.1

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.low <= self.end < self.high:
            raise UserError(f"end: expected low <= end < high, got {self.low}, {self.end}, {self.high}")
        if self.scale <= 0:
            raise UserError(f"scale: expected a positive number, got {self.scale}")
        if not 0 <= self.uniform_share <= 1:
            raise UserError(f"uniform_share: expected a share between 0 and 1, got {self.uniform_share}")

    @classmethod
    def for_words(cls, dimension: int, vocabulary: int, entropy: float, own_share: float = 1.0) -> Gumbel:
        """Start from what the geometry says: V random words on a sphere of radius sqrt(D).

        ``end`` is where the nearest wrong word is confused in one case of twenty; ``entropy`` in nats (unigram). Where
        only ``own_share`` of a word's squared length tells it from its likes, they are confused until later.
        """
        end = math.log(own_share * dimension / (2 * math.log(2 * (vocabulary - 1) / 0.1)))
        return cls(location=math.log(dimension / (2 * math.log(vocabulary))) + 1.1, entropy=entropy, end=end)

    @property
    def fit(self) -> dict[str, float]:
        """Return what depends on the words: the curve, and where sampling stops."""
        return {"location": self.location, "scale": self.scale, "entropy": self.entropy, "end": self.end}

    @property
    def max_steps(self) -> int:
        """Return a generous bound: beyond it, steps differ by less than the network can tell."""
        return 4096

    def gamma(self, t: Tensor) -> Tensor:
        """Return gamma, linear in t."""
        return self.low + (self.high - self.low) * t.double()

    def time(self, gamma: Tensor) -> Tensor:
        """Return the time of ``gamma``, on this line and beyond [0, 1] too."""
        return (gamma.double() - self.low) / (self.high - self.low)

    def training_times(self, u: Tensor) -> Tensor:
        """Map uniform draws to the learned density; the last ``uniform_share`` of them to a uniform gamma.

        The uniform part lets the fit see noise levels that it does not draw.
        """
        u = u.double()
        learned = (u / max(1 - self.uniform_share, 1e-9)).clamp(max=1)
        spread = ((u - 1 + self.uniform_share) / max(self.uniform_share, 1e-9)).clamp(0, 1)
        shifted = replace(self, location=self.location - self.training_shift)
        return torch.where(u < 1 - self.uniform_share, shifted._time_at_quantile(learned), spread)

    def sampling_times(self, steps: int) -> Tensor:
        """Return times whose learned quantiles are evenly spaced, from ``high`` to ``end``, then 0."""
        u = super().sampling_times(steps)
        times = self._time_at_quantile((u * steps - 1).clamp(min=0) / max(steps - 1, 1))
        times[0], times[-1] = 1, 0
        return times

    def _time_at_quantile(self, u: Tensor) -> Tensor:
        lowest, highest = (math.exp(-math.exp(-(g - self.location) / self.scale)) for g in (self.end, self.high))
        quantile = (lowest + (highest - lowest) * u).clamp(1e-12, 1 - 1e-12)
        gamma = self.location - self.scale * torch.log(-torch.log(quantile))
        return self.time(gamma.clamp(self.end, self.high))
