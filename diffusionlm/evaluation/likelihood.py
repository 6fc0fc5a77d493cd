"""An honest likelihood: an upper bound of -log p(text), in nats, by Monte Carlo, with its standard error.

Going from noise, gamma = high, to the level where words are read off, gamma = low (Kingma et al. 2021, equations 11 and
15; gamma is minus the log signal-to-noise ratio, so e^-gamma is the ratio and its change is what a level costs):

    -log p(w) <= KL(q(x_high | w) || N(0, I))                                          prior
               + E[-sum log p(w_i | x_low)]                                            reconstruction
               + 1/2 int_low^high e^-gamma E||x_0 - x0(x_gamma, gamma)||^2 dgamma      diffusion
               - log p(length)                                                         length

It holds for any function x0(x_gamma, gamma), so also for one that denoises the same x_gamma twice (self-conditioning), and
for any low < high; the schedule changes only the variance of the estimate. x_0 = E_w is exact, so nothing is lost at the
lower end. Where START and END are given (explicit length) they cost nothing here, and the length's term pays for END; where PAD
is a word like others its positions' nats are the text's, and pay for the length. The recipe of the paper has a bound
of T steps, with noise of its own on x_0 (Li et al. 2022, equation 2): ``objective.bound_term``.

All words of a text need not share one level. Another way from noise to text takes them in turn: in a random order, each from
noise to clean at once, given those before it in that order, clean, and noise in place of those after it. With K orders drawn

    -log p(w) <= E[-log 1/K sum over orders prod_i p(w_i | the words before it, noise)] - log p(length)

since each product sums to one over texts, and so does their mean (Uria et al. 2014, *A Deep and Tractable Density Estimator*,
section 4, mix orders so; the bound is Burda et al. 2016, equation 8). More orders make it tighter, down to the likelihood of a
writer that draws its order. K = 1 is the bound of masked diffusion (``masked_bound``), with noise for a mask.

Counted are a text's words and its END, never START or PAD. Shapes: L positions, D dimension, V words, K draws of gamma.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.recipe.gumbel import Gumbel
from diffusionlm.recipe.regression import bound_term, prior_kl

LEAST_GAMMA = -4.0  # where a schedule does not say when words are decided: the noise is then a seventh of the signal
UNIFORM_SHARE = 0.2  # of the proposal, so that no noise level's weight is large


@dataclass(frozen=True)
class Bound:
    """The bound of one text: four terms in nats, and the Monte Carlo ``deviation`` of their sum.

    ``tokens`` are its words and END, of which ``unknown`` are [UNK] (that a word is unknown is paid for, not which one
    it is); ``characters`` are those of the text, 0 where it was not given. ``exact``: the likelihood itself, no bound.
    """

    prior: float
    reconstruction: float
    diffusion: float
    length: float
    deviation: float
    tokens: int
    characters: int
    unknown: int
    exact: bool = False

    @property
    def nats(self) -> float:
        """Return the bound of -log p(text), or its value."""
        return self.prior + self.reconstruction + self.diffusion + self.length


@dataclass(frozen=True)
class Proposal:
    """A density of noise levels that is constant between neighbouring ``edges`` (K + 1,) and has ``mass`` (K,) there."""

    edges: Tensor
    mass: Tensor

    @classmethod
    def between(cls, low: float, high: float, location: float | None = None, scale: float = 1.0, bins: int = 512) -> Proposal:
        """Return the Gumbel density at ``location`` mixed with the uniform one; without a location the latter alone."""
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


@dataclass(frozen=True)
class Terms:
    """The terms of one text that depend on the noise, in nats, and the deviation of their estimate."""

    prior: float
    reconstruction: float
    diffusion: float
    deviation: float


@torch.no_grad()
def continuous_terms(
    denoise: Denoise,
    x0: Tensor,
    ids: Tensor,
    free: Tensor,
    proposal: Proposal,
    *,
    strata: int = 128,
    seed: Sequence[int] = (0,),
    batch_size: int = 64,
) -> Terms:
    """Estimate the bound of one text in continuous time.

    Args:
        denoise: noisy vectors (B, L, D) and levels gamma (B,) to beliefs; any function gives a bound.
        x0: the words' vectors, (L, D).
        ids: the words, (L,).
        free: which positions are modelled, (L,) bool; the others are given.
        proposal: where noise levels are drawn from, and their range.
        strata: noise levels, one in each of as many equally likely parts; and an eighth as many draws of the lowest.
        seed: of the draws.
        batch_size: noisy copies of the text that are denoised together.
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
        believed = denoise(xt, level)
        squares = (believed.x0 - x0).double().square().sum(-1)
        errors.append(torch.where(free, squares, 0).sum(1).cpu())
        surprise = F.cross_entropy(believed.logits.transpose(1, 2), ids.expand(len(part), -1), reduction="none")
        surprises.append(torch.where(free, surprise, 0).double().sum(1).cpu())
    diffusion = 0.5 * torch.exp(-levels) * torch.cat(errors)[lowest:] * weight
    return _terms(standard_kl(x0[free].double(), proposal.edges[-1]), torch.cat(surprises)[:lowest], diffusion)


