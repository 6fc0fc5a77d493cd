"""What a control is: something asked of a text, that acts while it is written and is checked when it is finished.

A control is a component whose fields say what is asked. Bound to a model it becomes a demand, made of up to three kinds of
parts: *languages*, sets of texts that hold by construction; *energies*, whose gradients steer; *rewards*, scores of finished
drafts, for particles. ``&``, ``|``, ``~`` and ``2 *`` combine controls.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial, reduce

import torch
from torch import Tensor

from diffusionlm.config import Component, UserError
from diffusionlm.constraints.dfa import DFA
from diffusionlm.constraints.inference import log_probability
from diffusionlm.controls.binding import Binding
from diffusionlm.core.guidance import Energy, GuidanceState
from diffusionlm.recipe.energies import any_of, none_of, scaled

RewardFunction = Callable[[Sequence[str]], Tensor]  # texts to log-probabilities or scores (B,), higher is better


@dataclass(frozen=True)
class CompiledControl:
    """What a control makes sampling do: texts in every automaton, of low energy and high reward.

    ``length_probabilities``, where they are known, are the probabilities of the control at each length (BOS and EOS counted).
    """

    automata: tuple[DFA, ...] = ()
    energies: tuple[Energy, ...] = ()
    rewards: tuple[RewardFunction, ...] = ()
    length_probabilities: tuple[Sequence[float], ...] = ()

    def __and__(self, other: CompiledControl) -> CompiledControl:
        """Both."""
        return CompiledControl(
            self.automata + other.automata,
            self.energies + other.energies,
            self.rewards + other.rewards,
            self.length_probabilities + other.length_probabilities,
        )

    @property
    def automaton(self) -> DFA | None:
        """The one language of all."""
        return reduce(lambda one, other: one & other, self.automata) if self.automata else None


class Control(Component, family="control"):
    """Base of the controls."""

    def compile(self, binding: Binding) -> CompiledControl:
        """Return what sampling must do.

        Raises:
            UserError: the model cannot be asked this, with the reason.
        """
        raise NotImplementedError

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        """Return how far each finished text is what was asked, exactly where that can be: 0 to 1, and 1 passes."""
        raise NotImplementedError

    def __and__(self, other: Control) -> Control:
        """Both."""
        return All((*_parts(self, All), *_parts(other, All)))

    def __or__(self, other: Control) -> Control:
        """At least one."""
        return AnyOf((*_parts(self, AnyOf), *_parts(other, AnyOf)))

    def __invert__(self) -> Control:
        """Not this."""
        return self.control if isinstance(self, Not) else Not(self)

    def __mul__(self, weight: float) -> Control:
        """The same, ``weight`` times as strong."""
        return Weighted(self, float(weight))

    __rmul__ = __mul__

    def __str__(self) -> str:
        """Return the expression that makes this control."""
        given = [f for f in fields(self) if getattr(self, f.name) != f.default]  # type: ignore[arg-type]
        positional = [f.name for f in fields(self)[: len(given)]] == [f.name for f in given]  # type: ignore[arg-type]
        words = [("" if positional else f"{f.name}=") + written(getattr(self, f.name)) for f in given]
        kind = type(self)
        called = kind.__name__ if kind.name else f"{kind.__module__}:{kind.__name__}"
        return f"{called}({', '.join(words)})"


def written(value: object) -> str:
    """Return a plain value (or a control) as an expression has it, strings in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    return str(value)


def _parts(control: Control, kind: type[All] | type[AnyOf]) -> tuple[Control, ...]:
    return control.controls if isinstance(control, kind) else (control,)


@dataclass(frozen=True)
class All(Control, name="all"):
    """Every one of ``controls``."""

    controls: tuple[Control, ...]

    def compile(self, binding: Binding) -> CompiledControl:
        """Join the demands."""
        return reduce(
            lambda one, other: one & other, [control.compile(binding) for control in self.controls], CompiledControl()
        )

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        """Return the lowest score of the parts."""
        return [min(scores) for scores in zip(*(c.score(texts, binding) for c in self.controls), strict=True)]

    def __str__(self) -> str:
        """Return the expression."""
        return " & ".join(_bracketed(control, AnyOf) for control in self.controls)


@dataclass(frozen=True)
class AnyOf(Control, name="any"):
    """At least one of ``controls``."""

    controls: tuple[Control, ...]

    def compile(self, binding: Binding) -> CompiledControl:
        """Unite the languages; where a part is no language, all become energies."""
        compiled_parts = [_acting(control.compile(binding), control, str(self)) for control in self.controls]
        if any(compiled.rewards for compiled in compiled_parts):
            rewards = [_reward(compiled, str(self)) for compiled in compiled_parts]
            return CompiledControl(rewards=(lambda texts: torch.stack([reward(texts) for reward in rewards]).amax(0),))
        if any(compiled.energies for compiled in compiled_parts):
            return CompiledControl(energies=(any_of([_as_energy(compiled) for compiled in compiled_parts]),))
        automata = [compiled.automaton for compiled in compiled_parts if compiled.automaton is not None]
        return CompiledControl(automata=(reduce(lambda one, other: one | other, automata),))

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        """Return the highest score of the parts."""
        return [max(scores) for scores in zip(*(c.score(texts, binding) for c in self.controls), strict=True)]

    def __str__(self) -> str:
        """Return the expression."""
        return " | ".join(str(control) for control in self.controls)


