"""Samplers, the loop that runs them, and wrappers of a denoiser.

    x_s ~ q(x_s | x_t, x0_hat(x_t, t))          for s < t, from x_1 ~ N(0, I) to x_0          (Ho et al. 2020, algorithm 2)

A denoiser is a function (x_t, t) -> Denoised; clamping, given tokens, self-conditioning and guidance are wrappers of the same
type, so samplers are independent of them. A sampler returns the Gaussian of x_s given the predictions so far; more samplers are
in ``recipe.samplers``. Shapes: x is (B, L, D), t is (B,).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from diffusionlm.config import Component, UserError
from diffusionlm.core.process import Gaussian, Process, over_coordinates
from diffusionlm.core.schedule import NoiseSchedule


@dataclass(frozen=True)
class Denoised:
    """A prediction: clean vectors x0 (B, L, D) and token logits (B, L, V).

    ``variance_share`` (B, L, D) in [0, 1], where variances are learned, interpolates between the log variances of the
    posterior and of the forward step.
    """

    x0: Tensor
    logits: Tensor
    variance_share: Tensor | None = None

    def rows(self, index: Tensor) -> Denoised:
        """Return the predictions of the samples ``index`` (B,)."""
        share = self.variance_share
        return Denoised(self.x0[index], self.logits[index], None if share is None else share[index])


Denoise = Callable[[Tensor, Tensor], Denoised]  # x_t (B, L, D) and times (B,) or (B, L) in
History = Sequence[tuple[Tensor, Denoised]]
Noise = Callable[[Tensor], Tensor]  # draws standard normal values like a tensor


class Sampler(Component, family="sampler"):
    """Base of the samplers."""

    def times(self, schedule: NoiseSchedule, steps: int) -> Tensor:
        """Return the ``(steps + 1,)`` decreasing times of a run, from 1 to 0: those of ``schedule``, or the sampler's own."""
        return schedule.sampling_times(steps)

    def transition(self, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """Return the Gaussian of x_s; ``history`` has the predictions (t, Denoised) up to that at ``t``, the newest last."""
        raise NotImplementedError

    def step(
        self, denoise: Denoise, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor, noise: Noise
    ) -> tuple[Denoised, Gaussian]:
        """Return the prediction at ``t`` and the Gaussian of x_s. A subclass may call ``denoise`` and ``noise`` repeatedly.

        ``history`` has the predictions of earlier steps, the newest last.
        """
        denoised = denoise(xt, t)
        return denoised, self.transition(process, [*history, (t, denoised)], xt, t, s)


@dataclass(frozen=True)
class DDPM(Sampler, name="ddpm"):
    """Ancestral sampling (Ho et al. 2020, algorithm 2).

    ``variance`` is that of the posterior, ``upper`` (DDPM's beta) or ``learned`` (Improved DDPM, equation 15).
    """

    variance: Literal["posterior", "upper", "learned"] = "posterior"

    def transition(self, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        return reverse_step(process, history[-1][1], xt, t, s, self.variance)


def reverse_step(
    process: Process, denoised: Denoised, xt: Tensor, t: Tensor, s: Tensor, variance: str = "posterior"
) -> Gaussian:
    """Return p(x_s | x_t): q(x_s | x_t, x_0) with the predicted x_0. Raises UserError where no variance is learned."""
    posterior = process.posterior(denoised.x0, xt, t, s)
    if variance == "posterior":
        return posterior
    upper = over_coordinates(process.step_variance(t, s), xt)
    if variance == "upper":
        return replace(posterior, variance=upper)
    if denoised.variance_share is None:
        raise UserError("sampler.variance: 'learned' needs a model that predicts variances; use 'posterior'")
    lower = posterior.variance.clamp(min=1e-20).log()
    between = torch.lerp(lower.expand_as(xt), upper.log().expand_as(xt), denoised.variance_share)
    return replace(posterior, variance=between.exp())


@dataclass(frozen=True)
class State:
    """The state after sampling step number ``step`` (from 1): x_s (B, L, D), and the prediction at ``t`` that led to it."""

    x: Tensor
    denoised: Denoised
    t: float
    step: int


def sample(
    denoise: Denoise,
    process: Process,
    x: Tensor,
    *,
    sampler: Sampler,
    steps: int,
    noise: Noise = torch.randn_like,
    level: float = 1.0,
    steer: Callable[[Tensor, Tensor, Gaussian], Tensor] | None = None,
    select: Callable[[State], Tensor | None] | None = None,
) -> Iterator[State]:
    """Run the reverse process from ``x`` (B, L, D) at time ``level``, pure noise at 1, and yield a State per step.

    ``noise`` draws standard normal values like a tensor; ``steer`` moves x_s, which was drawn from a Gaussian, after each step
    but the last; ``select`` returns the rows (B,) to continue with, for particles.

    Raises:
        UserError: a number of steps that the schedule does not have.
    """
    times = level * sampler.times(process.schedule, steps).to(x.device)
    history: list[tuple[Tensor, Denoised]] = []
    for number, (t, s) in enumerate(itertools.pairwise(times), 1):
        t_rows, s_rows = t.expand(len(x)), s.expand(len(x))
        denoised, step = sampler.step(denoise, process, history[-1:], x, t_rows, s_rows, noise)
        history = [*history[-1:], (t_rows, denoised)]
        x = step.mean.to(x)  # times are float64
        if s > 0:
            x = x + step.variance.sqrt().to(x) * noise(x)
            x = steer(x, s_rows, step) if steer else x
        state = State(x, denoised, float(t), number)
        if select and (rows := select(state)) is not None:
            history = [(time, denoised.rows(rows)) for time, denoised in history]
            x = x[rows]
            state = replace(state, x=x, denoised=history[-1][1])
        yield state


def clamp(denoise: Denoise, embedding: Tensor) -> Denoise:
    """Replace predicted vectors by their nearest rows of ``embedding`` (V, D), in L2 (Li et al. 2022, section 4.2)."""

    def clamped(xt: Tensor, t: Tensor) -> Denoised:
        denoised = denoise(xt, t)
        return replace(denoised, x0=torch.nn.functional.embedding(nearest_rows(denoised.x0, embedding), embedding))

    return clamped


def nearest_rows(x: Tensor, embedding: Tensor) -> Tensor:
    """Return the index of the row of ``embedding`` (V, D) nearest to each vector of ``x`` (B, L, D), in L2."""
    return (x @ embedding.T - embedding.square().sum(-1) / 2).argmax(-1)


def given(denoise: Denoise, known: Tensor, x0: Tensor) -> Denoise:
    """Hold the positions ``known`` (B, L) at the clean vectors ``x0`` (B, L, D), at time 0."""

    def holding(xt: Tensor, t: Tensor) -> Denoised:
        levels = torch.where(known, 0, t if t.dim() == 2 else t[:, None])
        denoised = denoise(torch.where(known[..., None], x0, xt), levels)
        return replace(denoised, x0=torch.where(known[..., None], x0, denoised.x0))

    return holding
