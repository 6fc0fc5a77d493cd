"""From noise to words: the samplers, the one loop that runs them, and wrappers of a denoiser.

A denoiser is a function ``(x_t, t) -> Denoised``. Clamping, self-conditioning and given words are wrappers
of that same type, so no sampler knows they exist. A sampler is one function: the Gaussian of x_s given what was
denoised so far. All but one are a point on one family (with r = exp(gamma_s - gamma_t), fresh noise xi):

    x_s = alpha_s x0 + sigma_s ( sqrt(1 - w^2) eps + w xi )       eps = (x_t - alpha_t x0) / sigma_t

w = 0 is DDIM, w^2 = 1 - r DDPM's ancestral sampling, w = 1 fresh renoising. Shapes: x is (B, L, D), t is (B,).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy
import torch
from torch import Tensor

from diffusionlm.config import Component, UserError
from diffusionlm.core.process import Gaussian, GaussianDiffusion, alpha, over_coordinates, sigma

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


class Sampler(Component, family="sampler"):
    """Base of the samplers."""

    def transition(self, q: GaussianDiffusion, history: History, xt: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """Return the Gaussian of x_s; ``history`` has the past (t, Denoised), newest last, that at ``t`` included."""
        raise NotImplementedError


def renoised(q: GaussianDiffusion, x0: Tensor, xt: Tensor, t: Tensor, s: Tensor, w2: Tensor) -> Gaussian:
    """Return x_s of the family above with squared fresh-noise share ``w2`` (DDIM, Song et al. 2021, equation 12)."""
    gamma_s = q.schedule.gamma(s)
    deviation = sigma(gamma_s)
    kept = over_coordinates(deviation * torch.sqrt(1 - w2), xt) * q.eps_from_x0(x0, xt, t)
    return Gaussian(over_coordinates(alpha(gamma_s), xt) * x0 + kept, over_coordinates(deviation**2 * w2, xt))


@dataclass(frozen=True)
class DDPM(Sampler, name="ddpm"):
    """Ancestral sampling (Ho et al. 2020, algorithm 2).

    ``variance``: that of the posterior, ``upper`` (DDPM's beta), or ``learned`` (Improved DDPM, equation 15).
    """

    variance: Literal["posterior", "upper", "learned"] = "posterior"

    def transition(self, q: GaussianDiffusion, history: History, xt: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """Return p(x_s | x_t) with the predicted x_0 in place of the true one."""
        denoised = history[-1][1]
        return reverse_step(q, denoised, xt, t, s, self.variance)


def reverse_step(
    q: GaussianDiffusion, denoised: Denoised, xt: Tensor, t: Tensor, s: Tensor, variance: str = "posterior"
) -> Gaussian:
    """Return p(x_s | x_t): the posterior of the predicted x_0, with the variance asked for.

    Raises:
        UserError: learned variances asked of a model that has none.
    """
    posterior = q.posterior(denoised.x0, xt, t, s)
    if variance == "posterior":
        return posterior
    upper = over_coordinates(-torch.expm1(_log_alpha2(q, t) - _log_alpha2(q, s)), xt)
    if variance == "upper":
        return replace(posterior, variance=upper)
    if denoised.variance_share is None:
        raise UserError("sampler.variance: 'learned' needs a model that predicts variances; use 'posterior'")
    lower = posterior.variance.clamp(min=1e-20).log()
    return replace(
        posterior, variance=torch.lerp(lower.expand_as(xt), upper.log().expand_as(xt), denoised.variance_share).exp()
    )


def _log_alpha2(q: GaussianDiffusion, t: Tensor) -> Tensor:
    return torch.nn.functional.logsigmoid(-q.schedule.gamma(t))


@dataclass(frozen=True)
class DDIM(Sampler, name="ddim"):
    """Deterministic at ``eta`` 0, ancestral sampling at 1 (Song et al. 2021, equations 12 and 16)."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        """Check the noise share."""
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta: expected a number between 0 and 1, got {self.eta}")

    def transition(self, q: GaussianDiffusion, history: History, xt: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """Return the DDIM step."""
        fresh = -torch.expm1(q.schedule.gamma(s) - q.schedule.gamma(t))
        return renoised(q, history[-1][1].x0, xt, t, s, self.eta**2 * fresh)


@dataclass(frozen=True)
class Renoise(Sampler, name="renoise"):
    """Denoise fully, then noise afresh: w = 1, the multistep sampler of Song et al. 2023 (algorithm 1)."""

    def transition(self, q: GaussianDiffusion, history: History, xt: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """Return q(x_s | x_0) of the predicted x_0."""
        return renoised(q, history[-1][1].x0, xt, t, s, torch.ones_like(t))


@dataclass(frozen=True)
class DPMSolver(Sampler, name="dpm++2m"):
    """DPM-Solver++(2M): a second-order multistep solver of the probability flow (Lu et al. 2022, algorithm 2).

    Of first order (which is DDIM) at the first step and at the last, where the log signal-to-noise step is infinite.
    """

    def transition(self, q: GaussianDiffusion, history: History, xt: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """Return the solver's step; its variance is 0."""
        x0 = history[-1][1].x0
        if len(history) > 1 and bool((s > 0).all()):
            before, previous = history[-2]
            gamma_before, gamma_t, gamma_s = (q.schedule.gamma(time) for time in (before, t, s))
            ratio = over_coordinates((gamma_t - gamma_s) / (gamma_before - gamma_t) / 2, xt)
            x0 = (1 + ratio) * x0 - ratio * previous.x0
        return renoised(q, x0, xt, t, s, torch.zeros_like(t))


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
    q: GaussianDiffusion,
    x: Tensor,
    *,
    sampler: Sampler,
    steps: int,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
    steer: Callable[[Tensor, Tensor, Gaussian], Tensor] | None = None,
    select: Callable[[State], Tensor | None] | None = None,
) -> Iterator[State]:
    """Run the reverse process from noise ``x`` (B, L, D), one State a step, so that callers can watch, log or stop.

    ``noise`` draws standard normal values like a tensor; ``steer`` may move x_s at time s, drawn from a Gaussian, after each
    step but the last; ``select`` may name the rows (B,) that go on in place of all, for particles.

    Raises:
        UserError: more steps than the schedule tells apart, or fewer than one.
    """
    times = q.schedule.sampling_times(steps).to(x.device)
    history: list[tuple[Tensor, Denoised]] = []
    for number, (t, s) in enumerate(itertools.pairwise(times), 1):
        t_rows, s_rows = t.expand(len(x)), s.expand(len(x))
        history = [*history[-1:], (t_rows, denoise(x, t_rows))]
        step = sampler.transition(q, history, x, t_rows, s_rows)
        x = step.mean
        if s > 0:
            x = x + step.variance.sqrt() * noise(x)
            x = steer(x, s_rows, step) if steer else x
        state = State(x, history[-1][1], float(t), number)
        if select and (rows := select(state)) is not None:
            history = [(time, rows_of(denoised, rows)) for time, denoised in history]
            x = x[rows]
            state = replace(state, x=x, denoised=history[-1][1])
        yield state


