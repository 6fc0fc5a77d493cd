"""From noise to words: the samplers, the one loop that runs them, and wrappers of a denoiser.

A denoiser is a function ``(x_t, t) -> Denoised``. Clamping, self-conditioning and given words are wrappers
of that same type, so no sampler knows they exist. A sampler is one function: the Gaussian of x_s given what was
denoised so far. All but one are a point on one family (with r = exp(gamma_s - gamma_t), fresh noise xi):

    x_s = alpha_s x0 + sigma_s ( sqrt(1 - w^2) eps + w xi )       eps = (x_t - alpha_t x0) / sigma_t

w = 0 is DDIM, w^2 = 1 - r DDPM's ancestral sampling, w = 1 fresh renoising. Shapes: x is (B, L, D), t is (B,).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from diffusionlm.config import Component, UserError
from diffusionlm.core.process import Gaussian, Process, over_coordinates

SMALLEST = 1e-30  # a chance below this counts as this, so that logarithms stay finite


@dataclass(frozen=True)
class Denoised:
    """What a denoiser believes: the clean vectors (B, L, D), token logits (B, L, V), and learned variances if it has any.

    ``variance_share`` (B, L, D) in [0, 1] interpolates the log variance between the posterior's and the forward step's.
    """

    x0: Tensor
    logits: Tensor
    variance_share: Tensor | None = None


class Denoise(Protocol):
    """A denoiser, or a wrapped one: x_t (B, L, D) and times (B,) or (B, L) in."""

    def __call__(self, xt: Tensor, t: Tensor, /) -> Denoised:
        """Return what is believed about the clean vectors."""
        ...


History = Sequence[tuple[Tensor, Denoised]]
Noise = Callable[[Tensor], Tensor]  # draws standard normal values like a tensor


class Sampler(Component, family="sampler"):
    """Base of the samplers."""

    def transition(self, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """Return the Gaussian of x_s; ``history`` has the past (t, Denoised), newest last, that at ``t`` included."""
        raise NotImplementedError

    def step(
        self, denoise: Denoise, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor, noise: Noise
    ) -> tuple[Denoised, Gaussian]:
        """Return the prediction at ``t`` and the Gaussian of x_s; a subclass may call ``denoise`` and ``noise`` again.

        ``history`` has the predictions of the steps before.
        """
        denoised = denoise(xt, t)
        return denoised, self.transition(process, [*history, (t, denoised)], xt, t, s)


def renoised(process: Process, x0: Tensor, xt: Tensor, t: Tensor, s: Tensor, w2: Tensor) -> Gaussian:
    """Return x_s of the family above with squared fresh-noise share ``w2`` (DDIM, Song et al. 2021, equation 12)."""
    alpha_s, deviation = process.alpha_sigma(process.schedule.gamma(s))
    kept = over_coordinates(deviation * torch.sqrt(1 - w2), xt) * process.eps_from_x0(x0, xt, t)
    return Gaussian(over_coordinates(alpha_s, xt) * x0 + kept, over_coordinates(deviation**2 * w2, xt))


@dataclass(frozen=True)
class DDPM(Sampler, name="ddpm"):
    """Ancestral sampling (Ho et al. 2020, algorithm 2).

    ``variance``: that of the posterior, ``upper`` (DDPM's beta), or ``learned`` (Improved DDPM, equation 15).
    """

    variance: Literal["posterior", "upper", "learned"] = "posterior"

    def transition(self, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """Return p(x_s | x_t) with the predicted x_0 in place of the true one."""
        denoised = history[-1][1]
        return reverse_step(process, denoised, xt, t, s, self.variance)


def reverse_step(
    process: Process, denoised: Denoised, xt: Tensor, t: Tensor, s: Tensor, variance: str = "posterior"
) -> Gaussian:
    """Return p(x_s | x_t): the posterior of the predicted x_0, with the variance asked for.

    Raises:
        UserError: learned variances asked of a model that has none.
    """
    posterior = process.posterior(denoised.x0, xt, t, s)
    if variance == "posterior":
        return posterior
    upper = over_coordinates(process.step_variance(t, s), xt)
    if variance == "upper":
        return replace(posterior, variance=upper)
    if denoised.variance_share is None:
        raise UserError("sampler.variance: 'learned' needs a model that predicts variances; use 'posterior'")
    lower = posterior.variance.clamp(min=1e-20).log()
    return replace(
        posterior, variance=torch.lerp(lower.expand_as(xt), upper.log().expand_as(xt), denoised.variance_share).exp()
    )


@dataclass(frozen=True)
class DDIM(Sampler, name="ddim"):
    """Deterministic at ``eta`` 0, ancestral sampling at 1 (Song et al. 2021, equations 12 and 16)."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        """Check the noise share."""
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta: expected a number between 0 and 1, got {self.eta}")

    def transition(self, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """Return the DDIM step."""
        fresh = -torch.expm1(process.schedule.gamma(s) - process.schedule.gamma(t))
        return renoised(process, history[-1][1].x0, xt, t, s, self.eta**2 * fresh)


@dataclass(frozen=True)
class Renoise(Sampler, name="renoise"):
    """Denoise fully, then noise afresh: w = 1, the multistep sampler of Song et al. 2023 (algorithm 1)."""

    def transition(self, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """Return q(x_s | x_0) of the predicted x_0."""
        return renoised(process, history[-1][1].x0, xt, t, s, torch.ones_like(t))


@dataclass(frozen=True)
class DPMSolver(Sampler, name="dpm++2m"):
    """DPM-Solver++(2M): a second-order multistep solver of the probability flow (Lu et al. 2022, algorithm 2).

    Of first order (which is DDIM) at the first step and at the last, where the log signal-to-noise step is infinite.
    """

    def transition(self, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """Return the solver's step; its variance is 0."""
        x0 = history[-1][1].x0
        if len(history) > 1 and bool((s > 0).all()):
            before, previous = history[-2]
            gamma_before, gamma_t, gamma_s = (process.schedule.gamma(time) for time in (before, t, s))
            ratio = over_coordinates((gamma_t - gamma_s) / (gamma_before - gamma_t) / 2, xt)
            x0 = (1 + ratio) * x0 - ratio * previous.x0
        return renoised(process, x0, xt, t, s, torch.zeros_like(t))


@dataclass(frozen=True)
class State:
    """A moment of a sampling run, after ``step`` steps, the first of which is 1.

    ``x`` is x_s (B, L, D), ``denoised`` the belief at ``t`` in [0, 1] that led there.
    """

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
    steer: Callable[[Tensor, Tensor, Gaussian], Tensor] | None = None,
    select: Callable[[State], Tensor | None] | None = None,
) -> Iterator[State]:
    """Run the reverse process from noise ``x`` (B, L, D), one State a step, so that callers can watch, log or stop.

    ``noise`` draws standard normal values like a tensor; ``steer`` may move x_s at time s, drawn from a Gaussian, after each
    step but the last; ``select`` may name the rows (B,) that go on in place of all, for particles.

    Raises:
        UserError: more steps than the schedule tells apart, or fewer than one.
    """
    times = process.schedule.sampling_times(steps).to(x.device)
    history: list[tuple[Tensor, Denoised]] = []
    for number, (t, s) in enumerate(itertools.pairwise(times), 1):
        t_rows, s_rows = t.expand(len(x)), s.expand(len(x))
        denoised, step = sampler.step(denoise, process, history[-1:], x, t_rows, s_rows, noise)
        history = [*history[-1:], (t_rows, denoised)]
        x = step.mean
        if s > 0:
            x = x + step.variance.sqrt() * noise(x)
            x = steer(x, s_rows, step) if steer else x
        state = State(x, denoised, float(t), number)
        if select and (rows := select(state)) is not None:
            history = [(time, rows_of(denoised, rows)) for time, denoised in history]
            x = x[rows]
            state = replace(state, x=x, denoised=history[-1][1])
        yield state


