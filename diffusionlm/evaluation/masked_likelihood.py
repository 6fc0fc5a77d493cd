"""The likelihood bound of masked diffusion: an upper bound of -log p(text) in nats, with its standard error.

    -log p(w) <= E_k [ N/k sum over k hidden words of -log p(word | shown words) ] - log p(length)

k is uniform from 1 to N, the number of words; the first term is exact for a model with consistent conditionals (``masked``).
The any-order bound over several random orders is tighter (``likelihood``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.evaluation.likelihood import Bound, any_order_terms, check_draws, completed, stratified_variance
from diffusionlm.evaluation.pieces import given_words, over_pieces
from diffusionlm.models.conditions import Conditioning
from diffusionlm.models.masked import MaskedLM, hide, masked_token_losses, word_positions
from diffusionlm.models.pieces import context_of
from diffusionlm.pipelines.conditioning import conditioning, repeated
from diffusionlm.pipelines.memory import rows_at_once
from diffusionlm.processes import shared


@torch.no_grad()
def masked_bound(
    model: MaskedLM, rows: Sequence[Sequence[int]], texts: Sequence[str] | None = None,
    *, strata: int = 128, orders: int = 0, seed: int = 0, batch_size: int = 64, dtype: torch.dtype = torch.float32,
    conditions: Sequence[Any] | None = None, first: int = 0,
) -> Iterator[Bound]:  # fmt: skip
    """Yield the likelihood bound of each text, as ``likelihood.bound`` does.

    k is stratified: ``strata`` draws per text, each with k random hidden words.

    Raises:
        UserError: a row is longer than the model's maximum, or there are too few strata or orders.
    """
    check_draws(strata, orders)
    longest = model.config.max_tokens

    def of(number: int) -> Bound:
        row = rows[number]
        if len(row) > longest and not context_of(model):
            raise UserError(f"text {number}: expected {longest} tokens or fewer, BOS and EOS included, got {len(row)}")
        given = None if conditions is None else conditioning(model, [conditions[number]], dtype)

        def terms_of(piece: Sequence[int], *place: int) -> Bound:
            ids, draw = torch.tensor([piece], device=model.device), numpy.random.default_rng([seed, number, *place])
            words = word_positions(torch.ones_like(ids, dtype=torch.bool))[0]
            words = words & ~given_words(piece, words)
            losses, size = partial(_losses, model, ids, dtype, given), min(batch_size, rows_at_once(len(piece), model))
            if orders:
                return any_order_terms(losses, words, draw, orders=orders, batch_size=size)
            nats = _text_nats(losses, words, draw, strata, size)  # there is no prior and no reconstruction term
            return Bound(diffusion=float(nats.mean()), deviation=math.sqrt(stratified_variance(nats)))

        terms = over_pieces(model, row, terms_of)
        return completed(terms, model, row, texts[number] if texts else "", condition=given)

    yield from shared(range(first, len(rows)), of, Bound.restored)


def _losses(model: MaskedLM, ids: Tensor, dtype: torch.dtype, condition: Conditioning | None, hidden: Tensor) -> Tensor:
    """Return -log p of each ``hidden`` word (K, L) of a text ``ids`` (1, L), given the others (K, L)."""
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        given = repeated(condition, len(hidden))
        return masked_token_losses(model, ids.expand_as(hidden), torch.ones_like(hidden), hidden, given)


def _text_nats(
    losses: Callable[[Tensor], Tensor], words: Tensor, draw: numpy.random.Generator, strata: int, batch_size: int
) -> Tensor:
    """Return an estimate of a text's diffusion term from each stratum of k, (strata,) in nats."""
    count = int(words.sum())
    u = torch.from_numpy((numpy.arange(1, strata + 1) - draw.random(strata)) / strata)
    k = (u * count).ceil().clamp(min=1).to(words.device)
    uniform = torch.from_numpy(draw.random((strata, len(words)))).to(words.device)
    hidden = hide(words.expand(strata, -1), k, uniform)
    nats = torch.cat([losses(part).double().sum(1) for part in hidden.split(batch_size)])
    return (nats * count / k).cpu()
