"""Combinations of controls: ``&``, ``|``, ``~`` and ``2 *``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.constraints.inference import log_probability
from diffusionlm.controls.binding import Binding
from diffusionlm.controls.control import CompiledControl, Control, RewardFunction, Scores
from diffusionlm.core.guidance import Energy, GuidanceState
from diffusionlm.recipe.energies import any_of, none_of, scaled


class Combination(Control):
    """Base of the combinations, of several ``controls`` or of one ``control``."""

    def checkable(self, binding: Binding) -> bool:
        """Return whether all parts are checkable."""
        return all(control.checkable(binding) for control in vars(self).get("controls") or [vars(self)["control"]])


@dataclass(frozen=True)
class All(Combination, name="all"):
    """Every one of ``controls``."""

    controls: tuple[Control, ...]

    def compile(self, binding: Binding) -> CompiledControl:
        """Return the parts of all."""
        compiled = [control.compile(binding) for control in self.controls]
        return reduce(lambda one, other: one & other, compiled, CompiledControl())

    def score(self, texts: Sequence[str], binding: Binding) -> Scores:
        """Return the lowest score of the parts."""
        return [lowest(scores) for scores in zip(*(c.score(texts, binding) for c in self.controls), strict=True)]

    def __str__(self) -> str:
        """Return the expression."""
        return " & ".join(_bracketed(control, AnyOf) for control in self.controls)


@dataclass(frozen=True)
class AnyOf(Combination, name="any"):
    """At least one of ``controls``."""

    controls: tuple[Control, ...]

    def compile(self, binding: Binding) -> CompiledControl:
        """Return the union of the automata; if a part has an energy, one energy of all parts."""
        compiled_parts = [_acting(control.compile(binding), control, str(self)) for control in self.controls]
        if any(compiled.rewards for compiled in compiled_parts):
            rewards = [_reward(compiled, str(self)) for compiled in compiled_parts]
            return CompiledControl(rewards=(lambda texts: torch.stack([reward(texts) for reward in rewards]).amax(0),))
        if any(compiled.energies for compiled in compiled_parts):
            return CompiledControl(energies=(any_of([_as_energy(compiled) for compiled in compiled_parts]),))
        automata = [compiled.automaton for compiled in compiled_parts if compiled.automaton is not None]
        return CompiledControl(automata=(reduce(lambda one, other: one | other, automata),))

    def score(self, texts: Sequence[str], binding: Binding) -> Scores:
        """Return the highest score of the parts."""
        return [_highest(scores) for scores in zip(*(c.score(texts, binding) for c in self.controls), strict=True)]

    def __str__(self) -> str:
        """Return the expression."""
        return " | ".join(str(control) for control in self.controls)


@dataclass(frozen=True)
class Not(Combination, name="not"):
    """The negation of ``control``: a text passes unless it passes ``control``, however close it comes to that."""

    control: Control

    def compile(self, binding: Binding) -> CompiledControl:
        """Return the complement of the automaton, or -log(1 - p) of the energies."""
        compiled = _acting(self.control.compile(binding), self.control, str(self))
        if compiled.rewards:
            return CompiledControl(rewards=(partial(_weighted, _reward(compiled, str(self)), -1.0),))
        if compiled.energies:
            return CompiledControl(energies=(none_of(_as_energy(compiled)),))
        assert compiled.automaton is not None
        return CompiledControl(automata=(~compiled.automaton,))

    def score(self, texts: Sequence[str], binding: Binding) -> Scores:
        """Return 1 where the control does not pass, else 0."""
        return [None if score is None else float(score < 1) for score in self.control.score(texts, binding)]

    def __str__(self) -> str:
        """Return the expression."""
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
        """Return the parts, scaled."""
        compiled = self.control.compile(binding)
        rewards = [partial(_weighted, reward, self.weight) for reward in compiled.rewards]
        energies = tuple(scaled(energy, self.weight) for energy in compiled.energies)
        return replace(compiled, energies=energies, rewards=tuple(rewards))

    def score(self, texts: Sequence[str], binding: Binding) -> Scores:
        """Return the control's own score."""
        return self.control.score(texts, binding)

    def __str__(self) -> str:
        """Return the expression."""
        weight = f"{self.weight:.0f}" if self.weight == round(self.weight, 0) else repr(self.weight)
        return f"{weight} * {_bracketed(self.control, All, AnyOf, Weighted)}"


def lowest(scores: Scores) -> float | None:
    """Return the score of a conjunction: the lowest; None where an unchecked part could still fail it."""
    return _extreme(scores, min, lambda score: score < 1)


def _highest(scores: Scores) -> float | None:
    return _extreme(scores, max, lambda score: score >= 1)


def _extreme(scores: Scores, choose: Callable[[list[float]], float], decides: Callable[[float], bool]) -> float | None:
    known = [score for score in scores if score is not None]
    return choose(known) if len(known) == len(scores) or any(map(decides, known)) else None


def _weighted(reward: RewardFunction, weight: float, texts: Sequence[str]) -> Tensor:
    return weight * reward(texts)


def _bracketed(control: Control, *kinds: type[Control]) -> str:
    return f"({control})" if isinstance(control, kinds) else str(control)


def _acting(compiled: CompiledControl, control: Control, where: str) -> CompiledControl:
    """Return ``compiled``. Raises UserError where it has no part that acts during sampling."""
    if not (compiled.automata or compiled.energies or compiled.rewards):
        raise UserError(f"{where}: {control} is only checked, nothing acts on it; it cannot stand beside | or behind ~")
    return compiled


def _as_energy(compiled: CompiledControl) -> Energy:
    """Return the sum of the energies; the energy of an automaton is -log p(a draw from the token posteriors is accepted)."""
    automaton, energies = compiled.automaton, compiled.energies

    def energy(state: GuidanceState) -> Tensor:
        parts = [energy(state) for energy in energies]
        if automaton is not None:
            parts.append(-log_probability(automaton, state.logits[:, 1:], state.mask.sum(1) - 2))
        return torch.stack(parts).sum(0)

    return energy


def _reward(compiled: CompiledControl, where: str) -> RewardFunction:
    """Return the sum of the rewards. Raises UserError where there are other parts."""
    if compiled.automata or compiled.energies:
        raise UserError(f"{where}: a reward of finished texts can only be combined so with other rewards")
    return lambda texts: torch.stack([reward(texts) for reward in compiled.rewards]).sum(0)
