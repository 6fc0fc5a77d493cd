"""A condition on a tag of each position, such as its part of speech.

A value has as many tags as its text has tokens, and so fixes the text's length. B batch, S positions, C features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError, nearest
from diffusionlm.data.annotators import Annotator, annotated
from diffusionlm.data.batches import encodings
from diffusionlm.models.conditions import Condition, Conditioning, column, fitted_labels, kept

if TYPE_CHECKING:
    import datasets  # type: ignore[import-untyped]

    from diffusionlm.models.diffusion import WordVectorModel

PLACE = "condition"  # of a model or of an adapter


@dataclass(frozen=True)
class Tagged:
    """A corpus row's text with the tags of its words."""

    text: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Tags(Condition, name="tags"):
    """A tag of each position, such as a part of speech; each token of a word has the word's tag, BOS and EOS have none.

    In sampling the value is a list of tags, one for each token, or a text of tags with spaces between them.

    Args:
        column: of the corpus, with a list of tags for each text, one for each word; texts without a list have the null
            condition.
        annotator: tags the texts of the corpus, in place of the column.
        labels: the tags; empty is those of the training texts. Other tags of the corpus are none.
        drop: share of the texts whose tags are hidden in training, for classifier-free guidance (Ho and Salimans 2021).
    """

    fits: ClassVar[tuple[str, ...]] = ("labels",)

    column: str = "tags"
    annotator: Annotator | None = None
    labels: tuple[str, ...] = ()
    drop: float = 0.1

    def __post_init__(self) -> None:
        self.expect("a share from 0 to below 1", "drop")
        if len({*self.labels}) < len(self.labels):
            raise UserError(f"labels: expected different tags, got {', '.join(self.labels)}")

    @property
    def key(self) -> str:
        return self.column

    @property
    def size(self) -> int:
        return len(self.labels)

    @property
    def of_positions(self) -> bool:
        return True

    def build(self, model: WordVectorModel) -> nn.Module:
        return OneHotTags(self)

    def fitted(self, rows: datasets.Dataset) -> Self:
        found = (tag for value in self.values(rows) if value is not None for tag in value.tags)
        names = {"place": PLACE, "one": "the tag", "all": f"different tags in {self.column!r}"}
        return replace(self, labels=fitted_labels(self.labels, found, **names))

    def values(self, rows: datasets.Dataset) -> list[Any]:
        if self.annotator is None:
            lists = column(rows, self.column, PLACE)
        else:
            lists = annotated(rows.select_columns(["text"]), self.annotator, ["tags"])["tags"][:]
        return [self._tagged(text, tags, row) for row, (text, tags) in enumerate(zip(rows["text"][:], lists, strict=True), 1)]

    def _tagged(self, text: str, tags: Any, row: int) -> Tagged | None:
        if tags is None:
            return None
        if not isinstance(tags, list | tuple) or not all(isinstance(tag, str) for tag in tags):
            raise UserError(f"{PLACE}: expected a list of tags in {self.column!r}, got {str(tags)[:60]!r} in text {row}")
        return Tagged(text, tuple(tags))

    def read(self, text: str, key: str = "") -> Any:
        return text.split()

    def encoded(self, values: Sequence[Any], tokenizer: PreTrainedTokenizerFast) -> list[Any]:
        """Return the number of the tag of each token, counted from 1; 0 is none."""
        rows = [value for value in values if isinstance(value, Tagged)]
        words = (encoding.word_ids for encoding in encodings([row.text for row in rows], tokenizer))
        return [self._of_row(value, next(words)) if isinstance(value, Tagged) else self._given(value) for value in values]

    def _of_row(self, value: Tagged, words: Sequence[int | None]) -> tuple[int, ...]:
        count = max((word for word in words if word is not None), default=-1) + 1
        if count != len(value.tags):
            raise UserError(
                f"{PLACE}: expected a tag in {self.column!r} for each of the {count} words of {value.text[:60]!r}, "
                f"got {len(value.tags)}"
            )
        numbers = {tag: number for number, tag in enumerate(self.labels, 1)}
        return tuple(0 if word is None else numbers.get(value.tags[word], 0) for word in words)

    def _given(self, value: Any) -> tuple[int, ...] | None:
        if value is None:
            return None
        tags = value.split() if isinstance(value, str) else value
        if not isinstance(tags, list | tuple) or not tags:
            raise UserError(f"condition: {self.column}: expected a list of tags, one for each token, got {value!r}")
        if (wrong := next((tag for tag in tags if tag not in self.labels), None)) is not None:
            raise UserError(f"condition: {self.column}: there is no tag {wrong!r}{nearest(str(wrong), self.labels)}")
        return tuple(1 + self.labels.index(tag) for tag in tags)

    def of_piece(self, value: Any, start: int, tokens: int) -> Any:
        return None if value is None else value[start : start + tokens]

    def length(self, value: Any) -> int | None:
        return None if value is None else len(value)

    def collate(self, values: Sequence[Any]) -> dict[str, Tensor]:
        longest = max(len(value or ()) for value in values)
        rows = [[0, *(value or ()), *[0] * (longest - len(value or ())), 0] for value in values]  # BOS, tokens, EOS
        return {"tags": torch.tensor(rows)}


class OneHotTags(nn.Module):
    """The module of ``Tags``: numbers of tags (B, S), 0 for none, to one-hot vectors or 0."""

    def __init__(self, spec: Tags) -> None:
        super().__init__()
        self.size, self.drop = spec.size, spec.drop

    def forward(self, tags: Tensor) -> Conditioning:
        """Return the features (B, S, C)."""
        tags = tags * kept(self, len(tags), self.drop, tags.device)[:, None]
        return Conditioning(features=F.one_hot(tags, self.size + 1)[..., 1:].float())
