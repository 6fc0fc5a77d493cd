"""Texts as token ids, and batches of a fixed token budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Encoding
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import Settings, UserError
from diffusionlm.data.corpora import Corpus
from diffusionlm.data.packing import Packer
from diffusionlm.data.pieces import Borders, Pieces
from diffusionlm.data.pieces import Example as Example
from diffusionlm.data.tokenizers import TokenizerRecipe, WordTokenizer

TooLong = Literal["truncate", "split", "drop", "error"]
Packing = Literal["none", "wrap"]


@dataclass(frozen=True)
class DataConfig(Settings):
    """The training texts, and how they become tokens.

    Args:
        corpus: the texts; a path alone is a file, a folder or a pattern.
        tokenizer: how texts are split into tokens.
        max_length: the largest number of tokens, BOS and EOS counted.
        too_long: what becomes of longer texts.
        context: where they are split, the number of tokens with which each piece but the first begins: the last ones of the
            piece before, which are given.
        packing: ``wrap`` where texts follow each other in rows of exactly ``max_length`` tokens.
        source: the column of the texts that the model is conditioned on, by an encoder unless ``model.condition`` says how.
        typical: the most training texts that are kept of each source, those that agree most with the others.
    """

    corpus: Corpus = field(default_factory=lambda: Corpus.find("restaurants")())  # comes with the library
    tokenizer: TokenizerRecipe = field(default_factory=WordTokenizer)
    max_length: int = 64
    too_long: TooLong = "truncate"
    context: int = 0
    packing: Packing = "none"
    source: str | None = None
    typical: int | None = None

    def __post_init__(self) -> None:
        self.expect("at least 1", "typical")
        if self.max_length < 3:
            raise UserError(f"max_length: expected 3 or more (BOS, a token, EOS), got {self.max_length}")
        if not 0 <= self.context <= self.max_length - 3:
            most = f"{self.max_length - 3}, so that a row of max_length {self.max_length} has room for a new one"
            raise UserError(f"context: expected 0 to {most}, got {self.context}")
        if self.packing != "none" and self.too_long != "truncate":
            raise UserError(f"packing: no text is too long for packed rows; leave too_long out, got {self.too_long!r}")
        if self.context and self.too_long != "split":
            raise UserError(f"context: expected 0, since too_long is {self.too_long!r} and no text is split; set it to 'split'")


@dataclass(frozen=True)
class Encoded:
    """Encoded texts: ``ids[i]`` holds BOS, (a piece of) text number ``texts[i]``, counted from 0, and EOS; see ``pieces``.

    ``too_long`` counts the texts above the allowed length, ``empty`` those that were skipped.
    """

    ids: Sequence[list[int]]
    texts: Sequence[int]
    too_long: int
    empty: int


def encode(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, max_length: int = 64, too_long: TooLong = "truncate",
    context: int = 0, packing: Packing = "none",
) -> Encoded:  # fmt: skip
    """Encode ``texts`` as BOS, tokens, EOS, at most ``max_length`` tokens together; empty texts are skipped.

    ``too_long`` decides whether a longer text is truncated, split into consecutive pieces (with ``context``, see ``pieces``),
    dropped, or an error; ``packing`` is as in ``packing``. Raises UserError where nothing is left, or for a text that is an
    error.
    """
    if packing == "wrap":
        return _packed(texts, tokenizer, max_length)
    layout, borders = Pieces(max_length, context), Borders.of(tokenizer, context)
    ids: list[list[int]] = []
    origins: list[int] = []
    long = empty = 0
    for number, tokens in enumerate(encoding.ids for encoding in encodings(texts, tokenizer)):
        rows = layout.rows(tokens, borders)
        empty += not rows
        if len(rows) > 1:
            long += 1
            if too_long == "error":
                raise one_too_long(number, len(tokens), max_length, texts[number])
            rows = {"truncate": rows[:1], "split": rows, "drop": []}[too_long]
        ids += rows
        origins += [number] * len(rows)
    if not ids:
        raise none_left(len(texts), empty, long, max_length)
    return Encoded(ids, origins, long, empty)


def _packed(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, max_length: int) -> Encoded:
    found = [encoding.ids for encoding in encodings(texts, tokenizer)]
    lengths, ids = np.array([*map(len, found)], np.int64), np.array([i for row in found for i in row], np.int32)
    packer = Packer(tokenizer.bos_token_id, tokenizer.eos_token_id, max_length)
    rows, _, origins = packer.pack(ids, lengths, 0)
    empty = int((lengths == 0).sum())
    if not len(rows):
        raise no_full_row(len(packer.rest), empty, max_length)
    return Encoded(rows.reshape(-1, max_length).tolist(), origins.tolist(), 0, empty)


def one_too_long(number: int, tokens: int, max_length: int, text: str) -> UserError:
    """Return the error that text ``number`` has more ``tokens`` than the data allow."""
    got = f"text {number} has {tokens + 2} tokens with BOS and EOS"
    return UserError(f"max_length: {got}, more than the {max_length} allowed: {text[:60]!r}...")


class NothingLeft(UserError):
    """Raised where no row is left of texts, of which some were ``too_long``, and others ``empty``."""

    too_long = empty = 0


def no_full_row(tokens: int, empty: int, max_length: int) -> NothingLeft:
    """Return the error that the texts, of which some are ``empty``, have too few ``tokens`` for a packed row."""
    got = f"the texts have {tokens} tokens together, with an EOS each"
    error = NothingLeft(f"data.packing: {got}, fewer than the {max_length - 2} of a row; lower data.max_length, or give more")
    error.empty = empty
    return error


def none_left(count: int, empty: int, long: int, max_length: int) -> NothingLeft:
    """Return the error that of ``count`` texts none is left."""
    longer = f", {long} over {max_length} tokens" if long else ""
    error = NothingLeft(f"texts: of {count} none is left: {empty} empty{longer}")
    error.too_long, error.empty = long, empty
    return error


def check_list(texts: Sequence[str]) -> None:
    """Raise UserError where ``texts`` is no list of texts; one text Python takes for texts of one character each."""
    if isinstance(texts, str | bytes):
        raise UserError(f"texts: expected a list of texts, got one text; write [{texts[:40]!r}]")
    if isinstance(texts, Mapping) or not hasattr(texts, "__getitem__") or not hasattr(texts, "__len__"):
        raise UserError(f"texts: expected a list of texts, got {type(texts).__name__}")
    if wrong := next(((i, each) for i, each in enumerate(texts) if not isinstance(each, str)), None):
        raise UserError(f"texts: expected a list of texts, but number {wrong[0]} is {repr(wrong[1])[:60]}")


def encodings(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[Encoding]:
    """Yield the tokens of each text, without BOS and EOS, in chunks: a tokenizer's batch needs far more memory than the ids."""
    check_list(texts)
    for start in range(0, len(texts), 10_000):
        chunk = list(texts[start : start + 10_000])
        yield from tokenizer(chunk, add_special_tokens=False, return_attention_mask=False, verbose=False).encodings or []


