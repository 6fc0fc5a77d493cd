"""Operations on token posteriors: temperature, known tokens, and the state that an energy receives."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from diffusionlm.core.guidance import GuidanceState
from diffusionlm.core.sampler import Denoised

SMALLEST = 1e-30  # probabilities are clamped to this, so that logarithms are finite


def apply_temperature(denoised: Denoised, embedding: Tensor, temperature: float) -> Denoised:
    """Divide the logits by ``temperature``; x_0 becomes the posterior mean over ``embedding`` (V, D)."""
    logits = denoised.logits / temperature
    return replace(denoised, x0=logits.softmax(-1) @ embedding.to(logits), logits=logits)


def pin_logits(logits: Tensor, known: Tensor, ids: Tensor) -> Tensor:
    """Return ``logits`` (B, L, V) with probability 1 for ``ids`` (B, L) at the positions ``known`` (B, L)."""
    certain = torch.full_like(logits, -math.inf).scatter(-1, ids[..., None], 0.0)
    return torch.where(known[..., None], certain, logits)


def posterior_state(logits: Tensor, xt: Tensor, t: Tensor, mask: Tensor, embedding: Tensor) -> GuidanceState:
    """Return the state of the token posterior ``logits`` (B, L, V); ``embedding`` is E (V, D).

    Energies of it have gradients with respect to ``words`` and ``xt``. These reach the caller's ``xt`` only if it requires
    gradients; ``logits`` may depend on it.
    """
    p = logits.softmax(-1) if logits.requires_grad else logits.softmax(-1).requires_grad_()
    seen = xt.view_as(xt) if xt.requires_grad else xt.detach().requires_grad_()
    with torch.enable_grad():
        denoised = Denoised(p @ embedding.to(p), (p + SMALLEST).log())
    return GuidanceState(seen, t, mask, lambda: denoised, p)
