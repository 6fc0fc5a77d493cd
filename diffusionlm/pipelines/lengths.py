"""Lengths of samples: the training-length counts, reweighted by the probability of the controls at each length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy
import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.constraints.dfa import DFA
from diffusionlm.constraints.inference import log_probability
from diffusionlm.core.guidance import Energy
from diffusionlm.data.batches import text_mask
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.pipelines.denoiser import Predictor
from diffusionlm.pipelines.memory import rows_at_once
from diffusionlm.pipelines.steering import determined_tokens
from diffusionlm.recipe.posterior import pin_logits, posterior_state

ENERGY_LENGTHS = 8  # lengths at which an energy is evaluated
Setup = Callable[[Sequence[int]], Predictor]  # samples of B lengths, BOS and EOS counted, to the model set up for them


def draw_lengths(prior: Sequence[float], seeds: Sequence[Sequence[int]], temperature: float = 1.0) -> list[int]:
    """Draw a number of tokens, BOS and EOS counted, from the weights ``prior`` of 0, 1, 2, ... tokens for each seed.

    The probabilities are raised to the power of 1 / ``temperature``.

    Raises:
        UserError: no length has a weight.
    """
    if not sum(prior):
        raise UserError("length: this model has no training lengths to draw from; give a length")
    if not math.isfinite(sum(prior)):
        raise UserError("control: the model gives every sequence that satisfies the controls probability 0")
    weights = numpy.asarray(prior, dtype=numpy.float64)
    if temperature != 1:
        weights = (weights / weights.max()) ** (1 / temperature)
    cumulative = numpy.cumsum(weights)
    cumulative = cumulative / cumulative[-1]
    draws = [numpy.random.default_rng([*seed, 1]).random() for seed in seeds]
    return [int(numpy.searchsorted(cumulative, draw, side="right")) for draw in draws]


def fixed_length(tokens: int) -> list[float]:
    """Return the prior of samples that all have ``tokens``, BOS and EOS counted."""
    return [*[0.0] * tokens, 1.0]


def length_prior(
    model: DiffusionLM,
    automaton: DFA | None,
    energy: Energy | None = None,
    known: Sequence[Sequence[float]] = (),
    predictor: Setup | None = None,
    counts: Sequence[float] | None = None,
) -> list[float]:
    """Return the length prior: training-length counts reweighted by the probability of the controls at each length.

    Args:
        model: the model.
        automaton: only lengths that it accepts have a weight; lengths of no training text are used if it accepts no other.
        energy: reweights by Bayes' rule, as far as it depends on the length alone.
        known: probabilities of the controls by length; where given, only they reweight, and the model is not evaluated.
        predictor: sets up ``model`` for samples of B lengths, BOS and EOS counted.
        counts: of the lengths 0, 1, 2, ..., in place of the training texts'.
    """
    predictor = predictor or (lambda lengths: Predictor(model, text_mask(lengths, model.device)))
    counts = model.config.length_counts if counts is None else counts
    counts = [*counts, *[0] * (model.config.max_tokens + 1 - len(counts))]
    possible = list(range(len(counts)))
    if automaton is not None:
        accepted = [n + 2 for n in automaton.lengths(model.config.max_tokens - 2)]
        possible = [n for n in accepted if counts[n]] or accepted
    if known:
        reweighted = {n: counts[n] * math.prod(by_length[n] for by_length in known) for n in possible}
        if any(reweighted.values()):
            return [reweighted.get(n, 0.0) for n in range(len(counts))]
    weights = [float(count) for count in counts]
    if automaton is not None:
        weights = [0.0] * len(counts)
        for n, probability in zip(possible, automaton_probabilities(predictor, automaton, possible), strict=True):
            weights[n] = max(counts[n], 1) * probability
    if energy is not None and any(weights) and model.has_logits:
        weights = (numpy.array(weights) * energy_probabilities(predictor, automaton, energy, weights)).tolist()
    return weights


@torch.no_grad()
def energy_probabilities(predictor: Setup, automaton: DFA | None, energy: Energy, weights: Sequence[float]) -> numpy.ndarray:
    """Return exp(-energy) at each length that has a weight, relative to the largest.

    Evaluated at the ``ENERGY_LENGTHS`` quantiles of the ``weights`` and interpolated in the logarithm between them; constant
    beyond them, since classifiers are trained on few texts of extreme lengths.
    """
    cumulative = numpy.cumsum(weights) / sum(weights)
    quantiles = (numpy.arange(ENERGY_LENGTHS) + 0.5) / ENERGY_LENGTHS
    lengths = sorted(set(numpy.searchsorted(cumulative, quantiles, side="right").tolist()))
    if len(lengths) == 1:
        return numpy.ones(len(weights))
    predict = predictor(lengths)
    mask, embedding = predict.mask, predict.embedding
    logits = infilled(predict, determined_tokens(automaton, mask))
    x, t = torch.zeros(*mask.shape, embedding.shape[1], device=mask.device), torch.ones(len(mask), device=mask.device)
    nats = energy(posterior_state(logits, x, t, mask, embedding)).double().cpu().numpy()
    return numpy.exp(nats.min() - numpy.interp(numpy.arange(len(weights)), lengths, nats))


def infilled(predict: Predictor, tokens: Tensor) -> Tensor:
    """Return the log-probabilities (B, L, V) of tokens given only ``tokens`` (B, L), -1 where there is none."""
    known, ids = predict.boundaries(tokens)
    return pin_logits(predict.infill(ids, known | ~predict.mask).log_softmax(-1), known, ids)


@torch.no_grad()
def automaton_probabilities(predictor: Setup, automaton: DFA, lengths: Sequence[int]) -> list[float]:
    """Return the probability that the model gives the ``automaton`` at each of ``lengths``, relative to the largest.

    Tokens that the automaton determines count by their pseudo-likelihood (Besag 1975); the rest by its probability given
    them. One evaluation where the network excludes each position's own input; else determined tokens are hidden a third at a
    time, in three more.
    """
    if len(lengths) == 1:
        return [1.0]
    room = rows_at_once(max(lengths), predictor(lengths[:1]).model)
    parts = (lengths[first : first + room] for first in range(0, len(lengths), room))
    nats = torch.cat([automaton_log_probabilities(predictor(part), automaton) for part in parts])
    return (nats - nats.max()).exp().tolist()


def automaton_log_probabilities(predict: Predictor, automaton: DFA) -> Tensor:
    """Return the log-probabilities (B,) of ``automaton_probabilities`` for the lengths of ``predict``."""
    mask, model = predict.mask, predict.model
    tokens = determined_tokens(automaton, mask)
    determined = tokens >= 0
    known, ids = predict.boundaries(tokens)

    def log_likelihood(logs: Tensor, among: Tensor) -> Tensor:
        return logs.gather(-1, ids[..., None])[..., 0].where(among, 0).sum(1)

    evidence_mask = torch.zeros_like(mask) if model.excludes_self else None
    free = predict.infill(ids, known | ~mask, evidence_mask=evidence_mask).log_softmax(-1)
    nats = log_probability(automaton, pin_logits(free, known, ids)[:, 1:], mask.sum(1) - 2)
    if model.excludes_self:
        nats = nats + log_likelihood(free, determined)
    else:
        third = determined.cumsum(1) % 3
        for hidden in (determined & (third == turn) for turn in range(3)):
            nats = nats + log_likelihood(predict.infill(ids, known & ~hidden | ~mask).log_softmax(-1), hidden)
    return nats
