"""Noise schedules: gamma(t), how noisy a word vector is at time t.

    gamma(t) = log(sigma^2 / alpha^2),        alpha^2 = sigmoid(-gamma),        sigma^2 = sigmoid(gamma)

for t in [0, 1], where t = 0 is clean and t = 1 is noise: minus the log signal-to-noise ratio (Kingma et al. 2021, *Variational
Diffusion Models*); DDPM's alpha-bar is alpha^2. A schedule also gives the times to train at and the times to sample at.
Everything is computed in float64, since differences of nearly equal alpha^2 lose digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusionlm.config import Component, UserError, plain_name


class NoiseSchedule(Component, family="noise schedule"):
    """Base of the noise schedules."""

    @property
    def max_steps(self) -> int:
        """The largest useful number of sampling steps."""
        raise NotImplementedError

    def gamma(self, t: Tensor) -> Tensor:
        """Return gamma at times ``t``, in float64; any shape."""
        raise NotImplementedError

    def time(self, gamma: Tensor) -> Tensor:
        """Return the time in [0, 1] of each ``gamma``, in float64; any shape."""
        low, high = torch.zeros_like(gamma, dtype=torch.float64), torch.ones_like(gamma, dtype=torch.float64)
        for _ in range(60):  # bisection to the last bit of a float64
            middle = (low + high) / 2
            above = self.gamma(middle) >= gamma
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return high

    def training_times(self, u: Tensor) -> Tensor:
        """Map uniform draws ``u`` in [0, 1) to training times; any shape."""
        raise NotImplementedError

    def sampling_times(self, steps: int) -> Tensor:
        """Return the ``(steps + 1,)`` decreasing times of a sampling run, from 1 to 0.

        Raises:
            UserError: fewer than one step, or more than ``max_steps``.
        """
        if not 1 <= steps <= self.max_steps:
            raise UserError(f"steps: expected 1 to {self.max_steps} for the {plain_name(type(self))} schedule, got {steps}")
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


class StepSchedule(NoiseSchedule):
    """Base of the schedules of T steps: trained at t = 1/T, ..., 1.

    alpha^2(1) is at least .001 alpha^2(1 - 1/T): the released code of Diffusion-LM clips beta to .999.
    """

    T: int

    def __post_init__(self) -> None:
        if self.T < 2:
            raise UserError(f"T: expected at least 2 steps, got {self.T}")

    @property
    def max_steps(self) -> int:
        """T: smaller steps would visit noise levels that were not trained."""
        return self.T

    def training_times(self, u: Tensor) -> Tensor:
        """Map uniform draws to 1/T, ..., 1."""
        return (torch.floor(u.double() * self.T) + 1) / self.T

    def _noise_and_signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return sigma^2 and alpha^2 at float64 ``t``, each without cancellation near t = 0."""
        raise NotImplementedError

    def gamma(self, t: Tensor) -> Tensor:
        sigma2, alpha2 = self._noise_and_signal(t.double())
        last = torch.tensor(1 - 1 / self.T, dtype=torch.float64)
        floor = 1e-3 * self._noise_and_signal(last)[1].to(t.device)
        clipped = alpha2 < floor
        return torch.log(torch.where(clipped, 1 - floor, sigma2)) - torch.log(torch.where(clipped, floor, alpha2))


@dataclass(frozen=True)
class Sqrt(StepSchedule, name="sqrt"):
    """Diffusion-LM's schedule: alpha^2(t) = f(t) / f(0), f(u) = 1 - sqrt(u + offset).

    This is the form of the released code; the paper has no f(0) (Li et al. 2022, section 4.2 and appendix A).
    """

    T: int = 2000
    offset: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.offset < 1:
            raise UserError(f"offset: expected a number from 0 to below 1, got {self.offset}")

    def _noise_and_signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        start = math.sqrt(self.offset)
        root = torch.sqrt(t + self.offset)
        return (root - start) / (1 - start), (1 - root) / (1 - start)
