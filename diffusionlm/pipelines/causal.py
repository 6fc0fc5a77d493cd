"""The pipeline of autoregressive models: sample token after token, each from softmax(logits / temperature).

w_i ~ p(w_i | BOS, w_1, ..., w_(i-1))        until EOS
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from diffusionlm.config import UserError
from diffusionlm.controls import Control
from diffusionlm.data.tokenizers import decode_texts
from diffusionlm.models.causal import load_causal, reach
from diffusionlm.pipelines.base import SamplingConfig, UnguidedPipeline, Watch, check_unused
from diffusionlm.pipelines.effect import CONDITIONAL, Unused, unused_ranking, without_latents

UNUSED: Unused = {
    **without_latents("an autoregressive model"),
    "steps": "an autoregressive model samples one token after the other and has no sampling steps; leave it out",
    "sampler": "an autoregressive model samples each token from its softmax and needs no sampler; leave it out",
    **dict.fromkeys(CONDITIONAL, "an autoregressive model has no condition; leave it out"),
    "length": "an autoregressive model samples EOS and so determines the length itself; leave it empty",
    "length_temperature": "an autoregressive model draws no length, so this setting has no effect; leave it out",
}


@dataclass(frozen=True)
class CausalState:
    """The state after a token: ``t`` falls from 1 to 0, which is reached at the maximum length."""

    t: float


class CausalPipeline(UnguidedPipeline[PreTrainedModel]):
    """Samples from an autoregressive model by ancestral sampling; settings of the noise do not apply."""

    exact_likelihood = True

    load_model = staticmethod(load_causal)

    @property
    def network(self) -> torch.nn.Module:
        return self.model

    def check(self, sampling: SamplingConfig) -> None:
        check_unused(sampling, UNUSED)

    def unused(self, sampling: SamplingConfig, controls: Sequence[Control] = ()) -> Unused:
        return {**UNUSED, **unused_ranking(self, sampling)}

    def sample_ids(
        self, seeds: Sequence[Sequence[int]], sampling: SamplingConfig, watch: Watch | None, values: Sequence[Any] = ()
    ) -> list[list[int]]:
        return write_ids(self.model, self.tokenizer, seeds, sampling.temperature, None, self.dtype, watch)


@torch.no_grad()
def write_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    seeds: Sequence[Sequence[int]],
    temperature: float,
    max_tokens: int | None,
    dtype: torch.dtype,
    watch: Watch | None = None,
    begun: Sequence[int] = (),
) -> list[list[int]]:
    """Sample a text for each seed, token after token, until EOS or ``max_tokens``; return ids without BOS and EOS.

    All samples begin with the ids ``begun``, which are part of the result. A sample depends on its own seed alone, beyond
    rounding not on the batch. Special tokens other than EOS, [UNK] included, have probability 0.

    Raises:
        UserError: the tokenizer has no BOS token.
    """
    start = tokenizer.bos_token_id
    if start is None:
        raise UserError("write: expected a tokenizer with a BOS token to start sampling from, but this one has none")
    room = reach(model) - 2  # as in training: BOS and EOS are among the tokens that the model reads
    longest = room if max_tokens is None else min(max_tokens, room)
    ids = torch.tensor([[start, *begun]] * len(seeds), device=model.device)
    return draw_ids(CachedLogits(model, "input_ids", dtype), tokenizer, ids, seeds, temperature, longest, watch)


class CachedLogits:
    """The logits of the next token, as a function of all ids so far: each call runs a model on the new ones alone.

    The ids are the model's argument ``name``; ``given`` are its other arguments, the same in each call.
    """

    def __init__(self, model: PreTrainedModel, name: str, dtype: torch.dtype, **given: Any) -> None:
        self.model, self.name, self.dtype, self.given = model, name, dtype, given
        self.cache: dict[str, Any] = {}  # called "past_key_values" by transformers up to 5.23, "cache" from 5.24 on

    def __call__(self, ids: Tensor) -> Tensor:
        """Return logits (B, V) after ``ids`` (B, L)."""
        new = {self.name: ids[:, -1:] if self.cache else ids}
        with torch.autocast(ids.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output = self.model(**new, use_cache=True, **self.given, **self.cache)
        self.cache = {name: output[name] for name in {*output.keys()} & {"cache", "past_key_values"}}
        logits: Tensor = output.logits[:, -1]
        return logits


@torch.no_grad()
def draw_ids(
    next_logits: Callable[[Tensor], Tensor],
    tokenizer: PreTrainedTokenizerFast,
    ids: Tensor,
    seeds: Sequence[Sequence[int]],
    temperature: float,
    longest: int,
    watch: Watch | None = None,
) -> list[list[int]]:
    """Continue ``ids`` (B, L), which begin with BOS, as ``write_ids`` does, to ``longest`` tokens without BOS.

    ``next_logits`` maps all ids so far to the logits of the next token, for at least as many words as the tokenizer has.
    """
    end = tokenizer.eos_token_id
    barred = sorted({*tokenizer.all_special_ids} - {end})
    draws = [numpy.random.default_rng(list(seed)) for seed in seeds]
    ended = torch.zeros(len(seeds), dtype=torch.bool)
    while ids.shape[1] <= longest and not bool(ended.all()):
        logits = next_logits(ids).double().cpu()
        logits[:, barred] = -torch.inf
        logits[:, len(tokenizer) :] = -torch.inf
        logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # finite at its largest, however low the temperature
        cumulative = logits.softmax(-1).cumsum(-1)
        point = torch.tensor([draw.random() for draw in draws], dtype=torch.float64)[:, None] * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, point, right=True)
        ended |= drawn[:, 0] == end
        ids = torch.cat([ids, drawn.to(ids)], 1)
        if watch is not None:
            watch(CausalState(1 - (ids.shape[1] - 1) / longest), decode_texts(tokenizer, ids[:, 1:].tolist()))
    rows = [row[1:] for row in ids.tolist()]
    return [row[: row.index(end)] if end in row else row for row in rows]
