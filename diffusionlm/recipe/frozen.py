"""Models that an objective reads but does not train: teachers, and the denoiser whose predictions a classifier reads."""

from __future__ import annotations

import copy
from typing import Any, Generic, Self, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class Frozen(Generic[M]):
    """Holds a module outside the module that uses it: not among its weights, without gradients, never copied.

    ``copied`` is True for a teacher that started as the model: checkpoints then hold its weights, which may have moved.
    """

    def __init__(self, module: M, copied: bool = False) -> None:
        """Hold ``module`` in evaluation mode."""
        self.module, self.copied = module.requires_grad_(False).train(False), copied

    @classmethod
    def copy_of(cls, module: M) -> Self:
        """Hold a copy, for a teacher that starts as the model itself."""
        return cls(copy.deepcopy(module), copied=True)

    def on(self, device: torch.device) -> M:
        """Return the module on ``device``."""
        return nn.Module.to(self.module, device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself, so that averages of an objective's weights share it."""
        return self
