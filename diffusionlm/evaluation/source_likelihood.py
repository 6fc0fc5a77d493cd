"""The exact likelihood of texts given their sources, under an encoder-decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.nn import functional as F

from diffusionlm.data.batches import Example
from diffusionlm.evaluation.likelihood import Bound, in_batches
from diffusionlm.models.seq2seq import SourceToText
from diffusionlm.pipelines.base import BasePipeline


@torch.no_grad()
def source_likelihood(
    pipeline: BasePipeline[Any],
    rows: Sequence[Sequence[int]],
    texts: Sequence[str],
    batch_size: int,
    values: Sequence[Any],
    start: int = 0,
) -> Iterator[Bound]:
    """Yield the likelihood of each row of token ids given its encoded source of ``values``; the words and EOS are scored.

    Rows before number ``start`` are left out.
    """
    model, unknown = pipeline.model, pipeline.tokenizer.unk_token_id
    objective = SourceToText().build(model).eval()

    def of(first: int) -> list[Bound]:
        part = [Example(row) for row in rows[first : first + batch_size]]
        for row, value in zip(part, values[first : first + batch_size], strict=True):
            row.condition = value
        batch = send_to_device(objective.collate(part), model.device)
        ids, mask = batch.ids, batch.mask
        with torch.autocast(ids.device.type, pipeline.dtype, enabled=pipeline.dtype != torch.float32):
            logits = objective.logits(ids[:, :-1], mask[:, :-1], batch)
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").double()
        nats = (losses * mask[:, 1:]).sum(1).tolist()
        return [
            Bound(
                reconstruction=nat, tokens=len(ids_of) - 1, characters=len(text), unknown=ids_of.count(unknown), exact=True
            )
            for ids_of, text, nat in zip(part, texts[first : first + batch_size], nats, strict=True)
        ]  # fmt: skip

    yield from in_batches(len(rows), batch_size, of, start)
