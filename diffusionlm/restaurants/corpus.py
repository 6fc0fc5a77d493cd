"""The restaurants corpus: restaurant descriptions drawn from a grammar, with their attributes, words, tags and trees."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import datasets  # type: ignore[import-untyped]

from diffusionlm.config import UserError
from diffusionlm.data.annotators import Annotator
from diffusionlm.data.corpora import Corpus, TextMetric, read_file, to_dataset
from diffusionlm.data.packaged import packaged_folders
from diffusionlm.restaurants.annotator import Grammar
from diffusionlm.restaurants.grammar import generate


@dataclass(frozen=True)
class Restaurants(Corpus, name="restaurants"):
    """The restaurants corpus: restaurant descriptions with their attributes, words, tags and trees.

    Args:
        drawn: how many new training texts are drawn from the grammar, in place of the 20,000 of the package (0). As in
            those, no text has the attributes of a test text (names and landmarks aside), nor is it a validation text.
        seed: of the new texts.
    """

    language: ClassVar[str | None] = "en"

    drawn: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        self.expect("0 or more", "seed")
        if self.drawn < 0:
            raise UserError(f"drawn: expected 0 (the texts of the package) or more, got {self.drawn}")

    def load(self) -> dict[str, datasets.Dataset]:
        """Read it from the installed package or from the checkout. Raises UserError where it is in neither."""
        splits = {split: packaged(split) for split in ("train", "validation", "test")}
        return splits if not self.drawn else {**splits, "train": self._draw(splits)}

    def annotator(self) -> Annotator:
        return Grammar()

    def metrics(self, training: Collection[str]) -> dict[str, TextMetric]:
        """Return ``accepted``, 1 for a text of the grammar, and ``new``, of those 1 for a text that is not in ``training``."""
        known, annotate = set(training), Grammar().annotate

        def accepted(texts: Sequence[str]) -> list[float | None]:
            return [float(annotate(text) is not None) for text in texts]

        def new(texts: Sequence[str]) -> list[float | None]:
            return [None if annotate(text) is None else float(text not in known) for text in texts]

        return {"accepted": accepted, "new": new}

    def _draw(self, splits: Mapping[str, datasets.Dataset]) -> datasets.Dataset:
        known, tested = set(splits["validation"]["text"][:]), {_content(row) for row in splits["test"]["attributes"][:]}
        source = random.Random(self.seed)
        texts = (generate(source) for _ in itertools.count())
        unseen = (text for text in texts if text.text not in known and _content(text.attributes) not in tested)
        return to_dataset([text.to_dict() for text in itertools.islice(unseen, self.drawn)])


def packaged(split: str) -> datasets.Dataset:
    """Return a split of the corpus as a data set of the caller's own, whose rows are read once in a process.

    Raises UserError where the corpus is neither in the installed package nor in the checkout.
    """
    folders = packaged_folders("restaurants")
    for folder in folders:
        if (path := folder / f"{split}.jsonl.gz").is_file():
            return _rows(path, path.stat().st_mtime_ns).with_format(None)
    raise UserError(f"{folders[0]}: the restaurants corpus is not here, nor in {folders[1]}: install the package anew")


@lru_cache(maxsize=3)
def _rows(path: Path, modified: int) -> datasets.Dataset:
    return read_file(path)


def _content(attributes: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    """Return a text's attributes without the restaurant's name and landmark."""
    return frozenset((field, value) for field, value in attributes.items() if field not in ("name", "near"))
