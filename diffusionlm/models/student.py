"""What a distilled model's network receives beyond a denoiser's: the noisy vector at full size, and where a step leads.

A denoiser predicts E[x_0 | x_t], which at pure noise depends on no word's vector. A student maps one noise to one text, so its
network reads the noisy vector itself, and the noise level gamma_s that the step from t leads to (a two-time network: Boffi et
al. 2025, *Flow map matching*). Both enter by a projection that starts at 0: the student starts as its teacher.
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


@dataclass(frozen=True)
class Toward:
    """A condition of the model, or None, and the noise levels ``gamma`` (B,) or (B, L) that the step leads to."""

    gamma: Tensor
    condition: Any = None


class StepInput(nn.Module):
    """Adds to the first ``dimension`` inputs; ``scaled`` inputs are alpha x_t, others x_t itself."""

    def __init__(self, dimension: int, scaled: bool) -> None:
        super().__init__()
        self.dimension, self.scaled = dimension, scaled
        self.projection = nn.Linear(dimension + 4 * FREQUENCIES, dimension)

    def reset(self) -> None:
        """Start at 0."""
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, inputs: Tensor, gamma: Tensor, toward: Tensor | None) -> Tensor:
        """Return ``inputs`` (B, L, I) at ``gamma``, (B,) or (B, L), for a step to ``toward``; None is a step to ``gamma``."""
        toward = gamma if toward is None else toward.clamp(-MAX_GAMMA, MAX_GAMMA).to(gamma)
        vectors = inputs[..., : self.dimension]
        noisy = vectors / over_coordinates(alpha(gamma), vectors) if self.scaled else vectors
        levels = torch.cat([waves(toward), waves(gamma - toward)], -1)
        levels = levels if levels.dim() == 3 else levels[:, None].expand(-1, inputs.shape[1], -1)
        moved = vectors + self.projection(torch.cat([noisy, levels.to(noisy)], -1))
        return torch.cat([moved, inputs[..., self.dimension :]], -1)


def waves(gamma: Tensor) -> Tensor:
    """Return sines and cosines (..., 2 F) of levels within 2 ``MAX_GAMMA`` of 0, at F frequencies from half a period on."""
    angles = gamma[..., None].float() * (math.pi / (2 * MAX_GAMMA)) * 2.0 ** torch.arange(FREQUENCIES, device=gamma.device)
    return torch.cat([angles.sin(), angles.cos()], -1)