def rows_of(denoised: Denoised, rows: Tensor) -> Denoised:
    """Return the beliefs about the texts ``rows`` (B,)."""
    share = denoised.variance_share
    return Denoised(denoised.x0[rows], denoised.logits[rows], None if share is None else share[rows])


def generator_of(seed: Sequence[int]) -> torch.Generator:
    """Return a generator on the CPU whose stream is that of a sequence of whole numbers, such as (seed, index)."""
    state = numpy.random.SeedSequence(list(seed)).generate_state(1, numpy.uint64)[0]
    return torch.Generator().manual_seed(int(state))


class RowNoise:
    """Standard normal noise in which every row depends on its own seed and length alone, not on the batch around it.

    Drawn on the CPU, so that a seed means the same noise on every device.
    """

    def __init__(self, seeds: Sequence[Sequence[int]], lengths: Sequence[int]) -> None:
        """Start a stream per row; a seed is a sequence of whole numbers such as (seed, index)."""
        self.generators = [generator_of(seed) for seed in seeds]
        self.lengths = list(lengths)

    def __call__(self, like: Tensor) -> Tensor:
        """Draw for ``like`` (B, L, D); positions beyond a row's length are 0."""
        drawn = torch.zeros(like.shape, dtype=torch.float32)
        for row, (generator, length) in enumerate(zip(self.generators, self.lengths, strict=True)):
            drawn[row, :length] = torch.randn(length, like.shape[-1], generator=generator)
        return drawn.to(like)


