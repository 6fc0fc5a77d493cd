"""Compiled controls applied to token posteriors: exact constraints (automata) and energies.

Logits at BOS and EOS must be certain: automata read the positions between them. Shapes: logits (B, L, V), tokens (B, L),
mask (B, L), energies (B,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffusionlm.constraints.dfa import DFA
from diffusionlm.constraints.inference import (
    Lookahead,
    accepted,
    allowed_substitutes,
    condition,
    forced_tokens,
    log_probability,
    viterbi,
)
from diffusionlm.constraints.spelling import proper_texts
from diffusionlm.controls import Binding, CompiledControl, Control
from diffusionlm.core.guidance import Energy, Guidance
from diffusionlm.pipelines.joint import quantile
from diffusionlm.pipelines.particles import Particles
from diffusionlm.recipe.energies import total
from diffusionlm.recipe.posterior import SMALLEST, posterior_state

SATISFIED = 1e-3  # nats: below it, practically every proper text satisfies the constraints
FAR = 1e30  # nats: finite, so that a choice among infinite energies has probabilities
TOKEN_SHARE = 0.5  # probability moved to a finished token: at certainty, energies have hardly any gradient


@dataclass(frozen=True)
class Steering:
    """The compiled ``controls`` of a run. Without controls every method returns what it received."""

    controls: tuple[Control, ...]
    binding: Binding
    compiled: CompiledControl
    guidance: Guidance
    particles: Particles

    @cached_property
    def automaton(self) -> DFA | None:
        """The constraint automaton that accepts every sample."""
        return self.compiled.automaton

    @cached_property
    def energy(self) -> Energy | None:
        """The sum of the energies; None at strength 0."""
        return total(self.compiled.energies) if self.compiled.energies and self.guidance.strength else None

    @property
    def active(self) -> bool:
        """Whether token posteriors are changed; if not, samples are bit-identical to those without controls."""
        return self.automaton is not None or self.energy is not None

    @property
    def copies(self) -> int:
        """The number of particles per sample."""
        return self.particles.count if self.compiled.rewards else 1

    def rewards(self, texts: Sequence[str]) -> Tensor:
        """Return the sum of all rewards (B,)."""
        return torch.stack([reward(texts) for reward in self.compiled.rewards]).double().sum(0)

    def constraint(self, mask: Tensor, free: Tensor) -> Energy | None:
        """Return the energy of the constraints, -log of the probability that a draw of the posterior satisfies them.

        It is 0 for samples, and None if for all of them, where any tokens that the ``free`` logits (B, L, V) allow do: tokens
        between given ones at fixed positions, for example.
        """
        automaton, lengths = self.automaton, mask.sum(1) - 2
        assert automaton is not None
        accepted, proper = (
            log_probability(each, free[:, 1:], lengths) for each in (automaton, proper_texts(self.binding.tokenizer))
        )
        satisfied = proper - accepted < SATISFIED
        if bool(satisfied.all()):
            return None
        return lambda state: -log_probability(automaton, state.logits[:, 1:], lengths).masked_fill(satisfied, 0)

    def constrain(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Condition the token posterior on the automaton: exact marginals, by forward-backward."""
        if self.automaton is None:
            return logits
        return torch.cat([logits[:, :1], condition(self.automaton, logits[:, 1:], mask.sum(1) - 2)], 1)

    def guide(self, logits: Tensor, x0: Tensor, mask: Tensor, embedding: Tensor) -> Tensor:
        """Return the guided ``logits`` of clean vectors ``x0`` (B, L, D), conditioned on the automaton."""
        if self.energy is not None:
            state = posterior_state(logits, x0, x0.new_zeros(len(x0)), mask, embedding)
            logits = self.guidance.guide_logits(self.energy, logits, state, embedding)
        return self.constrain(logits, mask)

    def guide_substitutes(self, logits: Tensor, tokens: Tensor, x0: Tensor, mask: Tensor, embedding: Tensor) -> Tensor:
        """Return the guided ``logits`` of a substitute at each position, all other ``tokens`` (B, L) given.

        To first order around a mixture of tokens and posteriors, after Grathwohl et al. 2021 (Gibbs with gradients).
        """
        if self.energy is not None:
            mixed = mix_with_tokens(logits, tokens, TOKEN_SHARE)
            state = posterior_state(mixed, x0, x0.new_zeros(len(x0)), mask, embedding)
            logits = logits + self.guidance.guide_logits(self.energy, mixed, state, embedding) - mixed
        if self.automaton is not None:
            allowed = allowed_substitutes(self.automaton, tokens[:, 1:], mask.sum(1) - 2)
            logits = torch.cat([logits[:, :1], logits[:, 1:].masked_fill(~allowed, -math.inf)], 1)
        return logits

    def lookahead(self, logits: Tensor, mask: Tensor) -> Lookahead | None:
        """Return the automaton for draws of the tokens behind BOS, from left to right; None without one."""
        return None if self.automaton is None else Lookahead(self.automaton, logits[:, 1:], mask.sum(1) - 2)

    def decode(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the most probable tokens (B, L) that the automaton accepts: the Viterbi path."""
        tokens = logits.argmax(-1)
        if self.automaton is not None:
            tokens[:, 1:] = viterbi(self.automaton, logits[:, 1:], mask.sum(1) - 2)
        return tokens

    def chosen(self, draws: Sequence[Tensor], mask: Tensor, embedding: Tensor, normal: Callable[[], Tensor]) -> Tensor:
        """Return one of several draws of tokens (B, L) for each row, with a probability proportional to exp(-energy).

        ``normal`` draws standard normal values (B, L), of which one decides. A draw whose energy is infinite, or no number, is
        chosen only among its like.
        """
        if len(draws) == 1:
            return draws[0]
        assert self.energy is not None
        nats = []
        for tokens in draws:
            logits = torch.nn.functional.one_hot(tokens, len(embedding)).to(embedding).log()
            x0 = torch.nn.functional.embedding(tokens, embedding)
            nats.append(self.energy(posterior_state(logits, x0, x0.new_zeros(len(x0)), mask, embedding)).detach())
        scores = -self.guidance.strength * torch.stack(nats, 1).float()
        weights = scores.nan_to_num(-FAR, FAR, -FAR).softmax(1)
        choice = quantile(weights, torch.special.ndtr(normal()[:, 0].float()))
        return torch.stack(list(draws), 1)[torch.arange(len(choice), device=choice.device), choice]

    def accepts(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return which rows of ``tokens`` (B, L) the automaton accepts, (B,)."""
        if self.automaton is None:
            return torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
        return accepted(self.automaton, tokens[:, 1:], mask.sum(1) - 2)


def determined_tokens(automaton: DFA | None, mask: Tensor) -> Tensor:
    """Return ids (B, L) of the tokens that ``automaton`` determines for samples of ``mask`` (B, L), -1 elsewhere."""
    ids = torch.full(mask.shape, -1, device=mask.device)
    if automaton is not None:
        ids[:, 1:] = forced_tokens(automaton, mask.sum(1) - 2, mask.shape[1] - 1)
    return ids


def mix_with_tokens(logits: Tensor, tokens: Tensor, share: Tensor | float) -> Tensor:
    """Return the log-probabilities (B, L, V) of ``logits`` with a ``share`` of the probability moved to ``tokens`` (B, L)."""
    one_hot = torch.nn.functional.one_hot(tokens, logits.shape[-1]).to(logits)
    return torch.lerp(logits.softmax(-1), one_hot, torch.as_tensor(share).to(logits)).clamp(min=SMALLEST).log()
