"""The judge LM: an autoregressive reference model that gives the exact likelihood of any texts.

    perplexity = exp( - sum of log p(token) / number of tokens )        over the tokens of all texts and their EOS

Perplexity alone does not measure quality, since a model that repeats one good sentence has a low one: report it beside the
texts' entropy and uniqueness, and beside the judge's perplexity of held-out texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from diffusionlm.config import UserError
from diffusionlm.core.objective import collate
from diffusionlm.data.batches import check_list
from diffusionlm.data.tokenizers import decode_texts, load_tokenizer
from diffusionlm.evaluation.likelihood import Bound
from diffusionlm.models.causal import load_causal, reach
from diffusionlm.models.io import model_folder
from diffusionlm.pipelines.base import SamplingConfig, batches
from diffusionlm.pipelines.causal import write_ids
from diffusionlm.pipelines.memory import rows_at_once
from diffusionlm.pipelines.placing import placed
from diffusionlm.processes import shared

FEWER = 4  # times as few tensors (L, V) exist at once as in sampling by diffusion


@dataclass
class Judge:
    """An autoregressive model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    dtype: torch.dtype = torch.float32

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", dtype: str = "fp32") -> Judge:
        """Load a run folder, a model folder, or any local causal language model with its tokenizer.

        Raises:
            UserError: no such folder, another model family, damaged files; an unknown device or dtype.
        """
        folder = model_folder(folder)
        model, tokenizer = load_causal(folder), load_tokenizer(folder)
        vectors: Any = model.get_input_embeddings()
        known, largest = vectors.num_embeddings, max(tokenizer.get_vocab().values())
        if largest >= known:
            raise UserError(f"{folder}: the tokenizer has a token {largest}, the model {known} tokens")
        return cls(model, tokenizer, placed(model, device, dtype))

    @torch.no_grad()
    def score(self, texts: Sequence[str], batch_tokens: int = 8192, rows: Sequence[Sequence[int]] | None = None) -> list[Bound]:
        """Return each text's exact likelihood; a batch holds at most ``batch_tokens`` tokens with its padding, or what fits.

        A text's tokens and the EOS after it are scored, as the reconstruction term: there is no noise. Without an EOS in the
        tokenizer there is none; without a BOS the first token is context only. A text longer than the model's maximum is
        scored in windows, in which every token has at least half of that maximum as context. ``rows`` are the token ids of the
        texts, where these are not those of the tokenizer, such as sampled ones.
        """
        check_list(texts)
        rows = [self._encode(text) for text in texts] if rows is None else rows
        nats = [0.0] * len(rows)
        pieces = [(i, *window) for i, row in enumerate(rows) for window in windows(len(row), reach(self.model) + 1)]
        pieces.sort(key=lambda piece: piece[2] - piece[1])
        batch_tokens = min(batch_tokens, FEWER * rows_at_once(1, self.model))
        while pieces:
            count = max(1, batch_tokens // (pieces[-1][2] - pieces[-1][1]))
            batch, pieces = pieces[-count:], pieces[:-count]
            losses = self._losses([rows[i][first:last] for i, first, last, _ in batch])
            for (i, first, last, new), row in zip(batch, losses, strict=True):
                nats[i] += float(row[new - first - 1 : last - first - 1].sum())
        mark, frame = self.tokenizer.unk_token_id, (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        unknown = [0 if mark in frame else row.count(mark) for row in rows]  # GPT-2 has one token for EOS and unknown
        return [
            Bound(reconstruction=n, tokens=len(row) - 1, characters=len(text), unknown=u, exact=True)
            for n, row, text, u in zip(nats, rows, texts, unknown, strict=True)
        ]

    def sample(
        self, count: int, seed: int = 0, temperature: float = 1.0, batch_size: int = 128, max_tokens: int | None = None
    ) -> list[str]:
        """Sample ``count`` texts; the first n depend neither on ``count`` nor on ``batch_size``.

        A text without an EOS after ``max_tokens`` tokens (or the model's maximum) is truncated. Special tokens, [UNK]
        included, are excluded.

        Raises:
            UserError: the tokenizer has no BOS; an impossible number.
        """

        def sampled(indices: range) -> list[str]:
            seeds = [(seed, index, 0) for index in indices]
            ids = write_ids(self.model, self.tokenizer, seeds, temperature, max_tokens, self.dtype)
            return decode_texts(self.tokenizer, ids)

        each = batches(count, SamplingConfig(temperature=temperature, batch_size=batch_size, seed=seed))
        return [text for texts in shared(each, sampled, lambda plain: plain) for text in texts]

    def complete(self, begun: str, count: int, seed: int = 0, max_tokens: int | None = None) -> list[str]:
        """Sample ``count`` texts that begin with ``begun``. Raises UserError where the tokenizer has no BOS."""
        ids = self.tokenizer(begun, add_special_tokens=False, verbose=False)["input_ids"]
        seeds = [(seed, index, 0) for index in range(count)]
        longest = None if max_tokens is None else len(ids) + max_tokens
        rows = write_ids(self.model, self.tokenizer, seeds, 1.0, longest, self.dtype, begun=ids)
        return decode_texts(self.tokenizer, rows)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        row = [*([] if start is None else [start]), *ids, *([] if end is None else [end])]
        if not row:
            raise UserError("score: this tokenizer has no BOS and no EOS, so an empty text has no likelihood")
        return row

    def _losses(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the nats (B, L - 1) of every token but the first of each row, on the CPU in float64."""
        batch = send_to_device(collate(rows, 0), self.model.device)
        ids, mask = batch.ids, batch.mask
        with torch.autocast(ids.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1].long(), use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")
        return (losses * mask[:, 1:]).double().cpu()


def windows(length: int, reach: int) -> Iterator[tuple[int, int, int]]:
    """Cut ``length`` tokens into pieces of ``reach``: yield where each begins, ends, and its first token not yet scored."""
    yield 0, min(length, reach), 1
    end = reach
    while end < length:
        scored, end = end, min(length, end + max(1, reach // 2))
        yield end - reach, end, scored


def perplexity(scored: Sequence[Bound]) -> float:
    """Return exp(nats / tokens) over all texts together, EOS counted. Raises UserError where there is no token."""
    tokens = sum(one.tokens for one in scored)
    if not tokens:
        raise UserError("texts: expected at least one token to score, got none")
    return math.exp(sum(one.nats for one in scored) / tokens)
