"""How long texts are to be: as the training texts were, and as what is asked leaves likely."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.language import Language, forced, log_mass
from diffusionlm.model import DiffusionLM, boundaries
from diffusionlm.sampling import generator_of, pinned


def draw_lengths(weights: Sequence[float], seeds: Sequence[Sequence[int]], length: int | None) -> list[int]:
    """Return tokens a text, start and end counted: ``length`` and these two, or drawn from the training texts' ``weights``.

    Raises:
        UserError: neither is known.
    """
    if length is not None:
        return [length + 2] * len(seeds)
    if not sum(weights):
        raise UserError("length: this model knows no training lengths to draw from; give a length")
    cumulative = numpy.cumsum(weights)
    cumulative = cumulative / cumulative[-1]
    draws = [numpy.random.default_rng([*seed, 1]).random() for seed in seeds]
    return [int(numpy.searchsorted(cumulative, draw, side="right")) for draw in draws]


def length_weights(model: DiffusionLM, language: Language | None) -> list[float]:
    """Return how likely each length is (start and end counted): to the training texts, and to the model of what is asked.

    Only lengths of the ``language`` have a weight. Those that no training text has are taken where no other is possible.
    """
    counts = [*model.config.length_counts, *[0] * (model.config.max_tokens + 1 - len(model.config.length_counts))]
    if language is None:
        return [float(count) for count in counts]
    possible = [n + 2 for n in language.lengths(model.config.max_tokens - 2)]
    chosen = [n for n in possible if counts[n]] or possible
    weights = [0.0] * len(counts)
    for n, fit in zip(chosen, fits(model, language, chosen), strict=True):
        weights[n] = max(counts[n], 1) * fit
    return weights


@torch.no_grad()
def fits(model: DiffusionLM, language: Language, lengths: Sequence[int]) -> list[float]:
    """Return how likely the model finds texts of ``language`` at each length (start and end counted), 1 at the best.

    Words to which a length leaves no choice count by their pseudo-likelihood (Besag 1975), given the others and noise in the
    gaps; all else counts by its chance given these words. That is one evaluation a length where the backbone leaves out a
    word's own vector. Elsewhere a word is not asked for where it is seen: they are hidden a third at a time, in three more.
    """
    if len(lengths) == 1:
        return [1.0]
    mask = torch.arange(max(lengths), device=model.device) < torch.tensor(lengths, device=model.device)[:, None]
    known, ids = boundaries(mask, model.config.special_ids)
    words = torch.nn.functional.pad(forced(language, mask.sum(1) - 2, mask.shape[1] - 1), (1, 0), value=-1)
    given = words >= 0
    known, ids = known | given, torch.where(given, words, ids)
    x = torch.randn(mask.shape[1], model.settings.dimension, generator=generator_of([0])).to(model.device)
    leaves_out = model.settings.backbone.leaves_out

    def context(known: Tensor) -> Tensor:
        clean = known | ~mask
        noisy = torch.where(clean[..., None], model.embed(ids), x)
        evident = torch.zeros_like(mask) if leaves_out else None
        logits = model.token_logits(noisy, (~clean).float(), mask, None, evident).float()
        logits[..., list(model.config.special_ids.values())] = -torch.inf
        return logits.log_softmax(-1)

    def chances(logs: Tensor, among: Tensor) -> Tensor:
        return logs.gather(-1, ids[..., None])[..., 0].where(among, 0).sum(1)

    free = context(known)
    fit = log_mass(language, pinned(free, known, ids)[:, 1:], mask.sum(1) - 2)
    if leaves_out:
        fit = fit + chances(free, given)
    else:
        third = given.cumsum(1) % 3
        for hidden in (given & (third == turn) for turn in range(3)):
            fit = fit + chances(context(known & ~hidden), hidden)
    return (fit - fit.max()).exp().tolist()
