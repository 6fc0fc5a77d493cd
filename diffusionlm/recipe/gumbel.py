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
    """The information-uniform schedule: every step between neighbouring times reduces the cross-entropy equally.

    gamma(t) is linear in t. Training and sampling times follow the density dH/dgamma of the cross-entropy at gamma, fitted by
    H(gamma) = entropy * exp(-exp(-(gamma - location) / scale)) (LangFlow 2026; time warping of CDCD, Dieleman et al. 2022,
    section 4.2).

    Args:
        location: learned in training.
        scale: learned in training.
        entropy: learned in training, nats per token.
        low: gamma at t = 0.
        high: gamma at t = 1.
        end: gamma at which sampling stops; at less noise every token is decided.
        uniform_share: share of training draws with uniform gamma, so that the fit covers all noise levels.
        training_shift: training draws gamma from the learned density moved down by this. Most of the information is in tokens
            that are free choices, while tokens that must agree with others, where sampling errs, are decided at less noise.
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
        self.expect("a finite number", "location", "low", "high", "end", "training_shift")
        self.expect("0 or more", "entropy")
        if not self.low <= self.end < self.high:
            raise UserError(f"low, end, high: expected low <= end < high, got {self.low}, {self.end}, {self.high}")
        self.expect("a positive number", "scale")
        self.expect("a share between 0 and 1", "uniform_share")

    @classmethod
    def for_words(cls, dimension: int, vocabulary: int, entropy: float, own_share: float = 1.0) -> Gumbel:
        """Return the initial schedule for V random words on a sphere of radius sqrt(D).

        ``end`` is where a token is confused with the nearest other one in one case of twenty; ``entropy`` is the unigram
        entropy in nats; ``own_share`` is the share of a vector's squared length that words of one class do not share.
        """
        end = math.log(own_share * dimension / (2 * math.log(2 * (vocabulary - 1) / 0.1)))
        return cls(location=math.log(dimension / (2 * math.log(vocabulary))) + 1.1, entropy=entropy, end=end)

    @property
    def fit(self) -> dict[str, float]:
        """Return the numbers that depend on the vocabulary: the curve and ``end``."""
        return {"location": self.location, "scale": self.scale, "entropy": self.entropy, "end": self.end}

    @property
    def max_steps(self) -> int:
        """4096: finer steps differ by less than the network can resolve."""
        return 4096

    def gamma(self, t: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * t.double()

    def time(self, gamma: Tensor) -> Tensor:
        return (gamma.double() - self.low) / (self.high - self.low)

    def training_times(self, u: Tensor) -> Tensor:
        """Map uniform draws to the learned density, the last ``uniform_share`` of them to a uniform gamma."""
        u = u.double()
        learned = (u / max(1 - self.uniform_share, 1e-9)).clamp(max=1)
        spread = ((u - 1 + self.uniform_share) / max(self.uniform_share, 1e-9)).clamp(0, 1)
        shifted = replace(self, location=self.location - self.training_shift)
        return torch.where(u < 1 - self.uniform_share, shifted._time_at_quantile(learned), spread)

    def sampling_times(self, steps: int) -> Tensor:
        """Return times at evenly spaced quantiles of the learned density from ``high`` to ``end``, then 0."""
        u = super().sampling_times(steps)
        times = self._time_at_quantile((u * steps - 1).clamp(min=0) / max(steps - 1, 1))
        times[0], times[-1] = 1, 0
        return times

    def _time_at_quantile(self, u: Tensor) -> Tensor:
        lowest, highest = (math.exp(-math.exp(-(g - self.location) / self.scale)) for g in (self.end, self.high))
        quantile = (lowest + (highest - lowest) * u).clamp(1e-12, 1 - 1e-12)
        gamma = self.location - self.scale * torch.log(-torch.log(quantile))
        return self.time(gamma.clamp(self.end, self.high))
