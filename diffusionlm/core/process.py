"""The Gaussian process on word vectors: noise forward, the posterior backward, and conversions between prediction targets.

    x_t = alpha x_0 + sigma eps
    q(x_s | x_t, x_0) = N( alpha_s (1-r) x_0 + r alpha_s/alpha_t x_t,  sigma_s^2 (1-r) )        r = exp(gamma_s - gamma_t)

for any s < t, so fewer sampling steps are a choice of times, not another process (Kingma et al. 2021, appendix A; the second
line is DDPM's equation 7). Gaussian processes of one schedule differ by a factor only, so a subclass defines ``alpha_sigma``
alone. Shapes: x is (B, L, D); t is (B,), one noise level per text, or (B, L), one per position.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusionlm.config import Component
from diffusionlm.core.schedule import NoiseSchedule, Sqrt


def alpha(gamma: Tensor) -> Tensor:
    """Return the signal factor of the variance-preserving process at ``gamma``; any shape."""
    return torch.sigmoid(-gamma).sqrt()


def sigma(gamma: Tensor) -> Tensor:
    """Return the noise standard deviation of the variance-preserving process at ``gamma``; any shape."""
    return torch.sigmoid(gamma).sqrt()


def over_coordinates(level: Tensor, x: Tensor) -> Tensor:
    """Reshape a quantity per text (B,) or per position (B, L) to multiply ``x`` (B, L, D), in the dtype of ``x``."""
    return level.reshape(*level.shape, *[1] * (x.dim() - level.dim())).to(x)


@dataclass(frozen=True)
class Gaussian:
    """A diagonal Gaussian; mean and variance broadcast to the same shape."""

    mean: Tensor
    variance: Tensor


class Process(Component, family="process", shared={"schedule": Sqrt()}):
    """Base of the Gaussian processes. A subclass is a frozen dataclass with the model's ``schedule``."""

    schedule: NoiseSchedule

    def alpha_sigma(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma at ``gamma``, any shape, with alpha / sigma = exp(-gamma / 2)."""
        raise NotImplementedError

    def standardize(self, xt: Tensor, gamma: Tensor) -> Tensor:
        """Return x_t of the variance-preserving process, which the networks receive, for ``xt`` of this process."""
        return xt / over_coordinates(torch.hypot(*self.alpha_sigma(gamma)), xt)

    def rescale(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return x_t of this process for ``x`` of the variance-preserving one, such as x_1 for standard normal noise."""
        gamma = self.schedule.gamma(torch.as_tensor(t, dtype=torch.float64, device=x.device))
        return x * over_coordinates(torch.hypot(*self.alpha_sigma(gamma)), x)

    def noise(self, x0: Tensor, t: Tensor, eps: Tensor | None = None) -> Tensor:
        """Draw x_t given ``x0`` at times ``t``; ``eps`` is the standard normal draw to use."""
        a, s = self.signal_and_noise(x0, t)
        eps = torch.randn_like(x0) if eps is None else eps
        return a * x0 + s * eps

    def posterior(self, x0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """Return q(x_s | x_t, x_0) for times ``s < t`` (DDPM, equations 6 and 7)."""
        gamma_t, gamma_s = self.schedule.gamma(t), self.schedule.gamma(s)
        alpha_t, _ = self.alpha_sigma(gamma_t)
        alpha_s, sigma_s = self.alpha_sigma(gamma_s)
        clean = -torch.expm1(gamma_s - gamma_t)
        of_x0 = alpha_s * clean
        of_xt = torch.exp(gamma_s - gamma_t) * alpha_s / alpha_t
        mean = over_coordinates(of_x0, xt) * x0 + over_coordinates(of_xt, xt) * xt
        return Gaussian(mean, over_coordinates(sigma_s**2 * clean, xt))

    def step_variance(self, t: Tensor, s: Tensor) -> Tensor:
        """Return the variance of q(x_t | x_s), DDPM's beta."""
        gamma_t, gamma_s = self.schedule.gamma(t), self.schedule.gamma(s)
        return -torch.expm1(gamma_s - gamma_t) * self.alpha_sigma(gamma_t)[1] ** 2

    def eps_from_x0(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Return the noise eps of x_t given ``x0``; t > 0."""
        a, s = self.signal_and_noise(xt, t)
        return (xt - a * x0) / s

    def x0_from_eps(self, eps: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Return the clean vectors given the noise ``eps``."""
        a, s = self.signal_and_noise(xt, t)
        return (xt - s * eps) / a

    def signal_and_noise(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma at times ``t``, in the shape and type to multiply ``x`` (B, L, D)."""
        a, s = self.alpha_sigma(self.schedule.gamma(t))
        return over_coordinates(a, x), over_coordinates(s, x)


@dataclass(frozen=True)
class VariancePreserving(Process, name="variance-preserving"):
    """alpha^2 + sigma^2 = 1: the process of DDPM and Diffusion-LM (Ho et al. 2020, section 2)."""

    schedule: NoiseSchedule = field(default_factory=Sqrt)

    def alpha_sigma(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        return alpha(gamma), sigma(gamma)

    def standardize(self, xt: Tensor, gamma: Tensor) -> Tensor:
        return xt

    def rescale(self, x: Tensor, t: Tensor | float) -> Tensor:
        return x

    def v_from_x0(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Return the velocity v = alpha eps - sigma x_0 (Salimans and Ho 2022, appendix D)."""
        a, s = self.signal_and_noise(xt, t)
        return (a * xt - x0) / s

    def x0_from_v(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Return the clean vectors given the velocity ``v``."""
        a, s = self.signal_and_noise(xt, t)
        return a * xt - s * v


GaussianDiffusion = VariancePreserving  # the name of version 0.1
