"""The likelihood bound (ELBO): an upper bound of -log p(text) in nats, by Monte Carlo, with its standard error.

The joint bound goes from noise, gamma = high, to the level where words are decoded, gamma = low (Kingma et al. 2021,
equations 11 and 15; gamma is minus the log signal-to-noise ratio, so e^-gamma is that ratio):

    -log p(w) <= KL(q(x_high | w) || N(0, I))                                          prior
               + E[-sum log p(w_i | x_low)]                                            reconstruction
               + 1/2 int_low^high e^-gamma E||x_0 - x0(x_gamma, gamma)||^2 dgamma      diffusion
               - log p(length)                                                         length

It holds for any function x0(x_gamma, gamma), so also for one that denoises the same x_gamma twice (self-conditioning), and for
any low < high; a learned schedule's are its ``end`` and ``high``, and else it changes only the variance of the estimate. x_0 =
E_w exactly, so the lower end has no further term. With explicit length, BOS and EOS are given and have no loss, and the length
term accounts for EOS; where PAD is a word like others its positions count and account for the length. The paper's recipe has a
bound of T steps, with noise on x_0 (Li et al. 2022, equation 2): ``regression.bound_term``. A model's condition is given to
each evaluation, and the bound is that of -log p(w | condition).

The any-order bound denoises one word at a time, in a random order: each goes from noise to clean in one step, given the clean
words before it in that order and noise in place of those after it. With K random orders

    -log p(w) <= E[-log 1/K sum over orders prod_i p(w_i | the words before it, noise)] - log p(length)

since each product sums to one over texts, and so does their mean (Uria et al. 2014, *A Deep and Tractable Density Estimator*,
section 4; the bound is Burda et al. 2016, equation 8). More orders make it tighter, down to the likelihood of the mixture over
orders. K = 1 is the bound of masked diffusion (``masked_bound``), with noise in place of the mask.

A text longer than a row, of a model that was trained with context, has the sum of the bounds of its pieces, each given the
words before it (``data.pieces``), and one length term.

Tokens are a text's words and its EOS, never BOS or PAD. Shapes: L positions, D dimension, V words, K draws of gamma.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from diffusionlm.config import UserError
from diffusionlm.core.model import MAX_GAMMA
from diffusionlm.core.objective import collate, lowest_deviation
from diffusionlm.core.process import Gaussian, alpha, over_coordinates, sigma
from diffusionlm.core.sampler import Denoise, Denoised, given
from diffusionlm.core.schedule import StepSchedule
from diffusionlm.data.batches import boundaries
from diffusionlm.evaluation.pieces import given_words, over_pieces
from diffusionlm.models.conditions import Conditioning
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.models.pieces import context_of, long_length_nats
from diffusionlm.pipelines.conditioning import conditioning, expected_counts, repeated, room_of
from diffusionlm.pipelines.memory import rows_at_once
from diffusionlm.processes import leads, shared
from diffusionlm.recipe.gumbel import Gumbel
from diffusionlm.recipe.regression import bound_term, kl, prior_kl

LEAST_GAMMA = -4.0  # lower end for schedules without one of their own: the noise is a seventh of the signal
DenoiseLevel = Callable[[Tensor, Tensor], Denoised]  # as ``Denoise``, of gamma in place of the time
MOST_STRATA, MOST_ORDERS = 100_000, 10_000  # of a text: more take hours or all memory, and show no smaller deviation
UNIFORM_SHARE = 0.2  # of the proposal, so that no noise level's weight is large


@dataclass(frozen=True)
class Bound:
    """The bound of one text: four terms in nats, and the Monte Carlo ``deviation`` of their sum.

    ``tokens`` counts its words and EOS, ``unknown`` those that are [UNK] (the bound covers that a word is unknown, not which
    one it is), ``characters`` those of the text, 0 without it. ``exact``: the likelihood itself, no bound. ``evaluations`` of
    the denoiser are counted where a solver chooses them.
    """

    prior: float = 0.0
    reconstruction: float = 0.0
    diffusion: float = 0.0
    length: float = 0.0
    deviation: float = 0.0
    tokens: int = 0
    characters: int = 0
    unknown: int = 0
    exact: bool = False
    evaluations: int = 0

    @property
    def nats(self) -> float:
        """Return the bound of -log p(text), or its value."""
        return self.prior + self.reconstruction + self.diffusion + self.length

    @classmethod
    def restored(cls, plain: dict[str, Any]) -> Bound:
        """Return a bound from the JSON values of its fields."""
        return cls(**plain)


@dataclass(frozen=True)
class Proposal:
    """A piecewise constant density of noise levels: ``mass`` (K,) between neighbouring ``edges`` (K + 1,)."""

    edges: Tensor
    mass: Tensor

    @classmethod
    def between(cls, low: float, high: float, location: float | None = None, scale: float = 1.0, bins: int = 512) -> Proposal:
        """Return the Gumbel density at ``location`` mixed with the uniform one, or the uniform one alone."""
        edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
        mass = torch.full((bins,), 1 / bins, dtype=torch.float64)
        if location is not None:
            curve = torch.exp(-torch.exp(-(edges - location) / scale)).diff() + 1e-12
            mass = UNIFORM_SHARE * mass + (1 - UNIFORM_SHARE) * curve / curve.sum()
        return cls(edges, mass)

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Map uniform draws (K,) to levels and bins, both (K,)."""
        cumulative = self.mass.cumsum(0)
        index = torch.searchsorted(cumulative, u * cumulative[-1], right=True).clamp(max=len(self.mass) - 1)
        inside = ((u * cumulative[-1] - cumulative[index]) / self.mass[index] + 1).clamp(0, 1)
        return torch.lerp(self.edges[index], self.edges[index + 1], inside), index


