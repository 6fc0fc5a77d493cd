"""How what is asked acts on the sampling: energies, and the mechanisms that follow their gradients.

An energy is -log p(c | what the model believes), in nats; lower is better. Three things a gradient of it can move:

    the token posterior    p(w_i | x_t, c) ~ p(w_i | x_t) p(c | w_i, x_t)        logits_i += w dlog p(c | p) / dp_i
    the clean vectors      E[x_0 | x_t, c] = x0 + (sigma^2 / alpha) dlog p(c | x_t) / dx_t      (Tweedie and Bayes)
    the noisy vectors      Adagrad steps on  lambda |x - mean|^2 / sigma + energy(x)     (Diffusion-LM, section 5)

The first is Bayes' rule to first order around the posterior mean and stays on the simplex; with energies on noisy vectors
it takes E^T times their gradient. The second is exact for an exact classifier, and costs a backward pass of the denoiser.

What holds by construction has an energy too, the log of the chance that words drawn one by one are in the language. That
posterior is conditioned on it exactly, as if words did not depend on each other; through the denoiser, which knows how they
do, its gradient brings along the rest of the text.
Shapes: x is (B, L, D), logits (B, L, V), energies (B,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from diffusionlm.config import Component, UserError
from diffusionlm.core.process import Gaussian
from diffusionlm.core.sampler import SMALLEST, Denoised

OPEN = 0.36  # of a text's openness: above it the frame of the text, which words stand where, is not settled


class GuidanceState:
    """What an energy is asked about.

    Attributes:
        xt: (B, L, D), the noisy vectors.
        t: (B,), their time.
        mask: (B, L), True at real tokens; start and end are real.
        x0: (B, L, D), the clean vectors believed.
        logits: (B, L, V), of the words believed.
        words: (B, L, V), their chances, of which ``x0`` and ``logits`` are made; only of a belief ``from_logits``.
    """

    def __init__(
        self, xt: Tensor, t: Tensor, mask: Tensor, denoise: Callable[[], Denoised], words: Tensor | None = None
    ) -> None:
        """Hold what is known; ``denoise`` is called where an energy asks for ``x0`` or ``logits``, once."""
        self.xt, self.t, self.mask, self.words, self._denoise = xt, t, mask, words, denoise
        self.readings: dict[Any, Any] = {}  # what classifiers have said of it, so that each is asked once

    @classmethod
    def from_logits(cls, logits: Tensor, xt: Tensor, t: Tensor, mask: Tensor, embedding: Tensor) -> GuidanceState:
        """Return what is believed with words of ``logits``; ``embedding`` is E (V, D).

        Gradients with respect to ``words`` and to ``xt``, as far as it is read itself, can be asked for. They do not
        reach the ``xt`` that is given here unless that asks for them, and ``logits`` may be made of it.
        """
        p = logits.softmax(-1) if logits.requires_grad else logits.softmax(-1).requires_grad_()
        seen = xt.view_as(xt) if xt.requires_grad else xt.detach().requires_grad_()
        with torch.enable_grad():
            believed = Denoised(p @ embedding.to(p), (p + SMALLEST).log())
        return cls(seen, t, mask, lambda: believed, p)

    @cached_property
    def _denoised(self) -> Denoised:
        return self._denoise()

    @property
    def x0(self) -> Tensor:
        """The clean vectors believed."""
        return self._denoised.x0

    @property
    def logits(self) -> Tensor:
        """Of the words believed."""
        return self._denoised.logits

    @cached_property
    def gini_impurity(self) -> Tensor:
        """How likely (B,) two draws of a word from what is believed of it differ, a mean over the text."""
        differ = 1 - self.logits.detach().float().softmax(-1).square().sum(-1)
        return (differ * self.mask).sum(1) / self.mask.sum(1)


class Energy(Protocol):
    """-log p(c | belief) in nats, (B,); differentiable in what it reads of the belief."""

    def __call__(self, belief: GuidanceState, /) -> Tensor:
        """Return the energy of each text."""
        ...


def total(energies: Sequence[Energy]) -> Energy:
    """All of them: log-probabilities add up, as if each were asked independently."""
    return lambda belief: torch.stack([energy(belief) for energy in energies]).sum(0)


def any_of(energies: Sequence[Energy]) -> Energy:
    """At least one, as if they were independent: 1 - prod(1 - p)."""
    return lambda belief: negated(torch.stack([negated(energy(belief)) for energy in energies]).sum(0))


def none_of(energy: Energy) -> Energy:
    """Its opposite: p is 1 - p."""
    return lambda belief: negated(energy(belief))


def scaled(energy: Energy, weight: float) -> Energy:
    """``weight`` times as strong."""
    return lambda belief: weight * energy(belief)


def negated(nats: Tensor) -> Tensor:
    """Return -log(1 - exp(-nats)), finite and with finite gradients where the chance is 0 or 1."""
    return -torch.log(-torch.expm1(-nats.clamp(min=1e-6)))


class Guidance(Component, family="guidance"):
    """Base of the mechanisms; ``strength`` multiplies every energy, and 0 leaves the sampling exactly as it is without."""

    strength: float = 1.0
    draft: float = 0.0  # the share of the steps that go into a draft: see ``Gradient``

    def check(self, prediction: str) -> None:
        """Check that a model of this ``prediction`` can be steered so. Raises UserError."""

    def tilt(self, energy: Energy, logits: Tensor, belief: GuidanceState, embedding: Tensor) -> Tensor:
        """Return ``logits`` (B, L, V), of which ``belief`` is made, that know what is asked; ``embedding`` is E (V, D)."""
        return logits

    def through_denoiser(self, energy: Energy | None, constraint: Energy | None) -> Energy | None:
        """Return what is followed through the denoiser, by sigma^2 / alpha times its gradient; None takes no backward pass.

        ``energy`` is of what gradients ask, ``constraint`` of what holds by construction, where there are such.
        """
        return None

    def move(self, energy: Energy, x: Tensor, s: Tensor, step: Gaussian, believe: Callable[[Tensor], GuidanceState]) -> Tensor:
        """Return x_s moved toward what is asked; ``step`` is the Gaussian it was drawn from, ``believe`` the model at s."""
        return x


def check_strength(strength: float) -> None:
    """Check a strength. Raises UserError where it is negative."""
    if not 0 <= strength < math.inf:
        raise UserError(f"strength: expected 0 or more, got {strength} (to ask for the opposite, write ~ before the control)")


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
        return self.strength * torch.where(belief.gini_impurity > OPEN, self.early_multiplier, 1.0)


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


@dataclass(frozen=True)
class Adagrad(Guidance, name="adagrad"):
    """The paper's: Adagrad steps on the noisy vectors after each denoising step (Li et al. 2022, section 5.1).

    The released code makes a new Adagrad for each inner step, which turns it into steps along the sign of the gradient.

    Args:
        strength: of all energies.
        fluency: lambda, the weight of |x - mean|^2 / sigma.
        learning_rate: of Adagrad.
        inner_steps: after each denoising step.
        fresh: whether each inner step has an Adagrad of its own, as in the released code.
        until: the time t below which nothing is moved (the code: i >= 10 of 200).
    """

    strength: float = 1.0
    fluency: float = 0.01
    learning_rate: float = 0.1
    inner_steps: int = 3
    fresh: bool = True
    until: float = 0.05

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_strength(self.strength)
        for name in ("fluency", "learning_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.inner_steps < 1:
            raise UserError(f"inner_steps: expected at least 1, got {self.inner_steps}")

    def move(self, energy: Energy, x: Tensor, s: Tensor, step: Gaussian, believe: Callable[[Tensor], GuidanceState]) -> Tensor:
        """Take the inner steps."""
        if not self.strength or float(s[0]) <= self.until:
            return x
        deviation = step.variance.sqrt().clamp(min=1e-6)
        with torch.enable_grad():
            moved = x.detach().clone().requires_grad_()
            optimizer = torch.optim.Adagrad([moved], lr=self.learning_rate)
            for _ in range(self.inner_steps):
                if self.fresh:
                    optimizer = torch.optim.Adagrad([moved], lr=self.learning_rate)
                optimizer.zero_grad()
                apart = ((moved - step.mean) ** 2 / deviation).mean((1, 2))
                loss = self.fluency * apart + self.strength * energy(believe(moved))
                loss.sum().backward()
                optimizer.step()
        return moved.detach()


@dataclass(frozen=True)
class Particles:
    """Feynman-Kac steering (Singhal et al. 2025): copies of a text compete, for anything that can only be scored.

    Args:
        count: copies of each text; each costs as much as a text.
        strength: lambda in the weights exp(lambda (r_s - r_t)) between two scorings.
        every: steps from one scoring to the next.
    """

    count: int = 8
    strength: float = 5.0
    every: int = 4

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("count", "every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}")
        check_strength(self.strength)


class ParticleFilter:
    """The particles of some texts as a run goes: rows g * count ... are those of text g.

    ``generators`` (one a text) draw who survives: the noise of the sampling is not touched.
    """

    def __init__(self, particles: Particles, generators: Sequence[torch.Generator]) -> None:
        """Start with equal weights and no reward."""
        self.particles, self.generators = particles, list(generators)
        self.log_weights = torch.zeros(len(self.generators), particles.count, dtype=torch.float64)
        self.rewards = torch.zeros_like(self.log_weights)

    def weigh(self, rewards: Tensor) -> None:
        """Take new ``rewards`` (rows,), log-probabilities or any score."""
        fresh = rewards.double().view_as(self.log_weights)
        self.log_weights += self.particles.strength * (fresh - self.rewards)
        self.rewards = fresh

    def resample(self) -> Tensor | None:
        """Return the row (rows,) that each row goes on from, where a text has lost half of its effective particles."""
        weights = self.log_weights.softmax(-1)
        count = self.particles.count
        poor = 1 / weights.square().sum(-1) < count / 2
        if not bool(poor.any()):
            return None
        kept = torch.arange(count).expand_as(weights).clone()
        for g in poor.nonzero().flatten().tolist():
            # Systematic resampling: one draw for all, so that a particle of weight w leaves w n copies, give or take one.
            places = (torch.arange(count) + torch.rand((), generator=self.generators[g], dtype=torch.float64)) / count
            kept[g] = torch.searchsorted(weights[g].cumsum(-1), places).clamp(max=count - 1)
        self.log_weights[poor] = 0.0
        self.rewards = self.rewards.gather(-1, kept)
        return (kept + count * torch.arange(len(kept))[:, None]).flatten()

    def chosen(self) -> list[int]:
        """Draw one row of each text by its weight."""
        weights = self.log_weights.softmax(-1)
        picks = [int(torch.multinomial(w, 1, generator=g)) for w, g in zip(weights, self.generators, strict=True)]
        return [g * self.particles.count + pick for g, pick in enumerate(picks)]
