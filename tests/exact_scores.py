"""Densities with an exact denoiser: mixtures of Gaussians (or of points), under any process."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusionlm.core.process import Process, alpha
from diffusionlm.core.sampler import Denoise, Denoised, Sampler, sample


@dataclass(frozen=True)
class Mixture:
    """sum_k weights_k N(means_k, covariances_k): (K,), (K, D), (K, D, D)."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def noisy(self, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Return log p(x_0 + sigma eps = y) (N,), and E[x_0 | y] (N, D)."""
        total = self.covariances + sigma**2 * torch.eye(self.means.shape[1], dtype=torch.float64)
        apart = y[:, None] - self.means  # (N, K, D)
        inverse = torch.linalg.inv(total)
        nats = torch.einsum("nki,kij,nkj->nk", apart, inverse, apart) / 2
        nats = nats + torch.logdet(2 * math.pi * total) / 2
        joint = self.weights.log() - nats
        cleaned = self.means + torch.einsum("kij,kjl,nkl->nki", self.covariances, inverse, apart)
        return joint.logsumexp(1), (joint.softmax(1)[..., None] * cleaned).sum(1)

    def responsibilities(self, y: Tensor) -> Tensor:
        """Return the index of the nearest mean to each of ``y`` (N, D)."""
        return torch.cdist(y, self.means).argmin(1)

    def denoiser(self, process: Process) -> Denoise:
        """Return the exact denoiser of x (B, L, D), whose positions are independent."""

        def denoise(xt: Tensor, t: Tensor) -> Denoised:
            gamma = process.schedule.gamma(t[:1])
            scale = float(process.alpha_sigma(gamma)[0])
            _, x0 = self.noisy(xt.flatten(0, 1).double() / scale, math.exp(float(gamma) / 2))
            return Denoised(x0.view(xt.shape).to(xt), torch.zeros(*xt.shape[:2], 1))

        return denoise

    def x0_at(self) -> Callable[[Tensor, float], Tensor]:
        """Return the exact prediction of x_0 from x (N, D) in variance-preserving coordinates at gamma."""
        return lambda x, gamma: self.noisy(x / float(alpha(torch.tensor(gamma).double())), math.exp(gamma / 2))[1]

    def draw(self, count: int) -> Tensor:
        """Draw x_0 (N, D)."""
        kinds = torch.multinomial(self.weights, count, replacement=True)
        roots = torch.linalg.cholesky(self.covariances)
        return self.means[kinds] + torch.einsum("nij,nj->ni", roots[kinds], torch.randn(count, 2, dtype=torch.float64))


def gaussian(mean: list[float], covariance: list[list[float]]) -> Mixture:
    return Mixture(torch.ones(1).double(), torch.tensor([mean]).double(), torch.tensor([covariance]).double())


TILTED = gaussian([1.5, -0.5], [[1.0, 0.6], [0.6, 0.5]])
TWO_MODES = Mixture(
    torch.tensor([0.8, 0.2], dtype=torch.float64),
    torch.tensor([[5.0, 5.0], [-5.0, -5.0]], dtype=torch.float64),  # NCSN's example, section 3.2.2
    torch.eye(2, dtype=torch.float64).expand(2, -1, -1),
)


def samples(truth: Mixture, process: Process, sampler: Sampler, steps: int, texts: int = 20) -> Tensor:
    """Return x_0 (N, D) from pure noise by the exact denoiser, in double precision: ``texts`` of 100 positions."""
    D = truth.means.shape[1]
    start = process.rescale(torch.randn(texts, 100, D, dtype=torch.float64), 1.0)
    *_, last = sample(truth.denoiser(process), process, start, sampler=sampler, steps=steps)
    gamma = process.schedule.gamma(torch.zeros(1))
    return last.x.flatten(0, 1) / float(process.alpha_sigma(gamma)[0])
