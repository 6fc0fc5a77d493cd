"""The pipeline of autoregressive models: sample token after token, each from softmax(logits / temperature).

w_i ~ p(w_i | BOS, w_1, ..., w_(i-1))        until EOS
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from diffusionlm.config import UserError
from diffusionlm.data.tokenizers import decode_texts
from diffusionlm.models.causal import load_causal, reach
from diffusionlm.pipelines.base import BasePipeline, SamplingConfig, Watch, check_no_latents


@dataclass(frozen=True)
class CausalState:
    """A moment of writing: ``t`` goes from 1 to 0 as the words that there is room for are written."""

    t: float


class CausalPipeline(BasePipeline[PreTrainedModel]):
    """Writes texts word by word (ancestral sampling). Of the sampling's settings, those of the noise do not apply."""

    @staticmethod
    def load_model(folder: Path) -> PreTrainedModel:
        """Read an autoregressive model."""
        return load_causal(folder)

    def check(self, sampling: SamplingConfig) -> None:
        """Refuse what only a model of whole texts can do."""
        if sampling.length is not None:
            raise UserError("length: an autoregressive model ends its texts itself; leave it empty")
        check_no_latents(sampling, "an autoregressive model")

    def sample_ids(self, seeds: Sequence[Sequence[int]], sampling: SamplingConfig, watch: Watch | None) -> list[list[int]]:
        """Draw word after word."""
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
    """Draw a text for each seed, word after word, until it ends or has ``max_tokens``; return ids without start and end.

    All texts begin with the ids ``begun``, which are returned with them.

    A text depends on its own seed alone, and beyond rounding not on the batch. Special tokens other than the end are
    never drawn, [UNK] included.

    Raises:
        UserError: the tokenizer has no start token to begin with.
    """
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if start is None:
        raise UserError("write: this model's tokenizer has no start token, so there is nothing to begin a text with")
    room = reach(model) - 2  # as in training: start and end are among the tokens that it reads
    longest = room if max_tokens is None else min(max_tokens, room)
    barred = sorted({*tokenizer.all_special_ids} - {end} | {*range(len(tokenizer), model.config.vocab_size)})
    draws = [numpy.random.default_rng(list(seed)) for seed in seeds]
    ids = torch.tensor([[start, *begun]] * len(seeds), device=model.device)
    ended = torch.zeros(len(seeds), dtype=torch.bool)
    cache: dict[str, Any] = {}  # called "past_key_values" by transformers up to 5.23, "cache" from 5.24 on
    while ids.shape[1] <= longest and not bool(ended.all()):
        with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
            output = model(input_ids=ids[:, -1:] if cache else ids, use_cache=True, **cache)
        cache = {name: output[name] for name in {*output.keys()} & {"cache", "past_key_values"}}
        logits = output.logits[:, -1].double().cpu() / temperature
        logits[:, barred] = -torch.inf
        cumulative = logits.softmax(-1).cumsum(-1)
        point = torch.tensor([draw.random() for draw in draws], dtype=torch.float64)[:, None] * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, point, right=True)
        ended |= drawn[:, 0] == end
        ids = torch.cat([ids, drawn.to(ids)], 1)
        if watch is not None:
            watch(CausalState(1 - (ids.shape[1] - 1) / longest), decode_texts(tokenizer, ids[:, 1:].tolist()))
    rows = [row[1:] for row in ids.tolist()]
    return [row[: row.index(end)] if end in row else row for row in rows]
