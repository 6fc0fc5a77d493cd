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
