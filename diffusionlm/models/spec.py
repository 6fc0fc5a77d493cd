"""Kinds of model: what a run asks of each, so that one trainer and one run folder serve them all.

A kind is a component (``model: {name: diffusion, ...}``) whose fields are its hyperparameters. It makes a
``transformers`` model for a vocabulary and reads one back; an objective says how it is trained, a pipeline how it writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import datasets  # type: ignore[import-untyped]
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from diffusionlm.config import Component
from diffusionlm.data.batches import DataConfig, Encoded


class ModelSpec(Component, family="model"):
    """Base of the kinds of model. A mapping without a name is a ``diffusion`` model's.

    ``generates`` tells whether such models generate texts.
    """

    generates: ClassVar[bool] = True

    def check_data(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """Check, before anything is written, that the corpus has what the model learns from. Raises UserError."""

    def tokenizer(self, data: DataConfig, texts: Sequence[str]) -> PreTrainedTokenizerFast:
        """Return the tokenizer of a new model: what the recipe in ``data`` makes of the training ``texts``.

        Raises:
            UserError: there is nothing to make it from, or the model has a tokenizer of its own.
        """
        return data.tokenizer.make(texts, data.max_length)

    def rows(
        self, encoded: Mapping[str, Encoded], splits: Mapping[str, datasets.Dataset], tokenizer: PreTrainedTokenizerFast
    ) -> Mapping[str, Sequence[list[int]]]:
        """Return what to train on, by split: token ids; rows that carry more are subclasses of list.

        Raises:
            UserError: the corpus and the tokenizer do not go together.
        """
        return {split: texts.ids for split, texts in encoded.items()}

    def make(self, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sequence[int]], max_length: int) -> PreTrainedModel:
        """Make a model with random weights for ``tokenizer``; what it starts from may be counted in the training ``rows``.

        ``rows`` are token ids with start and end, ``max_length`` tokens at most.
        """
        raise NotImplementedError

    def load(self, folder: str | Path) -> PreTrainedModel:
        """Read a model of this kind, whatever its hyperparameters, from a model folder.

        Raises:
            UserError: another kind of model, damaged, or of a newer format.
        """
        raise NotImplementedError

    def describes(self, model: PreTrainedModel) -> bool:
        """Tell whether ``model``, of this kind, has these hyperparameters, so that a run may start from it."""
        raise NotImplementedError

    @classmethod
    def _from_plain(cls, value: object) -> Self:
        if isinstance(value, Mapping) and "name" not in value:
            value = {"name": "diffusion", **value}
        return super()._from_plain(value)
