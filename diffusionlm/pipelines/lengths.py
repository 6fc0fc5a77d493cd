"""How long texts are to be: as the training texts were, and as what is asked leaves likely."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.constraints.dfa import DFA
from diffusionlm.constraints.inference import forced_tokens, log_probability
from diffusionlm.core.guidance import Energy, GuidanceState
from diffusionlm.data.batches import boundaries, text_mask
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.recipe.posterior import pin_logits

ASKED = 8  # lengths at which an energy is asked how likely they make what it asks


def draw_lengths(weights: Sequence[float], seeds: Sequence[Sequence[int]], length: int | None) -> list[int]:
    """Return tokens a text, start and end counted: ``length`` and these two, or drawn from the training texts' ``weights``.

    Raises:
        UserError: neither is known.
    """
    if length is not None:
        return [length + 2] * len(seeds)
    if not sum(weights):
        raise UserError("length: this model knows no training lengths to draw from; give a length")
    if not math.isfinite(sum(weights)):
        raise UserError("control: no text that this model writes is what is asked")
    cumulative = numpy.cumsum(weights)
    cumulative = cumulative / cumulative[-1]
    draws = [numpy.random.default_rng([*seed, 1]).random() for seed in seeds]
    return [int(numpy.searchsorted(cumulative, draw, side="right")) for draw in draws]


def length_prior(
    model: DiffusionLM, language: DFA | None, energy: Energy | None = None, known: Sequence[Sequence[float]] = ()
) -> list[float]:
    """Return how likely each length is (start and end counted): to the training texts, and to the model of what is asked.

    Only lengths of the ``language`` have a weight. Those that no training text has are taken where no other is possible.
    An ``energy`` weighs by Bayes' rule, as far as it tells lengths apart where nothing else is known. Where the chances of
    what is asked at each length are ``known`` they alone decide, and the model is not asked.
    """
    counts = [*model.config.length_counts, *[0] * (model.config.max_tokens + 1 - len(model.config.length_counts))]
    chosen = list(range(len(counts)))
    if language is not None:
        possible = [n + 2 for n in language.lengths(model.config.max_tokens - 2)]
        chosen = [n for n in possible if counts[n]] or possible
    if known:
        told = {n: counts[n] * math.prod(chance[n] for chance in known) for n in chosen}
        if any(told.values()):
            return [told.get(n, 0.0) for n in range(len(counts))]
    weights = [float(count) for count in counts]
    if language is not None:
        weights = [0.0] * len(counts)
        for n, fit in zip(chosen, fits(model, language, chosen), strict=True):
            weights[n] = max(counts[n], 1) * fit
    if energy is not None and any(weights) and model.settings.prediction == "logits":
        weights = (numpy.array(weights) * chances(model, language, energy, weights)).tolist()
    return weights


@torch.no_grad()
def chances(model: DiffusionLM, language: DFA | None, energy: Energy, weights: Sequence[float]) -> numpy.ndarray:
    """Return how likely what an ``energy`` asks is at each length that has a weight, 1 at the best.

    Asked at ``ASKED`` lengths that part the texts evenly, an evaluation each; between them its logarithm is interpolated, and
    beyond them it stays what it was: of the longest and shortest texts classifiers have seen too few.
    """
    cumulative = numpy.cumsum(weights) / sum(weights)
    places = (numpy.arange(ASKED) + 0.5) / ASKED
    lengths = sorted(set(numpy.searchsorted(cumulative, places, side="right").tolist()))
    if len(lengths) == 1:
        return numpy.ones(len(weights))
    mask = text_mask(lengths, model.device)
    logits = blank(model, mask, given_words(language, mask))
    x, t = torch.zeros(*mask.shape, model.settings.dimension, device=mask.device), torch.ones(len(mask), device=mask.device)
    nats = energy(GuidanceState.from_logits(logits, x, t, mask, model.word_vectors())).double().cpu().numpy()
    return numpy.exp(nats.min() - numpy.interp(numpy.arange(len(weights)), lengths, nats))


def given_words(language: DFA | None, mask: Tensor) -> Tensor:
    """Return ids (B, L) of the words that a ``language`` leaves no choice in texts of ``mask`` (B, L), -1 elsewhere."""
    ids = torch.full(mask.shape, -1, device=mask.device)
    if language is not None:
        ids[:, 1:] = forced_tokens(language, mask.sum(1) - 2, mask.shape[1] - 1)
    return ids


def blank(model: DiffusionLM, mask: Tensor, words: Tensor) -> Tensor:
    """Return what is believed (B, L, V) of texts of ``mask`` (B, L) where only ``words`` (B, L) are seen, -1 being unseen.

    Noise that is 0 stands for the others: it is the likeliest, and says nothing.
    """
    known, ids = boundaries(mask, model.config.special_ids, words)
    return pin_logits(_around(model, mask, known, ids), known, ids)


def _around(model: DiffusionLM, mask: Tensor, known: Tensor, ids: Tensor, evidence_mask: Tensor | None = None) -> Tensor:
    """Return the log-probabilities (B, L, V) of words around the ``ids`` (B, L) that are ``known`` (B, L)."""
    clean = known | ~mask
    x = torch.where(clean[..., None], model.encode(ids), 0.0)
    logits = model.token_logits(x, (~clean).float(), mask, None, evidence_mask).float()
    logits[..., list(model.config.special_ids.values())] = -torch.inf
    return logits.log_softmax(-1)


@torch.no_grad()
def fits(model: DiffusionLM, language: DFA, lengths: Sequence[int]) -> list[float]:
    """Return how likely the model finds texts of ``language`` at each length (start and end counted), 1 at the best.

    Words to which a length leaves no choice count by their pseudo-likelihood (Besag 1975), given the others and noise in the
    gaps; all else counts by its chance given these words. That is one evaluation a length where the backbone leaves out a
    word's own vector. Elsewhere a word is not asked for where it is seen: they are hidden a third at a time, in three more.
    """
    if len(lengths) == 1:
        return [1.0]
    mask = text_mask(lengths, model.device)
    words = given_words(language, mask)
    given = words >= 0
    known, ids = boundaries(mask, model.config.special_ids, words)
    excludes_self = model.settings.backbone.excludes_self
    evidence_mask = torch.zeros_like(mask) if excludes_self else None

    def said(logs: Tensor, among: Tensor) -> Tensor:
        return logs.gather(-1, ids[..., None])[..., 0].where(among, 0).sum(1)

    free = _around(model, mask, known, ids, evidence_mask)
    fit = log_probability(language, pin_logits(free, known, ids)[:, 1:], mask.sum(1) - 2)
    if excludes_self:
        fit = fit + said(free, given)
    else:
        third = given.cumsum(1) % 3
        for hidden in (given & (third == turn) for turn in range(3)):
            fit = fit + said(_around(model, mask, known & ~hidden, ids), hidden)
    return (fit - fit.max()).exp().tolist()
