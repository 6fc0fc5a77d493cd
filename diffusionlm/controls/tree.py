"""A complete constituency tree."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffusionlm.controls.binding import Binding
from diffusionlm.controls.control import CompiledControl, Control, Scores, passes
from diffusionlm.controls.parts_of_speech import tag_automaton
from diffusionlm.controls.span import span_chains, span_energy
from diffusionlm.core.guidance import GuidanceState
from diffusionlm.data.annotators import CorpusRow, Reader
from diffusionlm.data.trees import bracket_f1, brackets, spans_of, tags_of


@dataclass(frozen=True)
class Tree(Control, name="tree"):
    """The text's tree is ``tree``, in brackets: ``(S (NP (PRON It)) (VP (AUX is) (ADJP (ADJ cheap))))``; its words are ignored.

    An automaton enforces the tags; the gradient of the classifier ``spans`` guides the constituents. The score is the labelled
    F1 of the constituents in the annotator's parse, and 0 for a text that it rejects. ``least`` is that of ``PartsOfSpeech``.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"tree"})
    tree: str
    classifier: str = "spans"
    tags: str = "tags"
    least: float = 0.3

    def __post_init__(self) -> None:
        self.expect("a share between 0 and 1", "least")
        brackets(self.tree)

    def compile(self, binding: Binding) -> CompiledControl:
        """Return the automaton of the tags, and the mean -log p of the constituents. Raises UserError for an unknown one."""
        automaton = tag_automaton([tags_of(self.tree)], binding, self.tags, self.least, "Tree")
        energies = [
            span_energy(*span_chains(binding, self.classifier, chain, "Tree"), first, last)
            for first, last, chain in spans_of(self.tree)
        ]

        def energy(state: GuidanceState) -> Tensor:
            return torch.stack([each(state) for each in energies]).mean(0)

        return CompiledControl(automata=(automaton,), energies=(energy,) if energies else ())

    def score(self, texts: Sequence[str], binding: Binding) -> Scores:
        gold = brackets(self.tree)
        return binding.annotated(texts, "tree", lambda tree: bracket_f1(gold, brackets(tree)))

    def metrics(self, texts: Sequence[str], scores: Scores, binding: Binding) -> dict[str, Scores]:
        """Return the paper's metric, which is the score, and the check."""
        return {"tree, F1 (paper)": scores, "tree, the whole text": passes(scores)}

    @classmethod
    def target_from(cls, row: CorpusRow, draw: random.Random, reader: Reader) -> Tree | None:
        tree = reader.part(row, "tree")
        return cls(tree) if tree else None
