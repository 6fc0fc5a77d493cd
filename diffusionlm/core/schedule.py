"""Noise schedules: how noisy a word vector is at time t.

A schedule is one function, gamma(t) = log(sigma^2 / alpha^2), minus the log signal-to-noise ratio, for t in [0, 1] with
t = 0 clean and t = 1 noise (Kingma et al. 2021, *Variational Diffusion Models*). Everything else follows from it:

    alpha^2 = sigmoid(-gamma)       sigma^2 = sigmoid(gamma)       (DDPM's alpha-bar is alpha^2)

Two further questions are a schedule's to answer: at which times to train (``training_times``) and at which to sample
(``sampling_times``). Everything is computed in float64, since differences of near-equal alpha^2 lose digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from diffusionlm.config import Component, UserError


class NoiseSchedule(Component, family="noise schedule"):
    """Base of the noise schedules."""

    @property
    def max_steps(self) -> int:
        """Return how many sampling steps still make sense."""
        raise NotImplementedError

    def gamma(self, t: Tensor) -> Tensor:
        """Return minus the log signal-to-noise ratio at times ``t``, in float64; any shape in, same shape out."""
        raise NotImplementedError

    def time(self, gamma: Tensor) -> Tensor:
        """Return the time of each level ``gamma``, the inverse of ``gamma(t)`` on [0, 1], in float64; any shape."""
        low, high = torch.zeros_like(gamma, dtype=torch.float64), torch.ones_like(gamma, dtype=torch.float64)
        for _ in range(60):  # bisection, to the last bit of a float64
            middle = (low + high) / 2
            above = self.gamma(middle) >= gamma
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return high

    def training_times(self, u: Tensor) -> Tensor:
        """Map uniform draws ``u`` in [0, 1) to the times to train at; any shape."""
        raise NotImplementedError

    def sampling_times(self, steps: int) -> Tensor:
        """Return the ``(steps + 1,)`` falling times of a sampling run, from 1 to 0.

        Raises:
            UserError: fewer than one step, or more than the schedule tells apart.
        """
        if not 1 <= steps <= self.max_steps:
            raise UserError(f"steps: expected 1 to {self.max_steps} for the {self.name} schedule, got {steps}")
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


class StepSchedule(NoiseSchedule):
    """Base of the schedules of T steps: trained at t = 1/T, ..., 1; alpha^2(1) is at least .001 alpha^2(1 - 1/T).

    That is a last beta of .999 at most, as the released code of Diffusion-LM clips it.
    """

    T: int

    def __post_init__(self) -> None:
        """Check the number of steps."""
        if self.T < 2:
            raise UserError(f"T: expected at least 2 steps, got {self.T}")

    @property
    def max_steps(self) -> int:
        """Return T: finer steps would visit noise levels that were never trained."""
        return self.T

    def training_times(self, u: Tensor) -> Tensor:
        """Map uniform draws to the T trained times."""
        return (torch.floor(u.double() * self.T) + 1) / self.T

    def _noise_and_signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return sigma^2 and alpha^2 as functions of float64 ``t``, each without cancellation near t = 0."""
        raise NotImplementedError

    def gamma(self, t: Tensor) -> Tensor:
        """Return gamma, minus infinity at t = 0."""
        sigma2, alpha2 = self._noise_and_signal(t.double())
        last = torch.tensor(1 - 1 / self.T, dtype=torch.float64)
        floor = 1e-3 * self._noise_and_signal(last)[1].to(t.device)
        clipped = alpha2 < floor
        return torch.log(torch.where(clipped, 1 - floor, sigma2)) - torch.log(torch.where(clipped, floor, alpha2))


@dataclass(frozen=True)
class Sqrt(StepSchedule, name="sqrt"):
    """Diffusion-LM's schedule: alpha^2(t) = f(t) / f(0), f(u) = 1 - sqrt(u + offset).

    The form of the released code, not of the paper, which lacks f(0) (Li et al. 2022, section 4.2 and appendix A).
    """

    T: int = 2000
    offset: float = 1e-4

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if not 0 <= self.offset < 1:
            raise UserError(f"offset: expected a number from 0 to below 1, got {self.offset}")

    def _noise_and_signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        start = math.sqrt(self.offset)
        root = torch.sqrt(t + self.offset)
        return (root - start) / (1 - start), (1 - root) / (1 - start)


@dataclass(frozen=True)
class Cosine(StepSchedule, name="cosine"):
    """Improved DDPM's schedule: alpha^2(t) = f(t) / f(0), f(u) = cos^2(pi/2 (u + offset) / (1 + offset)).

    Nichol and Dhariwal 2021, section 3.2.
    """

    T: int = 2000
    offset: float = 0.008

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if not 0 <= self.offset < math.inf:
            raise UserError(f"offset: expected 0 or more, got {self.offset}")

    def _noise_and_signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = torch.pi / 2 * (t + self.offset) / (1 + self.offset)
        start = math.pi / 2 * self.offset / (1 + self.offset)
        # cos^2 a - cos^2 b = sin(b - a) sin(b + a)
        sigma2 = torch.sin(angle - start) * torch.sin(angle + start) / math.cos(start) ** 2
        return sigma2, torch.cos(angle) ** 2 / math.cos(start) ** 2


@dataclass(frozen=True)
class Linear(StepSchedule, name="linear"):
    """DDPM's schedule: beta rises linearly, alpha^2 is the product of 1 - beta (Ho et al. 2020, section 4).

    The betas are scaled by 1000 / T, so that another T is the same process; between steps log alpha^2 is interpolated.
    """

    T: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 2e-2

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if not 0 < self.beta_start <= self.beta_end < 1:
            got = f"{self.beta_start}, {self.beta_end}"
            raise UserError(f"beta_start, beta_end: expected rising numbers between 0 and 1, got {got}")

    @cached_property
    def _log_alpha2(self) -> Tensor:
        beta = torch.linspace(self.beta_start, self.beta_end, self.T, dtype=torch.float64) * (1000 / self.T)
        return torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-beta.clamp(max=0.999)).cumsum(0)])

    def _noise_and_signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        table = self._log_alpha2.to(t.device)
        left = torch.floor(t * self.T).clamp(max=self.T - 1).long()
        log_alpha2 = torch.lerp(table[left], table[left + 1], t * self.T - left)
        return -torch.expm1(log_alpha2), torch.exp(log_alpha2)


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
