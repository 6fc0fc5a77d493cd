"""A reward: any function of finished texts."""

from __future__ import annotations

import importlib
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.controls.binding import Binding
from diffusionlm.controls.control import CompiledControl, Control


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
        function = self._callable()
        try:
            found = function(list(texts))
        except UserError:
            raise
        except Exception as error:  # of any kind: the function is the user's
            raise UserError(f"{self}: the function fails for {len(texts)} texts: {type(error).__name__}: {error}") from error
        try:
            scores = torch.as_tensor(found, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):  # None, text, rows of different lengths
            scores = torch.empty(0)
        if scores.squeeze().shape not in ((len(texts),), ()) or scores.numel() != len(texts) or not scores.isfinite().all():
            shown = str(found) if len(str(found)) <= 60 else f"{str(found)[:60]} ..."
            raise UserError(f"{self}: expected a finite score for each of {len(texts)} texts, got {shown}")
        return scores.flatten()

    def _callable(self) -> Callable[[Sequence[str]], Any]:
        found: Any = self.function
        if isinstance(found, str):
            module, _, name = found.partition(":")
            try:
                found = getattr(importlib.import_module(module), name)
            except (ImportError, AttributeError, ValueError) as error:
                raise UserError(f"{self}: cannot import {self.function!r}, expected module:function: {error}") from None
        if not callable(found):
            raise UserError(f"{self}: {self.function!r} cannot be called; expected a function of texts")
        return typing.cast("Callable[[Sequence[str]], Any]", found)

    def compile(self, binding: Binding) -> CompiledControl:
        self._callable()
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
