"""Controls at work: what a demand does to a sampling run's lengths, beliefs and words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.constraints.dfa import DFA
from diffusionlm.constraints.inference import allowed_substitutes, condition, log_probability, viterbi
from diffusionlm.constraints.spelling import proper_texts
from diffusionlm.controls import All, Binding, CompiledControl, Control
from diffusionlm.core.guidance import Energy, Guidance, GuidanceState
from diffusionlm.core.sampler import SMALLEST, Denoised
from diffusionlm.pipelines.gradient import word_slopes
from diffusionlm.pipelines.lengths import given_words, length_prior
from diffusionlm.pipelines.particles import Particles
from diffusionlm.recipe.energies import total

CARRIERS = 6  # the most words of a draft that are kept
CLEAR = 0.5  # nats: what is asked is as good as said
SETTLED = 1e-3  # nats: all proper texts are as good as sure to be what is asked
HELD = 0.5  # how sure energies are told to be of a finished word: of a certain one they hardly say what another would change


@dataclass(frozen=True)
class Steering:
    """The ``controls`` of a run, bound to a model."""

    controls: tuple[Control, ...]
    binding: Binding
    compiled: CompiledControl
    guidance: Guidance
    particles: Particles

    @classmethod
    def of(
        cls, controls: Sequence[Control], binding: Binding, guidance: Guidance, particles: Particles, length: int | None = None
    ) -> Steering:
        """Bind ``controls``; ``length`` (tokens) is that of the texts where it is given.

        Raises:
            UserError: the model cannot be asked this, or no text can be all of it, with the reason.
        """
        compiled, settings = All(tuple(controls)).compile(binding), binding.model.settings
        if compiled.automata:
            if not (settings.explicit_length and settings.prediction == "logits"):
                raise UserError("control: what holds by construction needs a model that predicts logits and is told the length")
            compiled &= CompiledControl(automata=(proper_texts(binding.tokenizer),))
        if compiled.energies and guidance.strength:
            guidance.check(settings.prediction)
        steering = cls(tuple(controls), binding, compiled, guidance, particles)
        if steering.automaton is not None:
            possible = steering.automaton.lengths(binding.model.config.max_tokens - 2)
            if not possible or (length is not None and length not in possible):
                raise UserError(why_impossible(controls, binding, length))
        return steering

    @cached_property
    def automaton(self) -> DFA | None:
        """What every text must be in."""
        return self.compiled.automaton

    @cached_property
    def energy(self) -> Energy | None:
        """What gradients follow; nothing at strength 0."""
        return total(self.compiled.energies) if self.compiled.energies and self.guidance.strength else None

    def followed(self, mask: Tensor, free: Tensor) -> Energy | None:
        """Return what is followed through the denoiser of texts of ``mask`` (B, L), if anything.

        Nothing that holds by construction where any words do that ``free`` logits (B, L, V) leave possible: those that go
        between given ones at fixed places, say.
        """
        language, lengths = self.automaton, mask.sum(1) - 2
        if language is None:
            return self.guidance.through_denoiser(self.energy, None)
        asked, proper = (
            log_probability(each, free[:, 1:], lengths) for each in (language, proper_texts(self.binding.tokenizer))
        )
        settled = proper - asked < SETTLED

        def constraint(belief: GuidanceState) -> Tensor:
            return -log_probability(language, belief.logits[:, 1:], lengths).masked_fill(settled, 0)

        return self.guidance.through_denoiser(self.energy, None if bool(settled.all()) else constraint)

    @property
    def tilts(self) -> bool:
        """Whether beliefs are changed; if not, texts are those that are written without controls, to the bit."""
        return self.automaton is not None or self.energy is not None

    @property
    def copies(self) -> int:
        """How many particles each text has."""
        return self.particles.count if self.compiled.rewards else 1

    def rewards(self, texts: Sequence[str]) -> Tensor:
        """Return the sum of all rewards (B,)."""
        return torch.stack([reward(texts) for reward in self.compiled.rewards]).double().sum(0)

    @cached_property
    def length_prior(self) -> list[float]:
        """How likely each length is (start and end counted), to the training texts and as far as it can be what is asked."""
        return length_prior(self.binding.model, self.automaton, self.energy, self.compiled.length_probabilities)

    def given_words(self, mask: Tensor) -> Tensor:
        """Return ids (B, L) of the words that leave no choice in texts of ``mask`` (B, L), -1 elsewhere."""
        return given_words(self.automaton, mask)

    def believe(self, denoised: Denoised, mask: Tensor, embedding: Tensor, belief: GuidanceState | None = None) -> Denoised:
        """Condition what is denoised on the language, tilted by the energy first where there is a ``belief`` made of it.

        Logits at START and END must be certain.
        """
        logits = denoised.logits
        if self.energy is not None and belief is not None:
            logits = self.guidance.tilt(self.energy, logits, belief, embedding)
        if self.automaton is not None:
            inside = condition(self.automaton, logits[:, 1:], mask.sum(1) - 2)
            logits = torch.cat([logits[:, :1], inside], 1)
        return replace(denoised, logits=logits)

    def prefer(self, logits: Tensor, words: Tensor, x0: Tensor, t: Tensor, mask: Tensor, embedding: Tensor) -> Tensor:
        """Add what is asked to the ``logits`` of each word, all other ``words`` (B, L) given: how much another would help.

        To first order around what is half the text and half its doubts, after Grathwohl et al. 2021 (Gibbs with gradients).
        """
        if self.energy is not None:
            doubted = mix_with_tokens(logits, words, HELD)
            belief = GuidanceState.from_logits(doubted, x0, t, mask, embedding)
            tilted = self.guidance.tilt(self.energy, doubted, belief, embedding)
            logits = logits + tilted - doubted
        if self.automaton is not None:
            possible = allowed_substitutes(self.automaton, words[:, 1:], mask.sum(1) - 2)
            logits = torch.cat([logits[:, :1], logits[:, 1:].masked_fill(~possible, -math.inf)], 1)
        return logits

    def salient_tokens(self, words: Tensor, open_logits: Tensor, free: Tensor, mask: Tensor, embedding: Tensor) -> Tensor:
        """Tell (B, L) which few ``free`` words of a draft (B, L) carry what is asked.

        Those whose gradients are largest, as many as make it clear where of all others no more is known than their
        ``open_logits`` (B, L, V) say.
        """
        assert self.energy is not None
        energy, clean = self.energy, torch.zeros(len(words), device=words.device)

        def belief(share: Tensor | float) -> GuidanceState:
            logits = mix_with_tokens(open_logits, words, share)
            return GuidanceState.from_logits(logits, logits.exp() @ embedding.to(logits), clean, mask, embedding)

        slopes = word_slopes(energy, belief(HELD), embedding).gather(-1, words[..., None])[..., 0]
        order = slopes.masked_fill(~free, -math.inf).argsort(-1, descending=True)[:, :CARRIERS]
        kept, tried, nats = torch.zeros_like(free), [], []
        for place in order.unbind(1):
            kept = kept.scatter(1, place[:, None], True) & free
            tried.append(kept)
            nats.append(energy(belief(kept[..., None])).detach())
            if bool((torch.stack(nats).amin(0) < CLEAR).all()):
                break
        left = torch.stack(nats, 1)
        enough = torch.where((left < CLEAR).any(1), (left < CLEAR).int().argmax(1), left.argmin(1))
        return torch.stack(tried, 1)[torch.arange(len(words), device=words.device), enough]

    def words(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the likeliest words (B, L) that are in the language."""
        words = logits.argmax(-1)
        if self.automaton is not None:
            words[:, 1:] = viterbi(self.automaton, logits[:, 1:], mask.sum(1) - 2)
        return words

    def allowed(self, words: Tensor, mask: Tensor) -> Tensor:
        """Tell (B,) which rows of ``words`` (B, L) are in the language."""
        language = self.automaton
        if language is None:
            return torch.ones(len(words), dtype=torch.bool, device=words.device)
        lengths = mask.sum(1).tolist()
        inside = [language.contains(row[1 : n - 1]) for row, n in zip(words.tolist(), lengths, strict=True)]
        return torch.tensor(inside, device=words.device)


