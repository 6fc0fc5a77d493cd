"""An honest likelihood of masked diffusion: its bound of -log p(text), text by text, in nats, with its standard error.

    -log p(w) <= E_k [ N/k sum over k hidden words of -log p(word | shown words) ] - log p(length)

k is uniform from 1 to N, the words of the text; the first term is exact for a model whose conditionals are (``masked``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy
import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.likelihood import Bound, counted, in_turn_nats, length_nats, stratified_variance
from diffusionlm.masked import MaskedLM, hidden_losses, word_positions


@torch.no_grad()
def masked_bound(
    model: MaskedLM,
    rows: Sequence[Sequence[int]],
    texts: Sequence[str] | None = None,
    *,
    strata: int = 128,
    seed: int = 0,
    batch_size: int = 64,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Bound]:
    """Yield the likelihood bound of each of ``rows`` of token ids with START and END; ``texts`` are read for characters.

    k is stratified: ``strata`` draws a text, each with a random choice of k hidden words, of which ``batch_size`` are
    read at a time. A text's draws depend on ``seed`` and its number alone. ``dtype`` is that of the network's arithmetic.

    Raises:
        UserError: a row is longer than the model reads, or there are fewer than 2 strata.
    """
    if strata < 2:
        raise UserError(f"strata: expected 2 or more, got {strata}")
    longest = model.config.max_tokens
    for number, row in enumerate(rows):
        if len(row) > longest:
            raise UserError(f"text {number}: expected {longest} tokens or fewer, start and end included, got {len(row)}")
        nats = _text_nats(model, row, numpy.random.default_rng([seed, number]), strata, batch_size, dtype)
        yield Bound(
            prior=0.0,  # nothing is lost at either end of the process
            reconstruction=0.0,
            diffusion=float(nats.mean()),
            length=length_nats(model, len(row)),
            deviation=math.sqrt(stratified_variance(nats)),
            **counted(model, row, None if texts is None else texts[number]),
        )


def _text_nats(
    model: MaskedLM, row: Sequence[int], draw: numpy.random.Generator, strata: int, batch_size: int, dtype: torch.dtype
) -> Tensor:
    """Return an estimate of a text's diffusion term from each stratum of k, (strata,) in nats."""
    ids = torch.tensor([row], device=model.device)
    mask = torch.ones_like(ids, dtype=torch.bool)

    def losses(hidden: Tensor) -> Tensor:
        with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
            return hidden_losses(model, ids.expand_as(hidden), mask.expand_as(hidden), hidden)

    return in_turn_nats(losses, word_positions(mask)[0], draw, strata, batch_size)
