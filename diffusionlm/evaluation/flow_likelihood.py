"""The likelihood of a text under the probability flow: another model than the one that is bounded, made of the same denoiser.

The flow maps standard normal noise at gamma = high to a density p_flow of noisy vectors x at gamma = low, and a text is decoded
from these: P(w) = int p_flow(x) p(w | x) dx. Of its dequantisation x ~ q(x | w) = N(alpha E_w, sigma^2 I),

    -log P(w) <= E[-sum log p(w_i | x)]                                                    reconstruction
               + E[log q(x | w) - log p_flow(x)]                                           diffusion
               - log p(length)                                                             length

where -log p_flow is the instantaneous change of variables with Hutchinson's trace (``recipe.flow``; Song et al. 2021, section
4.3 and appendix D.2; Theis et al. 2016 for the dequantisation). For an exact denoiser both models are the data's, and each draw
gives -log P(w) but for the trace's noise and the solver's tolerance. For a trained one the result may lie on either side of the
joint bound: it bounds the likelihood of texts sampled by the flow. The terms are named as those of ``likelihood``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from diffusionlm.core.objective import collate
from diffusionlm.core.process import alpha, sigma
from diffusionlm.core.sampler import Denoise, Denoised
from diffusionlm.evaluation.likelihood import Bound, DenoiseLevel, at_levels, completed, denoiser, proposal_for
from diffusionlm.models.conditions import Conditioning
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.pipelines.conditioning import conditioning, repeated, room_of
from diffusionlm.processes import shared
from diffusionlm.recipe.flow import flow_nats


@torch.no_grad()
def flow_terms(
    denoise: DenoiseLevel, x0: Tensor, ids: Tensor, free: Tensor, low: float, high: float,
    *, draws: int = 8, seed: Sequence[int] = (0,), batch_size: int = 64, tolerance: float = 1e-4,
) -> Bound:  # fmt: skip
    """Estimate the terms of one text, all but that of the length, over ``draws`` of x and of the trace's probes.

    ``denoise`` maps noisy vectors (B, L, D) and levels gamma (B,) to predictions. The words ``ids`` (L,) have the vectors
    ``x0`` (L, D); only the positions ``free`` (L,) are modelled, the others are given. ``low`` and ``high`` are the ends of
    gamma.
    """
    draw, places = numpy.random.default_rng(list(seed)), free.nonzero()[:, 0]
    a, s = (float(each(torch.tensor(low, dtype=torch.float64))) for each in (alpha, sigma))
    shape, evaluations = (draws, len(places), x0.shape[1]), 0
    noise = torch.from_numpy(draw.standard_normal(shape, dtype=numpy.float32)).to(x0)
    probes = torch.from_numpy(draw.integers(0, 2, shape) * 2 - 1).to(x0)
    density = -0.5 * noise.double().square().sum((1, 2)) - math.prod(shape[1:]) * math.log(s * math.sqrt(2 * math.pi))
    at_level, reconstruction, diffusion = complete(denoise, x0, places), [], []
    for part in torch.arange(draws, device=x0.device).split(batch_size):
        x = a * x0[places] + s * noise[part]
        nats, count = flow_nats(lambda x, gamma: at_level(x, gamma).x0[:, places], x, low, high, probes[part], tolerance)
        logits = at_level(x, low).logits[:, places]
        surprise = F.cross_entropy(logits.transpose(1, 2), ids[places].expand(len(part), -1), reduction="none")
        reconstruction.append(surprise.double().sum(1))
        diffusion.append(nats + density[part])
        evaluations += count + 1
    decoded, moved = torch.cat(reconstruction), torch.cat(diffusion)
    deviation = float((decoded + moved).std()) / math.sqrt(draws)
    return Bound(
        reconstruction=float(decoded.mean()), diffusion=float(moved.mean()), deviation=deviation, evaluations=evaluations
    )


def complete(denoise: DenoiseLevel, x0: Tensor, places: Tensor) -> Callable[[Tensor, float], Denoised]:
    """Return ``denoise`` as a function of the vectors (K, n, D) at ``places`` (n,) alone, with the others clean."""

    def at_level(x: Tensor, gamma: float) -> Denoised:
        vectors = x0.expand(len(x), -1, -1).index_copy(1, places, x)
        return denoise(vectors, torch.full((len(x),), gamma, dtype=torch.float64, device=x.device))

    return at_level


def flow_bound(
    model: DiffusionLM, rows: Sequence[Sequence[int]], texts: Sequence[str] | None = None,
    *, draws: int = 8, seed: int = 0, batch_size: int = 64, dtype: torch.dtype = torch.float32,
    conditions: Sequence[Any] | None = None, first: int = 0,
) -> Iterator[Bound]:  # fmt: skip
    """Yield the likelihood of each text by the probability flow; the arguments are those of ``likelihood.bound``.

    Raises:
        UserError: a row is longer than the model's maximum; scipy is not installed; a flow that cannot be solved.
    """
    explicit, pad = model.explicit_length, model.config.special_ids["pad"]
    low, high = (float(end) for end in proposal_for(model).edges[[0, -1]])

    def of(number: int) -> Bound:
        row = rows[number]
        condition = None if conditions is None else conditioning(model, [conditions[number]], dtype)
        longest = room_of(model, condition)
        ids = collate([row], pad, None if explicit and len(row) <= longest else longest)["ids"].to(model.device)
        x0 = model.encode(ids)[0].detach()
        if model.has_logits:
            denoise, known = denoiser(model, ids, 1.0, dtype, condition)
        else:
            denoise, known = vector_denoiser(model, dtype, condition), torch.zeros_like(ids[0], dtype=torch.bool)
        level = at_levels(model, denoise, known, x0)
        terms = flow_terms(level, x0, ids[0], ~known, low, high, draws=draws, seed=(seed, number), batch_size=batch_size)
        return completed(terms, model, row, texts[number] if texts else "", explicit, condition)

    yield from shared(range(first, len(rows)), of, Bound.restored)


def vector_denoiser(model: DiffusionLM, dtype: torch.dtype, condition: Conditioning | None) -> Denoise:
    """Return the denoiser, in variance-preserving coordinates, of a model without logits; words are the rounding of its x_0."""

    def denoise(xt: Tensor, t: Tensor) -> Denoised:
        with torch.autocast(xt.device.type, dtype, enabled=dtype != torch.float32):
            denoised: Denoised = model(model.process.rescale(xt, t), t, condition=repeated(condition, len(xt)))
        return denoised

    return denoise