@dataclass(frozen=True)
class Not(Control, name="not"):
    """The opposite of ``control``; it passes where ``control`` does not, however near that came."""

    control: Control

    def compile(self, binding: Binding) -> CompiledControl:
        """Take the complement of a language, and 1 - p of an energy."""
        compiled = _acting(self.control.compile(binding), self.control, str(self))
        if compiled.rewards:
            return CompiledControl(rewards=(partial(_weighted, _reward(compiled, str(self)), -1.0),))
        if compiled.energies:
            return CompiledControl(energies=(none_of(_as_energy(compiled)),))
        assert compiled.automaton is not None
        return CompiledControl(automata=(~compiled.automaton,))

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        """Return 1 where the control is missed, else 0."""
        return [float(score < 1) for score in self.control.score(texts, binding)]

    def __str__(self) -> str:
        """Return the expression."""
        return "~" + _bracketed(self.control, All, AnyOf, Weighted)


@dataclass(frozen=True)
class Weighted(Control, name="weighted"):
    """``control``, ``weight`` times as strong; what holds by construction stays as it is."""

    control: Control
    weight: float

    def __post_init__(self) -> None:
        """Check the weight."""
        if not 0 <= self.weight < math.inf:
            raise UserError(f"{self}: expected a weight of 0 or more; for the opposite write ~ before the control")

    def compile(self, binding: Binding) -> CompiledControl:
        """Scale energies and rewards."""
        compiled = self.control.compile(binding)
        rewards = [partial(_weighted, reward, self.weight) for reward in compiled.rewards]
        energies = tuple(scaled(energy, self.weight) for energy in compiled.energies)
        return replace(compiled, energies=energies, rewards=tuple(rewards))

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        """Return the control's own score."""
        return self.control.score(texts, binding)

    def __str__(self) -> str:
        """Return the expression."""
        weight = f"{self.weight:.0f}" if self.weight == round(self.weight, 0) else repr(self.weight)
        return f"{weight} * {_bracketed(self.control, All, AnyOf, Weighted)}"


def _weighted(reward: RewardFunction, weight: float, texts: Sequence[str]) -> Tensor:
    return weight * reward(texts)


def _bracketed(control: Control, *kinds: type[Control]) -> str:
    return f"({control})" if isinstance(control, kinds) else str(control)


def _acting(compiled: CompiledControl, control: Control, where: str) -> CompiledControl:
    """Return a demand that something acts on. Raises UserError for a control that is only checked."""
    if not (compiled.automata or compiled.energies or compiled.rewards):
        raise UserError(f"{where}: {control} is only checked, nothing acts on it; it cannot stand beside | or behind ~")
    return compiled


def _as_energy(compiled: CompiledControl) -> Energy:
    """Turn a demand into one energy: of a language, -log of the chance that a draw of the posterior is in it."""
    language, energies = compiled.automaton, compiled.energies

    def energy(belief: GuidanceState) -> Tensor:
        parts = [energy(belief) for energy in energies]
        if language is not None:
            parts.append(-log_probability(language, belief.logits[:, 1:], belief.mask.sum(1) - 2))
        return torch.stack(parts).sum(0)

    return energy


def _reward(compiled: CompiledControl, where: str) -> RewardFunction:
    """Return the sum of a demand's rewards. Raises UserError where it has other parts."""
    if compiled.automata or compiled.energies:
        raise UserError(f"{where}: a reward of finished texts can only be combined so with other rewards")
    return lambda texts: torch.stack([reward(texts) for reward in compiled.rewards]).sum(0)


@dataclass(frozen=True)
class Outcome:
    """How a text fared with a control: its expression, whether it passed, its score from 0 to 1."""

    control: str
    passed: bool
    score: float


def outcomes(controls: Sequence[Control], texts: Sequence[str], binding: Binding) -> list[tuple[Outcome, ...]]:
    """Check ``texts``; return a tuple of each text's outcomes, one for every control."""
    columns = [[Outcome(str(control), score >= 1, score) for score in _scores(control, texts, binding)] for control in controls]
    return [tuple(row) for row in zip(*columns, strict=True)] if columns else [() for _ in texts]


def _scores(control: Control, texts: Sequence[str], binding: Binding) -> list[float]:
    """Return a control's scores. Raises UserError where they are no finite number for each text."""
    found = control.score(texts, binding)
    try:
        scores = [float(score) for score in found]
    except (TypeError, ValueError):
        scores = []
    if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
        raise UserError(f"{control}: score: expected a finite number for each of {len(texts)} texts, got {found!r}")
    return scores
