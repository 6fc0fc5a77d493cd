"""Refinement sweeps: replace tokens of finished samples that the model, given all the others, finds much less probable."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from diffusionlm.core.sampler import Noise
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.denoiser import Predictor
from diffusionlm.pipelines.steering import Steering
from diffusionlm.recipe.posterior import pin_logits
from diffusionlm.recipe.refine import blockwise_icm, parallel_icm


def refine(
    predict: Predictor, tokens: Tensor, given: Tensor, sampling: SamplingConfig, steering: Steering, noise: Noise
) -> Tensor:
    """Return ``tokens`` (B, L) after the sweeps; ``given`` ids (B, L), -1 elsewhere, are kept.

    In parallel where the network excludes each position's own input, else block by block, with pure ``noise`` in the block.
    """
    model, mask, embedding = predict.model, predict.mask, predict.embedding
    known, ids = predict.boundaries()
    tokens = torch.where(known | ~mask, ids, tokens)
    free = mask & ~known & (given < 0)
    allowed = None if steering.automaton is None else partial(steering.accepts, mask=mask)

    def substitutes(tokens: Tensor) -> Tensor:
        logits = predict.infill(tokens, torch.ones_like(mask), evidence_mask=torch.zeros_like(mask))
        return steering.guide_substitutes(logits, tokens, model.encode(tokens), mask, embedding)

    def block(tokens: Tensor, hidden: Tensor) -> Tensor:
        x0 = model.encode(tokens)
        logits = predict.infill(tokens, ~hidden, model.process.rescale(noise(x0), 1.0))
        return steering.guide(pin_logits(logits, ~hidden, tokens), x0, mask, embedding) if steering.active else logits

    if model.excludes_self:
        return parallel_icm(tokens, free, substitutes, rounds=sampling.sweeps, odds=sampling.sweep_odds, allowed=allowed)
    return blockwise_icm(tokens, free, block, sweeps=sampling.sweeps, odds=sampling.sweep_odds, allowed=allowed)