class TokenBudgetBatches(torch.utils.data.Sampler[list[int]]):
    """Sample ``count`` batches of row indices, each of at most ``tokens`` tokens with padding (rows x longest).

    Every epoch contains each row once, in an order that depends only on ``seed`` and the epoch's number, so batch i is the same
    on every run. Rows of similar length are batched together. The batches of the ``world`` ranks in one step are disjoint (as
    long as an epoch divides into a multiple of ``world`` batches).
    """

    POOL = 50  # batches of shuffled rows that are sorted by length together: a larger pool pads less and mixes less

    def __init__(
        self, lengths: Sequence[int] | npt.NDArray[np.int64], tokens: int, count: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        """Store the ``lengths`` (tokens) of all rows. Raises UserError if there is none or one exceeds ``tokens``."""
        self.lengths = np.asarray(lengths)
        self.tokens, self.count, self.seed, self.rank, self.world = tokens, count, seed, rank, world
        if not len(self.lengths):
            raise UserError("data: there is no text to make batches of")
        if self.lengths.max() > tokens:
            row = int(self.lengths.argmax())
            raise UserError(f"training.batch_tokens: a batch may hold {tokens}, but text {row} alone has {self.lengths[row]}")
        if self.lengths.max() < 2**16:
            self.lengths = self.lengths.astype(np.uint16)  # which numpy sorts in linear time

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        made, number, first = 0, 0, self.rank
        while made < self.count:
            order, cuts = self._pass(number)
            turns = np.random.default_rng([self.seed, number, 1]).permutation(len(cuts) - 1)
            own = turns[first :: self.world][: self.count - made]
            for turn in own:
                yield order[cuts[turn] : cuts[turn + 1]].tolist()
            made, number, first = made + len(own), number + 1, (first - len(turns)) % self.world

    def one_pass(self, number: int) -> Iterator[list[int]]:
        """Yield the batches of an epoch, those of all ranks."""
        order, cuts = self._pass(number)
        for turn in np.random.default_rng([self.seed, number, 1]).permutation(len(cuts) - 1):
            yield order[cuts[turn] : cuts[turn + 1]].tolist()

    def _pass(self, number: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the rows of an epoch in order, and the boundaries of its batches."""
        order = np.random.default_rng([self.seed, number, 0]).permutation(len(self.lengths))
        pool = max(1, int(self.POOL * self.tokens / self.lengths.mean()))
        cuts = [np.zeros(1, np.int64)]
        whole = len(order) - len(order) % pool
        step = pool * max(1, 2**20 // pool)  # rows that are sorted at once: copies of all of them would need much memory
        bounds = [*range(0, whole, step), whole, len(order)]
        for begin, end in pairwise(bounds):
            if begin < end:
                part = order[begin:end].reshape(-1, pool if end <= whole else end - begin)
                lengths = self.lengths[part]
                sorting = np.argsort(lengths, axis=1, kind="stable")
                order[begin:end] = np.take_along_axis(part, sorting, 1).ravel()
                cuts.append(begin + _cuts(np.take_along_axis(lengths, sorting, 1), self.tokens))
        return order, self._even(np.concatenate(cuts))

    def _even(self, cuts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Halve large batches until all ranks have equally many: no step then mixes two epochs."""
        while (len(cuts) - 1) % self.world and (sizes := np.diff(cuts)).max() > 1:
            largest = int(sizes.argmax())
            cuts = np.insert(cuts, largest + 1, (cuts[largest] + cuts[largest + 1]) // 2)
        return cuts


def _cuts(lengths: npt.NDArray[Any], tokens: int) -> npt.NDArray[np.int64]:
    """Return where batches of at most ``tokens`` tokens with padding end in pools (P, rows) of ascending ``lengths``.

    The next batch of all pools is found at once: the largest count whose product with the length of its last row fits.
    """
    flat = lengths.ravel().astype(np.int64)
    ends = np.arange(1, len(lengths) + 1) * lengths.shape[1]
    at, cuts = ends - lengths.shape[1], []
    while len(at):
        fits, most = np.ones_like(at), np.minimum(ends - at, tokens // np.maximum(flat[at], 1))
        while (fits < most).any():
            middle = (fits + most + 1) // 2
            good = flat[at + middle - 1] * middle <= tokens
            fits, most = np.where(good, middle, fits), np.where(good, most, middle - 1)
        at = at + fits
        cuts.append(at)
        at, ends = at[at < ends], ends[at < ends]
    return np.sort(np.concatenate(cuts))


def text_mask(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return the mask (B, L) of texts of ``lengths`` (BOS and EOS counted), True at non-padding tokens."""
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).to(device)


def boundaries(
    mask: Tensor, special: dict[str, int], words: Tensor | None = None, inner: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the positions of BOS and EOS in texts of ``mask`` (B, L), and ids (B, L) with these tokens, PAD elsewhere.

    Positions where ``words`` (B, L) is not -1 are included, with these ids. ``inner`` (B, 2) is True where the begin or the end
    of a row is inside a text: PAD is in the place of BOS or EOS.
    """
    ids = torch.full(mask.shape, special["pad"], device=mask.device)
    ids[:, 0] = special["start"]
    ids.scatter_(1, mask.sum(1, keepdim=True) - 1, special["end"])
    known = (ids == special["start"]) | (ids == special["end"])
    if inner is not None:
        ids[:, 0].masked_fill_(inner[:, 0], special["pad"])
        ids[inner[:, 1], mask.sum(1)[inner[:, 1]] - 1] = special["pad"]
    return (known, ids) if words is None else (known | (words >= 0), torch.where(words >= 0, words, ids))
