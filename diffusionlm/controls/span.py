"""A constituent of the parse."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffusionlm.config import UserError, nearest
from diffusionlm.constraints.dfa import DFA, of_lengths, one_of, repeat, union
from diffusionlm.controls.binding import Binding, classified
from diffusionlm.controls.control import CompiledControl, Control, Scores
from diffusionlm.controls.parts_of_speech import MANY, tag_automaton
from diffusionlm.core.guidance import Energy, GuidanceState
from diffusionlm.data.annotators import CorpusRow, Reader
from diffusionlm.data.trees import brackets
from diffusionlm.models.classifier.heads import LatentSpanClassifier
from diffusionlm.models.classifier.templates import ANY, END, START


@dataclass(frozen=True)
class Span(Control, name="span"):
    """The words ``first`` to ``last``, counted from 0 and both included, are a constituent called ``label``.

    An automaton enforces one of the part-of-speech templates of the classifier ``spans``: tags of the span and its neighbours
    that in training, at this place and text length, almost only had this label. The classifier ``tags`` maps words to tags. The
    gradient of ``spans`` guides the rest, or everything if there are no templates or no ``tags``. Checked in the parse.
    ``least`` is that of ``PartsOfSpeech``.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"tree"})
    check: ClassVar[str] = "span, exact (paper)"
    first: int
    last: int
    label: str
    classifier: str = "spans"
    tags: str = "tags"
    least: float = 0.3

    def __post_init__(self) -> None:
        self.expect("a share between 0 and 1", "least")
        if not 0 <= self.first < self.last:
            raise UserError(
                f"first, last: expected two words counted from 0, the first before the last, got {self.first}, {self.last}"
            )

    def compile(self, binding: Binding) -> CompiledControl:
        """Return the automaton of the templates, and -log p of the constituent. Raises UserError for an unknown label."""
        trained, chains = span_chains(binding, self.classifier, self.label, str(self))
        lengths = trained.length_probabilities(self.first + 1, self.last + 1, chains)
        energy = span_energy(trained, chains, self.first, self.last)
        return CompiledControl(
            (self._templates(binding, trained, chains),), (energy,), length_probabilities=(lengths,) if lengths else ()
        )

    def _templates(self, binding: Binding, trained: LatentSpanClassifier, chains: Tensor) -> DFA:
        """Return the automaton of the texts with one of the templates at the span; without templates, of all long enough.

        At a length that occurred in training with this constituent at this place, only templates of that length are allowed.
        """
        size = len(binding.tokenizer)
        templates = [
            text
            for text in trained.config.templates.get(self.label, [])
            if text.count(" ") == self.last - self.first + 2 and text.startswith(START) == (self.first == 0)
        ]
        if not templates or not binding.has_classifier(self.tags):
            return repeat(one_of(range(size), size), self.last + 1)
        known = trained.template_lengths(self.first + 1, self.last + 1, chains)
        seen = set().union(*known.values())
        alike = defaultdict(list)
        for text in templates:
            alike[frozenset(seen - known.get(text, set()))].append(self._pattern(text.split()))
        return union(
            *(
                tag_automaton(patterns, binding, self.tags, self.least, str(self)) & ~of_lengths([n - 2 for n in barred], size)
                for barred, patterns in alike.items()
            )
        )

    def _pattern(self, tags: Sequence[str]) -> list[str]:
        """Return the tag pattern of a text with a template at the span, whose first tag belongs to the word before it."""
        ahead, inside = [ANY] * (self.first - 1), tags[self.first == 0 :]
        return [*ahead, *(inside[:-1] if inside[-1] == END else [*inside, MANY])]

    def score(self, texts: Sequence[str], binding: Binding) -> Scores:
        wanted = (self.first, self.last, self.label)
        return binding.annotated(texts, "tree", lambda tree: float(wanted in brackets(tree)))

    @classmethod
    def target_from(cls, row: CorpusRow, draw: random.Random, reader: Reader) -> Span | None:
        """Draw one of the text's constituents of two words or more."""
        tree = reader.part(row, "tree")
        spans = [span for span in brackets(tree) if span[0] < span[1]] if tree else []
        return cls(*draw.choice(spans)) if spans else None


def span_chains(binding: Binding, classifier: str, label: str, where: str) -> tuple[LatentSpanClassifier, Tensor]:
    """Return a span classifier and the indices of its labels with ``label``, as ``S::VP``. Raises UserError where none has."""
    trained = binding.classifier(classifier, LatentSpanClassifier)
    (field,) = trained.labels
    known = {name for chain in trained.labels[field] for name in chain.split("::") if name}
    parts = set(label.split("::"))
    if not parts <= known:
        raise UserError(f"{where}: no constituent is called {label!r}{nearest(label, known)}")
    return trained, torch.tensor([i for i, chain in enumerate(trained.labels[field]) if parts <= set(chain.split("::"))])


def span_energy(trained: LatentSpanClassifier, chains: Tensor, first: int, last: int) -> Energy:
    """Return -log p that a span (words counted from 0) has one of the labels ``chains``."""
    (field,) = trained.labels

    def energy(state: GuidanceState) -> Tensor:
        logs = classified(trained, state)[field][:, first + 1, last + 1]  # BOS is at position 0, so word k is at k + 1
        return -logs.index_select(-1, chains.to(state.t.device)).logsumexp(-1)

    return energy
