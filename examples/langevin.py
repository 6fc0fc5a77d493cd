"""Langevin dynamics in the plane, plain and annealed: which of them finds the weights of two modes? Read it as a notebook.

python examples/langevin.py [FIGURE.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from mixture import draw, exact_score
from torch import Tensor

from diffusionlm import plots
from diffusionlm.core.sampler import Denoised, sample
from diffusionlm.recipe.langevin import AnnealedLangevin
from diffusionlm.recipe.processes import VarianceExploding
from diffusionlm.recipe.schedules import Geometric


# %% Sampling with the exact score. Between the modes there is next to no density, so plain Langevin dynamics never crosses, and
# the shares of the modes are those of its start. Annealed, it crosses at high noise (``annealed-langevin``).
def plain_langevin(count: int, steps: int) -> Tensor:
    """Return x (N, 2) after Langevin steps at the lowest noise from uniform points."""
    x = 16 * torch.rand(count, 2) - 8
    for _ in range(steps):
        x = x + 0.05 * exact_score(x, 0.1) + 0.1**0.5 * torch.randn_like(x)
    return x


def annealed_langevin(count: int, levels: int) -> Tensor:
    """Return x_0 (N, 2) by the library's sampler, whose denoiser is the score by Tweedie's formula."""
    process = VarianceExploding(Geometric(T=levels, sigma_min=0.1, sigma_max=20.0))

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        sigma = float((process.schedule.gamma(t[0]) / 2).exp())
        return Denoised(x + sigma**2 * exact_score(x[:, 0], sigma)[:, None], torch.zeros(len(x), 1, 1))

    start = process.rescale(torch.randn(count, 1, 2), 1.0)
    *_, last = sample(denoise, process, start, sampler=AnnealedLangevin(inner_steps=10), steps=levels)
    return last.x[:, 0]


def main(figure: str | None = None) -> None:
    """Print the share of samples at the heavier mode, and draw them."""
    torch.set_num_threads(1)
    torch.manual_seed(2)
    clouds = {"data": draw(1000), "Langevin": plain_langevin(1000, 1000), "annealed Langevin": annealed_langevin(1000, 100)}
    shares = {name: float((x.sum(1) > 0).float().mean()) for name, x in clouds.items()}
    print("share at the heavier mode: " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items()))
    if figure is not None:
        titles = {name: f"{name}: {100 * share:.0f} % in the upper mode" for name, share in shares.items()}
        panels = {titles[name]: [(x, y) for x, y in cloud.tolist()] for name, cloud in clouds.items()}
        plots.save(plots.points(panels, "first coordinate", "second coordinate"), Path(figure))


if __name__ == "__main__":
    main(*sys.argv[1:])