def clamp(denoise: Denoise, embedding: Tensor) -> Denoise:
    """Move each predicted vector to its nearest row of ``embedding`` (V, D), in L2 (Diffusion-LM, section 4.3)."""

    def clamped(xt: Tensor, t: Tensor) -> Denoised:
        denoised = denoise(xt, t)
        return replace(denoised, x0=torch.nn.functional.embedding(nearest_rows(denoised.x0, embedding), embedding))

    return clamped


def nearest_rows(x: Tensor, embedding: Tensor) -> Tensor:
    """Return the index of the row of ``embedding`` (V, D) nearest to each vector of ``x`` (B, L, D), in L2."""
    return (x @ embedding.T - embedding.square().sum(-1) / 2).argmax(-1)


def apply_temperature(denoised: Denoised, embedding: Tensor, temperature: float) -> Denoised:
    """Sharpen (below 1) or flatten the token posterior, and take x_0 as its mean over ``embedding`` (V, D)."""
    logits = denoised.logits / temperature
    return replace(denoised, x0=logits.softmax(-1) @ embedding.to(logits), logits=logits)


def blockwise_icm(
    words: Tensor,
    free: Tensor,
    posterior: Callable[[Tensor, Tensor], Tensor],
    *,
    sweeps: int,
    odds: float,
    apart: int = 11,
    allowed: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Ask again for the ``free`` words of ``words`` (B, L), a few far ``apart`` at a time, given all the others.

    A word gives way where ``posterior`` (words, hidden (B, L) -> logits (B, L, V)) holds another ``odds`` times likelier: the
    iterated conditional modes of Besag (1986) with a margin, which leaves free choices as they were drawn. ``allowed`` tells
    (B,) which texts may be; a text stays as it is where it would not be one.
    """
    place = torch.arange(words.shape[1], device=words.device)
    for first in list(range(apart)) * sweeps:
        hidden = free & (place % apart == first)
        logits = posterior(words, hidden)
        best, viterbi = logits.max(-1)
        held = logits.gather(-1, words[..., None])[..., 0]
        better = torch.where(hidden & (best - held > math.log(odds)), viterbi, words)
        words = better if allowed is None else torch.where(allowed(better)[:, None], better, words)
    return words


def parallel_icm(
    words: Tensor,
    free: Tensor,
    cloze: Callable[[Tensor], Tensor],
    *,
    rounds: int,
    odds: float,
    near: int = 5,
    allowed: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Change the ``free`` words of ``words`` (B, L) that the others contradict most, until none is left or ``rounds`` are over.

    ``cloze`` (words -> logits (B, L, V)) tells each word from all the others. A word gives way as in ``blockwise_icm``,
    where no word within ``near`` positions has more to gain: what is wrong there may be the other. Each
    round looks twice as far as the
    last, or two that contradict each other from afar would both give way, and again both. Where all that give way would
    not be ``allowed`` together, the one with the most to gain does alone.
    """
    for turn in range(rounds):
        logits = cloze(words)
        best, viterbi = logits.max(-1)
        gain = torch.where(free & best.isfinite(), best - logits.gather(-1, words[..., None])[..., 0], 0)
        reach = min(near * 2**turn, words.shape[1])
        most = torch.nn.functional.max_pool1d(gain[:, None], 2 * reach + 1, 1, reach)[:, 0]
        wrong = (gain > math.log(odds)) & (gain == most)
        if not wrong.any():
            break
        changed = torch.where(wrong, viterbi, words)
        if allowed is not None:
            first = torch.nn.functional.one_hot(gain.argmax(-1), words.shape[1]).bool() & wrong
            changed = torch.where(allowed(changed)[:, None], changed, torch.where(first, viterbi, words))
        words = changed
    return words


def given(denoise: Denoise, known: Tensor, x0: Tensor) -> Denoise:
    """Hold the positions ``known`` (B, L) at their clean vectors ``x0`` (B, L, D): told to the denoiser as noiseless."""

    def holding(xt: Tensor, t: Tensor) -> Denoised:
        levels = torch.where(known, 0, t if t.dim() == 2 else t[:, None])
        denoised = denoise(torch.where(known[..., None], x0, xt), levels)
        return replace(denoised, x0=torch.where(known[..., None], x0, denoised.x0))

    return holding


def pin_logits(logits: Tensor, known: Tensor, ids: Tensor) -> Tensor:
    """Return ``logits`` (B, L, V) that are certain of ``ids`` (B, L) where these are ``known`` (B, L)."""
    certain = torch.full_like(logits, -math.inf).scatter(-1, ids[..., None], 0.0)
    return torch.where(known[..., None], certain, logits)
