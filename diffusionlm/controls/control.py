"""Controls: constraints and objectives for generated text, which act during sampling and are checked afterwards.

A control is a component whose fields are the constraint. Compiled for a model it becomes a ``CompiledControl`` of up to three
kinds of parts: *automata*, regular languages that every sample is in by construction; *energies*, whose gradients guide the
sampling; *rewards*, scores of partial samples, followed by particles. ``&``, ``|``, ``~`` and ``2 *`` combine controls.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial, reduce
from operator import and_, or_
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusionlm.config import Component, UserError
from diffusionlm.constraints.dfa import DFA
from diffusionlm.constraints.inference import log_probability
from diffusionlm.controls.binding import Binding
from diffusionlm.core.guidance import Energy
from diffusionlm.data.annotators import CorpusRow, Reader
from diffusionlm.data.batches import check_list
from diffusionlm.recipe.energies import any_of, none_of, scaled, total

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
        return CompiledControl(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def automaton(self) -> DFA | None:
        """The intersection of all automata."""
        return reduce(and_, self.automata) if self.automata else None


class Control(Component, family="control"):
    """Base of the controls; ``needs`` is what the annotator must read for a check: "tags", "tree", "attributes"."""

    needs: ClassVar[frozenset[str]] = frozenset()
    check: ClassVar[str] = ""  # name of the check among the metrics; without one "KIND, passed"

    def compile(self, binding: Binding) -> CompiledControl:
        """Return the parts that act during sampling. Raises UserError where the model cannot follow this control."""
        raise NotImplementedError

    def score(self, texts: Sequence[str], binding: Binding) -> Scores:
        """Return how far each finished text satisfies the control, from 0 to 1; 1 passes, None cannot be checked."""
        raise NotImplementedError

    def checkable(self, binding: Binding) -> bool:
        """Return whether finished texts can be checked with the annotator of ``binding``."""
        return self.needs <= binding.annotator.reads

    def metrics(self, texts: Sequence[str], scores: Scores, binding: Binding) -> dict[str, Scores]:
        """Return the metrics of an evaluation, by name: shares from 0 to 1, which tables show in percent.

        ``scores`` are the control's own scores of ``texts``.
        """
        kind, passed = type(self).name or type(self).__name__, passes(scores)
        check: dict[str, Scores] = {self.check or f"{kind}, passed": passed}
        return check if passed == list(scores) else {f"{kind}, score": scores, **check}

    @classmethod
    def target_from(cls, row: CorpusRow, draw: random.Random, reader: Reader) -> Control | None:
        """Return a control that the text of a corpus's ``row`` satisfies, for an evaluation; None where it gives none.

        ``draw`` decides between several; ``reader`` gives the row's labels.
        """
        return None

    def __and__(self, other: Control) -> Control:
        return All((*_parts(self, All), *_parts(other, All)))

    def __or__(self, other: Control) -> Control:
        return AnyOf((*_parts(self, AnyOf), *_parts(other, AnyOf)))

    def __invert__(self) -> Control:
        return self.control if isinstance(self, Not) else Not(self)

    def __mul__(self, weight: float) -> Control:
        return Weighted(self, float(weight))

    __rmul__ = __mul__

    def __str__(self) -> str:
        given = [f for f in fields(self) if getattr(self, f.name) != f.default]  # type: ignore[arg-type]
        positional = [f.name for f in fields(self)[: len(given)]] == [f.name for f in given]  # type: ignore[arg-type]
        words = [("" if positional else f"{f.name}=") + literal(getattr(self, f.name)) for f in given]
        kind = type(self)
        called = kind.__name__ if kind.name else f"{kind.__module__}:{kind.__name__}"
        return f"{called}({', '.join(words)})"


class Combination(Control):
    """Base of the combinations, of several ``controls`` or of one ``control``."""

    def checkable(self, binding: Binding) -> bool:
        return all(control.checkable(binding) for control in vars(self).get("controls") or [vars(self)["control"]])

    def _acting(self, control: Control, binding: Binding) -> CompiledControl:
        """Return ``control`` compiled. Raises UserError where it has no part that acts during sampling."""
        compiled = control.compile(binding)
        if not (compiled.automata or compiled.energies or compiled.rewards):
            raise UserError(f"{self}: {control} is only checked, nothing acts on it; it cannot stand beside | or behind ~")
        return compiled

    def _reward(self, compiled: CompiledControl) -> RewardFunction:
        """Return the sum of the rewards. Raises UserError where there are other parts."""
        if compiled.automata or compiled.energies:
            raise UserError(f"{self}: a reward of finished texts can only be combined so with other rewards")
        return lambda texts: torch.stack([reward(texts) for reward in compiled.rewards]).sum(0)


@dataclass(frozen=True)
class All(Combination, name="all"):
    """Every one of ``controls``."""

    controls: tuple[Control, ...]

    def compile(self, binding: Binding) -> CompiledControl:
        return reduce(and_, (control.compile(binding) for control in self.controls), CompiledControl())

    def score(self, texts: Sequence[str], binding: Binding) -> Scores:
        return [lowest(scores) for scores in zip(*(c.score(texts, binding) for c in self.controls), strict=True)]

    def __str__(self) -> str:
        return " & ".join(_bracketed(control, AnyOf) for control in self.controls)


@dataclass(frozen=True)
class AnyOf(Combination, name="any"):
    """At least one of ``controls``."""

    controls: tuple[Control, ...]

    def compile(self, binding: Binding) -> CompiledControl:
        """Return the union of the automata; if a part has an energy, one energy of all parts."""
        parts = [self._acting(control, binding) for control in self.controls]
        if any(compiled.rewards for compiled in parts):
            rewards = [self._reward(compiled) for compiled in parts]
            return CompiledControl(rewards=(lambda texts: torch.stack([reward(texts) for reward in rewards]).amax(0),))
        if any(compiled.energies for compiled in parts):
            return CompiledControl(energies=(any_of([_as_energy(compiled) for compiled in parts]),))
        automata = [compiled.automaton for compiled in parts if compiled.automaton is not None]
        return CompiledControl(automata=(reduce(or_, automata),))

    def score(self, texts: Sequence[str], binding: Binding) -> Scores:
        parts = zip(*(control.score(texts, binding) for control in self.controls), strict=True)
        return [_extreme(scores, max, lambda score: score >= 1) for scores in parts]

    def __str__(self) -> str:
        return " | ".join(str(control) for control in self.controls)


@dataclass(frozen=True)
class Not(Combination, name="not"):
    """The negation of ``control``: a text passes unless it passes ``control``, however close it comes to that."""

    control: Control

    def compile(self, binding: Binding) -> CompiledControl:
        """Return the complement of the automaton, or -log(1 - p) of the energies."""
        compiled = self._acting(self.control, binding)
        if compiled.rewards:
            return CompiledControl(rewards=(partial(_weighted, self._reward(compiled), -1.0),))
        if compiled.energies:
            return CompiledControl(energies=(none_of(_as_energy(compiled)),))
        assert compiled.automaton is not None
        return CompiledControl(automata=(~compiled.automaton,))

    def score(self, texts: Sequence[str], binding: Binding) -> Scores:
        return [None if score is None else float(score < 1) for score in self.control.score(texts, binding)]

    def __str__(self) -> str:
        return "~" + _bracketed(self.control, All, AnyOf, Weighted)


@dataclass(frozen=True)
class Weighted(Combination, name="weighted"):
    """``control`` with ``weight`` times its energies and rewards; its automata stay as they are."""

    control: Control
    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise UserError(f"{self}: expected a weight of 0 or more; for the opposite write ~ before the control")

    def compile(self, binding: Binding) -> CompiledControl:
        compiled = self.control.compile(binding)
        rewards = tuple(partial(_weighted, reward, self.weight) for reward in compiled.rewards)
        energies = tuple(scaled(energy, self.weight) for energy in compiled.energies)
        return replace(compiled, energies=energies, rewards=rewards)

    def score(self, texts: Sequence[str], binding: Binding) -> Scores:
        return self.control.score(texts, binding)

    def __str__(self) -> str:
        weight = f"{self.weight:.0f}" if self.weight == round(self.weight, 0) else repr(self.weight)
        return f"{weight} * {_bracketed(self.control, All, AnyOf, Weighted)}"


def _parts(control: Control, kind: Any) -> tuple[Control, ...]:
    return control.controls if isinstance(control, kind) else (control,)


def lowest(scores: Scores) -> float | None:
    """Return the score of a conjunction: the lowest; None where an unchecked part could still fail it."""
    return _extreme(scores, min, lambda score: score < 1)


def _extreme(scores: Scores, choose: Callable[[list[float]], float], decides: Callable[[float], bool]) -> float | None:
    known = [score for score in scores if score is not None]
    return choose(known) if len(known) == len(scores) or any(map(decides, known)) else None


def _weighted(reward: RewardFunction, weight: float, texts: Sequence[str]) -> Tensor:
    return weight * reward(texts)


def _bracketed(control: Control, *kinds: type[Control]) -> str:
    return f"({control})" if isinstance(control, kinds) else str(control)


def _as_energy(compiled: CompiledControl) -> Energy:
    """Return the sum of the energies; the energy of an automaton is -log p(a draw from the token posteriors is accepted)."""
    automaton, energies = compiled.automaton, [*compiled.energies]
    if automaton is not None:
        energies.append(lambda state: -log_probability(automaton, state.logits[:, 1:], state.mask.sum(1) - 2))
    return total(energies)


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
    check_list(texts)
    columns = [
        [Outcome(str(control), None if score is None else score >= 1, score) for score in _scores(control, texts, binding)]
        for control in controls
    ]
    return [tuple(row) for row in zip(*columns, strict=True)] if columns else [() for _ in texts]


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
