"""Gradient guidance through the model's token posterior: on the logits, through the denoiser, or both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.core.guidance import Energy, Guidance, GuidanceState, check_strength
from diffusionlm.recipe.energies import scaled, total

OPEN = 0.36  # of a text's openness: above it the frame of the text, which words stand where, is not settled


@dataclass(frozen=True)
class Gradient(Guidance, name="gradient"):
    """Tilts the token posterior, moves the clean vectors through the denoiser, or both.

    Args:
        strength: of all energies; 1 is Bayes' rule for ``denoiser_scale``.
        logit_scale: weight of the tilt of the posterior; 0 leaves it out.
        denoiser_scale: weight of the gradient through the denoiser, about twice the work; 0 leaves it out.
        constraint_scale: the same for what holds by construction, whatever the ``strength``: 1 is Bayes' rule.
        early_multiplier: how many times as strong while the text is open (more than ``OPEN``), so that
            the words around can still follow.
        inner_steps: in which the tilt is taken, each at the posterior that the last one left.
        max_logit_step: nats by which one inner step may change the odds of a word.
        draft: share of the steps that go into a draft, of which only the few words that carry what is asked are kept. The
            rest is written anew around them, where energies have little left to ask: a gradient that still has to bring
            in what is asked breaks sentences. 0 writes at once, and so does a model without logits or explicit length.
    """

    strength: float = 1.0
    logit_scale: float = 4.0
    denoiser_scale: float = 10.0
    constraint_scale: float = 1.0
    early_multiplier: float = 2.0
    inner_steps: int = 1
    max_logit_step: float = 20.0
    draft: float = 0.4

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_strength(self.strength)
        if not 0 <= self.draft < 1:
            raise UserError(f"draft: expected a share from 0 to below 1, got {self.draft}")
        if self.inner_steps < 1:
            raise UserError(f"inner_steps: expected at least 1, got {self.inner_steps}")
        if not self.max_logit_step > 0:
            raise UserError(f"max_logit_step: expected a positive number of nats, got {self.max_logit_step}")
        if self.early_multiplier <= 0:
            raise UserError(f"early_multiplier: expected a positive number, got {self.early_multiplier}")
        for name in ("logit_scale", "denoiser_scale", "constraint_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name}: expected 0 or more, got {getattr(self, name)}")

    def check(self, prediction: str) -> None:
        """Check that there are logits to tilt."""
        if self.logit_scale and prediction != "logits":
            raise UserError(
                f"guidance.logit_scale: this model predicts {prediction}, not logits to tilt; set it to 0 and "
                "denoiser_scale to 1, or name adagrad"
            )

    def tilt(self, energy: Energy, logits: Tensor, belief: GuidanceState, embedding: Tensor) -> Tensor:
        """Add the gradient to the logits, in ``inner_steps`` parts."""
        weight = self._weight(belief)[:, None, None] * self.logit_scale / self.inner_steps
        for step in range(self.inner_steps if self.strength * self.logit_scale else 0):
            if step:
                belief = GuidanceState.from_logits(logits, belief.xt.detach(), belief.t, belief.mask, embedding)
            slope = word_slopes(energy, belief, embedding)
            logits = logits + (weight * slope).clamp(-self.max_logit_step, self.max_logit_step)
        return logits

    def through_denoiser(self, energy: Energy | None, constraint: Energy | None) -> Energy | None:
        """Follow both, each by its weight."""
        followed: list[Energy] = []
        if energy is not None and self.denoiser_scale * self.strength:
            followed.append(lambda belief: self.denoiser_scale * self._weight(belief) * energy(belief))
        if constraint is not None and self.constraint_scale:
            followed.append(scaled(constraint, self.constraint_scale))
        return total(followed) if followed else None

    def _weight(self, belief: GuidanceState) -> Tensor:
        """Return the strength (B,) for each text."""
        return self.strength * torch.where(gini_impurity(belief) > OPEN, self.early_multiplier, 1.0)


def gini_impurity(state: GuidanceState) -> Tensor:
    """Return the mean Gini impurity (B,) of the token posteriors: the probability that two draws of a token differ."""
    differ = 1 - state.logits.detach().float().softmax(-1).square().sum(-1)
    return (differ * state.mask).sum(1) / state.mask.sum(1)


def word_slopes(energy: Energy, belief: GuidanceState, embedding: Tensor) -> Tensor:
    """Return dlog p(c) / dp (B, L, V): how much more likely each word makes what is asked, 0 on average over p."""
    assert belief.words is not None
    with torch.enable_grad():
        value = -energy(belief).sum()
        by_word, by_vector = torch.autograd.grad(value, [belief.words, belief.xt], retain_graph=True, allow_unused=True)
    p = belief.words.detach()
    slope = torch.zeros_like(p) if by_word is None else by_word
    if by_vector is not None:
        slope = slope + by_vector @ embedding.T.to(p)
    return (slope - (p * slope).sum(-1, keepdim=True)).detach()
