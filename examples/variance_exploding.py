"""Seam: a process. Variance exploding, x_t = x_0 + sigma eps (Song et al. 2021, section 3.4; EDM's choice of alpha = 1).

A process is what it makes of gamma = log(sigma^2 / alpha^2):

    variance preserving    alpha = sqrt(sigmoid(-gamma))    sigma = sqrt(sigmoid(gamma))
    variance exploding     alpha = 1                        sigma = exp(gamma / 2)

Both have the same signal-to-noise ratio at each t, so x_VE = c x_VP with c = sqrt(1 + exp(gamma)), and a denoiser trained for
one serves the other (Kingma et al. 2021, section 4). ``Process.standardize`` makes this change of variables, and all else
(noise, posterior, conversions) follows from ``alpha_sigma``. Sampled without fresh noise (DDIM, eta = 0) from the same x_1,
both processes give the same x_0, up to rounding.

    python examples/variance_exploding.py [RUN]
    PYTHONPATH=examples python -m diffusionlm train --model.process variance_exploding:VarianceExploding --out RUN
    PYTHONPATH=examples python -m diffusionlm train --model.process.name variance_exploding:VarianceExploding \
        --model.process.scale 2 --out OTHER
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import tiny
import torch
from torch import Tensor

from diffusionlm import DiffusionLM, Pipeline
from diffusionlm.core.process import Process
from diffusionlm.core.sampler import sample
from diffusionlm.core.schedule import NoiseSchedule
from diffusionlm.recipe.samplers import DDIM


@dataclass(frozen=True)
class VarianceExploding(Process):
    """alpha = ``scale``: the signal keeps its size and the noise grows (s(t) of Karras et al. 2022, equation 4)."""

    schedule: NoiseSchedule
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the hyperparameter."""
        self.expect("a positive number", "scale")

    def alpha_sigma(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale, and the scale times exp(gamma / 2)."""
        return torch.full_like(gamma, self.scale), self.scale * torch.exp(gamma / 2)


@torch.no_grad()
def solve(model: DiffusionLM, process: Process, steps: int = 32) -> Tensor:
    """Return x_0 (4, 16, D) by DDIM under ``process``, in the coordinates of the variance-preserving process."""
    model.process = process
    noise = torch.randn(4, 16, model.settings.dimension, generator=torch.Generator().manual_seed(0))
    *_, last = sample(lambda xt, t: model(xt, t), process, process.rescale(noise, 1.0), sampler=DDIM(), steps=steps)
    return process.standardize(last.x, process.schedule.gamma(torch.zeros(1)))


def main(folder: str | None = None, steps: str = "20") -> None:
    """Compare x_0 and samples of one model under both processes, then train a few steps under ours."""
    pipe = tiny.model(folder)
    preserving = pipe.model.process
    exploding = VarianceExploding(preserving.schedule)
    difference = (solve(pipe.model, exploding) - solve(pipe.model, preserving)).abs().max()
    print(f"largest difference of x_0 between the processes, same noise: {difference:.1e}")
    for process in (preserving, exploding):
        pipe.model.process = process
        print(f"\n{type(process).__name__}")
        for row in pipe(3, sampler="ddim"):
            print(f"  {row.text}")

    run = tiny.trained(model={"process": "variance_exploding:VarianceExploding"}, training={"steps": int(steps)})
    own = Pipeline.from_pretrained(run)  # the process comes with the model: by its import path, in its config
    print(f"\ntrained for {steps} steps under {type(own.model.process).__name__}\n  {own(1)[0].text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
