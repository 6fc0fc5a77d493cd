"""Conditions: what samples are conditioned on beside their own noise.

Their tensors come from the corpus's rows (``Objective.collate``, ``Batch.condition``) in training and from the caller
(``pipe(count, condition=value)``) in sampling; the model concatenates the features to the network's inputs at each position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from diffusionlm.config import Component


class Condition(Component, family="condition"):
    """Base of the conditions, such as a class label."""

    @property
    def size(self) -> int:
        """The number C of coordinates of the features."""
        raise NotImplementedError

    def build(self) -> nn.Module:
        """Return the module that maps the tensors of ``collate``, its keyword arguments, to features (B, C) or (B, L, C)."""
        raise NotImplementedError

    def values(self, row: Mapping[str, Any]) -> Any:
        """Return the value of a corpus row."""
        raise NotImplementedError

    def collate(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """Return the tensors of B values. Raises UserError for an impossible value."""
        raise NotImplementedError
