"""What a model knows of the long texts that it was trained on in pieces: their context, and the lengths of the complete texts.

Trained with context, it has ``context_tokens`` and ``long_texts`` in its config. See ``data.pieces`` for the layout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusionlm.config import UserError, plain_name
from diffusionlm.core.objective import ObjectiveConfig
from diffusionlm.data.batches import DataConfig
from diffusionlm.data.pieces import LONGEST, Borders, Pieces, text_lengths
from diffusionlm.data.rows import blocks_of, lengths_of
from diffusionlm.models.causal import CausalConfig
from diffusionlm.models.spec import ModelSpec


def check_rows(spec: ModelSpec, objective: ObjectiveConfig, data: DataConfig) -> None:
    """Raise UserError where models of this spec, or the ``objective``, do not go with pieces with context or packed rows."""
    if data.context:
        _check_rows(spec, objective, "data.context: expected 0")
    if data.packing != "none":
        _check_rows(spec, objective, "data.packing: expected 'none'")


def _check_rows(spec: ModelSpec, objective: ObjectiveConfig, place: str) -> None:
    if getattr(spec, "condition", None) is not None:
        raise UserError(f"{place} for a model with a condition, which is that of a text and not of a row")
    if not spec.generates or not (isinstance(spec, CausalConfig) or (spec.explicit_length and spec.has_logits)):
        models = "causal, masked, or diffusion with prediction 'logits' and explicit_length"
        raise UserError(f"{place} for this model; such rows are for models that are {models}")
    if objective.trains_joint or hasattr(objective, "teacher"):
        raise UserError(f"{place} for the objective {plain_name(type(objective))!r}, which trains on texts of single rows")


def count_lengths(config: Any, rows: Sequence[Sequence[int]], data: DataConfig) -> None:
    """Write into a model's ``config`` the number of training texts of each length, from their ``rows``."""
    context = data.context
    for name in ("context_tokens", "long_texts", "packed_rows"):
        vars(config).pop(name, None)  # of the model that the run starts from
    if data.packing == "wrap":
        config.packed_rows = True
    if not context:
        config.length_counts = np.bincount(lengths_of(rows)).tolist()
        return
    pad = config.special_ids["pad"] if hasattr(config, "special_ids") else config.pad_token_id
    longest, lengths = config.max_position_embeddings, text_lengths(blocks_of(rows), context, pad).clip(max=LONGEST)
    config.length_counts = np.bincount(lengths[lengths <= longest]).tolist()
    tokens, numbers = np.unique(lengths[lengths > longest], return_counts=True)
    config.context_tokens, config.long_texts = context, [*map(list, zip(tokens.tolist(), numbers.tolist(), strict=True))]


def context_of(model: Any) -> int:
    """Return the given tokens of each later piece of a long text; 0 for a model of single rows."""
    return int(getattr(model.config, "context_tokens", 0))


def is_packed(model: Any) -> bool:
    """Return whether a model was trained on packed rows, see ``data.packing``."""
    return bool(getattr(model.config, "packed_rows", False))


def pieces_of(model: Any) -> Pieces:
    """Return the layout of a model's texts in rows."""
    return Pieces(model.config.max_position_embeddings, context_of(model))


def borders_of(model: Any) -> Borders:
    """Return the ids of the borders of a model's rows."""
    special = model.config.special_ids
    return Borders(special["start"], special["end"], special["pad"])


def text_counts(model: Any) -> list[int]:
    """Return the number of training texts with 0, 1, 2, ... tokens, BOS and EOS counted, the long ones included."""
    long = getattr(model.config, "long_texts", [])
    counts = [*model.config.length_counts]
    counts += [0] * (max((tokens for tokens, _ in long), default=-1) + 1 - len(counts))
    for tokens, number in long:
        counts[tokens] = number
    return counts


def long_length_nats(model: Any, tokens: int) -> float:
    """Return -log p(length) of a text of ``tokens``, BOS and EOS counted, which may be longer than a row.

    With add-one smoothing, where all lengths above the longest counted one have the weight of one length; that of the k-th of
    them is 1 / (k (k + 1)) of it.
    """
    counts = text_counts(model)
    longest = max(len(counts) - 1, model.config.max_position_embeddings)
    total = sum(counts) + longest - 2 + 1
    if tokens <= longest:
        return -math.log(((counts[tokens] if tokens < len(counts) else 0) + 1) / total)
    beyond = tokens - longest
    return math.log(total) + math.log(beyond) + math.log(beyond + 1)
