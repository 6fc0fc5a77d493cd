"""Noise schedules: how noisy a word vector is at time t.

A schedule is one function, gamma(t) = log(sigma^2 / alpha^2), minus the log signal-to-noise ratio, for t in [0, 1] with
t = 0 clean and t = 1 noise (Kingma et al. 2021, *Variational Diffusion Models*). Everything else follows from it:

    alpha^2 = sigmoid(-gamma)       sigma^2 = sigmoid(gamma)       (DDPM's alpha-bar is alpha^2)

Two further questions are a schedule's to answer: at which times to train (``training_times``) and at which to sample
(``sampling_times``). Everything is computed in float64, since differences of near-equal alpha^2 lose digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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
