"""Streamed corpora: the training texts are read anew in each pass over them, and never as a whole; see ``streamed_batches``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy as np
from datasets.iterable_dataset import ExamplesIterable  # type: ignore[import-untyped]

from diffusionlm.config import UserError
from diffusionlm.data.blocks import table_blocks
from diffusionlm.data.large import ALL_HELD_OUT, is_held_out
from diffusionlm.data.reading import Table, TextRows, check_suffix, collected_reports, nfc
from diffusionlm.progress import say

FIRST, BUFFER = 100_000, 10_000  # texts
OF_LIBRARIES = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)  # where data cannot be read


@dataclass(frozen=True)
class TextStream:
    """The training texts of a corpus called ``name``, in passes over the rows that ``open(random)`` returns.

    ``open`` orders the files by the generator, where there are several; None is their own order. The texts are in the column
    "text", and checked, unless ``column`` names another one, or a part of one as ``translation.en``. Those that fall to the
    share ``held_out`` are not trained on. ``buffer`` texts are shuffled together. ``version`` tells of other files.
    """

    name: str
    open: Callable[[np.random.Generator | None], datasets.IterableDataset]
    held_out: float
    buffer: int = BUFFER
    column: str | None = None
    version: str = ""

    def first(self, number: int) -> tuple[list[str], list[str]]:
        """Return those of the first ``number`` texts that are trained on, and those held out, and say what they are used for.

        Raises:
            UserError: there is no text, or none is left for training.
        """
        texts = TextPass(self, None).take(number)
        held = [self.is_held_out(text) for text in texts]
        train, others = ([text for text, out in zip(texts, held, strict=True) if out is wanted] for wanted in (False, True))
        if not train:
            raise UserError(f"{self.name}: {ALL_HELD_OUT if texts else 'there is no text in it'}")
        uses = "tokenizer, word vectors, lengths" + (" and held-out texts" if others else "")
        first = f"the first {len(texts):,} texts"
        say(f"{self.name}: streamed; {uses} are taken from {first}, and samples are compared with these alone")
        return train, others

    def is_held_out(self, text: str) -> bool:
        """Return whether a text is not trained on."""
        return self.held_out > 0 and is_held_out(text, self.held_out)


def stream_of_files(paths: Sequence[Path], name: str, column: str, held_out: float, buffer: int) -> TextStream:
    """Return the stream of the texts in a ``column`` of files. Raises UserError where one has no format of ``reading``."""
    for path in paths:
        check_suffix(path)

    def opened(random: np.random.Generator | None) -> datasets.IterableDataset:
        order = range(len(paths)) if random is None else random.permutation(len(paths)).tolist()
        rows = ExamplesIterable(texts_of_files, {"files": [str(paths[i]) for i in order], "column": column})
        return datasets.IterableDataset(rows)  # ``from_generator`` would write into the cache of ``datasets``

    sizes = [[path.name, path.stat().st_size] for path in paths if path.is_file()]
    return TextStream(name, opened, held_out, buffer, version=str(sizes))


def texts_of_files(files: Sequence[str], column: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the texts in a ``column`` of files, each with its place. Raises UserError as ``reading.read_table``."""
    for path in files:
        texts, begun = TextRows(column), False
        for block in table_blocks(Path(path), column):
            if begun:  # the file has the column, but maybe no object of this block
                block = replace(block, columns={nfc(column): [None] * len(block.numbers), **block.columns})
            values, begun = block.column(column), True
            yield from ((block.place(row), {"text": values[row]}) for row in texts.of(block))
        texts.report(path)


class TextPass:
    """A pass over a stream, its files in the order of ``random``, from the beginning or from a ``state``.

    Reports on the texts are printed where it ``speaks``.
    """

    def __init__(
        self,
        stream: TextStream,
        random: np.random.Generator | None,
        state: Mapping[str, Any] | None = None,
        speaks: bool = False,
    ) -> None:
        self.stream, self.speaks, self.ended = stream, speaks, False
        self.begin: Mapping[str, Any] = {"rows": 0, "source": None} if state is None else state
        self.rows = int(self.begin["rows"])
        self.texts = TextRows(stream.column or "text")
        self.dataset = stream.open(random)
        if self.rows:
            self.dataset.load_state_dict(self.begin["source"])
        self.iterator: Iterator[Mapping[str, Any]] = iter(self.dataset)

    def state(self) -> dict[str, Any]:
        """Return the position after what was taken, of values that JSON has."""
        if self.rows == self.begin["rows"]:  # the dataset has a state of its own from its first row on
            return dict(self.begin)
        return {"rows": self.rows, "source": self.dataset.state_dict()}

    def take(self, number: int, wanted: Callable[[str], bool] = lambda text: True) -> list[str]:
        """Return the next ``number`` texts that are ``wanted``, fewer where the pass has ended.

        Raises:
            UserError: a row or a file is wrong, or cannot be read.
        """
        taken: list[str] = []
        with collected_reports() as reports:
            while len(taken) < number and not self.ended:
                text = self._next()
                if text is not None and wanted(text):
                    taken.append(text)
        for sentence in reports if self.speaks else ():
            say(sentence)
        return taken

    def _next(self) -> str | None:
        """Return the text of the next row, None where it has none, or there is no row."""
        try:
            row = next(self.iterator, None)
        except UserError:
            raise
        except OF_LIBRARIES as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{self.stream.name}: cannot be read after row {self.rows}: {reason}") from None
        if row is None:
            self.ended = True
            if self.texts.found:
                self.texts.report(self.stream.name)
            return None
        self.rows += 1
        return str(row["text"]) if self.stream.column is None else self._checked(row, self.stream.column)

    def _checked(self, row: Mapping[str, Any], column: str) -> str | None:
        value: Any = row
        for part in [column] if column in row else column.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise UserError(f"{self.stream.name}: no column {column!r} among {', '.join(map(repr, row))}")
            value = value[part]
        return value if self.texts.of(Table(self.stream.name, {column: [value]}, [self.rows], "row")) else None
