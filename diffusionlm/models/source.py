"""Conditions on a source text: read by an encoder that the network attends to, or joined to the text as a clean prefix.

    source            encoder(source) -> states, to which each layer attends      (SeqDiffuSeq, Yuan et al. 2022; Difformer)
    partial-noising   [source, x_t], of which only x_t is noised                    (DiffuSeq, Gong et al. 2023, section 3)

Both predict the number of tokens from the source where the model draws lengths. A ``source`` may be read by another tokenizer
than the texts: it goes with that of the texts (``data.tokenizers.join_sources``), and the config of the model has its number of
tokens, ``source_vocabulary``. S source positions, W width, V words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError
from diffusionlm.data.batches import encodings
from diffusionlm.data.reading import wrong_character
from diffusionlm.data.tokenizers import TokenizerRecipe, of_sources
from diffusionlm.models.backbones import AttentionBackbone, Block, Transformer, attention_bias
from diffusionlm.models.conditions import Condition, Conditioning, column, kept

if TYPE_CHECKING:
    import datasets  # type: ignore[import-untyped]

    from diffusionlm.models.diffusion import WordVectorModel


PLACE = "model.condition"
FRAME = 3  # BOS and two EOS around a source of DiffuSeq


def linearised(attributes: Mapping[str, Any]) -> str:
    """Return attributes as a source text, in the form of E2E's meaning representations: ``name[Aromi], food[Chinese]``."""
    return ", ".join(f"{key}[{value}]" for key, value in attributes.items() if value is not None)


