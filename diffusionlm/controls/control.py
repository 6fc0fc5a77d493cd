"""Controls: constraints and objectives for generated text, which act during sampling and are checked afterwards.

A control is a component whose fields are the constraint. Compiled for a model it becomes a ``CompiledControl`` of up to three
kinds of parts: *automata*, regular languages that every sample is in by construction; *energies*, whose gradients guide the
sampling; *rewards*, scores of partial samples, followed by particles. ``&``, ``|``, ``~`` and ``2 *`` combine controls.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any, ClassVar

from torch import Tensor

from diffusionlm.config import Component, UserError
from diffusionlm.constraints.dfa import DFA
from diffusionlm.controls.binding import Binding
from diffusionlm.core.guidance import Energy
from diffusionlm.data.annotators import Reader

RewardFunction = Callable[[Sequence[str]], Tensor]  # texts to log-probabilities or scores (B,), higher is better
Scores = Sequence[float | None]  # by text, 0 to 1, where 1 passes; None for a text that cannot be checked


@dataclass(frozen=True)
class CompiledControl:
    """The parts of a control that act during sampling: every sample is in all automata, of low energy and high reward.

    ``length_probabilities``, where they are known, are the probabilities of the control at each length (BOS and EOS counted).
    """

    automata: tuple[DFA, ...] = ()
    energies: tuple[Energy, ...] = ()
    rewards: tuple[RewardFunction, ...] = ()
    length_probabilities: tuple[Sequence[float], ...] = ()

    def __and__(self, other: CompiledControl) -> CompiledControl:
        """Return the parts of both."""
        return CompiledControl(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def automaton(self) -> DFA | None:
        """The intersection of all automata."""
        return reduce(lambda one, other: one & other, self.automata) if self.automata else None


class Control(Component, family="control"):
    """Base of the controls; ``needs`` is what the annotator must read for a check: "tags", "tree", "attributes"."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def compile(self, binding: Binding) -> CompiledControl:
        """Return the parts that act during sampling.

        Raises:
            UserError: the model cannot follow this control, with the reason.
        """
        raise NotImplementedError

    def score(self, texts: Sequence[str], binding: Binding) -> Scores:
        """Return how far each finished text satisfies the control, from 0 to 1; 1 passes, None cannot be checked."""
        raise NotImplementedError

    def checkable(self, binding: Binding) -> bool:
        """Return whether finished texts can be checked with the annotator of ``binding``."""
        return self.needs <= binding.annotator.reads

    def metrics(self, texts: Sequence[str], scores: Scores, binding: Binding) -> dict[str, Scores]:
        """Return the metrics of an evaluation, by name; ``scores`` are the control's own scores of ``texts``."""
        kind, passed = type(self).name or type(self).__name__, passes(scores)
        return {f"{kind}, passed": passed} if passed == list(scores) else {f"{kind}, score": scores, f"{kind}, passed": passed}

    @classmethod
    def target_from(cls, row: Mapping[str, Any], draw: random.Random, reader: Reader) -> Control | None:
        """Return a control that the text of a corpus's ``row`` satisfies, for an evaluation; None where it gives none.

        ``draw`` decides between several; ``reader`` gives the row's labels.
        """
        return None

    def __and__(self, other: Control) -> Control:
        """Return the conjunction."""
        from diffusionlm.controls.algebra import All

        return All((*_parts(self, All), *_parts(other, All)))

    def __or__(self, other: Control) -> Control:
        """Return the disjunction."""
        from diffusionlm.controls.algebra import AnyOf

        return AnyOf((*_parts(self, AnyOf), *_parts(other, AnyOf)))

    def __invert__(self) -> Control:
        """Return the negation."""
        from diffusionlm.controls.algebra import Not

        return self.control if isinstance(self, Not) else Not(self)

    def __mul__(self, weight: float) -> Control:
        """Return the same control with ``weight`` times its energies and rewards."""
        from diffusionlm.controls.algebra import Weighted

        return Weighted(self, float(weight))

    __rmul__ = __mul__

    def __str__(self) -> str:
        """Return the expression that makes this control."""
        given = [f for f in fields(self) if getattr(self, f.name) != f.default]  # type: ignore[arg-type]
        positional = [f.name for f in fields(self)[: len(given)]] == [f.name for f in given]  # type: ignore[arg-type]
        words = [("" if positional else f"{f.name}=") + literal(getattr(self, f.name)) for f in given]
        kind = type(self)
        called = kind.__name__ if kind.name else f"{kind.__module__}:{kind.__name__}"
        return f"{called}({', '.join(words)})"


def _parts(control: Control, kind: Any) -> tuple[Control, ...]:
    return control.controls if isinstance(control, kind) else (control,)


def literal(value: object) -> str:
    """Return a plain value (or a control) as it stands in an expression, strings in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    return str(value)


def passes(scores: Scores) -> list[float | None]:
    """Return 1 for each score that passes, 0 for the others, None for a text that cannot be checked."""
    return [None if score is None else float(score >= 1) for score in scores]


@dataclass(frozen=True)
class Outcome:
    """The check of a text: the control's expression, whether the text passed, its score from 0 to 1.

    ``passed`` and ``score`` are None where the control cannot be checked: the annotator does not read what it needs.
    """

    control: str
    passed: bool | None
    score: float | None


def outcomes(controls: Sequence[Control], texts: Sequence[str], binding: Binding) -> list[tuple[Outcome, ...]]:
    """Check ``texts``; return a tuple of each text's outcomes, one for every control."""
    columns = [[_outcome(str(control), score) for score in _scores(control, texts, binding)] for control in controls]
    return [tuple(row) for row in zip(*columns, strict=True)] if columns else [() for _ in texts]


def _outcome(control: str, score: float | None) -> Outcome:
    return Outcome(control, None if score is None else score >= 1, score)


def _scores(control: Control, texts: Sequence[str], binding: Binding) -> list[float | None]:
    """Return a control's scores. Raises UserError where they are not a finite number or None for each text."""
    found = control.score(texts, binding)
    try:
        scores = [None if score is None else float(score) for score in found]
    except (TypeError, ValueError):
        scores = []
    if len(scores) != len(texts) or not all(score is None or math.isfinite(score) for score in scores):
        raise UserError(f"{control}: score: expected a finite number for each of {len(texts)} texts, got {found!r}")
    return scores
