"""Variance exploding, the process of NCSN, score SDE and EDM.

    x_t = x_0 + sigma eps        sigma = exp(gamma / 2)        (Song and Ermon 2019; alpha = 1 in Karras et al. 2022)

A process is what it makes of gamma = log(sigma^2 / alpha^2):

    variance preserving    alpha = sqrt(sigmoid(-gamma))    sigma = sqrt(sigmoid(gamma))
    variance exploding     alpha = 1                        sigma = exp(gamma / 2)

At each t both have the same signal-to-noise ratio, so x_VE = c x_VP with c = sqrt(1 + exp(gamma)), and one denoiser serves both
(Kingma et al. 2021, section 4): ``Process.standardize`` is this change of variables. Without fresh noise (DDIM) the same x_1
gives the same x_0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusionlm.core.process import Process
from diffusionlm.core.schedule import NoiseSchedule
from diffusionlm.recipe.schedules import Geometric


@dataclass(frozen=True)
class VarianceExploding(Process, name="variance-exploding"):
    """alpha = ``scale``: the signal keeps its size and the noise grows (s(t) of Karras et al. 2022, equation 4)."""

    schedule: NoiseSchedule = field(default_factory=Geometric)
    scale: float = 1.0

    def __post_init__(self) -> None:
        self.expect("a positive number", "scale")

    def alpha_sigma(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(gamma, self.scale), self.scale * torch.exp(gamma / 2)
