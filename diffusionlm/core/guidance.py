"""Guidance: energies, and the corrections that sampling applies along their gradients.

    the noisy vectors      Adagrad steps on  lambda |x - mean|^2 / sigma + energy(x)          (Li et al. 2022, section 5.1)
    the clean vectors      E[x_0 | x_t, c] = x0 + (sigma^2 / alpha) dlog p(c | x_t) / dx_t    (Tweedie, Bayes)
    the token posterior    p(w_i | x_t, c) ∝ p(w_i | x_t) p(c | w_i, x_t)                     logits_i += dlog p(c | p) / dp_i

An energy is -log p(c | state) in nats, lower is better. The first line is the paper's, ``Adagrad``, below; the other two are
``Gradient`` in pipelines/gradient.py, with x0 moved in pipelines/denoiser.py.

Shapes: x is (B, L, D), logits (B, L, V), energies (B,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffusionlm.config import Component, UserError
from diffusionlm.core.process import Gaussian
from diffusionlm.core.sampler import Denoised


class GuidanceState:
    """What an energy receives.

    Attributes:
        xt: (B, L, D), the noisy vectors.
        t: (B,), their time.
        mask: (B, L), True at non-padding tokens, BOS and EOS included.
        x0: (B, L, D), the predicted clean vectors.
        logits: (B, L, V), the predicted token logits.
        words: (B, L, V), the token probabilities that ``x0`` and ``logits`` are made of, where they are known.
    """

    def __init__(
        self, xt: Tensor, t: Tensor, mask: Tensor, denoise: Callable[[], Denoised], words: Tensor | None = None
    ) -> None:
        self.xt, self.t, self.mask, self.words, self._denoise = xt, t, mask, words, denoise
        self.readings: dict[Any, Any] = {}  # outputs of classifiers, so that each is evaluated once

    @cached_property
    def _denoised(self) -> Denoised:
        return self._denoise()

    @property
    def x0(self) -> Tensor:
        """The predicted clean vectors (B, L, D)."""
        return self._denoised.x0

    @property
    def logits(self) -> Tensor:
        """The predicted token logits (B, L, V)."""
        return self._denoised.logits


Energy = Callable[[GuidanceState], Tensor]  # -log p(c | state) in nats (B,), differentiable in what it reads


class Guidance(Component, family="guidance"):
    """Base of the guidance methods. ``strength`` multiplies every energy; 0 gives exactly the unguided samples."""

    strength: float = 1.0
    draft: float = 0.0  # share of the steps spent on a draft pass
    constraint_every: int = 1  # steps from one gradient of exact constraints alone to the next
    draws: int = 1  # texts drawn from a joint head in each step, of which the energy chooses one

    def check(self, prediction: str) -> None:
        """Raise UserError where the method cannot guide a model of this ``prediction``."""

    def guide_logits(self, energy: Energy, logits: Tensor, state: GuidanceState, embedding: Tensor) -> Tensor:
        """Return the guided ``logits`` (B, L, V) of ``state``; ``embedding`` is E (V, D)."""
        return logits

    def denoiser_energy(self, energy: Energy | None, constraint: Energy | None) -> Energy | None:
        """Return the energy whose gradient through the denoiser moves x0; None needs no backward pass.

        ``energy`` is that of the controls, ``constraint`` that of the exact constraints, where there are any.
        """
        return None

    def guide_latents(
        self, energy: Energy, x: Tensor, s: Tensor, step: Gaussian, predict: Callable[[Tensor], GuidanceState]
    ) -> Tensor:
        """Return the guided x_s, which was drawn from ``step``; ``predict`` evaluates the model at s."""
        return x


def check_strength(strength: float) -> None:
    """Raise UserError for a negative strength."""
    if not 0 <= strength < math.inf:
        raise UserError(f"strength: expected 0 or more, got {strength} (write ~ before the control for its negation)")


@dataclass(frozen=True)
class Adagrad(Guidance, name="adagrad"):
    """Adagrad steps on the noisy vectors after each denoising step (Li et al. 2022, section 5.1).

    Args:
        strength: factor of all energies.
        fluency: lambda, the weight of |x - mean|^2 / sigma.
        learning_rate: that of Adagrad.
        inner_steps: Adagrad steps per denoising step.
        fresh: make a new optimizer for each inner step, as the released code does: steps along the sign of the gradient.
        until: the time t below which nothing is moved (the released code: i >= 10 of 200).
    """

    strength: float = 1.0
    fluency: float = 0.01
    learning_rate: float = 0.1
    inner_steps: int = 3
    fresh: bool = True
    until: float = 0.05

    def __post_init__(self) -> None:
        check_strength(self.strength)
        self.expect("0 or more", "fluency", "learning_rate")
        self.expect("at least 1", "inner_steps")
        self.expect("a number between 0 and 1", "until")

    def guide_latents(
        self, energy: Energy, x: Tensor, s: Tensor, step: Gaussian, predict: Callable[[Tensor], GuidanceState]
    ) -> Tensor:
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
                loss = self.fluency * apart + self.strength * energy(predict(moved))
                loss.sum().backward()
                optimizer.step()
        return moved.detach()