class SourceText(Condition):
    """Base of the conditions on a text of up to ``max_length`` tokens in the corpus column ``column``.

    Mappings in the column, such as ``attributes``, are linearised. ``tokenizer`` is that of the sources, made from those of the
    training rows; without one they share that of the texts, which then has to know their words.
    """

    column: str
    max_length: int
    tokenizer: TokenizerRecipe | None

    def __post_init__(self) -> None:
        self.expect("1 to 100000", "max_length")
        self.expect("a share from 0 to below 1", "drop")

    @property
    def key(self) -> str:
        return "source"

    @property
    def with_own_tokenizer(self) -> SourceText | None:
        return None if self.tokenizer is None else self

    def vocabulary(self, config: Any) -> int:
        """Return the number of tokens of sources for a model with this ``config``. Raises UserError where it has none."""
        found: int | None = config.vocab_size if self.tokenizer is None else getattr(config, "source_vocabulary", None)
        if found is None:
            raise UserError("source_vocabulary: expected the number of tokens of the sources' own tokenizer, got none")
        return found

    def reader(self, tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
        """Return the tokenizer of the sources: the model's ``tokenizer``, or the one that goes with it.

        Raises:
            UserError: none goes with it, and the sources are not read by the model's.
        """
        if self.tokenizer is None:
            return tokenizer
        if (own := of_sources(tokenizer)) is None:
            raise UserError(
                "source: this model reads its sources with a tokenizer of their own, and it has the texts' alone; "
                "open its folder by Pipeline.from_pretrained, which loads both"
            )
        return own

    def texts(self, rows: datasets.Dataset) -> list[str]:
        return self.values(rows) if self.tokenizer is None else []

    def new_tokenizer(self, rows: datasets.Dataset) -> PreTrainedTokenizerFast:
        """Return the sources' own tokenizer, made from the training rows. Raises UserError where that is not possible."""
        assert self.tokenizer is not None
        sources = self.values(rows)
        try:
            return self.tokenizer.make(sources, self.max_length + 2)  # BOS and EOS count
        except UserError as error:
            place = f"{PLACE}." if str(error).startswith("tokenizer") else f"{PLACE}.tokenizer: "
            raise UserError(f"{place}{error}".replace("training texts hold", "sources hold")) from None

    def values(self, rows: datasets.Dataset) -> list[Any]:
        values = [linearised(value) if isinstance(value, Mapping) else value for value in column(rows, self.column, PLACE)]
        for row, value in enumerate(values):
            wrong = "" if isinstance(value, str) and value.strip() else repr(value)[:60]
            if wrong := wrong or wrong_character(value):
                place = f"text {row + 1}, {rows['text'][row][:60]!r}"
                raise UserError(f"{PLACE}: expected a source text in column {self.column!r}, got {wrong} in {place}")
        return values

    def with_source(self, given: Any, text: str) -> Any:
        if given is not None:
            raise UserError("condition: expected the source alone, which is given already; leave it out")
        return text

    def encoded(self, values: Sequence[Any], tokenizer: PreTrainedTokenizerFast) -> list[Any]:
        for value in values:
            if value is not None and not (isinstance(value, str) and value.strip()):
                raise UserError(f"source: expected a text, got {value!r}")
        texts = [value for value in values if value is not None]
        found = iter(encodings(texts, self.reader(tokenizer)) if texts else ())
        return [None if value is None else self._fitting(next(found).ids, value) for value in values]

    def _fitting(self, ids: list[int], text: str) -> list[int]:
        if len(ids) > self.max_length:
            most = f"{self.max_length} tokens (model.condition.max_length)"
            raise UserError(f"source: expected at most {most}, got {len(ids)}: {text[:60]!r}...")
        if not ids:  # as many as the null condition has
            raise UserError(f"source: expected a text, but its tokenizer reads no token in {text[:60]!r}")
        return ids

    def collate(self, values: Sequence[Any]) -> dict[str, Tensor]:
        rows = [value or [] for value in values]
        size = max([1, *map(len, rows)])
        return {
            "ids": torch.tensor([[*row, *[0] * (size - len(row))] for row in rows]),
            "tokens": torch.tensor([len(row) for row in rows]),
        }


@dataclass(frozen=True)
class Source(SourceText, name="source"):
    """A source text, read by a Transformer encoder of the backbone's width; each layer of the backbone attends to its states.

    Args:
        column: of the source texts in the corpus.
        max_length: the most tokens of a source.
        layers: layers of the encoder.
        drop: share of the sources that are hidden in training, for classifier-free guidance (Ho and Salimans 2021).
        dropout: of the encoder.
        tokenizer: of the sources, made from those of the training rows; empty shares that of the texts.
    """

    column: str = "source"
    max_length: int = 64
    layers: int = 2
    drop: float = 0.1
    dropout: float = 0.1
    tokenizer: TokenizerRecipe | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect("1 to 1000", "layers")
        self.expect("a share from 0 to below 1", "dropout")

    @property
    def has_states(self) -> bool:
        return True

    def build(self, model: WordVectorModel) -> nn.Module:
        words, longest = self.vocabulary(model.config), model.config.max_tokens if model.explicit_length else 0
        return SourceEncoder(self, model.settings.backbone, words, longest)


class SourceEncoder(nn.Module):
    """The module of ``Source``: states of the tokens, and the logits of 0, 1, 2, ... ``longest`` tokens of the text."""

    def __init__(self, spec: Source, backbone: AttentionBackbone, vocabulary: int, longest: int) -> None:
        super().__init__()
        self.drop = spec.drop
        self.embedding = nn.Embedding(vocabulary, backbone.width)
        self.positions = nn.Embedding(spec.max_length, backbone.width)
        self.norm_input, self.norm = nn.RMSNorm(backbone.width), nn.RMSNorm(backbone.width)
        self.dropout = nn.Dropout(spec.dropout)
        layer = Transformer(width=backbone.width, heads=backbone.heads, dropout=spec.dropout)
        self.blocks = nn.ModuleList([Block(layer) for _ in range(spec.layers)])
        self.length = nn.Linear(backbone.width, longest + 1) if longest else None

    def forward(self, ids: Tensor, tokens: Tensor) -> Conditioning:
        """Encode sources ``ids`` (B, S) of ``tokens`` (B,); one without tokens is the null condition."""
        tokens = tokens * kept(self, len(ids), self.drop, ids.device)
        seen = torch.arange(ids.shape[1], device=ids.device) < tokens[:, None]
        hidden = self.embedding(ids) + self.positions.weight[: ids.shape[1]]
        hidden, bias = self.dropout(self.norm_input(hidden)), attention_bias(seen[:, None, None, :])
        for block in self.blocks:
            hidden = block(hidden, bias.to(hidden), seen)
        states = self.norm(hidden)
        mean = (states * seen[..., None]).sum(1) / tokens.clamp(min=1)[:, None]
        return Conditioning(states=states, seen=seen, length_logits=None if self.length is None else self.length(mean))


@dataclass(frozen=True)
class PartialNoising(SourceText, name="partial-noising"):
    """A source text before the text, in one sequence for the network; the source's tokens stay clean and have no loss.

    DiffuSeq (Gong et al. 2023, section 3). Lengths, where the model draws them, are predicted from the source's words.

    Args:
        column: of the source texts in the corpus.
        max_length: the most tokens of a source.
        drop: share of the sources that are hidden in training, for classifier-free guidance.
        times: that the network receives at the source's tokens: ``clean`` is 0, ``text`` the time of the text, as in DiffuSeq's
            released code.
        layout: ``joined`` is the source's tokens before a text of its own length; ``diffuseq`` is that of DiffuSeq's released
            code, BOS source EOS EOS and the text, which PAD fills up to the model's maximum (explicit_length: false).
        tokenizer: none but that of the texts, which are in one sequence with the source.
    """

    column: str = "source"
    max_length: int = 64
    drop: float = 0.1
    times: Literal["clean", "text"] = "clean"
    layout: Literal["joined", "diffuseq"] = "joined"
    tokenizer: TokenizerRecipe | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenizer is not None:
            raise UserError(
                "tokenizer: expected none, since 'partial-noising' joins source and text to one sequence with the same word "
                "vectors; leave it out, or take the condition 'source'"
            )

    @property
    def clean_prefix(self) -> bool:
        return self.times == "clean"

    @property
    def shares_length(self) -> bool:
        return self.layout == "diffuseq"

    @property
    def prefix_size(self) -> int:
        return 0 if self.shares_length else self.max_length

    def encoded(self, values: Sequence[Any], tokenizer: PreTrainedTokenizerFast) -> list[Any]:
        found = super().encoded(values, tokenizer)
        if not self.shares_length:
            return found
        start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        return [None if ids is None else [start, *ids, end, end] for ids in found]

    def build(self, model: WordVectorModel) -> nn.Module:
        longest = model.config.max_tokens - FRAME - 3  # a text has BOS, EOS and a word
        if self.shares_length and self.max_length > longest:
            shared = f"source and text share the {model.config.max_tokens} tokens of data.max_length"
            raise UserError(f"{PLACE}.max_length: expected at most {max(longest, 0)}, since {shared}, got {self.max_length}")
        return Prefix(self, model.config.vocabulary, model.config.max_tokens if model.explicit_length else 0)


class Prefix(nn.Module):
    """The module of ``PartialNoising``: the source as a prefix, and the logits of the text's length."""

    WIDTH = 128

    def __init__(self, spec: PartialNoising, vocabulary: int, longest: int) -> None:
        super().__init__()
        self.drop = spec.drop
        self.embedding = nn.Embedding(vocabulary, self.WIDTH) if longest else None
        if longest:
            self.length = nn.Sequential(nn.Linear(self.WIDTH, self.WIDTH), nn.GELU(), nn.Linear(self.WIDTH, longest + 1))

    def forward(self, ids: Tensor, tokens: Tensor) -> Conditioning:
        """Return the prefix of sources ``ids`` (B, S) of ``tokens`` (B,); one without tokens is the null condition."""
        tokens = tokens * kept(self, len(ids), self.drop, ids.device)
        logits = None
        if self.embedding is not None:
            seen = torch.arange(ids.shape[1], device=ids.device) < tokens[:, None]
            logits = self.length((self.embedding(ids) * seen[..., None]).sum(1) * tokens.clamp(min=1)[:, None] ** -0.5)
        return Conditioning(prefix=ids, prefix_tokens=tokens, length_logits=logits)
