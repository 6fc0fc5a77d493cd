"""The draft pass: a short guided run, of which only the tokens that carry most of the controls' energy are kept.

The final samples are generated around these salient tokens, where energies have little left to add: gradients that must bring
in all of a control's tokens at once damage fluency.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffusionlm.core.guidance import Energy, GuidanceState
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.denoiser import Predictor, WordDenoiser
from diffusionlm.pipelines.gradient import word_slopes
from diffusionlm.pipelines.lengths import infilled
from diffusionlm.pipelines.noise import RowNoise
from diffusionlm.pipelines.steering import TOKEN_SHARE, Steering, determined_tokens, mix_with_tokens
from diffusionlm.recipe.posterior import posterior_state

MAX_SALIENT = 6  # tokens of a draft that are kept at most
SATISFIED = 0.5  # nats: below it, the kept tokens satisfy the controls


def draft_pass(
    predict: Predictor, seeds: Sequence[Sequence[int]], sampling: SamplingConfig, steering: Steering
) -> tuple[Tensor, SamplingConfig]:
    """Return the given tokens (B, L), -1 elsewhere, and the sampling settings with the steps that the draft leaves.

    Given are the tokens that the automaton determines, and the salient tokens of a draft where there is an energy to follow.
    """
    mask, model = predict.mask, predict.model
    tokens, steps = determined_tokens(steering.automaton, mask), draft_steps(sampling)
    able = model.explicit_length and model.has_logits
    if steering.energy is None or not able or not steps:
        return tokens, sampling
    denoiser = WordDenoiser(predict, replace(sampling, steps=steps), steering, tokens)
    *_, state = denoiser.states(RowNoise([[*seed, 3] for seed in seeds], mask.sum(1).tolist()))
    draft = steering.decode(state.denoised.logits, mask)
    alone = infilled(replace(predict, dtype=torch.float32), tokens)
    salient = salient_tokens(steering.energy, draft, alone, mask & ~denoiser.known, mask, predict.embedding)
    return torch.where(salient, draft, tokens), replace(sampling, steps=sampling.steps - steps)


def draft_steps(sampling: SamplingConfig) -> int:
    """Return the steps of a draft, which are taken from those of a run with an energy; 0 where either would have none."""
    steps = round(sampling.guidance.draft * sampling.steps)
    return steps if 0 < steps < sampling.steps else 0


def salient_tokens(energy: Energy, draft: Tensor, alone: Tensor, free: Tensor, mask: Tensor, embedding: Tensor) -> Tensor:
    """Return which few ``free`` tokens of a ``draft`` (B, L) are kept, (B, L).

    Those of the largest gradients: as few as bring the ``energy`` below ``SATISFIED`` where the other positions have only the
    log-probabilities ``alone`` (B, L, V).
    """
    clean = torch.zeros(len(draft), device=draft.device)

    def state(share: Tensor | float) -> GuidanceState:
        logits = mix_with_tokens(alone, draft, share)
        return posterior_state(logits, logits.exp() @ embedding.to(logits), clean, mask, embedding)

    slopes = word_slopes(energy, state(TOKEN_SHARE), embedding).gather(-1, draft[..., None])[..., 0]
    order = slopes.masked_fill(~free, -math.inf).argsort(-1, descending=True)[:, :MAX_SALIENT]
    kept, tried, nats = torch.zeros_like(free), [], []
    for place in order.unbind(1):
        kept = kept.scatter(1, place[:, None], True) & free
        tried.append(kept)
        nats.append(energy(state(kept[..., None])).detach())
        if bool((torch.stack(nats).amin(0) < SATISFIED).all()):
            break
    left = torch.stack(nats, 1)
    enough = torch.where((left < SATISFIED).any(1), (left < SATISFIED).int().argmax(1), left.argmin(1))
    return torch.stack(tried, 1)[torch.arange(len(draft), device=draft.device), enough]
