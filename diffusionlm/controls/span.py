"""One constituent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusionlm.annotation import brackets
from diffusionlm.config import UserError, nearest
from diffusionlm.controls.binding import Binding, read
from diffusionlm.controls.control import Control, Demand
from diffusionlm.guidance import Belief, Energy
from diffusionlm.language import one_of, repeat


@dataclass(frozen=True)
class Span(Control, name="span"):
    """The words ``first`` to ``last``, counted from 0 and both included, are a constituent called ``label``.

    By the gradient of the classifier ``spans``; checked in the annotator's parse, exactly.
    """

    first: int
    last: int
    label: str
    classifier: str = "spans"

    def __post_init__(self) -> None:
        """Check the places."""
        if not 0 <= self.first < self.last:
            raise UserError(
                f"first, last: expected two words counted from 0, the first before the last, got {self.first}, {self.last}"
            )

    def bind(self, binding: Binding) -> Demand:
        """Return texts that are long enough, and -log p of the constituent. Raises UserError for an unknown label."""
        size = len(binding.tokenizer)
        long_enough = repeat(one_of(range(size), size), self.last + 1)
        return Demand(
            languages=(long_enough,),
            energies=(span_energy(binding, self.classifier, self.first, self.last, self.label, str(self)),),
        )

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        """Return 1 where the parse has the constituent."""
        wanted = (self.first, self.last, self.label)
        return [
            float(bool(found and found.tree and wanted in brackets(found.tree)))
            for found in map(binding.annotator.annotate, texts)
        ]


def span_energy(binding: Binding, classifier: str, first: int, last: int, label: str, where: str) -> Energy:
    """Return -log p that a span (words counted from 0) has ``label``, alone or in a chain such as ``S::VP``.

    Raises:
        UserError: the classifier knows no such label.
    """
    trained = binding.classifier(classifier)
    (field,) = trained.labels
    known = {name for chain in trained.labels[field] for name in chain.split("::") if name}
    parts = set(label.split("::"))
    if not parts <= known:
        raise UserError(f"{where}: no constituent is called {label!r}{nearest(label, known)}")
    chains = torch.tensor([i for i, chain in enumerate(trained.labels[field]) if parts <= set(chain.split("::"))])

    def energy(belief: Belief) -> Tensor:
        # The start token is at position 0, so that word k is at k + 1.
        return -read(trained, belief)[field][:, first + 1, last + 1].index_select(-1, chains.to(belief.t.device)).logsumexp(-1)

    return energy
