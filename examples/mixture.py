"""Two modes in the plane, 0.8 N((5, 5), I) + 0.2 N((-5, -5), I): the data of two examples, with their exact score.

The example of NCSN (Song and Ermon 2019, section 3.2.2). With noise sigma the density stays such a mixture, of variance
1 + sigma^2.
"""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHTS, MEANS = torch.tensor([0.8, 0.2]), torch.tensor([[5.0, 5.0], [-5.0, -5.0]])


def draw(count: int) -> Tensor:
    """Draw x_0 (N, 2)."""
    return MEANS[torch.multinomial(WEIGHTS, count, replacement=True)] + torch.randn(count, 2)


def exact_score(x: Tensor, sigma: float) -> Tensor:
    """Return d log p_sigma(x) / dx (N, 2)."""
    apart, variance = MEANS - x[:, None], 1 + sigma**2
    share = (WEIGHTS.log() - apart.square().sum(-1) / (2 * variance)).softmax(-1)
    return (share[..., None] * apart).sum(1) / variance