def rows_of(denoised: Denoised, rows: Tensor) -> Denoised:
    """Return the beliefs about the texts ``rows`` (B,)."""
    share = denoised.variance_share
    return Denoised(denoised.x0[rows], denoised.logits[rows], None if share is None else share[rows])


def clamp(denoise: Denoise, embedding: Tensor) -> Denoise:
    """Move each predicted vector to its nearest row of ``embedding`` (V, D), in L2 (Diffusion-LM, section 4.3)."""

    def clamped(xt: Tensor, t: Tensor) -> Denoised:
        denoised = denoise(xt, t)
        return replace(denoised, x0=torch.nn.functional.embedding(nearest_rows(denoised.x0, embedding), embedding))

    return clamped


def nearest_rows(x: Tensor, embedding: Tensor) -> Tensor:
    """Return the index of the row of ``embedding`` (V, D) nearest to each vector of ``x`` (B, L, D), in L2."""
    return (x @ embedding.T - embedding.square().sum(-1) / 2).argmax(-1)


def given(denoise: Denoise, known: Tensor, x0: Tensor) -> Denoise:
    """Hold the positions ``known`` (B, L) at their clean vectors ``x0`` (B, L, D): told to the denoiser as noiseless."""

    def holding(xt: Tensor, t: Tensor) -> Denoised:
        levels = torch.where(known, 0, t if t.dim() == 2 else t[:, None])
        denoised = denoise(torch.where(known[..., None], x0, xt), levels)
        return replace(denoised, x0=torch.where(known[..., None], x0, denoised.x0))

    return holding
