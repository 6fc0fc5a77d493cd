"""The schedules of DDPM (linear), of Improved DDPM (cosine), and of the score family (geometric)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.core.schedule import NoiseSchedule, StepSchedule
from diffusionlm.recipe.score import lowest_time


@dataclass(frozen=True)
class Cosine(StepSchedule, name="cosine"):
    """Improved DDPM's schedule: alpha^2(t) = f(t) / f(0), f(u) = cos^2(pi/2 (u + offset) / (1 + offset)).

    Nichol and Dhariwal 2021, section 3.2.
    """

    T: int = 2000
    offset: float = 0.008

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect("0 or more", "offset")

    def _noise_and_signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = torch.pi / 2 * (t + self.offset) / (1 + self.offset)
        start = math.pi / 2 * self.offset / (1 + self.offset)
        # cos^2 a - cos^2 b = sin(b - a) sin(b + a)
        sigma2 = torch.sin(angle - start) * torch.sin(angle + start) / math.cos(start) ** 2
        return sigma2, torch.cos(angle) ** 2 / math.cos(start) ** 2


@dataclass(frozen=True)
class Linear(StepSchedule, name="linear"):
    """DDPM's schedule: beta rises linearly and alpha^2 is the product of 1 - beta (Ho et al. 2020, section 4).

    The betas are scaled by 1000 / T, so that another T gives the same process; between steps log alpha^2 is interpolated.

    Args:
        T: number of training steps.
        beta_start: beta of the first of 1000 steps.
        beta_end: beta of the last one.
    """

    T: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 2e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta_start <= self.beta_end < 1:
            got = f"{self.beta_start}, {self.beta_end}"
            raise UserError(f"beta_start, beta_end: expected increasing numbers between 0 and 1, got {got}")

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
class Geometric(StepSchedule, name="geometric"):
    """NCSN's ladder of T noise levels with a constant ratio: log sigma, and so gamma = 2 log sigma, is linear in t.

    sigma is the noise of the variance-exploding process, sigma(1/T) = ``sigma_min``, ..., sigma(1) = ``sigma_max`` (Song and
    Ermon 2019, section 4.1; score SDE, appendix C). Time 0 is one rung below ``sigma_min``, so gamma is finite everywhere.

    Args:
        T: L, the number of levels.
        sigma_min: where every word is decided.
        sigma_max: about the largest distance between data points (Song and Ermon 2020, technique 1): of texts of L words with
            vectors of norm sqrt(D) it is sqrt(2 L D).
    """

    T: int = 1000
    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect("a positive number", "sigma_min", "sigma_max")
        if not self.sigma_min < self.sigma_max:
            got = f"{self.sigma_min}, {self.sigma_max}"
            raise UserError(f"sigma_min, sigma_max: expected increasing numbers, got {got}")

    def gamma(self, t: Tensor) -> Tensor:
        return 2 * (math.log(self.sigma_min) + self._rungs * (t.double() * self.T - 1))

    def time(self, gamma: Tensor) -> Tensor:
        return ((gamma.double() / 2 - math.log(self.sigma_min)) / self._rungs + 1) / self.T

    @property
    def _rungs(self) -> float:
        """The logarithm of the ratio between two neighbouring levels."""
        return math.log(self.sigma_max / self.sigma_min) / (self.T - 1)


FINEST = 1024  # steps of the run that ``times_at`` interpolates
APART = 0.01  # at most, between the gammas of steps that the highest or the lowest noise level stops


def shifted(times: Tensor, schedule: NoiseSchedule, shift: float) -> Tensor:
    """Return the (steps + 1,) times of a sampling run with ``shift`` added to gamma of all but the first and the last.

    Times stay decreasing: those that would exceed the first are just below it, those below the last just above it, or where
    gamma is infinite there, above the lowest that samplers use. A shift of log-SNR as in *simple diffusion* (Hoogeboom et al.
    2023, section 3.1) and Stable Diffusion 3 (Esser et al. 2024, section 5.3.2).
    """
    first, lowest = schedule.gamma(times[:1]), schedule.gamma(torch.zeros_like(times[:1]))
    lowest = torch.where(lowest.isfinite(), lowest, schedule.gamma(lowest_time(schedule).to(times)))
    apart = ((first - lowest) / (2 * len(times))).clamp(max=APART)  # below half the way, so that both limits can hold
    number = torch.arange(1, len(times) - 1, dtype=torch.float64, device=times.device)
    below, above = first - apart * number, lowest + apart * number.flip(0)
    gamma = (schedule.gamma(times[1:-1]) + shift).minimum(below).maximum(above)
    return torch.cat([times[:1], schedule.time(gamma), times[-1:]])


def times_at(schedule: NoiseSchedule, shares: Tensor) -> Tensor:
    """Return the times at ``shares`` of a sampling run, from its end at 0 to its start at 1; any shape, in float64.

    Times of N and of 2 N equal shares are nested, which those of two runs of a learned schedule are not.
    """
    fine = schedule.sampling_times(min(FINEST, schedule.max_steps)).flip(0).to(shares.device)
    place = shares.double() * (len(fine) - 1)
    left = place.floor().clamp(0, len(fine) - 2).long()
    return torch.lerp(fine[left], fine[left + 1], place - left)
