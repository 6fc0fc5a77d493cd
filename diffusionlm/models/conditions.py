"""Conditions: what samples are conditioned on beside their own noise.

Their tensors come from the corpus's rows (``Objective.collate``, ``Batch.condition``) in training and from the caller
(``pipe(count, condition=value)``) in sampling; the model concatenates the features to the network's inputs at each position.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from diffusionlm.config import Component, UserError, nearest, plain_name, read_setting


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
        """Return the value of a corpus row, None where it has none. The type of the result says how a value is read as text."""
        raise NotImplementedError

    def collate(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """Return the tensors of B values. Raises UserError for an impossible value."""
        raise NotImplementedError


def condition_values(condition: Condition, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the condition's value of each row. Raises UserError for a missing column or an impossible value."""
    values = []
    for number, row in enumerate(rows):
        with _one_sentence(condition, f"text {number} ({str(row.get('text'))[:60]!r})", row):
            values.append(condition.values(row))
    collated(condition, values)
    return values


def collated(condition: Condition, values: Sequence[Any]) -> dict[str, Tensor]:
    """Return the tensors of ``values``. Raises UserError for an impossible value, whatever the condition itself raises."""
    with _one_sentence(condition, ", ".join(dict.fromkeys(repr(value)[:60] for value in values[:3]))):
        return condition.collate(values)


def read_condition(model: Any, text: str) -> Any:
    """Return the value ``text`` of the command line for a model's condition: as its method ``values`` says, text or YAML."""
    condition: Any = getattr(getattr(model, "settings", None), "condition", None)
    try:
        kind = typing.get_type_hints(condition.values)["return"]
    except (AttributeError, KeyError, NameError, TypeError):  # no condition, which is refused later, or no type
        kind = Any
    return read_setting("--condition", text, kind)


@contextmanager
def _one_sentence(condition: Condition, what: str, row: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Turn what a condition's method raises into a UserError: it is third-party code, for values that nobody checked."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, KeyError) and row is not None and error.args[0] not in row:
            raise UserError(f"model.condition: the corpus has no column {error}{nearest(str(error.args[0]), row)}") from None
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise UserError(f"model.condition: {plain_name(type(condition))} cannot use {what}: {reason}") from error
