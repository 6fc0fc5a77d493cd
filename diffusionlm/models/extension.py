"""Models with further words: a copy whose tables, input and output layers have a row for each; the other weights stay."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from diffusionlm.config import UserError
from diffusionlm.models.diffusion import WordVectorModel
from diffusionlm.models.spec import ModelSpec
from diffusionlm.recipe.word_placing import Means, placed_vectors

VECTORS = "embedding.weight"  # of a model on word vectors


def extended_model(model: PreTrainedModel, spec: ModelSpec, means: Means, shares: Tensor) -> PreTrainedModel:
    """Return a copy of ``model``, of the family ``spec``, with a further word for each of ``means`` over its words.

    Its network is the same function of the words that it had, but for the token posterior that a continuous model's network
    receives, in which the new words have a part. ``shares`` (N,) are those of the means in new word vectors.

    Raises:
        UserError: a part of the network depends on the number of words in another way than by a row for each.
    """
    config: Any = copy.deepcopy(model.config)
    config.vocab_size = model.config.vocab_size + len(means.index)
    extended = spec.blank(model, config)
    old, new = model.state_dict(), extended.state_dict()
    for name, weight in old.items():
        if weight.shape != new[name].shape:
            old[name] = _extended(model, name, weight, new[name].shape, means)
    if isinstance(model, WordVectorModel):
        count = model.config.vocab_size
        old[VECTORS] = torch.cat([old[VECTORS][:count], placed_vectors(model.embedding.weight.detach(), means, shares)])
    extended.load_state_dict(old)
    return extended


def _extended(model: PreTrainedModel, name: str, weight: Tensor, shape: torch.Size, means: Means) -> Tensor:
    """Return ``weight`` with the means of its rows, or columns, of words behind these."""
    words: int = model.config.vocab_size
    axes = [axis for axis, size in enumerate(shape) if weight.dim() == len(shape) and weight.shape[axis] != size]
    axis = axes[0] if axes else 0
    before = 0
    if axes and weight.shape[axis] != words:  # the inputs: vectors, token posterior, features of a condition
        settings: Any = getattr(model, "settings", None)
        before = settings.dimension * (2 if settings.self_conditions else 1)
    if len(axes) != 1 or shape[axis] != weight.shape[axis] + len(means.index) or weight.shape[axis] < before + words:
        sizes = f"{tuple(weight.shape)} for {words} words, {tuple(shape)} for {words + len(means.index)}"
        raise UserError(f"extend_vocabulary: expected a row for each word in {name}, but it is {sizes}; leave it out")
    added = means.of(weight.narrow(axis, before, words).movedim(axis, 0)).movedim(0, axis)
    first, last = weight.split([before + words, weight.shape[axis] - before - words], axis)
    return torch.cat([first, added, last], axis)
