"""Seam: a process. The straight path of flow matching, x_t = (1 - sigma) x_0 + sigma eps (Lipman et al. 2023; Liu et al. 2023).

A process is what it makes of gamma = log(sigma^2 / alpha^2):

    variance preserving    alpha^2 + sigma^2 = 1    alpha = sqrt(sigmoid(-gamma))
    variance exploding     alpha = 1                sigma = exp(gamma / 2)            (recipe/processes.py)
    straight path          alpha + sigma = 1        alpha = sigmoid(-gamma / 2)

All have the same signal-to-noise ratio at each t, so they differ by a factor, and a denoiser trained for one serves the others
(Kingma et al. 2021, section 4). ``Process.standardize`` makes this change of variables, and all else (noise, posterior,
conversions) follows from ``alpha_sigma``. Sampled without fresh noise (DDIM, eta = 0) from the same x_1, all give the same x_0,
up to rounding.

    python examples/straight_path.py [RUN]
    PYTHONPATH=examples python -m diffusionlm train --model.process straight_path:StraightPath --out RUN
    PYTHONPATH=examples python -m diffusionlm train --model.process.name straight_path:StraightPath \
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
class StraightPath(Process):
    """alpha + sigma = ``scale``: x_t moves from x_0 to the noise on a straight line."""

    schedule: NoiseSchedule
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the hyperparameter."""
        self.expect("a positive number", "scale")

    def alpha_sigma(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two shares of the scale, whose ratio is exp(-gamma / 2)."""
        return self.scale * torch.sigmoid(-gamma / 2), self.scale * torch.sigmoid(gamma / 2)


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
    straight = StraightPath(preserving.schedule)
    difference = (solve(pipe.model, straight) - solve(pipe.model, preserving)).abs().max()
    print(f"largest difference of x_0 between the processes, same noise: {difference:.1e}")
    for process in (preserving, straight):
        pipe.model.process = process
        print(f"\n{type(process).__name__}")
        for row in pipe(3, sampler="ddim"):
            print(f"  {row.text}")

    run = tiny.trained(model={"process": "straight_path:StraightPath"}, training={"steps": int(steps)})
    own = Pipeline.from_pretrained(run)  # the process comes with the model: by its import path, in its config
    print(f"\ntrained for {steps} steps under {type(own.model.process).__name__}\n  {own(1)[0].text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
