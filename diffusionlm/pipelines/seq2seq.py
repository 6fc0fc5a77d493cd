"""The pipeline of encoder-decoders: sample token after token given a source, each from softmax(logits / temperature).

w_i ~ p(w_i | BOS, w_1, ..., w_(i-1), source)        until EOS
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from diffusionlm.config import UserError
from diffusionlm.controls import Control
from diffusionlm.models.causal import reach
from diffusionlm.models.seq2seq import encode_sources, load_seq2seq
from diffusionlm.models.source import Source
from diffusionlm.pipelines.base import SamplingConfig, UnguidedPipeline, Watch, check_unused
from diffusionlm.pipelines.causal import UNUSED as CAUSAL
from diffusionlm.pipelines.causal import CachedLogits, draw_ids
from diffusionlm.pipelines.conditioning import distinct, guided_logits
from diffusionlm.pipelines.effect import CONDITIONAL, Unused, unused_floor, unused_ranking

UNUSED: Unused = {name: reason for name, reason in CAUSAL.items() if name not in CONDITIONAL}
ALONE = "this model was trained with a source for every text (drop: 0) and generates from a source alone"


class Seq2SeqPipeline(UnguidedPipeline[T5ForConditionalGeneration]):
    """Samples from an encoder-decoder by ancestral sampling; the encoder runs once for each source of a batch."""

    exact_likelihood = True

    load_model = staticmethod(load_seq2seq)

    @property
    def network(self) -> torch.nn.Module:
        return self.model.decoder

    @property
    def condition(self) -> Source:
        """The condition of the model."""
        settings: Any = self.model.settings
        return settings.source

    def check(self, sampling: SamplingConfig) -> None:
        check_unused(sampling, UNUSED)

    def unused(self, sampling: SamplingConfig, controls: Sequence[Control] = ()) -> Unused:
        return {**UNUSED, **unused_ranking(self, sampling), **unused_floor(sampling)}

    def check_request(
        self, sampling: SamplingConfig, controls: Sequence[Control], tries: int, condition: Any, source: Any = None
    ) -> None:
        super().check_request(sampling, controls, tries, condition, source)
        if condition is None and source is None and not self.condition.drop:
            raise UserError(f"source: {ALONE}; give it one")

    def preview(self, count: int) -> list[str]:
        if self.condition.drop:
            return super().preview(count)
        return [f"no samples: {ALONE}"]

    @torch.no_grad()
    def sample_ids(
        self, seeds: Sequence[Sequence[int]], sampling: SamplingConfig, watch: Watch | None, values: Sequence[Any]
    ) -> list[list[int]]:
        given = self._next_logits(values)
        if sampling.cfg == 1:
            return self._drawn(given, seeds, sampling, watch)
        null = self._next_logits([None] * len(seeds))

        def next_logits(ids: Tensor) -> Tensor:
            return guided_logits(null(ids), given(ids), sampling.cfg, sampling.cfg_floor)

        return self._drawn(next_logits, seeds, sampling, watch)

    def _drawn(self, next_logits: Any, seeds: Sequence[Sequence[int]], sampling: SamplingConfig, watch: Watch | None) -> Any:
        begun = torch.full((len(seeds), 1), self.model.config.bos_token_id, device=self.model.device)
        return draw_ids(next_logits, self.tokenizer, begun, seeds, sampling.temperature, reach(self.model) - 2, watch)

    def _next_logits(self, values: Sequence[Any]) -> CachedLogits:
        """Return the decoder for encoded sources, one for each sample; equal consecutive ones are encoded once."""
        tensors, rows = distinct(self.model, values)
        with torch.autocast(self.model.device.type, self.dtype, enabled=self.dtype != torch.float32):
            encoded = encode_sources(self.model, **tensors)
        states, mask = encoded["encoder_outputs"][0], encoded["attention_mask"]
        return CachedLogits(
            self.model, "decoder_input_ids", self.dtype, encoder_outputs=(states[rows],), attention_mask=mask[rows]
        )
