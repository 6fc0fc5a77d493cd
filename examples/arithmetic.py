"""Seam: a corpus. Sums in words, 'three plus four is seven .', with an annotator and a metric: is the sum right?

A corpus is a frozen dataclass with three methods:

    load()             splits of rows with a ``text`` and, where known, ``attributes``, ``tags`` and ``tree``
    annotator()        what reads a generated text again, so that controls can be checked and targets drawn
    metrics(training)  figures of generated texts that mean something for this corpus only, for ``evaluate``

The annotator here reads the operands and the result as attributes and the words' kinds as tags, and returns None for a text
that is no sum. ``correct`` alone does not tell adding from remembering: most samples are sums of the training texts, and
``new`` is the share of the correct ones that are not.

    python examples/arithmetic.py [STEPS]
    PYTHONPATH=examples python -m diffusionlm train --data.corpus arithmetic:Arithmetic --out RUN
"""

from __future__ import annotations

import random
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product

import datasets  # type: ignore[import-untyped]
import tiny

from diffusionlm.controls import Attribute, Infill, PartsOfSpeech
from diffusionlm.data.annotators import Annotation, Annotator
from diffusionlm.data.corpora import Corpus, TextMetric

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBERS += ["eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"]


@dataclass(frozen=True)
class Sums(Annotator):
    """Reads 'a plus b is c .'; whether c is a + b is not its business."""

    def annotate(self, text: str) -> Annotation | None:
        """Return the three numbers as attributes, and NUM, OP and PUNCT tags; None for another text."""
        words = tuple(text.split())
        if len(words) != 6 or words[1::2] != ("plus", "is", ".") or not {*words[0::2]} <= {*NUMBERS}:
            return None
        attributes = dict(zip(("first", "second", "result"), words[0::2], strict=True))
        return Annotation(words, ("NUM", "OP", "NUM", "OP", "NUM", "PUNCT"), attributes=attributes)


@dataclass(frozen=True)
class Arithmetic(Corpus):
    """All sums of two digits, several times over; ``held_out`` of the hundred are for validation only."""

    held_out: int = 15
    seed: int = 0

    def load(self) -> dict[str, datasets.Dataset]:
        """Return "train" and "validation", in an order drawn from the seed."""
        texts = [f"{NUMBERS[a]} plus {NUMBERS[b]} is {NUMBERS[a + b]} ." for a, b in product(range(10), repeat=2)]
        random.Random(self.seed).shuffle(texts)
        return {"train": self._rows(texts[self.held_out :] * 20), "validation": self._rows(texts[: self.held_out])}

    def _rows(self, texts: list[str]) -> datasets.Dataset:
        notes = [self.annotator().annotate(text) for text in texts]
        attributes = [note.attributes for note in notes if note is not None]
        return datasets.Dataset.from_dict({"text": texts, "attributes": attributes})

    def annotator(self) -> Annotator:
        """Return the reader of sums."""
        return Sums()

    def metrics(self, training: Collection[str]) -> dict[str, TextMetric]:
        """Return ``correct``, None for what is no sum, and ``new``: of the correct ones, not a training text."""
        known = set(training)

        def correct(texts: Sequence[str]) -> list[float | None]:
            notes = [self.annotator().annotate(text) for text in texts]
            read = [None if note is None else [NUMBERS.index(word) for word in note.words[0::2]] for note in notes]
            return [None if numbers is None else float(numbers[0] + numbers[1] == numbers[2]) for numbers in read]

        def new(texts: Sequence[str]) -> list[float | None]:
            right = correct(texts)
            return [float(text not in known) if ok else None for text, ok in zip(texts, right, strict=True)]

        return {"correct": correct, "new": new}


def main(steps: str = "800", count: str = "100") -> None:
    """Train on sums, print the metrics of samples, and control the numbers."""
    pipe = tiny.model(data={"corpus": "arithmetic:Arithmetic", "max_length": 10}, training={"steps": int(steps)})
    texts = [row.text for row in pipe(int(count), temperature=1.0)]
    print("\n".join(texts[:4]))
    metrics = Arithmetic().metrics(Arithmetic().load()["train"]["text"][:])
    for name, metric in metrics.items():
        scores = [score for score in metric(texts) if score is not None]
        print(f"{name}: {sum(scores) / max(len(scores), 1):.0%} of {len(scores)}")
    checks = [Attribute("result", "nine"), PartsOfSpeech("NUM OP NUM OP NUM PUNCT")]
    print(f"the annotator is {pipe.binding.annotator}")
    for row in pipe(3, controls=[Infill("{1} plus {1} is nine .")]):
        passed = [bool(check.score([row.text], pipe.binding)[0] == 1) for check in checks]
        print(f"{row.text}  result is nine: {passed[0]}, is a sum: {passed[1]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
