"""Seam: a sampler. Heun's method, which calls the denoiser twice in a step (Karras et al. 2022, EDM, algorithm 1).

With y = x / alpha and sigma = exp(gamma / 2), sampling without noise follows the probability flow ODE, for any process:

    dy / dsigma = (y - x0(y, sigma)) / sigma

A DDIM step is Euler's: it follows the slope at sigma_t down to sigma_s, with an error of O(step^2). Heun's method then
takes the slope there as well and follows the mean of both, with an error of O(step^3): better with short steps, while with
few long ones, and for the same number of evaluations, Euler's may be. A sampler that calls the denoiser once in a step
defines ``transition``; this one defines ``step``, which gets the denoiser itself.

    python examples/heun.py [RUN]
    PYTHONPATH=examples python -m diffusionlm generate RUN --sampler heun:Heun --steps 14
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
class Heun(Sampler):
    """Heun's second-order method: two evaluations in a step, one in the last, which ends at t = 0."""

    def step(
        self, denoise: Denoise, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor, noise: Noise
    ) -> tuple[Denoised, Gaussian]:
        """Return the prediction at ``t`` and x_s, as a Gaussian of variance 0."""
        gamma_t, gamma_s = process.schedule.gamma(t), process.schedule.gamma(s)
        alpha_t, alpha_s = (over_coordinates(process.alpha_sigma(gamma)[0], xt) for gamma in (gamma_t, gamma_s))
        sigma_t, sigma_s = (over_coordinates((gamma / 2).exp(), xt) for gamma in (gamma_t, gamma_s))
        denoised = denoise(xt, t)
        y = xt / alpha_t
        slope = (y - denoised.x0) / sigma_t
        y_s = y + (sigma_s - sigma_t) * slope
        if bool((s > 0).all()):
            slope_s = (y_s - denoise(alpha_s * y_s, s).x0) / sigma_s
            y_s = y + (sigma_s - sigma_t) * (slope + slope_s) / 2
        return denoised, Gaussian(alpha_s * y_s, torch.zeros_like(xt))


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
    """Print each sampler's distance from the ODE's solution, and the same four samples by both."""
    pipe = tiny.model(folder)
    exact, _ = solve(pipe.model, Heun(), 512)
    print("sampler  steps  evaluations  distance from the solution (RMS)")
    for name, sampler, steps in (("ddim", DDIM(), 15), ("heun", Heun(), 8), ("ddim", DDIM(), 127), ("heun", Heun(), 64)):
        x0, evaluations = solve(pipe.model, sampler, steps)
        print(f"{name:7}  {steps:5}  {evaluations:11}  {(x0 - exact).square().mean().sqrt():.4f}")
    for name, steps in (("ddim", 15), ("heun:Heun", 8)):  # a sampler of the library's, and ours by its import path
        print(f"\n{name}")
        for row in pipe(4, sampler=name, steps=steps, sweeps=0):
            print(f"  {row.text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
