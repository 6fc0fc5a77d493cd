"""Algebra of energies -log p(c | state): and, or, not, weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusionlm.core.guidance import Energy


def total(energies: Sequence[Energy]) -> Energy:
    """Return the energy of all conditions, as if they were independent: the sum."""
    return lambda state: torch.stack([energy(state) for energy in energies]).sum(0)


def any_of(energies: Sequence[Energy]) -> Energy:
    """Return the energy of at least one condition, as if they were independent: p = 1 - prod(1 - p_i)."""
    return lambda state: negated(torch.stack([negated(energy(state)) for energy in energies]).sum(0))


def none_of(energy: Energy) -> Energy:
    """Return the energy of the negated condition: p = 1 - p_i."""
    return lambda state: negated(energy(state))


def scaled(energy: Energy, weight: float) -> Energy:
    """Return the energy times ``weight``."""
    return lambda state: weight * energy(state)


def negated(nats: Tensor) -> Tensor:
    """Return -log(1 - exp(-nats)), with finite values and gradients where the probability is 0 or 1."""
    return -torch.log(-torch.expm1(-nats.clamp(min=1e-6)))
