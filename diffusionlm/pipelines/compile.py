"""Compile the controls of a run, and explain why no sample can satisfy them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from diffusionlm.config import UserError
from diffusionlm.constraints.spelling import proper_texts
from diffusionlm.controls import All, Binding, CompiledControl, Control
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.steering import Steering


def compile_controls(controls: Sequence[Control], binding: Binding, sampling: SamplingConfig, tries: int = 1) -> Steering:
    """Compile ``controls`` for a model.

    Raises:
        UserError: the model cannot follow a control; no sample satisfies them all; ``tries`` with a control that cannot be
            checked.
    """
    model = binding.model
    for control in controls:
        if tries > 1 and not control.checkable(binding):
            raise UserError(
                f"control: {control} cannot be checked, so samples cannot be repeated until it passes (--ensure, tries); "
                "give an annotator (--annotator, Binding(annotator=...)) that reads it, or leave tries at 1"
            )
    compiled = All(tuple(controls)).compile(binding)
    if compiled.automata:
        if not (model.explicit_length and model.has_logits):
            raise UserError("control: exact constraints need a model with prediction 'logits' and explicit_length")
        compiled &= CompiledControl(automata=(proper_texts(binding.tokenizer),))
    if compiled.energies and sampling.guidance.strength:
        sampling.guidance.check(model.prediction)
    if (automaton := compiled.automaton) is not None:
        possible = automaton.lengths(model.config.max_tokens - 2)
        if not possible or (sampling.length is not None and sampling.length not in possible):
            raise UserError(why_impossible(controls, binding, sampling.length))
    return Steering(tuple(controls), binding, compiled, sampling.guidance, sampling.particles)


def why_impossible(controls: Sequence[Control], binding: Binding, length: int | None) -> str:
    """Return why no sample satisfies all controls: the one control, or the pair, that makes it impossible, if there is one."""
    longest = binding.model.config.max_tokens - 2
    automata = [(str(control), control.compile(binding).automaton) for control in controls]
    proper = [(name, automaton & proper_texts(binding.tokenizer)) for name, automaton in automata if automaton is not None]
    known = [(name, automaton, automaton.lengths(longest)) for name, automaton in proper]
    for name, _, lengths in known:
        if not lengths:
            return f"control: no sequence of at most {longest} tokens, this model's limit, satisfies {name}"
        if length is not None and length not in lengths:
            return f"control: {name} needs {_ranges(lengths)}, but length is {length}"
    for (one, a, lengths_a), (other, b, lengths_b) in itertools.combinations(known, 2):
        if not set(lengths_a) & set(lengths_b):
            return f"control: {one} needs {_ranges(lengths_a)}, but {other} needs {_ranges(lengths_b)}"
        if not (a & b).lengths(longest):
            return f"control: no sequence of at most {longest} tokens satisfies both {one} and {other}"
    size = f"{length}" if length is not None else f"at most {longest}"
    return f"control: no sequence of {size} tokens satisfies all of {', '.join(name for name, _, _ in known)}"


def _ranges(lengths: Sequence[int]) -> str:
    if lengths[-1] - lengths[0] == len(lengths) - 1 > 0:
        return f"{lengths[0]} to {lengths[-1]} tokens"
    named = [str(n) for n in lengths[:4]] + ["more"] * (len(lengths) > 4)
    return f"{', '.join(named[:-1])}{' or ' * (len(named) > 1)}{named[-1]} tokens"