@torch.no_grad()
def any_order_terms(
    losses: Callable[[Tensor], Tensor], free: Tensor, draw: numpy.random.Generator, *, orders: int, batch_size: int
) -> Terms:
    """Estimate the bound of one text whose ``free`` words (L,) are taken in turn, in as many random ``orders``.

    ``losses`` maps which words are hidden, (K, L) bool, to -log p of each (K, L), given the others.
    """
    words = free.nonzero()[:, 0]
    place = torch.full((orders, len(free)), -1, device=free.device)  # in its order; what is given comes before all
    for row in place:
        row[words] = torch.from_numpy(draw.permutation(len(words))).to(free.device)
    step = torch.arange(len(words), device=free.device)[:, None]
    hidden, next_one = (place[:, None] >= step).flatten(0, 1), (place[:, None] == step).flatten(0, 1)
    found = torch.cat([losses(part) for part in hidden.split(batch_size)])
    nats = torch.where(next_one, found, 0).double().sum(1).view(orders, -1).sum(1).cpu()
    # The jackknife: the delta method says at most 1 nat, however far apart the orders are, where one of them dominates.
    without = torch.stack([(-torch.cat([nats[:i], nats[i + 1 :]])).logsumexp(0) for i in range(orders)])
    return Terms(
        prior=0.0,
        reconstruction=0.0,
        diffusion=float(math.log(orders) - (-nats).logsumexp(0)),
        deviation=math.sqrt(float((without - without.mean()).square().sum()) * (orders - 1) / orders),
    )


def _terms(prior: Tensor, reconstruction: Tensor, diffusion: Tensor) -> Terms:
    """Average a text's draws of the lowest level and those of the strata, each in nats of the whole text."""
    return Terms(
        prior=float(prior),
        reconstruction=float(reconstruction.mean()),
        diffusion=float(diffusion.mean()),
        deviation=math.sqrt(float(reconstruction.var()) / len(reconstruction) + stratified_variance(diffusion)),
    )


def standard_kl(x0: Tensor, gamma: Tensor) -> Tensor:
    """Return KL(q(x_gamma | x_0) || N(0, I)) in nats, over all coordinates of ``x0``."""
    gamma = gamma.to(x0)
    noisy = Gaussian(alpha(gamma) * x0, (sigma(gamma) ** 2).expand_as(x0))
    return noisy.kl(Gaussian(torch.zeros_like(x0), torch.ones_like(x0))).sum()


def stratified_variance(values: Tensor) -> float:
    """Return the variance of the mean of ``values`` (K,), one from each stratum, from neighbours' differences.

    Neighbouring strata differ in mean as well, so this errs on the large side (Cochran 1977, section 5A.12).
    """
    return float(values.diff().square().sum()) / (2 * (len(values) - 1) * len(values))


