"""Samples of texts that may be longer than a row: piece after piece, each given the last tokens of the one before.

A text's length is drawn first, and the layout of ``data.pieces`` follows from it. Without context a text has one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError
from diffusionlm.data.batches import encodings
from diffusionlm.models.pieces import context_of, is_packed, pieces_of, text_counts
from diffusionlm.pipelines.base import check_length
from diffusionlm.pipelines.conditioning import unknown_in

LONGEST = 1_000_000  # tokens of a sample


@dataclass(frozen=True)
class Piece:
    """A row to sample: the ``number`` of the piece in its text, its ``tokens`` with both ends, and the ids that are ``given``.

    ``inner`` says whether its begin and its end are inside the text.
    """

    number: int
    tokens: int
    given: tuple[int, ...] = ()
    inner: tuple[bool, bool] = (False, False)


SamplePieces = Callable[[list[int], list[Piece]], list[list[int]]]  # numbers of samples, a piece of each -> their words


def sample_in_pieces(model: Any, lengths: Sequence[int], begun: Sequence[int], sample: SamplePieces) -> list[list[int]]:
    """Return the ids of texts of ``lengths``, BOS and EOS counted, that begin with the ids ``begun``, by ``sample``."""
    texts = [[*begun] for _ in lengths]
    spans = [pieces_of(model).spans(n - 2) if context_of(model) else [(0, 0, n - 2)] for n in lengths]
    for number in range(max(map(len, spans), default=0)):
        active = [i for i, each in enumerate(spans) if number < len(each) and each[number][2] > len(texts[i])]
        pieces = []
        for i in active:
            first, _, end = spans[i][number]
            inner = (first > 0, number + 1 < len(spans[i]))
            pieces.append(Piece(number, end - first + 2, tuple(texts[i][first:]), inner))
        for i, piece, words in zip(active, pieces, sample(active, pieces) if active else (), strict=True):
            texts[i] += words[len(piece.given) :]
    return texts


def inner_borders(pieces: Sequence[Piece], device: torch.device) -> Tensor | None:
    """Return where the begin and the end of each row are inside a text (B, 2), None where none is."""
    return torch.tensor([piece.inner for piece in pieces], device=device) if any(True in p.inner for p in pieces) else None


def fill_given(tokens: Tensor, pieces: Sequence[Piece]) -> Tensor:
    """Write the given ids of each piece into ``tokens`` (B, L), behind the first position."""
    for row, piece in zip(tokens, pieces, strict=True):
        row[1 : 1 + len(piece.given)] = torch.tensor(piece.given, dtype=row.dtype, device=row.device)
    return tokens


def seeds_of(seeds: Sequence[Sequence[int]], pieces: Sequence[Piece]) -> Iterator[list[int]]:
    """Yield the seed of the noise of each piece."""
    for seed, piece in zip(seeds, pieces, strict=True):
        yield [*seed, 4, piece.number] if piece.number else [*seed, 0]


def check_tokens(model: Any, length: int) -> None:
    """Raise UserError where samples without controls cannot have ``length`` tokens, BOS and EOS not counted."""
    room = len(model.config.length_counts) - 3 if is_packed(model) else int(model.config.max_tokens) - 2
    if is_packed(model) and length != room:
        raise UserError(f"length: expected {room}, that of the packed rows of this model's training, or none; got {length}")
    check_length(length, LONGEST if context_of(model) else room)


def check_single(model: Any, what: str) -> None:
    """Raise UserError for a model that was trained on packed rows, where ``what`` is for models of single texts."""
    if is_packed(model):
        raise UserError(f"{what}: expected a model of single texts, but this one was trained on packed rows (data.packing)")


def text_prior(model: Any, begun: Sequence[int] = ()) -> list[float]:
    """Return the training texts' numbers of 0, 1, 2, ... tokens, BOS and EOS counted, of texts longer than ``begun``.

    Raises:
        UserError: there is none.
    """
    counts = [float(count) if tokens > len(begun) + 2 else 0.0 for tokens, count in enumerate(text_counts(model))]
    if begun and not any(counts):
        raise UserError(f"length: no training text has more than the {len(begun)} tokens to continue; give a length")
    return counts


def begun_ids(model: Any, tokenizer: PreTrainedTokenizerFast, text: str, length: int | None) -> tuple[int, ...]:
    """Return the ids of a ``text`` that is continued to ``length`` tokens, where it is given.

    Raises:
        UserError: the model was trained without context; the text is empty, has unknown words, or is not shorter.
    """
    if not context_of(model):
        raise UserError(
            "continue: this model was trained without context (data.context), on single rows; the control "
            "'Prefix(\"...\")' begins a text of one row"
        )
    (encoding,) = encodings([text], tokenizer)
    if not encoding.ids:
        raise UserError(f"continue: expected a text to continue, got {text!r}")
    if words := unknown_in(text, encoding, model.config.special_ids.get("unk")):
        raise UserError(f"continue: the model does not know the word {words[0]!r} of {text[:60]!r}")
    if length is not None and length <= len(encoding.ids):
        raise UserError(f"length: expected more than the {len(encoding.ids)} tokens of the text to continue, got {length}")
    return tuple(encoding.ids)
