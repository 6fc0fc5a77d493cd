"""Heun's method with EDM's time steps and churn (Karras et al. 2022, algorithms 1 and 2).

With y = x / alpha and sigma = exp(gamma / 2), sampling without noise follows the probability flow, for any process:

    dy / dsigma = (y - x0(y, sigma)) / sigma

A DDIM step is Euler's: it follows the slope at sigma_t down to sigma_s, with an error of O(step^2). Heun's method takes the
slope there as well and follows the mean of both, with an error of O(step^3). Churn first raises the noise a little with fresh
noise,

    sigma' = (1 + churn) sigma_t        y' = y + sqrt(sigma'^2 - sigma_t^2) noise_scale xi        xi ~ N(0, I)

which corrects errors of earlier steps. EDM's own time steps are evenly spaced in sigma^(1/rho).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.core.process import Gaussian, Process, over_coordinates
from diffusionlm.core.sampler import Denoise, Denoised, History, Noise, Sampler
from diffusionlm.core.schedule import NoiseSchedule
from diffusionlm.recipe.score import lowest_time

MOST_CHURN = 2**0.5 - 1  # EDM's limit: a step adds at most as much noise as there is


@dataclass(frozen=True)
class Heun(Sampler, name="heun"):
    """Heun's second-order method: two evaluations per step, one in the last, which ends at t = 0; deterministic without churn.

    Args:
        churn: share by which the noise is raised before a step, at most sqrt(2) - 1; EDM's S_churn divided by the steps.
        s_min: the least sigma = exp(gamma / 2) at which there is churn.
        s_max: the largest one; empty is no limit.
        s_noise: standard deviation of the fresh noise; EDM raises it a little above 1, against a loss of detail.
        rho: exponent of EDM's time steps; empty takes the schedule's own, of which few are too long for this method.
    """

    churn: float = 0.0
    s_min: float = 0.0
    s_max: float | None = None
    s_noise: float = 1.0
    rho: float | None = 7.0

    def __post_init__(self) -> None:
        self.expect("0 or more", "churn", "s_min", "s_max")
        if self.churn > MOST_CHURN:
            raise UserError(f"churn: expected at most sqrt(2) - 1 = {MOST_CHURN:.4f} (S_churn / steps), got {self.churn}")
        if self.s_max is not None and self.s_max < self.s_min:
            raise UserError(f"s_max: expected {self.s_min} or more, which is s_min, got {self.s_max}")
        self.expect("a positive number", "s_noise", "rho")

    def times(self, schedule: NoiseSchedule, steps: int) -> Tensor:
        own = super().times(schedule, steps)
        if self.rho is None or steps == 1:
            return own
        gamma = schedule.gamma(torch.stack([own[0], lowest_time(schedule)]))
        high, low = (gamma / (2 * self.rho)).exp().tolist()  # sigma^(1/rho)
        roots = torch.linspace(high, low, steps, dtype=torch.float64)
        return torch.cat([own[:1], schedule.time(2 * self.rho * roots.log())[1:], own[-1:]])

    def step(
        self, denoise: Denoise, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor, noise: Noise
    ) -> tuple[Denoised, Gaussian]:
        y, t = self._churned(process, xt / _scaled(process, xt, t)[0], t, noise)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = _scaled(process, xt, t), _scaled(process, xt, s)
        denoised = denoise(alpha_t * y, t)
        slope = (y - denoised.x0) / sigma_t
        y_s = y + (sigma_s - sigma_t) * slope
        if bool((s > 0).all()):
            slope_s = (y_s - denoise(alpha_s * y_s, s).x0) / sigma_s
            y_s = y + (sigma_s - sigma_t) * (slope + slope_s) / 2
        return denoised, Gaussian(alpha_s * y_s, torch.zeros_like(xt))

    def _churned(self, process: Process, y: Tensor, t: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return ``y`` with its noise raised, and the time of its new level, at most 1."""
        schedule = process.schedule
        gamma = schedule.gamma(t)
        sigma, most = float((gamma[0] / 2).exp()), schedule.gamma(torch.ones_like(t))
        if not (self.churn and sigma >= self.s_min and (self.s_max is None or sigma <= self.s_max)):
            return y, t
        raised = torch.minimum(gamma + 2 * torch.log1p(torch.tensor(self.churn, dtype=torch.float64)), most)
        added = over_coordinates((raised.exp() - gamma.exp()).clamp(min=0).sqrt(), y)
        return y + added * self.s_noise * noise(y), torch.where(raised == most, 1.0, schedule.time(raised))


def _scaled(process: Process, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha, and sigma / alpha, at times ``t``, to multiply ``x`` (B, L, D)."""
    gamma = process.schedule.gamma(t)
    return over_coordinates(process.alpha_sigma(gamma)[0], x), over_coordinates((gamma / 2).exp(), x)