def mix_with_tokens(logits: Tensor, words: Tensor, share: Tensor | float) -> Tensor:
    """Return the log of the chances (B, L, V) of ``logits`` with a ``share`` given to ``words`` (B, L): 1 is certainty."""
    held = torch.nn.functional.one_hot(words, logits.shape[-1]).to(logits)
    return torch.lerp(logits.softmax(-1), held, torch.as_tensor(share).to(logits)).clamp(min=SMALLEST).log()


def why_impossible(controls: Sequence[Control], binding: Binding, length: int | None) -> str:
    """Return why no text is all that is asked: the control, or the two, that make it so, where there are such."""
    longest = binding.model.config.max_tokens - 2
    asked = [(str(control), control.compile(binding).automaton) for control in controls]
    known = [(name, language, language.lengths(longest)) for name, language in asked if language is not None]
    for name, _, lengths in known:
        if not lengths:
            return f"control: no text of up to {longest} tokens, which is what this model writes, is {name}"
        if length is not None and length not in lengths:
            return f"control: {name} needs {_told(lengths)}, and length is {length}"
    for (one, a, lengths_a), (other, b, lengths_b) in itertools.combinations(known, 2):
        if not set(lengths_a) & set(lengths_b):
            return f"control: {one} needs {_told(lengths_a)}, and {other} {_told(lengths_b)}"
        if not (a & b).lengths(longest):
            return f"control: no text of up to {longest} tokens is both {one} and {other}"
    size = f"{length}" if length is not None else f"up to {longest}"
    return f"control: no text of {size} tokens is all of {', '.join(name for name, _, _ in known)}"


def _told(lengths: Sequence[int]) -> str:
    if lengths[-1] - lengths[0] == len(lengths) - 1 > 0:
        return f"{lengths[0]} to {lengths[-1]} tokens"
    named = [str(n) for n in lengths[:4]] + ["more"] * (len(lengths) > 4)
    return f"{', '.join(named[:-1])}{' or ' * (len(named) > 1)}{named[-1]} tokens"
