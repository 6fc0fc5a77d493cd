"""Compute over a large vocabulary a few positions at a time, so that no tensor of all token logits is kept.

A function of the positions' features, such as the cross-entropy of their logits, is evaluated chunk by chunk; where there is a
gradient, the backward pass computes each chunk again (Chen et al. 2016, *Training Deep Nets with Sublinear Memory Cost*).
Shapes: N positions, V words.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

MOST = 2**25  # logits of a batch that are computed at once: 128 MiB in fp32, of which training keeps about ten
CHUNK = 2**23  # logits of a chunk


def is_large(positions: int, vocabulary: int) -> bool:
    """Return whether the logits of so many ``positions`` over a ``vocabulary`` are computed in chunks."""
    return positions * vocabulary > MOST


def in_chunks(function: Callable[..., Tensor], vocabulary: int, *tensors: Tensor) -> Tensor:
    """Return ``function`` of ``tensors``, whose first dimension are N positions, as one call would.

    A chunk has as many positions as have ``CHUNK`` logits; what the function computes on the way is not kept.
    """
    size = max(1, CHUNK // vocabulary)
    parts = zip(*(tensor.split(size) for tensor in tensors), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([function(*part) for part in parts])
    return torch.cat([checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log p (N,) of the ``targets`` (N,) under the ``logits`` (N, V), in nats."""
    return F.cross_entropy(logits, targets, reduction="none")
