"""Gradient guidance through the model's token posterior: on the logits, through the denoiser, or both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diffusionlm.config import UserError
from diffusionlm.core.guidance import Adagrad, Energy, Guidance, GuidanceState, check_strength
from diffusionlm.recipe.energies import scaled, total
from diffusionlm.recipe.posterior import posterior_state

HIGH_IMPURITY = 0.36  # mean Gini impurity above which most positions have no dominant token yet


@dataclass(frozen=True)
class Gradient(Guidance, name="gradient"):
    """Gradients on the token logits, through the denoiser to the clean vectors, or both.

    Args:
        strength: factor of all energies; 1 is Bayes' rule for ``denoiser_scale``.
        logit_scale: logit guidance scale; 0 leaves the logits as they are.
        denoiser_scale: denoiser guidance scale, of a gradient that doubles the computation; 0 leaves it out.
        constraint_scale: denoiser guidance scale of exact constraints, independent of ``strength``; 1 is Bayes' rule.
        constraint_every: where exact constraints alone guide through the denoiser, its evaluations from one gradient to the
            next; those between repeat the shift of x_0. Energies have a gradient in each.
        early_multiplier: factor of both scales while the mean Gini impurity of the token posteriors is above
            ``HIGH_IMPURITY``, when the surrounding tokens can still adapt.
        inner_steps: gradient steps on the logits, each at the posterior of the one before.
        max_logit_step: the largest change of a logit in one inner step, in nats.
        draft: share of the steps spent on a draft pass, of which only the salient tokens are kept (see ``pipelines.draft``).
            0 leaves the draft out, as do models without logits or explicit length.
        draws: texts that a model with a joint head draws in each step, from one evaluation of the network; one of them is
            chosen with a probability proportional to exp(-strength * energy) (sampling importance resampling).
    """

    strength: float = 1.0
    logit_scale: float = 4.0
    denoiser_scale: float = 10.0
    constraint_scale: float = 1.0
    constraint_every: int = 2
    early_multiplier: float = 2.0
    inner_steps: int = 1
    max_logit_step: float = 20.0
    draft: float = 0.4
    draws: int = 8

    def __post_init__(self) -> None:
        check_strength(self.strength)
        self.expect("a share from 0 to below 1", "draft")
        self.expect("1 to 10000", "inner_steps", "draws", "constraint_every")
        self.expect("a positive number", "early_multiplier")
        if not self.max_logit_step > 0:  # infinity is no limit
            raise UserError(f"max_logit_step: expected a positive number of nats, got {self.max_logit_step}")
        self.expect("0 or more", "logit_scale", "denoiser_scale", "constraint_scale")

    def check(self, prediction: str) -> None:
        if self.logit_scale and prediction != "logits":
            raise UserError(
                f"guidance.logit_scale: this model predicts {prediction}, not logits; set it to 0 and "
                "denoiser_scale to 1, or use guidance adagrad"
            )

    def guide_logits(self, energy: Energy, logits: Tensor, state: GuidanceState, embedding: Tensor) -> Tensor:
        weight = self._weight(state)[:, None, None] * self.logit_scale / self.inner_steps
        for step in range(self.inner_steps if self.strength * self.logit_scale else 0):
            if step:
                state = posterior_state(logits, state.xt.detach(), state.t, state.mask, embedding)
            slope = word_slopes(energy, state, embedding)
            logits = logits + (weight * slope).clamp(-self.max_logit_step, self.max_logit_step)
        return logits

    def denoiser_energy(self, energy: Energy | None, constraint: Energy | None) -> Energy | None:
        parts: list[Energy] = []
        if energy is not None and self.denoiser_scale * self.strength:
            parts.append(lambda state: self.denoiser_scale * self._weight(state) * linearised(energy, state))
        if constraint is not None and self.constraint_scale:
            parts.append(scaled(constraint, self.constraint_scale))
        return total(parts) if parts else None

    def _weight(self, state: GuidanceState) -> Tensor:
        """Return the strength (B,) of each sample."""
        return self.strength * torch.where(gini_impurity(state) > HIGH_IMPURITY, self.early_multiplier, 1.0)


def unused_every(guidance: Guidance, energies: bool, automata: bool) -> dict[str, str]:
    """Return ``guidance.constraint_every`` with the reason where exact constraints alone have no gradient."""
    if type(guidance) is not Gradient or (automata and not energies and guidance.constraint_scale):
        return {}
    why = "an energy has a gradient in every step" if energies else "no exact constraint has a gradient here"
    return {"guidance.constraint_every": f"{why}, so this setting has no effect; leave it out"}


def unguided_settings(guidance: Guidance, constrained: bool) -> list[str]:
    """Return the settings that have no effect where no energy guides: all, but with exact constraints those of ``Gradient``.

    Of a user-defined guidance, whose settings may act on exact constraints, only the strength has none.
    """
    if not constrained:
        return ["guidance"]
    kept = {Gradient: {"constraint_scale", "constraint_every"}, Adagrad: set()}.get(type(guidance))
    names = ["strength"] if kept is None else [name for name in vars(guidance) if name not in kept]
    return [f"guidance.{name}" for name in names]


def gini_impurity(state: GuidanceState) -> Tensor:
    """Return the mean Gini impurity (B,) of the token posteriors: the probability that two draws of a token differ."""
    if "gini_impurity" not in state.readings:
        differ = 1 - state.logits.detach().float().softmax(-1).square().sum(-1)
        state.readings["gini_impurity"] = (differ * state.mask).sum(1) / state.mask.sum(1)
    found: Tensor = state.readings["gini_impurity"]
    return found


def word_slopes(energy: Energy, state: GuidanceState, embedding: Tensor) -> Tensor:
    """Return dlog p(c) / dp (B, L, V) of each token's probability, minus its mean over p."""
    _, by_word, by_vector = gradients(energy, state)
    assert state.words is not None
    p = state.words.detach()
    slope = torch.zeros_like(p) if by_word is None else -by_word
    if by_vector is not None:
        slope = slope - by_vector @ embedding.T.to(p)
    return slope - (p * slope).sum(-1, keepdim=True)


def gradients(energy: Energy, state: GuidanceState) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return an ``energy`` (B,) and its gradients in the token probabilities and vectors of ``state``, once computed."""
    assert state.words is not None
    key = "gradients", id(energy)
    if key not in state.readings:
        with torch.enable_grad():
            nats = energy(state)
            found = torch.autograd.grad(nats.sum(), [state.words, state.xt], retain_graph=True, allow_unused=True)
        state.readings[key] = energy, (nats.detach(), *found)  # with the energy, so that no other one has its id
    kept: tuple[Tensor, Tensor | None, Tensor | None] = state.readings[key][1]
    return kept


def linearised(energy: Energy, state: GuidanceState) -> Tensor:
    """Return an ``energy`` (B,) with its gradient, without a second backward pass through what it evaluates."""
    if state.words is None:
        return energy(state)
    found: Tensor = _Linear.apply(state.words, state.xt, *gradients(energy, state))  # type: ignore[no-untyped-call]
    return found


class _Linear(torch.autograd.Function):
    """A value (B,) whose gradients in token probabilities and vectors are given."""

    @staticmethod
    def forward(
        ctx: Any, words: Tensor, xt: Tensor, value: Tensor, by_word: Tensor | None, by_vector: Tensor | None
    ) -> Tensor:  # fmt: skip
        ctx.slopes = by_word, by_vector
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if slope is None else slope * gradient[:, None, None] for slope in ctx.slopes]
        return *scaled, None, None, None
