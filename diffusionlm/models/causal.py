"""Autoregressive language models: a Transformer that predicts the next token. They serve as baseline and as judge LM.

    log p(w) = sum over i of log p(w_i | BOS, w_1, ..., w_(i-1))        the last w_i is EOS

The likelihood is exact. The network is transformers' Llama (Touvron et al. 2023). Shape letters: B batch, L positions, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from diffusionlm.config import UserError
from diffusionlm.core.objective import Batch, Objective, ObjectiveConfig, expect_family
from diffusionlm.data.folders import damage_errors, load_folder
from diffusionlm.models.io import check_special_ids, model_config, read_model, special_ids
from diffusionlm.models.spec import ModelSpec
from diffusionlm.recipe.chunks import in_chunks, is_large, token_losses


class AutoregressiveSpec(ModelSpec):
    """Base of the hyperparameters of models that predict each token, EOS included, from those before it."""

    @property
    def explicit_length(self) -> bool:
        return False

    @property
    def excludes_self(self) -> bool:
        return True


@dataclass(frozen=True)
class CausalConfig(AutoregressiveSpec, name="causal"):
    """Hyperparameters of an autoregressive model.

    Args:
        layers: layers of attention and perceptron.
        width: coordinates of the residual stream.
        heads: attention heads of a layer.
        expansion: width of the perceptrons relative to ``width``.
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    expansion: float = 2.67

    def __post_init__(self) -> None:
        self.expect("1 to 1000", "layers", "heads")
        self.expect("1 to 100000", "width")
        self.expect("a positive number", "expansion")
        if self.width % (2 * self.heads):
            raise UserError(f"heads: expected the width {self.width} to be a multiple of twice the heads, got {self.heads}")
        if self.expansion * self.width < 1:
            raise UserError(f"expansion: expected at least {1 / self.width}, got {self.expansion}")

    def make(self, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sequence[int]], max_length: int) -> LlamaForCausalLM:
        check_special_ids(special_ids(tokenizer), len(tokenizer))
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=max_length,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=False,  # separate input and output matrices are cheap at a thousand words
            **self._sizes(),
        )
        return LlamaForCausalLM(config)

    def _sizes(self) -> dict[str, Any]:
        sizes = {"hidden_size": self.width, "intermediate_size": round(self.expansion * self.width)}
        return {**sizes, "num_attention_heads": self.heads, "num_hidden_layers": self.layers}

    def load(self, folder: str | Path) -> PreTrainedModel:
        return load_causal(folder)

    def describes(self, model: PreTrainedModel) -> bool:
        return isinstance(model, LlamaForCausalLM) and self._sizes().items() <= model.config.to_dict().items()


@dataclass(frozen=True)
class NextToken(ObjectiveConfig, name="causal"):
    """Mean cross-entropy of the next token, EOS included: the exact negative log-likelihood, in nats per token.

    Given tokens are context alone, and the EOS at the end of a packed row is that of no text.

    Args:
        dropped_share: share of the context tokens replaced by PAD, whose vector is 0, in training: word dropout against
            overfitting (Gal and Ghahramani 2016, section 4).
    """

    dropped_share: float = 0.0

    def __post_init__(self) -> None:
        self.expect("a share from 0 to below 1", "dropped_share")

    def check(self, model: ModelSpec) -> None:
        expect_family(self, model, "causal")

    def build(self, model: PreTrainedModel) -> NextTokenObjective:
        return NextTokenObjective(self, model)


class NextTokenObjective(Objective):
    """The module of ``NextToken``."""

    ranks = True

    def __init__(self, spec: NextToken, model: PreTrainedModel) -> None:
        super().__init__(model, model.config.pad_token_id)
        self.spec = spec

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``cross_entropy``, in nats per token."""
        ids, mask, free = batch.ids, batch.mask, batch.free
        context, wanted, counted = ids[:, :-1], ids[:, 1:], free[:, 1:]
        if getattr(self.model.config, "packed_rows", False):  # their last EOS may be inside a text
            counted = F.pad(counted[:, :-1], (0, 1))
        if self.training and self.spec.dropped_share:
            hidden = torch.rand(context.shape, device=ids.device) < self.spec.dropped_share
            context = context.masked_fill(hidden & free[:, :-1], self.pad_id)
        losses = self.losses(context, mask[:, :-1], wanted, batch)
        return {"cross_entropy": (losses * counted).sum() / counted.sum()}

    def losses(self, context: Tensor, mask: Tensor, wanted: Tensor, batch: Batch) -> Tensor:
        """Return -log p of the tokens ``wanted`` (B, L) after each of ``context``; of a large vocabulary in chunks."""
        model, size = self.model, self.model.config.vocab_size
        if type(self) is not NextTokenObjective or type(model) is not LlamaForCausalLM or not is_large(wanted.numel(), size):
            return F.cross_entropy(self.logits(context, mask, batch).transpose(1, 2), wanted, reduction="none")
        hidden = model.model(input_ids=context, attention_mask=mask.long(), use_cache=False).last_hidden_state.flatten(0, 1)
        found = in_chunks(lambda x, i: token_losses(model.lm_head(x).float(), i), size, hidden, wanted.flatten())
        return found.view(wanted.shape)

    def logits(self, context: Tensor, mask: Tensor, batch: Batch) -> Tensor:
        """Return the logits (B, L, V) of the token after each of ``context`` (B, L), whose ``mask`` is True at tokens."""
        logits: Tensor = self.model(input_ids=context, attention_mask=mask.long(), use_cache=False).logits
        return logits.float()


def reach(model: PreTrainedModel) -> int:
    """Return the context length of a model in tokens, BOS included."""
    return int(getattr(model.config, "max_position_embeddings", None) or 1024)


def load_causal(folder: str | Path, base: str | Path | None = None) -> PreTrainedModel:
    """Load any causal language model from a local folder, from safetensors and JSON only; its own code is never run.

    ``base`` is as in ``io.read_model``.

    Raises:
        UserError: the folder is missing or damaged, or the model is not causal: it attends to the tokens it predicts.
    """
    model_config(folder)
    kind = load_folder(AutoConfig, folder).model_type
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(f"{folder}: expected a causal language model, got model_type {kind!r}")
    model: PreTrainedModel = read_model(AutoModelForCausalLM, AutoConfig, folder, base)
    model.train(False)
    with torch.no_grad(), damage_errors(folder):
        first, other = model(input_ids=torch.tensor([[0, 0], [0, 1]]), use_cache=False).logits[:, 0]
    frequencies = [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")]  # not among the weights
    if reach(model) < 3 or not all(bool(each.isfinite().all()) for each in (first, *frequencies)):
        wrong = f"a context of {reach(model)} tokens" if reach(model) < 3 else "numbers that are NaN or infinite"
        raise UserError(f"{folder}: the config is damaged: it gives {wrong}")
    if not torch.allclose(first, other, atol=1e-4):
        raise UserError(f"{folder}: this {kind!r} model sees the words it is to predict, so it has no likelihood to give")
    return model