def bound(
    model: DiffusionLM,
    rows: Sequence[Sequence[int]],
    texts: Sequence[str] | None = None,
    *,
    strata: int = 128,
    orders: int = 0,
    seed: int = 0,
    batch_size: int = 64,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Bound]:
    """Yield the bound of each text, ``rows`` of token ids with START and END; ``texts`` are read for their characters.

    A text's draws depend on ``seed`` and its number alone. Its words leave the noise together, or in turn, in as many random
    ``orders``. ``dtype`` is that of the network's arithmetic.

    Raises:
        UserError: a row is longer than the model reads; too few strata or orders; a temperature or orders without logits.
    """
    check_draws(strata, orders)
    if orders and not has_any_order_bound(model):
        raise UserError(f"orders: this model predicts {model.settings.prediction}, not logits; leave it at 0")
    if temperature != 1 and model.settings.prediction != "logits":
        raise UserError(f"temperature: this model predicts {model.settings.prediction}, not logits; leave it at 1")
    explicit, longest, special = model.settings.explicit_length, model.config.max_tokens, model.config.special_ids
    for number, row in enumerate(rows):
        ids = collate([row], special["pad"], None if explicit and len(row) <= longest else longest)["ids"].to(model.device)
        draws: dict[str, Any] = {"strata": strata, "seed": (seed, number), "batch_size": batch_size}
        if model.settings.prediction == "logits":
            denoise, known = denoiser(model, ids, temperature, dtype)
            x0 = model.encode(ids)[0]
            if orders:
                draw = numpy.random.default_rng([seed, number])
                losses = hidden_token_losses(denoise, x0, ids[0], draw)
                terms = any_order_terms(losses, ~known, draw, orders=orders, batch_size=batch_size)
            else:
                at_level = at_levels(model, denoise, known, x0)
                terms = continuous_terms(at_level, x0, ids[0], ~known, proposal_for(model), **draws)
        else:
            terms = discrete_terms(model, ids, dtype=dtype, **draws)
        yield Bound(
            **vars(terms),
            length=length_nats(model, len(row)) if explicit else 0.0,
            **counted(model, row, None if texts is None else texts[number]),
        )


def check_draws(strata: int, orders: int) -> None:
    """Check how often a text is looked at. Raises UserError where that says nothing of its error."""
    if strata < 2:
        raise UserError(f"strata: expected 2 or more, got {strata}")
    if orders < 0 or orders == 1:
        raise UserError(f"orders: expected 0 (words leave the noise together) or 2 or more, got {orders}")


def has_any_order_bound(model: PreTrainedModel) -> bool:
    """Tell whether words of ``model`` can leave the noise, or a mask, in turn: it predicts words, in any order."""
    settings = getattr(model, "settings", None)
    return settings is not None and getattr(settings, "prediction", "logits") == "logits"


def proposal_for(model: DiffusionLM) -> Proposal:
    """Return the noise levels that a logits model is scored at: those it is sampled at, where it learned them.

    A text as a whole is decided at lower noise than its words one by one, to which the learned schedule is fitted: its
    density moved by one scale has half the deviation of the estimate that it has in its own place.
    """
    schedule = model.settings.schedule
    if isinstance(schedule, Gumbel):
        return Proposal.between(schedule.end, schedule.high, schedule.location - schedule.scale, schedule.scale)
    first = 1 / schedule.T if isinstance(schedule, StepSchedule) else 0
    low, high = schedule.gamma(torch.tensor([first, 1.0])).tolist()
    return Proposal.between(max(low, LEAST_GAMMA), min(high, MAX_GAMMA))


def denoiser(
    model: DiffusionLM, ids: Tensor, temperature: float = 1.0, dtype: torch.dtype = torch.float32
) -> tuple[Denoise, Tensor]:
    """Return the denoiser of a text ``ids`` (1, L) and which of its positions (L,) are known and cost nothing."""
    E, special, explicit = model.word_vectors(), model.config.special_ids, model.settings.explicit_length
    barred = torch.zeros(len(E), device=ids.device)
    known = torch.zeros_like(ids, dtype=torch.bool)
    if explicit:
        known = boundaries(torch.ones_like(known), special)[0]
        barred[[special[name] for name in ("pad", "start", "end")]] = -math.inf

    def twice(xt: Tensor, t: Tensor) -> Denoised:
        with torch.autocast(xt.device.type, dtype, enabled=dtype != torch.float32):
            estimate = model(xt, t).x0 if model.settings.self_conditioning else None
            logits = model.token_logits(xt, t, None, estimate)
        logits = (logits + barred) / temperature
        return Denoised(logits.softmax(-1) @ E, logits)

    return twice, known[0]


