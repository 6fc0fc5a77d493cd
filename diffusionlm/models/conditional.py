"""Hyperparameters of model families whose samples may be conditioned: how the values come from the corpus to the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import datasets  # type: ignore[import-untyped]
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from diffusionlm.config import UserError
from diffusionlm.data.batches import Encoded, Example
from diffusionlm.models.conditions import Condition, one_sentence
from diffusionlm.models.source import Source, SourceText
from diffusionlm.models.spec import ModelSpec, Rows, Splits


class ConditionalSpec(ModelSpec):
    """Base of the hyperparameters of models that may have a ``condition``; such a model has them as ``settings``."""

    condition: Condition | None

    def with_source(self, column: str) -> ModelSpec:
        condition = Source() if self.condition is None else self.condition
        if not isinstance(condition, SourceText) or condition.column not in (Source().column, column):
            raise UserError(f"data.source: expected a condition on the column {column!r}, got {condition}")
        return replace(self, condition=replace(condition, column=column))  # type: ignore[type-var]

    def tokenizer_texts(self, rows: datasets.Dataset) -> Sequence[str]:
        own = [] if self.condition is None else self.condition.texts(rows)
        return [*rows["text"], *own] if own else super().tokenizer_texts(rows)

    def of(self, model: PreTrainedModel) -> ModelSpec:
        settings: Any = model.settings
        return replace(self, condition=settings.condition)  # type: ignore[type-var]

    def describes(self, model: PreTrainedModel) -> bool:
        """Compare all settings but those that are fitted to the training texts."""
        settings: Any = getattr(model, "settings", None)
        if type(settings) is not type(self):
            return False
        given: Condition | None = settings.condition
        if self.condition is None or given is None:
            return self.condition is given and self.unfitted(settings) == self
        return self.condition.describes(given) and self.unfitted(settings) == self

    def unfitted(self, settings: Self) -> Self:
        """Return the ``settings`` of a model with the condition of these."""
        return replace(settings, condition=self.condition)  # type: ignore[type-var]

    def fitted(self, splits: Splits) -> Self:
        """Return the settings with what the condition takes from the corpus, which it checks."""
        if self.condition is None:
            return self
        with one_sentence(self.condition, "the training rows"):
            fitted = self.condition.fitted(splits["train"])
            fitted.values(splits["train"])
        return replace(self, condition=fitted)  # type: ignore[type-var]

    def rows(self, encoded: Mapping[str, Encoded], splits: Splits, tokenizer: PreTrainedTokenizerFast) -> Mapping[str, Rows]:
        """Return the texts, as ``Example`` with the value of the model's condition if it has one."""
        if self.condition is None:
            return super().rows(encoded, splits, tokenizer)
        found: dict[str, list[Example]] = {}
        for split, texts in encoded.items():
            with one_sentence(self.condition, f"the rows of {split}"):
                values = self.condition.encoded(self.condition.values(splits[split]), tokenizer)
                self.condition.collate(values)
            if split == "train" and all(value is None for value in values):
                raise UserError(f"model.condition: no training text has a value for {self.condition.key!r}")
            found[split] = [Example(ids) for ids in texts.ids]
            start, before = 0, -1  # of a piece in its text, in tokens
            for row, text in zip(found[split], texts.texts, strict=True):
                start = start if text == before else 0
                row.condition = self.condition.of_piece(values[text], start, len(row) - 2)
                start, before = start + len(row) - 2, text
                self._check_room(row, split, text, tokenizer.model_max_length)
        return found

    def _check_room(self, row: Example, split: str, text: int, longest: int) -> None:
        """Raise UserError where source and text together have more than ``longest`` tokens, which they share."""
        assert self.condition is not None
        if self.condition.shares_length and row.condition is not None:
            given = self.condition.collate([row.condition])
            source = next(int(found) for name, found in given.items() if name.rpartition(".")[2] == "tokens")
            if source + len(row) > longest:
                place = f"data.max_length: source and text share {longest} tokens, special ones included"
                raise UserError(f"{place}, but text {text} of {split} has {len(row)} and its source {source}")
