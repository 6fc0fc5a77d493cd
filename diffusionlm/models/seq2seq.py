"""Encoder-decoders: an autoregressive model of a text given its source, the peer of conditional diffusion.

    log p(w | source) = sum over i of log p(w_i | BOS, w_1, ..., w_(i-1), source)        the last w_i is EOS

The likelihood is exact. The network is transformers' T5 (Raffel et al. 2020; gated perceptrons as in version 1.1). The encoder
reads BOS and the words of the source; BOS alone is the null condition. It shares the word vectors of the texts, or has its own
for sources with a tokenizer of their own. B batch, S source positions, L positions, V words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from diffusionlm.config import FORMAT_VERSION, Settings, UserError, build_untrusted, to_plain
from diffusionlm.core.objective import Batch, expect_family
from diffusionlm.data.folders import damage_errors, load_folder
from diffusionlm.data.tokenizers import of_sources
from diffusionlm.models.causal import AutoregressiveSpec, NextToken, NextTokenObjective
from diffusionlm.models.conditional import ConditionalSpec
from diffusionlm.models.conditions import Condition, kept
from diffusionlm.models.io import (
    SpecialToken,
    Text,
    Whole,
    check_config,
    check_special_ids,
    model_config,
    read_model,
    special_ids,
)
from diffusionlm.models.source import Source
from diffusionlm.models.spec import ModelSpec

# Keys of a config that neither the settings nor the tokenizer determine, or that change no number.
FREE = (  # ``settings`` of an earlier version may lack a field that has its default
    "architectures", "dtype", "torch_dtype", "transformers_version", "length_counts", "use_cache", "_name_or_path", "settings",
)  # fmt: skip


@dataclass(frozen=True)
class Seq2SeqConfig(AutoregressiveSpec, ConditionalSpec, name="seq2seq"):
    """Hyperparameters of an encoder-decoder.

    Args:
        layers: of the decoder; the encoder's are those of the condition.
        width: coordinates of the residual streams.
        heads: attention heads of a layer.
        expansion: width of the perceptrons relative to ``width``.
        dropout: of the decoder; the encoder's is that of the condition.
        condition: a ``source``.
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    expansion: float = 2.67
    dropout: float = 0.1
    condition: Condition | None = field(default_factory=Source)

    def __post_init__(self) -> None:
        self.expect("1 to 1000", "layers", "heads")
        self.expect("1 to 100000", "width")
        self.expect("a positive number", "expansion")
        self.expect("a share from 0 to below 1", "dropout")
        if self.width % self.heads:
            raise UserError(f"heads: expected the width {self.width} to be a multiple of the heads, got {self.heads}")
        if self.expansion * self.width < 1:
            raise UserError(f"expansion: expected at least {1 / self.width}, got {self.expansion}")
        if type(self.condition) is not Source:
            got = "none" if self.condition is None else repr(self.condition.name)
            other = "; the model 'causal' has no condition" if self.condition is None else ""
            raise UserError(f"condition: expected 'source', the text that the encoder reads, got {got}{other}")

    @property
    def source(self) -> Source:
        """The condition."""
        assert isinstance(self.condition, Source)
        return self.condition

    def make(
        self, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sequence[int]], max_length: int
    ) -> T5ForConditionalGeneration:
        ids = special_ids(tokenizer)
        check_special_ids(ids, len(tokenizer))
        sources = of_sources(tokenizer)
        size = None if sources is None else len(sources)
        return self.attached(self.network_class(self.network(len(tokenizer), ids, max_length, size)))

    @property
    def network_class(self) -> type[T5ForConditionalGeneration]:
        """The class of the network."""
        return T5ForConditionalGeneration if self.source.tokenizer is None else TwoVocabularies

    def network(
        self, vocabulary: int, ids: Mapping[SpecialToken, int], max_length: int, source_vocabulary: int | None
    ) -> T5Config:
        """Return the config of the network, which also holds these settings."""
        added: dict[str, Any] = {
            "bos_token_id": ids["start"],
            "decoder_start_token_id": ids["start"],
            "max_position_embeddings": max_length,  # T5 has relative positions; this is the most tokens of a text
            "special_ids": dict(ids),
            "settings": to_plain(self),
            "format_version": FORMAT_VERSION,
            **({} if source_vocabulary is None else {"source_vocabulary": source_vocabulary}),
        }
        return T5Config(
            vocab_size=vocabulary,
            d_model=self.width,
            d_kv=self.width // self.heads,
            d_ff=round(self.expansion * self.width),
            num_layers=self.source.layers,
            num_decoder_layers=self.layers,
            num_heads=self.heads,
            dropout_rate=self.dropout,
            feed_forward_proj="gated-gelu",
            pad_token_id=ids["pad"],
            eos_token_id=ids["end"],
            **added,
        )

    def attached(self, model: T5ForConditionalGeneration) -> T5ForConditionalGeneration:
        """Give ``model`` these settings, and its encoder the dropout of the source: T5's config has one for both parts."""
        model.settings = self  # type: ignore[assignment]
        share = self.source.dropout
        for module in model.encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = share
            elif hasattr(module, "dropout") and not isinstance(module.dropout, nn.Module):
                module.dropout = share  # type: ignore[assignment]
        return model

    def load(self, folder: str | Path) -> T5ForConditionalGeneration:
        return load_seq2seq(folder)

    def blank(self, model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
        return self.attached(cast(T5ForConditionalGeneration, super().blank(model, config)))


class TwoVocabularies(T5ForConditionalGeneration):
    """T5 whose encoder has its own word vectors, of the tokens of the sources; the last one is that of BOS."""

    _tied_weights_keys = {  # noqa: RUF012  # as transformers declares it
        name: vectors
        for name, vectors in T5ForConditionalGeneration._tied_weights_keys.items()
        if not name.startswith("encoder.")
    }

    def __init__(self, config: T5Config) -> None:
        """Make a model with random weights. Raises UserError where ``config`` has no ``source_vocabulary``."""
        size = build_untrusted(Seq2SeqConfig, config.settings, "settings").source.vocabulary(config)
        super().__init__(config)
        vectors = nn.Embedding(size + 1, config.d_model)
        nn.init.normal_(vectors.weight, std=config.initializer_factor)  # as T5's
        self.encoder.set_input_embeddings(vectors)


@dataclass(frozen=True, kw_only=True)
class SavedSeq2Seq(Settings):
    """The keys of ``config.json`` that the library adds to T5's, and those that they have to fit."""

    model_type: Text
    format_version: Whole
    settings: dict[str, Any]
    special_ids: dict[SpecialToken, Whole]
    vocab_size: Whole
    max_position_embeddings: Whole
    length_counts: list[Whole] = field(default_factory=list)
    source_vocabulary: Whole | None = None

    def __post_init__(self) -> None:
        check_special_ids(self.special_ids, self.vocab_size)
        self.expect("1 to 10000000", "source_vocabulary")
        self.expect("3 to 1000000", "max_position_embeddings")  # BOS, a token, EOS


def load_seq2seq(folder: str | Path, base: str | Path | None = None) -> T5ForConditionalGeneration:
    """Load a model folder, from safetensors and JSON only; ``base`` is as in ``io.read_model``.

    Raises:
        UserError: the folder is missing or damaged, holds another family or a newer format, or a T5 that this library has not
            trained: what its sources look like, and where its texts begin, is not known.
    """
    path, plain = Path(folder) / "config.json", model_config(folder)
    if plain.get("model_type") == T5Config.model_type and "settings" not in plain:
        raise UserError(f"{path}: expected a model that this library trained, with its settings, got a T5 from elsewhere")
    own = {each.name: plain[each.name] for each in fields(SavedSeq2Seq) if each.name in plain}
    check_config(SimpleNamespace(model_type=T5Config.model_type, saved=SavedSeq2Seq, place=""), own, path)
    with damage_errors(folder):
        settings = build_untrusted(Seq2SeqConfig, plain["settings"], "settings")
    check_network(settings, load_folder(T5Config, folder), path)
    return settings.attached(read_model(settings.network_class, T5Config, folder, base)).train(False)


def check_network(settings: Seq2SeqConfig, config: Any, path: Path) -> None:
    """Raise UserError where T5's ``config``, read from ``path``, is not that of the ``settings``: it gives other numbers."""
    sources = getattr(config, "source_vocabulary", None)
    expected = settings.network(config.vocab_size, config.special_ids, config.max_position_embeddings, sources).to_dict()
    got = config.to_dict()
    for name in sorted(expected.keys() - {*FREE}):
        if expected.get(name) != got.get(name):
            raise UserError(f"{path}: {name}: expected {expected.get(name)!r}, as its settings say, got {got.get(name)!r}")


def encode_sources(model: T5ForConditionalGeneration, ids: Tensor, tokens: Tensor) -> dict[str, Any]:
    """Return the arguments of the decoder for sources ``ids`` (B, S) of ``tokens`` (B,): the encoder's states, and their mask.

    A source without tokens is the null condition.
    """
    bos = model.config.source_vocabulary if isinstance(model, TwoVocabularies) else model.config.bos_token_id
    start = torch.full_like(ids[:, :1], bos)
    read = torch.cat([start, ids], 1)
    mask = (torch.arange(read.shape[1], device=ids.device) <= tokens[:, None]).long()
    return {"encoder_outputs": (model.encoder(input_ids=read, attention_mask=mask)[0],), "attention_mask": mask}


@dataclass(frozen=True)
class SourceToText(NextToken, name="seq2seq"):
    """Mean cross-entropy of the next token given the source, EOS included: the exact negative log-likelihood.

    In nats per token. ``dropped_share`` is that of the context in the decoder, as in ``causal``.
    """

    def check(self, model: ModelSpec) -> None:
        expect_family(self, model, "seq2seq")

    def build(self, model: T5ForConditionalGeneration) -> SourceToTextObjective:  # type: ignore[override]
        return SourceToTextObjective(self, model)


class SourceToTextObjective(NextTokenObjective):
    """The module of ``SourceToText``."""

    def logits(self, context: Tensor, mask: Tensor, batch: Batch) -> Tensor:
        given = batch.condition
        assert given is not None
        tokens = given["tokens"] * kept(self, len(context), self.model.settings.condition.drop, context.device)
        logits: Tensor = self.model(
            decoder_input_ids=context, decoder_attention_mask=mask.long(), use_cache=False,
            **encode_sources(self.model, given["ids"], tokens),
        ).logits  # fmt: skip
        return logits.float()
