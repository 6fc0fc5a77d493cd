"""Model families: the interface that a training run uses, the same for all of them.

A ``ModelSpec`` is a component (``model: {name: diffusion, ...}``) whose fields are hyperparameters. It makes and loads
``transformers`` models; an objective trains them, a pipeline samples from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import datasets  # type: ignore[import-untyped]
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from diffusionlm.config import Component, UserError
from diffusionlm.data.batches import DataConfig, Encoded
from diffusionlm.data.rows import texts_of

Splits = Mapping[str, datasets.Dataset]
Rows = Sequence[list[int]]  # token ids with BOS and EOS, in subclasses of list where a row holds more


class ModelSpec(Component, family="model"):
    """Base of the model families; a mapping without a name is a ``diffusion`` model.

    ``generates`` tells whether such models generate texts. The properties are what code of several families may depend on;
    the library's models on word vectors have them too.
    """

    generates: ClassVar[bool] = True
    token_aligned: ClassVar[bool] = True  # whether there is one latent per token

    @property
    def has_logits(self) -> bool:
        """Whether the network predicts token logits, not vectors."""
        return True

    @property
    def explicit_length(self) -> bool:
        """Whether lengths are drawn first and only non-padding tokens are modelled."""
        return True

    @property
    def self_conditions(self) -> bool:
        """Whether the network also receives its last estimate of x_0."""
        return False

    @property
    def excludes_self(self) -> bool:
        """Whether no token's logits depend on the token's own vector, but for a token likelihood term."""
        return False

    def with_source(self, column: str) -> ModelSpec:
        """Return the settings of a model that is conditioned on the texts in a corpus ``column``.

        Raises UserError where such models have no condition, or read another column.
        """
        raise UserError(f"data.source: a {self.name!r} model reads no source; leave it out")

    def tokenizer_texts(self, rows: datasets.Dataset) -> Sequence[str]:
        """Return the texts of the training ``rows`` that the tokenizer is made from."""
        return texts_of(rows)

    def fitted(self, splits: Splits) -> Self:
        """Return the settings with what they take from the corpus; called before anything is written.

        Raises UserError where the corpus has no data for this model.
        """
        return self

    def tokenizer(self, data: DataConfig, texts: Sequence[str]) -> PreTrainedTokenizerFast:
        """Return the tokenizer of a new model, made by the recipe in ``data`` from the training ``texts``.

        Raises UserError where there are no texts to make it from, or the model has its own tokenizer.
        """
        return data.tokenizer.make(texts, data.max_length)

    def rows(self, encoded: Mapping[str, Encoded], splits: Splits, tokenizer: PreTrainedTokenizerFast) -> Mapping[str, Rows]:
        """Return the training data by split. Raises UserError where the corpus does not fit the tokenizer or the model."""
        return {split: texts.ids for split, texts in encoded.items()}

    def make(self, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sequence[int]], max_length: int) -> PreTrainedModel:
        """Return a new model for texts of at most ``max_length`` tokens; the training ``rows`` may initialise it."""
        raise NotImplementedError

    def load(self, folder: str | Path) -> PreTrainedModel:
        """Load a model of this family, with any hyperparameters, from a model folder; see ``load_pretrained``."""
        raise NotImplementedError

    def blank(self, model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
        """Return a model of the class of ``model`` with another ``config``, such as one of more words, and random weights."""
        return type(model)(config)

    def describes(self, model: PreTrainedModel) -> bool:
        """Return whether ``model`` has these hyperparameters, so that a run may start from it."""
        raise NotImplementedError

    def of(self, model: PreTrainedModel) -> ModelSpec:
        """Return these hyperparameters as the loaded ``model``, which they describe, has them."""
        return self

    @classmethod
    def _from_plain(cls, value: object) -> Self:
        if isinstance(value, Mapping) and "name" not in value:
            value = {"name": "diffusion", **value}
        return super()._from_plain(value)
