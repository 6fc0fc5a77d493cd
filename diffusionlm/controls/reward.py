"""A reward: any function of finished texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffusionlm.controls.binding import Binding
from diffusionlm.controls.control import CompiledControl, Control
from diffusionlm.controls.functions import imported, scores_of


@dataclass(frozen=True)
class Reward(Control, name="reward"):
    """A callable ``texts -> scores`` (finite, higher is better), maximised by particles; it needs no gradient.

    ``function`` may be its import path ``module:name``. ``passes`` is the lowest score that passes the check.
    """

    function: Callable[[Sequence[str]], Any] | str
    passes: float = 0.5

    def __post_init__(self) -> None:
        self.expect("a finite number", "passes")

    def _scores(self, texts: Sequence[str]) -> Tensor:
        return scores_of(imported(self.function, str(self)), texts, str(self))

    def compile(self, binding: Binding) -> CompiledControl:
        imported(self.function, str(self))
        return CompiledControl(rewards=(self._scores,))

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        """Return score / ``passes``, from 0 to 1."""
        scores = self._scores(texts)
        if self.passes <= 0:
            return [float(score >= self.passes) for score in scores]
        return (scores / self.passes).clamp(0, 1).tolist()

    def __str__(self) -> str:
        name = self.function if isinstance(self.function, str) else getattr(self.function, "__name__", "a callable")
        return f'Reward("{name}")' if self.passes == 0.5 else f'Reward("{name}", {self.passes:g})'
