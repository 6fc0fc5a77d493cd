"""The likelihood of texts longer than a row: the sum over their pieces, each given the words before it (``data.pieces``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusionlm.models.pieces import borders_of, context_of, pieces_of

if TYPE_CHECKING:
    from diffusionlm.evaluation.likelihood import Bound


def over_pieces(model: Any, row: Sequence[int], terms_of: Callable[..., Bound]) -> Bound:
    """Return the sum of ``terms_of`` the pieces of a ``row`` of token ids, which receives the number of each but the first.

    A row that fits is its only piece.
    """
    if not context_of(model) or len(row) <= model.config.max_tokens:
        return terms_of(row)
    layout = pieces_of(model)
    first, *others = layout.rows(row[1:-1], borders_of(model))
    found = [terms_of(first), *(terms_of(piece, number) for number, piece in enumerate(others, 1))]
    sums = {name: sum(getattr(each, name) for each in found) for name in ("prior", "reconstruction", "diffusion")}
    return replace(found[0], **sums, deviation=math.hypot(*(each.deviation for each in found)))


def given_words(piece: Sequence[int], like: Tensor) -> Tensor:
    """Return which tokens of a row of ids are ``known``, as a tensor like ``like`` (L,)."""
    known = getattr(piece, "known", None)
    return torch.zeros_like(like) if known is None else torch.tensor(known, device=like.device)
