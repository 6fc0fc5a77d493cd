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

    Words to which a length leaves no choice count by their pseudo-likelihood (Besag 1975): a third of them at a time is asked
    for, given the others and noise in the gaps. All else counts by its chance given these words. Four evaluations a length.
    """
    if len(lengths) == 1:
        return [1.0]
    mask = torch.arange(max(lengths), device=model.device) < torch.tensor(lengths, device=model.device)[:, None]
    known, ids = boundaries(mask, model.config.special_ids)
    words = torch.nn.functional.pad(forced(language, mask.sum(1) - 2, mask.shape[1] - 1), (1, 0), value=-1)
    known, ids = known | (words >= 0), torch.where(words >= 0, words, ids)
    x = torch.randn(mask.shape[1], model.settings.dimension, generator=generator_of([0])).to(model.device)

    def posterior(known: Tensor) -> Tensor:
        clean = known | ~mask
        noisy = torch.where(clean[..., None], model.embed(ids), x)
        logits = model(noisy, (~clean).float(), mask, None).logits.float()
        logits[..., list(model.config.special_ids.values())] = -torch.inf
        return pinned(logits, known, ids).log_softmax(-1)

    fit = log_mass(language, posterior(known)[:, 1:], mask.sum(1) - 2)
    third = (words >= 0).cumsum(1) % 3
    for turn in range(3):
        hidden = (words >= 0) & (third == turn)
        chances = posterior(known & ~hidden).gather(-1, ids[..., None])[..., 0]
        fit = fit + chances.where(hidden, 0).sum(1)
    return (fit - fit.max()).exp().tolist()
