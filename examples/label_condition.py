"""Seam: a condition. Samples conditioned on a class label, here the price that a restaurant's description states.

A condition is a frozen dataclass with four methods, for the way of a value from the corpus to the network:

    values(row)  ->  a value for each text  ->  collate  ->  tensors of a batch  ->  build()  ->  features c, (B, C)

The model concatenates c to the network's input at each position, and so learns p(x_0 | x_t, c). A text without a label has
c = 0, and so have samples without ``condition``: where the corpus has texts of both kinds, one network learns both (Ho and
Salimans 2021, section 3.2).

    python examples/label_condition.py [STEPS]
    PYTHONPATH=examples python -m diffusionlm train --model.condition label_condition:Label --out RUN
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tiny
import torch
from torch import Tensor, nn

from diffusionlm.config import UserError, nearest
from diffusionlm.models.conditions import Condition


@dataclass(frozen=True)
class Label(Condition):
    """The value of the attribute ``field``, one of ``labels``; None is no label, as is any other value in the corpus."""

    field: str = "price"
    labels: tuple[str, ...] = ("low", "high")

    @property
    def size(self) -> int:
        """One coordinate for each label."""
        return len(self.labels)

    def build(self) -> nn.Module:
        """Return the module that makes features of label numbers."""
        return OneHot(self.size)

    def values(self, row: Mapping[str, Any]) -> str | None:
        """Return the label of a corpus row."""
        value: str | None = row["attributes"].get(self.field)
        return value if value in self.labels else None

    def collate(self, values: Sequence[str | None]) -> dict[str, Tensor]:
        """Return the label numbers (B,): 0 is no label."""
        for value in values:
            if value is not None and value not in self.labels:
                raise UserError(f"condition: no label is called {value!r}{nearest(value, self.labels)}")
        return {"label": torch.tensor([0 if value is None else 1 + self.labels.index(value) for value in values])}


class OneHot(nn.Module):
    """Label numbers (B,) to features (B, C): a one-hot vector, or 0 for no label."""

    def __init__(self, size: int) -> None:
        """Keep the number C of labels."""
        super().__init__()
        self.size = size

    def forward(self, label: Tensor) -> Tensor:
        """Return the features."""
        return nn.functional.one_hot(label, self.size + 1)[:, 1:].float()


def main(steps: str = "500", count: str = "60") -> None:
    """Train on prices, and print how many of the samples state each price, as the corpus's grammar reads it."""
    pipe = tiny.model(model={"condition": "label_condition:Label"}, training={"steps": int(steps)})
    annotate = tiny.config().data.corpus.annotator().annotate
    for condition in (None, "low", "high"):
        texts = [row.text for row in pipe(int(count), condition=condition)]
        read = [note.attributes or {} for note in map(annotate, texts) if note is not None]
        shares = {label: sum(each.get("price") == label for each in read) / max(len(read), 1) for label in ("low", "high")}
        print(f"condition={condition}: of {len(read)} samples {shares['low']:.0%} are cheap, {shares['high']:.0%} dear")
        for text in texts[:3]:
            print(f"  {text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