def hidden_token_losses(denoise: Denoise, x0: Tensor, ids: Tensor, draw: numpy.random.Generator) -> Callable[[Tensor], Tensor]:
    """Return the function from hidden words (K, L) of a text ``ids`` (L,), ``x0`` (L, D), to -log p of each word (K, L).

    The others are clean; in place of the hidden ones there is noise, drawn anew each time.
    """

    def losses(hidden: Tensor) -> Tensor:
        noise = torch.from_numpy(draw.standard_normal((len(hidden), *x0.shape), dtype=numpy.float32)).to(x0)
        believed = given(denoise, ~hidden, x0)(noise, torch.ones(len(hidden), device=x0.device))
        return F.cross_entropy(believed.logits.transpose(1, 2), ids.expand(len(hidden), -1), reduction="none")

    return losses


def at_levels(model: DiffusionLM, denoise: Denoise, known: Tensor, x0: Tensor) -> Denoise:
    """Return ``denoise`` as a function of x_gamma and gamma, the ``known`` positions (L,) held at ``x0`` (L, D)."""
    held = given(denoise, known, x0) if bool(known.any()) else denoise
    return lambda xt, gamma: held(xt, model.settings.schedule.time(gamma))


@torch.no_grad()
def discrete_terms(
    model: DiffusionLM,
    ids: Tensor,
    *,
    strata: int = 128,
    seed: Sequence[int] = (0,),
    batch_size: int = 64,
    dtype: torch.dtype = torch.float32,
) -> Terms:
    """Estimate the bound of T steps of one text ``ids`` (1, L), all positions modelled, as the paper's objective does."""
    q, schedule = model.process, model.settings.schedule
    if not isinstance(schedule, StepSchedule):
        raise UserError(f"schedule: the bound of a model that predicts vectors needs steps, got {schedule.name!r}")
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
            denoised = model(xt, t)
        term = bound_term(q, schedule.T, denoised, embedded, x0, xt, t, ids.expand(len(part), -1), variance, model)
        nats.append(term.double().sum(1).cpu() * words.shape[-1])
    prior = prior_kl(q, schedule.T, words).double().sum() * words.shape[-1]
    return _terms(prior, torch.cat(nats)[:lowest], torch.cat(nats)[lowest:] * weight)


def _steps(schedule: StepSchedule, u: Tensor) -> tuple[Tensor, Tensor]:
    """Map uniform draws to steps 2 ... T, uniform in gamma but for a share, and to the inverses of their chances."""
    T = schedule.T
    gamma = schedule.gamma(torch.arange(1, T + 1, dtype=torch.float64) / T)
    width = gamma.clamp(max=9.0).diff()  # beyond it only a few thousandths of a nat are decided
    mass = UNIFORM_SHARE / (T - 1) + (1 - UNIFORM_SHARE) * width / width.sum()
    index = Proposal(gamma, mass).draw(u)[1]
    return index + 2, 1 / mass[index]


def length_nats(model: PreTrainedModel, tokens: int) -> float:
    """Return -log p(length) of a row of ``tokens``, START and END counted, with one text added for each length."""
    counts = model.config.length_counts
    seen = counts[tokens] if tokens < len(counts) else 0
    return -math.log((seen + 1) / (sum(counts) + model.config.max_tokens - 2))


def counted(model: PreTrainedModel, row: Sequence[int], text: str | None) -> dict[str, Any]:
    """Return what is counted of a row of token ids with START and END, and of its text: the counts of a ``Bound``."""
    unknown = sum(i == model.config.special_ids.get("unk") for i in row[1:-1])
    return {"tokens": len(row) - 1, "characters": len(text or ""), "unknown": unknown}