@torch.no_grad()
def continuous_terms(
    denoise: DenoiseLevel, x0: Tensor, ids: Tensor, free: Tensor, proposal: Proposal,
    *, strata: int = 128, seed: Sequence[int] = (0,), batch_size: int = 64,
) -> Bound:  # fmt: skip
    """Estimate the terms of one text in continuous time, all but that of the length.

    ``denoise`` maps noisy vectors (B, L, D) and levels gamma (B,) to predictions; any function gives a bound. The words
    ``ids`` (L,) have the vectors ``x0`` (L, D); only the positions ``free`` (L,) are modelled, the others are given.
    ``proposal`` is the density of the noise levels: there is one in each of ``strata`` parts of equal probability, and an
    eighth as many of the lowest.
    """
    draw = numpy.random.default_rng(list(seed))
    lowest = max(2, strata // 8)
    u = torch.from_numpy((numpy.arange(strata) + draw.random(strata)) / strata)
    levels, index = proposal.draw(u)
    weight = (proposal.edges.diff() / proposal.mass)[index]
    gamma = torch.cat([proposal.edges[:1].expand(lowest), levels])
    errors, surprises = [], []
    for part in gamma.split(batch_size):
        noise = torch.from_numpy(draw.standard_normal((len(part), *x0.shape), dtype=numpy.float32)).to(x0)
        level = part.to(x0.device)
        xt = over_coordinates(alpha(level), noise) * x0 + over_coordinates(sigma(level), noise) * noise
        predicted = denoise(xt, level)
        squares = (predicted.x0 - x0).double().square().sum(-1)
        errors.append(torch.where(free, squares, 0).sum(1).cpu())
        surprise = F.cross_entropy(predicted.logits.transpose(1, 2), ids.expand(len(part), -1), reduction="none")
        surprises.append(torch.where(free, surprise, 0).double().sum(1).cpu())
    diffusion = 0.5 * torch.exp(-levels) * torch.cat(errors)[lowest:] * weight
    return _terms(standard_kl(x0[free].double(), proposal.edges[-1]), torch.cat(surprises)[:lowest], diffusion)


@torch.no_grad()
def any_order_terms(
    losses: Callable[[Tensor], Tensor], free: Tensor, draw: numpy.random.Generator, *, orders: int, batch_size: int
) -> Bound:
    """Estimate the any-order bound of one text with ``free`` words (L,), over ``orders`` random orders.

    ``losses`` maps hidden words (K, L), bool, to -log p of each (K, L), given the others.
    """
    words = free.nonzero()[:, 0]
    place = torch.full((orders, len(free)), -1, device=free.device)  # in the order; given positions come first
    for row in place:
        row[words] = torch.from_numpy(draw.permutation(len(words))).to(free.device)
    step = torch.arange(len(words), device=free.device)[:, None]
    hidden, next_one = (place[:, None] >= step).flatten(0, 1), (place[:, None] == step).flatten(0, 1)
    found = torch.cat([losses(part) for part in hidden.split(batch_size)])
    nats = torch.where(next_one, found, 0).double().sum(1).view(orders, -1).sum(1).cpu()
    # Jackknife: the delta method gives at most 1 nat where one order dominates, however far apart the orders are.
    without = torch.stack([(-torch.cat([nats[:i], nats[i + 1 :]])).logsumexp(0) for i in range(orders)])
    return Bound(
        diffusion=float(math.log(orders) - (-nats).logsumexp(0)),
        deviation=math.sqrt(float((without - without.mean()).square().sum()) * (orders - 1) / orders),
    )


def _terms(prior: Tensor, reconstruction: Tensor, diffusion: Tensor) -> Bound:
    """Average a text's draws of the lowest level and those of the strata, each in nats of the text."""
    return Bound(
        prior=float(prior),
        reconstruction=float(reconstruction.mean()),
        diffusion=float(diffusion.mean()),
        deviation=math.sqrt(float(reconstruction.var()) / len(reconstruction) + stratified_variance(diffusion)),
    )


def standard_kl(x0: Tensor, gamma: Tensor) -> Tensor:
    """Return KL(q(x_gamma | x_0) || N(0, I)) in nats, over all coordinates of ``x0``."""
    gamma = gamma.to(x0)
    noisy = Gaussian(alpha(gamma) * x0, (sigma(gamma) ** 2).expand_as(x0))
    return kl(noisy, Gaussian(torch.zeros_like(x0), torch.ones_like(x0))).sum()


def stratified_variance(values: Tensor) -> float:
    """Return the variance of the mean of ``values`` (K,), one from each stratum, from neighbours' differences.

    Neighbouring strata also differ in mean, so this overestimates (Cochran 1977, section 5A.12).
    """
    return float(values.diff().square().sum()) / (2 * (len(values) - 1) * len(values))


def bound(
    model: DiffusionLM, rows: Sequence[Sequence[int]], texts: Sequence[str] | None = None,
    *, strata: int = 128, orders: int = 0, seed: int = 0, batch_size: int = 64,
    temperature: float = 1.0, dtype: torch.dtype = torch.float32, conditions: Sequence[Any] | None = None,
    first: int = 0,
) -> Iterator[Bound]:  # fmt: skip
    """Yield the bound of each text, ``rows`` of token ids with BOS and EOS; ``texts`` give the number of characters.

    It is that of -log p(text | condition) where ``conditions`` are the encoded values of the model's condition, one for each.

    A text's draws depend on ``seed`` and its number alone. Without ``orders`` it is the joint bound, with them the any-order
    bound. ``dtype`` is that of the network's arithmetic. At most ``batch_size`` draws of a text are evaluated at once, fewer
    where their logits do not fit in memory. Texts before number ``first`` are left out.

    Raises:
        UserError: a row is longer than the model's maximum; too few strata or orders; a temperature or orders without logits.
    """
    check_draws(strata, orders)
    for name, value, without in (("orders", orders, 0), ("temperature", temperature, 1)):
        if value != without and not model.has_logits:
            raise UserError(f"{name}: this model predicts {model.settings.prediction}, not logits; leave it at {without}")
    explicit, pad = model.explicit_length, model.config.special_ids["pad"]

    def of(number: int) -> Bound:
        row = rows[number]
        condition = None if conditions is None else conditioning(model, [conditions[number]], dtype)
        longest = room_of(model, condition)

        def terms_of(piece: Sequence[int], *seeds: int) -> Bound:
            ids = collate([piece], pad, None if explicit and len(piece) <= longest else longest)["ids"].to(model.device)
            size = min(batch_size, rows_at_once(ids.shape[1], model))
            draws: dict[str, Any] = {"strata": strata, "seed": seeds, "batch_size": size}
            if not model.has_logits:
                return discrete_time_terms(model, ids, dtype=dtype, condition=condition, **draws)
            denoise, known = denoiser(model, ids, temperature, dtype, condition)
            known, x0 = known | given_words(piece, known), model.encode(ids)[0]
            if not orders:
                level = at_levels(model, denoise, known, x0)
                return continuous_terms(level, x0, ids[0], ~known, proposal_for(model), **draws)
            draw = numpy.random.default_rng(list(seeds))
            losses = hidden_token_losses(denoise, x0, ids[0], draw)
            return any_order_terms(losses, ~known, draw, orders=orders, batch_size=size)

        terms = over_pieces(model, row, lambda piece, *place: terms_of(piece, seed, number, *place))
        return completed(terms, model, row, texts[number] if texts else "", explicit, condition)

    yield from shared(range(first, len(rows)), of, Bound.restored)


def in_batches(count: int, size: int, of: Callable[[int], list[Bound]], first: int) -> Iterator[Bound]:
    """Yield the likelihoods of ``count`` texts from number ``first`` on; ``of(n)`` are those of ``size`` texts from n on."""
    starts = range(first - first % size, count, size)
    for start, bounds in zip(starts, shared(starts, of, lambda plain: [*map(Bound.restored, plain)]), strict=leads()):
        yield from bounds[max(0, first - start) :]


def check_draws(strata: int, orders: int, flow: int = 0) -> None:
    """Check the number of draws per text. Raises UserError where there are too few for a standard error, or too many."""
    if strata < 2:
        raise UserError(f"strata: expected 2 or more, got {strata}")
    if orders < 0 or orders == 1:
        raise UserError(f"orders: expected 0 (the joint bound) or 2 or more, got {orders}")
    if flow < 0 or flow == 1:
        raise UserError(f"flow: expected 0 (the joint bound) or 2 or more, got {flow}")
    for name, value, most in (("strata", strata, MOST_STRATA), ("orders", orders, MOST_ORDERS), ("flow", flow, MOST_ORDERS)):
        if value > most:
            raise UserError(f"{name}: expected at most {most}, got {value}")


def proposal_for(model: DiffusionLM) -> Proposal:
    """Return the density of noise levels for the bound of a model with logits, from its learned schedule if it has one.

    The learned density is shifted by one scale toward less noise, which halves the deviation of the estimate: a text is
    determined at lower noise than its single words, to which the schedule is fitted.
    """
    schedule = model.settings.schedule
    if isinstance(schedule, Gumbel):
        return Proposal.between(schedule.end, schedule.high, schedule.location - schedule.scale, schedule.scale)
    first = 1 / schedule.T if isinstance(schedule, StepSchedule) else 0
    low, high = schedule.gamma(torch.tensor([first, 1.0])).tolist()
    return Proposal.between(max(low, LEAST_GAMMA), min(high, MAX_GAMMA))


def denoiser(
    model: DiffusionLM, ids: Tensor, temperature: float = 1.0, dtype: torch.dtype = torch.float32,
    condition: Conditioning | None = None,
) -> tuple[Denoise, Tensor]:  # fmt: skip
    """Return the denoiser of a text ``ids`` (1, L), and the positions (L,) that are given and have no loss."""
    E, special, explicit = model.word_vectors(), model.config.special_ids, model.explicit_length
    barred = torch.zeros(len(E), device=ids.device)
    known = torch.zeros_like(ids, dtype=torch.bool)
    if explicit:
        known = boundaries(torch.ones_like(known), special)[0]
        barred[[special[name] for name in ("pad", "start", "end") if model.barred(special[name])]] = -math.inf

    def twice(xt: Tensor, t: Tensor) -> Denoised:
        xt = model.process.rescale(xt, t)
        with torch.autocast(xt.device.type, dtype, enabled=dtype != torch.float32):
            each = repeated(condition, len(xt))
            estimate = model(xt, t, condition=each).x0 if model.self_conditions else None
            logits = model.token_logits(xt, t, None, estimate, None, each)
        logits = (logits + barred) / temperature
        return Denoised(logits.softmax(-1) @ E, logits)

    return twice, known[0]


def hidden_token_losses(
    denoise: DenoiseLevel, x0: Tensor, ids: Tensor, draw: numpy.random.Generator
) -> Callable[[Tensor], Tensor]:
    """Return the function from hidden words (K, L) of a text ``ids`` (L,), ``x0`` (L, D), to -log p of each word (K, L).

    The other words are clean; the hidden ones are replaced by fresh noise.
    """

    def losses(hidden: Tensor) -> Tensor:
        noise = torch.from_numpy(draw.standard_normal((len(hidden), *x0.shape), dtype=numpy.float32)).to(x0)
        predicted = given(denoise, ~hidden, x0)(noise, torch.ones(len(hidden), device=x0.device))
        return F.cross_entropy(predicted.logits.transpose(1, 2), ids.expand(len(hidden), -1), reduction="none")

    return losses


def at_levels(model: DiffusionLM, denoise: Denoise, known: Tensor, x0: Tensor) -> DenoiseLevel:
    """Return ``denoise`` as a function of x_gamma and gamma, with the ``known`` positions (L,) clamped to ``x0`` (L, D)."""
    held = given(denoise, known, x0) if bool(known.any()) else denoise
    return lambda xt, gamma: held(xt, model.settings.schedule.time(gamma))


@torch.no_grad()
def discrete_time_terms(
    model: DiffusionLM, ids: Tensor,
    *, strata: int = 128, seed: Sequence[int] = (0,), batch_size: int = 64, dtype: torch.dtype = torch.float32,
    condition: Conditioning | None = None,
) -> Bound:  # fmt: skip
    """Estimate the bound of T steps of one text ``ids`` (1, L), over all positions, as the paper's objective."""
    q, schedule = model.process, model.settings.schedule
    if not isinstance(schedule, StepSchedule):
        raise UserError(f"schedule: the bound of a model without logits needs steps, got {schedule.name!r}")
    draw = numpy.random.default_rng(list(seed))
    lowest, words = max(2, strata // 8), model.encode(ids)
    steps, weight = _steps(schedule, torch.from_numpy((numpy.arange(strata) + draw.random(strata)) / strata))
    steps = torch.cat([torch.ones(lowest), steps]).double()
    variance = "learned" if model.settings.learned_variance else "posterior"
    nats = []
    for part in (steps / schedule.T).split(batch_size):
        t, embedded = part.to(ids.device), words.expand(len(part), -1, -1)
        shape = (len(part), 2, *words.shape[1:])
        first, second = torch.from_numpy(draw.standard_normal(shape, dtype=numpy.float32)).to(words).unbind(1)
        x0 = embedded + lowest_deviation(q, schedule.T) * first
        xt = q.noise(x0, t, second)
        with torch.autocast(ids.device.type, dtype, enabled=dtype != torch.float32):
            denoised = model(xt, t, condition=repeated(condition, len(xt)))
        term = bound_term(q, schedule.T, denoised, embedded, x0, xt, t, ids.expand(len(part), -1), variance, model)
        nats.append(term.double().sum(1).cpu() * words.shape[-1])
    prior = prior_kl(q, schedule.T, words).double().sum() * words.shape[-1]
    return _terms(prior, torch.cat(nats)[:lowest], torch.cat(nats)[lowest:] * weight)


def _steps(schedule: StepSchedule, u: Tensor) -> tuple[Tensor, Tensor]:
    """Map uniform draws to steps 2 ... T, mostly uniform in gamma, and to the inverses of their probabilities."""
    T = schedule.T
    gamma = schedule.gamma(torch.arange(1, T + 1, dtype=torch.float64) / T)
    width = gamma.clamp(max=9.0).diff()  # beyond it lie only a few thousandths of a nat
    mass = UNIFORM_SHARE / (T - 1) + (1 - UNIFORM_SHARE) * width / width.sum()
    index = Proposal(gamma, mass).draw(u)[1]
    return index + 2, 1 / mass[index]


def length_nats(model: PreTrainedModel, tokens: int, condition: Conditioning | None = None) -> float:
    """Return -log p(length) of a row of ``tokens``, BOS and EOS counted, with add-one smoothing.

    The counts are those of the training texts, or those that the model expects for a ``condition`` that predicts lengths. Of a
    model that was trained with context they include texts longer than a row.
    """
    if context_of(model):
        return long_length_nats(model, tokens)
    expected = expected_counts(model, condition)
    counts = model.config.length_counts if expected is None else expected[0]
    seen = counts[tokens] if tokens < len(counts) else 0
    return -math.log((seen + 1) / (sum(counts) + model.config.max_tokens - 2))


def completed(
    terms: Bound, model: PreTrainedModel, row: Sequence[int], text: str, explicit_length: bool = True,
    condition: Conditioning | None = None,
) -> Bound:  # fmt: skip
    """Return ``terms`` with the length term, where there is one, and the counts of a row of ids with BOS and EOS."""
    length = length_nats(model, len(row), condition) if explicit_length else 0.0
    unknown = sum(i == model.config.special_ids.get("unk") for i in row[1:-1])
    return replace(terms, length=length, tokens=len(row) - 1, characters=len(text), unknown=unknown)
