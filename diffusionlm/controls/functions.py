"""Functions of the user that score texts: found by import path, called, and their result checked."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusionlm.config import UserError

ScoringFunction = Callable[..., Any]  # texts -> a finite number for each, higher is better


def imported(function: ScoringFunction | str, where: str) -> ScoringFunction:
    """Return ``function``, imported if it is a path ``module:name``.

    Raises:
        UserError: it cannot be imported, or cannot be called; the message begins with ``where``.
    """
    found: Any = attribute_at(function, where) if isinstance(function, str) else function
    if not callable(found):
        raise UserError(f"{where}: {function!r} cannot be called; expected a function of texts")
    checked: ScoringFunction = found
    return checked


def attribute_at(path: str, where: str) -> Any:
    """Return what is at the import path ``module:name``. Raises UserError, which begins with ``where``, where that fails."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # of any kind: the module is the user's
        raise UserError(f"{where}: cannot import {path!r}, expected module:function: {_line(error)}") from None


def scores_of(function: ScoringFunction, texts: Sequence[str], where: str, **named: Any) -> Tensor:
    """Return the scores (N,) of N ``texts``; ``named`` are further arguments.

    Raises:
        UserError: the function fails, or returns no finite number for each text; the message begins with ``where``.
    """
    try:
        found = function(list(texts), **named)
    except UserError:
        raise
    except Exception as error:  # of any kind: the function is the user's
        reason = f"{type(error).__name__}: {_line(error)}"
        raise UserError(f"{where}: the function fails for {len(texts)} texts: {reason}") from error
    try:
        scores = torch.as_tensor(found, dtype=torch.float64)
    except Exception:  # of any kind: None, text, rows of different lengths, an integer that is too large
        scores = torch.empty(0)
    if scores.squeeze().shape not in ((len(texts),), ()) or scores.numel() != len(texts) or not scores.isfinite().all():
        shown = text if len(text := _line(found)) <= 60 else f"{text[:60]} ..."
        raise UserError(f"{where}: expected a finite score for each of {len(texts)} texts, got {shown}")
    return scores.flatten()


def _line(found: object) -> str:
    """Return ``found`` as text on one line."""
    return " ".join(str(found).split())
