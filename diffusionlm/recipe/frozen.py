"""Models that an objective reads but does not train: teachers, and the denoiser whose predictions a classifier reads."""

from __future__ import annotations

import copy
from typing import Any, Generic, Self, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class Frozen(Generic[M]):
    """Holds a module outside the module that uses it: not among its weights, without gradients, never copied."""

    def __init__(self, module: M) -> None:
        """Hold ``module`` in evaluation mode."""
        self.module = module.requires_grad_(False).train(False)

    @classmethod
    def copy_of(cls, module: M) -> Self:
        """Hold a copy, for a teacher that starts as the model itself."""
        return cls(copy.deepcopy(module))

    def on(self, device: torch.device) -> M:
        """Return the module on ``device``."""
        return nn.Module.to(self.module, device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself, so that averages of an objective's weights share it."""
        return self
