"""What a distilled model's network receives beyond a denoiser's: the noisy vector at full size, and where a step leads.

A denoiser predicts E[x_0 | x_t], which at pure noise depends on no word's vector. A student maps one noise to one text, so it
reads more of the noise. Along a step without fresh noise, from t to s, the evidence of x_t for each word only grows:

    x_s / sigma_s = x_t / sigma_t + (rho_s - rho_t) x0        evidence at s: rho_s x_s / sigma_s E^T        rho = alpha / sigma

so the student multiplies its evidence, in the logits and at the input, by (rho_s / rho_t)^theta with a learned theta. Its
network also reads x_t at full size and the noise level gamma_s (a two-time network: Boffi et al. 2025, *Flow map matching*), by
a projection that starts at 0. Where s = t, the student is a denoiser, and starts as its teacher.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusionlm.core.model import MAX_GAMMA
from diffusionlm.core.process import alpha, over_coordinates

FREQUENCIES = 8
THETA = 0.5  # at the start


@dataclass(frozen=True)
class Toward:
    """A condition of the model, or None, and the noise levels ``gamma`` (B,) or (B, L) that the step leads to."""

    gamma: Tensor
    condition: Any = None


class StepInput(nn.Module):
    """What a step adds to a denoiser of vectors of ``dimension``; ``scaled`` inputs are alpha x_t, others x_t itself."""

    def __init__(self, dimension: int, scaled: bool) -> None:
        super().__init__()
        self.dimension, self.scaled = dimension, scaled
        self.projection = nn.Linear(dimension + 4 * FREQUENCIES, dimension)
        self.theta = nn.Linear(4 * FREQUENCIES, 2)

    def reset(self) -> None:
        """Start at 0, and theta at ``THETA``."""
        for layer in (self.projection, self.theta):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.theta.bias, THETA)

    def forward(self, inputs: Tensor, gamma: Tensor, toward: Tensor | None) -> Tensor:
        """Return ``inputs`` (B, L, I) at ``gamma``, (B,) or (B, L), for a step to ``toward``; None is a step to ``gamma``."""
        vectors = inputs[..., : self.dimension]
        noisy = vectors / over_coordinates(alpha(gamma), vectors) if self.scaled else vectors
        levels = self._levels(gamma, toward)
        levels = levels if levels.dim() == 3 else levels[:, None].expand(-1, inputs.shape[1], -1)
        moved = vectors + self.projection(torch.cat([noisy, levels.to(noisy)], -1))
        return torch.cat([moved, inputs[..., self.dimension :]], -1)

    def factors(self, gamma: Tensor, toward: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the factors (B, 1, 1) or (B, L, 1) of the evidence at the input and in the logits."""
        gamma = gamma.clamp(-MAX_GAMMA, MAX_GAMMA).float()
        less = gamma - (gamma if toward is None else toward.clamp(-MAX_GAMMA, MAX_GAMMA).to(gamma))
        factors = torch.exp(self.theta(self._levels(gamma, toward)).float() * less[..., None] / 2)
        factors = factors if factors.dim() == 3 else factors[:, None]
        return factors[..., :1], factors[..., 1:]

    def _levels(self, gamma: Tensor, toward: Tensor | None) -> Tensor:
        toward = gamma if toward is None else toward.clamp(-MAX_GAMMA, MAX_GAMMA).to(gamma)
        return torch.cat([waves(toward), waves(gamma - toward)], -1)


def waves(gamma: Tensor) -> Tensor:
    """Return sines and cosines (..., 2 F) of levels within 2 ``MAX_GAMMA`` of 0, at F frequencies from half a period on."""
    angles = gamma[..., None].float() * (math.pi / (2 * MAX_GAMMA)) * 2.0 ** torch.arange(FREQUENCIES, device=gamma.device)
    return torch.cat([angles.sin(), angles.cos()], -1)
