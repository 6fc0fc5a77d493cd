"""Seam: a condition. Samples conditioned on which of a few words occur in them.

A condition is a frozen dataclass whose methods take a value from the corpus, or from the caller, to the network:

    values(rows)  ->  a value for each text  ->  collate  ->  tensors of a batch  ->  build()  ->  Conditioning(features=c)

The network receives c, (B, C), at each position, and so learns p(x_0 | x_t, c). A share ``drop`` of the training texts has the
null condition, c = 0, and so have samples without ``condition``: one network learns both, and ``cfg`` extrapolates from the
one to the other (Ho and Salimans 2021). Labels, numbers and source texts come with the library: ``label``, ``number``,
``source``, ``partial-noising``; ``several`` joins them.

    python examples/keywords.py [STEPS]
    PYTHONPATH=examples python -m diffusionlm train --model.condition keywords:Keywords --out RUN
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tiny
import torch
from torch import Tensor, nn

from diffusionlm.config import UserError, nearest
from diffusionlm.models.conditions import Condition, Conditioning, kept

if TYPE_CHECKING:
    import datasets  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Keywords(Condition):
    """Which of ``words`` occur in a text: a list of them; None is the null condition."""

    words: tuple[str, ...] = ("cheap", "food", "coffee", "river")
    drop: float = 0.2

    @property
    def size(self) -> int:
        """One coordinate for each word, and one for whether there is a condition."""
        return len(self.words) + 1

    def values(self, rows: datasets.Dataset) -> list[list[str]]:
        """Return the words of each text."""
        return [[word for word in self.words if word in text.lower().replace(".", " ").split()] for text in rows["text"]]

    def read(self, text: str, key: str = "") -> list[str]:
        """Return the words of ``--condition cheap,food``."""
        return text.split(",")

    def collate(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """Return the features (B, C) of lists of words."""
        for word in (word for value in values for word in value or ()):
            if word not in self.words:
                raise UserError(f"condition: {word!r} is no keyword of this model{nearest(word, self.words)}")
        return {
            "found": torch.tensor([[value is not None, *(word in (value or ()) for word in self.words)] for value in values])
        }

    def build(self, model: Any) -> nn.Module:
        """Return the module that makes the conditioning of a model."""
        return Features(self.drop)


class Features(nn.Module):
    """Features (B, C) of truth values; in training, a share ``drop`` of the rows is 0."""

    def __init__(self, drop: float) -> None:
        """Keep the share."""
        super().__init__()
        self.drop = drop

    def forward(self, found: Tensor) -> Conditioning:
        """Return the conditioning."""
        return Conditioning(features=found * kept(self, len(found), self.drop, found.device)[:, None].float())


def main(steps: str = "500", count: str = "60") -> None:
    """Train, and print how many samples contain each keyword where it is given, and where another one is."""
    pipe = tiny.model(model={"condition": "keywords:Keywords"}, training={"steps": int(steps)})
    for condition in (None, ["cheap"], ["coffee"]):
        for cfg in (1.0, 2.0) if condition else (1.0,):
            texts = [row.text for row in pipe(int(count), condition=condition, cfg=cfg)]
            words = [text.lower().replace(".", " ").split() for text in texts]
            cheap, coffee = (sum(word in each for each in words) for word in ("cheap", "coffee"))
            print(f"condition={condition} cfg={cfg:g}: of {count} samples {cheap} say cheap, {coffee} say coffee")
            for text in texts[:2]:
                print(f"  {text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
