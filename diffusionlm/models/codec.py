"""Codecs: maps between token ids and the latents that diffusion acts on."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Codec(Protocol):
    """A map between token ids and latents; ``token_aligned`` if there is one latent per token."""

    token_aligned: bool

    def encode(self, ids: Tensor) -> Tensor:
        """Return the latents x_0 (B, L, D) of ``ids`` (B, L)."""

    def decode(self, x0: Tensor) -> Tensor:
        """Return the token logits (B, L, V) of latents (B, L, D)."""
