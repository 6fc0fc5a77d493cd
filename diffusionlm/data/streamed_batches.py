"""Batches of a streamed corpus, whose texts are encoded and shuffled buffer by buffer.

Batch i depends on the texts, the seed and i alone: a checkpoint keeps a position in the pass, and each of several processes
reads all texts and yields its share of the batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError
from diffusionlm.data.batches import DataConfig, Encoded, NothingLeft, TokenBudgetBatches, encode
from diffusionlm.data.streams import TextPass, TextStream

POSITION = ("pass", "state", "kept", "buffers", "made", "counts", "version")


class StreamedBatches(torch.utils.data.IterableDataset[list[list[int]]]):
    """Batches of rows of token ids, the texts of a stream in a new order in each pass, as ``TokenBudgetBatches`` makes them.

    A batch has at most ``tokens`` tokens with padding to its longest row, or to ``width``. Batch i of all ``world`` ranks
    together is that of rank i modulo ``world``, and each yields ``number`` batches.
    """

    def __init__(self, stream: TextStream, tokenizer: PreTrainedTokenizerFast, data: DataConfig) -> None:
        self.stream, self.tokenizer, self.data = stream, tokenizer, data
        self.position: dict[str, Any] = {}  # before the buffer that the last batch is from
        self.counts: Counter[str] = Counter()  # of the texts that were read, from the start of the run
        self.start = 0  # of the batches of a rank, the first that is yielded
        self.set(0, 0, 0)

    def set(self, tokens: int, number: int, seed: int, width: int | None = None, rank: int = 0, world: int = 1) -> None:
        """Set what batches are made of and for whom; see the class."""
        self.tokens, self.number, self.seed = tokens, number, seed
        self.width, self.rank, self.world = width, rank, world

    def __len__(self) -> int:
        return self.number

    def load(self, position: Mapping[str, Any], start: int) -> None:
        """Go on with batch ``start`` of each rank, from the ``position`` that was current when the one before was used.

        Raises UserError where the files are others than there were.
        """
        if position["version"] != self.stream.version:
            raise UserError(f"{self.stream.name}: its files differ from those that this run has read; choose another --out")
        self.position, self.start = dict(position), start

    def __iter__(self) -> Iterator[list[list[int]]]:
        begin = self.position or {"pass": 0, "state": None, "kept": 0, "buffers": 0, "made": 0, "counts": {}}
        made, kept, state = begin["made"], begin["kept"], begin["state"]
        self.counts = Counter(begin["counts"])
        buffers = count(begin["buffers"])
        for number in count(begin["pass"]):
            current = TextPass(self.stream, np.random.default_rng([self.seed, number, 2]), state, speaks=number == 0)
            while not current.ended:
                buffer = next(buffers)
                self.position = {
                    "pass": number, "state": current.state(), "kept": kept, "buffers": buffer, "made": made,
                    "counts": dict(self.counts), "version": self.stream.version,
                }  # fmt: skip
                rows = self._encoded(current)
                for batch in self._batches([*map(len, rows)], buffer) if rows else ():
                    if made >= self.number * self.world:
                        return
                    if made % self.world == self.rank and made // self.world >= self.start:
                        yield [rows[row] for row in batch]
                    made += 1
                kept += len(rows)
            if not kept:
                few = f": no {self.stream.buffer} of them (shuffle_buffer) fill a packed row"
                why = few if self.data.packing == "wrap" else ""
                raise UserError(f"{self.stream.name}: of {self.counts['texts']} texts none is left for training{why}")
            kept, state = 0, None

    def _batches(self, lengths: list[int], buffer: int) -> Iterator[list[int]]:
        lengths = lengths if self.width is None else [self.width] * len(lengths)
        return TokenBudgetBatches(lengths, self.tokens, 1, self.seed, 0, self.world).one_pass(buffer)

    def _encoded(self, current: TextPass) -> Sequence[list[int]]:
        """Return the rows of the next buffer of texts."""
        texts = current.take(self.stream.buffer, lambda text: not self.stream.is_held_out(text))
        if not texts:
            return []
        data = self.data
        try:
            encoded = encode(texts, self.tokenizer, data.max_length, data.too_long, data.context, data.packing)
        except NothingLeft as error:
            encoded = Encoded([], [], error.too_long, error.empty)
        except UserError as error:
            raise UserError(f"{self.stream.name}: of the last {len(texts)} of {current.rows} texts, {error}") from None
        unk, tokens = self.tokenizer.unk_token_id, sum(len(row) - 2 for row in encoded.ids)  # without BOS and EOS
        unknown = sum(row.count(unk) for row in encoded.ids)
        self.counts.update(texts=len(texts), cut=encoded.too_long, empty=encoded.empty, tokens=tokens, unknown=unknown)
        return encoded.ids

    def figures(self) -> dict[str, float]:
        """Return what was read since the start of the run, for its log: texts, and those that other corpora report."""
        counts = self.counts
        share = counts["unknown"] / max(counts["tokens"], 1)
        return {**{name: counts[name] for name in ("texts", "cut", "empty")}, "unknown": share}

    def summary(self) -> str:
        """Return a sentence with the figures."""
        found = self.figures()
        done = {"truncate": "cut", "split": "split", "drop": "dropped", "error": "refused"}[self.data.too_long]
        return (
            f"train: {found['texts']:,} texts were read, {found['cut']:,} of them longer than {self.data.max_length} tokens "
            f"and {done}, {found['empty']:,} without a token; {found['unknown']:.1%} of the tokens are not in the vocabulary"
        )
