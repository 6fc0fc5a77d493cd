"""The best weights of a run: the EMA's at the evaluation with the lowest validation loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusionlm.training.checkpoints import BEST, damage


class BestWeights:
    """A copy of the weights of ``ema`` at its best evaluation, which is at ``step``; none before the first one."""

    def __init__(self, ema: nn.Module) -> None:
        self.ema, self.weights, self.step = ema, dict[str, Tensor](), 0

    def keep(self, step: int) -> None:
        """Copy the current weights, of ``step``."""
        self.weights, self.step = self._copy(), step

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.ema.state_dict().items()}

    def save(self, checkpoint: Path) -> None:
        """Write the copy, if there is one, into the folder of a checkpoint."""
        if self.weights:
            save_file({name: value.contiguous() for name, value in self.weights.items()}, checkpoint / BEST)

    def load(self, checkpoint: Path, step: int) -> None:
        """Read the copy, of ``step``, from a checkpoint that has one. Raises UserError where it is damaged."""
        if (checkpoint / BEST).exists():
            with damage(checkpoint / BEST):
                self.weights, self.step = load_file(checkpoint / BEST), step

    @contextmanager
    def used(self) -> Iterator[None]:
        """Give ``ema`` the best weights inside the context, if there are any."""
        if not self.weights:
            yield
            return
        current = self._copy()
        self.ema.load_state_dict(self.weights)
        try:
            yield
        finally:
            self.ema.load_state_dict(current)
