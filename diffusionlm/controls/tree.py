"""A whole parse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusionlm.controls.binding import Binding
from diffusionlm.controls.control import CompiledControl, Control
from diffusionlm.controls.parts_of_speech import tag_automaton
from diffusionlm.controls.span import span_chains, span_energy
from diffusionlm.core.guidance import GuidanceState
from diffusionlm.data.annotators import bracket_f1, brackets
from diffusionlm.data.labels import spans_of, tags_of


@dataclass(frozen=True)
class Tree(Control, name="tree"):
    """The text's tree is ``tree``, in brackets: ``(S (NP (PRON It)) (VP (AUX is) (ADJP (ADJ cheap))))``; its words are ignored.

    The words' tags hold by construction, the constituents by the gradient of the classifier ``spans``. The score is the
    labelled F1 of the constituents in the annotator's parse, and 0 for what it rejects.
    """

    tree: str
    classifier: str = "spans"
    tags: str = "tags"
    least: float = 0.3

    def __post_init__(self) -> None:
        """Check the brackets."""
        brackets(self.tree)

    def compile(self, binding: Binding) -> CompiledControl:
        """Return the texts with these tags, and -log p of all constituents. Raises UserError for an unknown tag or label."""
        language = tag_automaton([tags_of(self.tree)], binding, self.tags, self.least, "Tree")
        energies = [
            span_energy(*span_chains(binding, self.classifier, chain, "Tree"), first, last)
            for first, last, chain in spans_of(self.tree)
        ]

        def energy(belief: GuidanceState) -> Tensor:
            return torch.stack([each(belief) for each in energies]).mean(0)

        return CompiledControl(automata=(language,), energies=(energy,) if energies else ())

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        """Return the F1 of each text's constituents."""
        gold = brackets(self.tree)
        return [
            bracket_f1(gold, brackets(found.tree)) if found and found.tree else 0.0
            for found in map(binding.annotator.annotate, texts)
        ]
