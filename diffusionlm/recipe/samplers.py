"""Samplers beyond the paper's: points of one family, and a second-order solver of the probability flow.

    x_s = alpha_s x0 + sigma_s ( sqrt(1 - w^2) eps + w xi )       eps = (x_t - alpha_t x0) / sigma_t,   xi ~ N(0, I)

w = 0 is DDIM, w^2 = 1 - exp(gamma_s - gamma_t) DDPM's ancestral sampling, w = 1 draws x_s from q(x_s | x0).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusionlm.core.process import Gaussian, Process, over_coordinates
from diffusionlm.core.sampler import History, Sampler


def renoised(process: Process, x0: Tensor, xt: Tensor, t: Tensor, s: Tensor, w2: Tensor) -> Gaussian:
    """Return the Gaussian of x_s for ``w2`` = w^2 (Song et al. 2021, equation 12)."""
    alpha_s, deviation = process.alpha_sigma(process.schedule.gamma(s))
    kept = over_coordinates(deviation * torch.sqrt(1 - w2), xt) * process.eps_from_x0(x0, xt, t)
    return Gaussian(over_coordinates(alpha_s, xt) * x0 + kept, over_coordinates(deviation**2 * w2, xt))


@dataclass(frozen=True)
class DDIM(Sampler, name="ddim"):
    """Deterministic at ``eta`` 0, ancestral sampling at 1 (Song et al. 2021, equations 12 and 16)."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        self.expect("a number between 0 and 1", "eta")

    def transition(self, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        fresh = -torch.expm1(process.schedule.gamma(s) - process.schedule.gamma(t))
        return renoised(process, history[-1][1].x0, xt, t, s, self.eta**2 * fresh)


@dataclass(frozen=True)
class Renoise(Sampler, name="renoise"):
    """Draw x_s from q(x_s | x_0) of the predicted x_0: w = 1, multistep sampling of Song et al. 2023 (algorithm 1)."""

    def transition(self, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        return renoised(process, history[-1][1].x0, xt, t, s, torch.ones_like(t))


@dataclass(frozen=True)
class DPMSolver(Sampler, name="dpm++2m"):
    """DPM-Solver++(2M): a second-order multistep solver of the probability flow (Lu et al. 2022, algorithm 2).

    The first and the last step are of first order (DDIM): at the last the step in log signal-to-noise ratio is infinite.
    """

    def transition(self, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        x0 = history[-1][1].x0
        if len(history) > 1 and bool((s > 0).all()):
            before, previous = history[-2]
            gamma_before, gamma_t, gamma_s = (process.schedule.gamma(time) for time in (before, t, s))
            ratio = over_coordinates((gamma_t - gamma_s) / (gamma_before - gamma_t) / 2, xt)
            x0 = (1 + ratio) * x0 - ratio * previous.x0
        return renoised(process, x0, xt, t, s, torch.zeros_like(t))
