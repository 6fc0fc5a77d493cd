"""Operations on token posteriors: temperature and known tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from diffusionlm.core.sampler import Denoised


def apply_temperature(denoised: Denoised, embedding: Tensor, temperature: float) -> Denoised:
    """Divide the logits by ``temperature``; x_0 becomes the posterior mean over ``embedding`` (V, D)."""
    logits = denoised.logits / temperature
    return replace(denoised, x0=logits.softmax(-1) @ embedding.to(logits), logits=logits)


def pin_logits(logits: Tensor, known: Tensor, ids: Tensor) -> Tensor:
    """Return ``logits`` (B, L, V) with probability 1 for ``ids`` (B, L) at the positions ``known`` (B, L)."""
    certain = torch.full_like(logits, -math.inf).scatter(-1, ids[..., None], 0.0)
    return torch.where(known[..., None], certain, logits)
