"""Seam: a sampler. The midpoint method, which calls the denoiser twice in a step.

With y = x / alpha and sigma = exp(gamma / 2), sampling without noise follows the probability flow, for any process:

    dy / dsigma = (y - x0(y, sigma)) / sigma

A DDIM step is Euler's: it follows the slope at sigma_t down to sigma_s, with an error of O(step^2). The midpoint method first
goes halfway, to sigma_m = sqrt(sigma_t sigma_s), and follows the slope it finds there for the whole step: O(step^3), as Heun's,
the library's (recipe/heun.py). A sampler that calls the denoiser once in a step defines ``transition``; this one defines
``step``, which gets the denoiser itself; ``times`` may choose the times of a run.

    python examples/midpoint.py [RUN]
    PYTHONPATH=examples python -m diffusionlm generate RUN --sampler midpoint:Midpoint --steps 14
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import tiny
import torch
from torch import Tensor

from diffusionlm import DiffusionLM
from diffusionlm.core.process import Gaussian, Process, over_coordinates
from diffusionlm.core.sampler import Denoise, Denoised, History, Noise, Sampler, sample
from diffusionlm.recipe.samplers import DDIM


@dataclass(frozen=True)
class Midpoint(Sampler):
    """The midpoint method: two evaluations in a step, one in the last, which ends at t = 0."""

    def step(
        self, denoise: Denoise, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor, noise: Noise
    ) -> tuple[Denoised, Gaussian]:
        """Return the prediction at ``t`` and x_s, as a Gaussian of variance 0."""
        if not bool((s > 0).all()):
            return DDIM().step(denoise, process, history, xt, t, s, noise)
        gamma_t, gamma_s = process.schedule.gamma(t), process.schedule.gamma(s)
        gamma_m = (gamma_t + gamma_s) / 2
        alphas = (over_coordinates(process.alpha_sigma(gamma)[0], xt) for gamma in (gamma_t, gamma_m, gamma_s))
        sigmas = (over_coordinates((gamma / 2).exp(), xt) for gamma in (gamma_t, gamma_m, gamma_s))
        (alpha_t, alpha_m, alpha_s), (sigma_t, sigma_m, sigma_s) = alphas, sigmas
        denoised, y = denoise(xt, t), xt / alpha_t
        y_m = y + (sigma_m - sigma_t) * (y - denoised.x0) / sigma_t
        slope = (y_m - denoise(alpha_m * y_m, process.schedule.time(gamma_m)).x0) / sigma_m
        return denoised, Gaussian(alpha_s * (y + (sigma_s - sigma_t) * slope), torch.zeros_like(xt))


@torch.no_grad()
def solve(model: DiffusionLM, sampler: Sampler, steps: int, length: int = 16) -> tuple[Tensor, int]:
    """Return x_0 (8, L, D) from the same noise for every sampler, and the evaluations of the network it took."""
    evaluations = 0

    def denoise(xt: Tensor, t: Tensor) -> Denoised:
        nonlocal evaluations
        evaluations += 1
        denoised: Denoised = model(xt, t)
        return denoised

    noise = torch.randn(8, length, model.settings.dimension, generator=torch.Generator().manual_seed(0))
    *_, last = sample(denoise, model.process, model.process.rescale(noise, 1.0), sampler=sampler, steps=steps)
    return last.x, evaluations


def main(folder: str | None = None) -> None:
    """Print each sampler's distance from the solution, and the same four samples by both."""
    pipe = tiny.model(folder)
    exact, _ = solve(pipe.model, Midpoint(), 512)
    print("sampler   steps  evaluations  distance from the solution (RMS)")
    runs: tuple[tuple[str, Sampler, int], ...] = (("ddim", DDIM(), 15), ("midpoint", Midpoint(), 8))
    for name, sampler, steps in (*runs, ("ddim", DDIM(), 127), ("midpoint", Midpoint(), 64)):
        x0, evaluations = solve(pipe.model, sampler, steps)
        print(f"{name:8}  {steps:5}  {evaluations:11}  {(x0 - exact).square().mean().sqrt():.4f}")
    for name, steps in (("ddim", 15), ("midpoint:Midpoint", 8)):  # a sampler of the library's, and ours by its import path
        print(f"\n{name}")
        for row in pipe(4, sampler=name, steps=steps, sweeps=0):
            print(f"  {row.text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
