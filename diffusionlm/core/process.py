"""The Gaussian process on word vectors: noise forward, the posterior back, and three ways to say what was predicted.

    x_t = alpha x_0 + sigma eps                                              variance preserving: alpha^2 + sigma^2 = 1
    q(x_s | x_t, x_0) = N(alpha_s (1-r) x_0 + r alpha_s/alpha_t x_t, sigma_s^2 (1-r))          r = exp(gamma_s - gamma_t)

for any s < t, so fewer sampling steps are a choice of times, not another process (Kingma et al. 2021, appendix A;
the second line is DDPM's equation 7 in the letters of the first). Shapes: x is (B, L, D); t is (B,), one noise level
per text, or (B, L), one per position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusionlm.core.schedule import NoiseSchedule


def alpha(gamma: Tensor) -> Tensor:
    """Return the signal's factor at ``gamma``; any shape."""
    return torch.sigmoid(-gamma).sqrt()


def sigma(gamma: Tensor) -> Tensor:
    """Return the noise's factor (its standard deviation) at ``gamma``; any shape."""
    return torch.sigmoid(gamma).sqrt()


def over_coordinates(level: Tensor, x: Tensor) -> Tensor:
    """Shape a quantity per text (B,) or per position (B, L) to multiply ``x`` (B, L, D), in the dtype of ``x``."""
    return level.reshape(*level.shape, *[1] * (x.dim() - level.dim())).to(x)


@dataclass(frozen=True)
class Gaussian:
    """A diagonal Gaussian: mean and variance broadcast to the same shape."""

    mean: Tensor
    variance: Tensor

    def kl(self, other: Gaussian) -> Tensor:
        """Return KL(self || other) in nats, coordinate by coordinate."""
        ratio = self.variance / other.variance
        return 0.5 * (ratio - 1 - ratio.log() + (self.mean - other.mean) ** 2 / other.variance)


@dataclass(frozen=True)
class GaussianDiffusion:
    """The process of one schedule."""

    schedule: NoiseSchedule

    def noise(self, x0: Tensor, t: Tensor, eps: Tensor | None = None) -> Tensor:
        """Draw x_t given ``x0`` (B, L, D) at times ``t`` (B,) or (B, L); ``eps`` is the standard normal draw to use."""
        eps = torch.randn_like(x0) if eps is None else eps
        a, s = self._factors(x0, t)
        return a * x0 + s * eps

    def posterior(self, x0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """Return q(x_s | x_t, x_0) for times ``s < t``, each (B,) or (B, L) (DDPM, equations 6 and 7)."""
        gamma_t, gamma_s = self.schedule.gamma(t), self.schedule.gamma(s)
        clean = -torch.expm1(gamma_s - gamma_t)
        of_x0 = alpha(gamma_s) * clean
        of_xt = torch.exp(gamma_s - gamma_t) * alpha(gamma_s) / alpha(gamma_t)
        mean = over_coordinates(of_x0, xt) * x0 + over_coordinates(of_xt, xt) * xt
        return Gaussian(mean, over_coordinates(sigma(gamma_s) ** 2 * clean, xt))

    def eps_from_x0(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Return the noise that leads from ``x0`` to ``xt``; t > 0."""
        a, s = self._factors(xt, t)
        return (xt - a * x0) / s

    def x0_from_eps(self, eps: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Return the clean vector that noise ``eps`` leads away from."""
        a, s = self._factors(xt, t)
        return (xt - s * eps) / a

    def v_from_x0(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Return the velocity v = alpha eps - sigma x_0 (Salimans and Ho 2022, appendix D)."""
        a, s = self._factors(xt, t)
        return (a * xt - x0) / s

    def x0_from_v(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Return the clean vector for velocity ``v``."""
        a, s = self._factors(xt, t)
        return a * xt - s * v

    def _factors(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        gamma = self.schedule.gamma(t)
        return over_coordinates(alpha(gamma), x), over_coordinates(sigma(gamma), x)
