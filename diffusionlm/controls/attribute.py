"""Semantic content: a text states a value of an attribute of the corpus."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from diffusionlm.config import UserError, nearest
from diffusionlm.controls.binding import Binding, label_energy, label_index
from diffusionlm.controls.control import CompiledControl, Control, Scores, passes
from diffusionlm.data.annotators import CorpusRow, Reader
from diffusionlm.data.tokenizers import split_words
from diffusionlm.models.classifier.heads import LatentSequenceClassifier


@dataclass(frozen=True)
class Attribute(Control, name="attribute"):
    """The text states that ``field`` is ``value``; guided by the gradient of a classifier trained on the attributes.

    Checked by the annotator where it reads attributes and accepts the text; else by the paper's rule: the words of the value
    stand in the text (Li et al. 2022, section 6.1).
    """

    field: str
    value: str
    classifier: str = "attributes"

    def compile(self, binding: Binding) -> CompiledControl:
        """Return the classifier's -log p. Raises UserError for a field or value that it does not know."""
        classifier = binding.classifier(self.classifier, LatentSequenceClassifier)
        fields = {name.removeprefix("attributes."): name for name in classifier.labels}
        if self.field not in fields:
            raise UserError(f"{self}: no field of the texts' attributes is called {self.field!r}{nearest(self.field, fields)}")
        index = label_index(classifier, fields[self.field], self.value, f"{self}: {self.field}")
        return CompiledControl(energies=(label_energy(classifier, fields[self.field], index),))

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        return [float(self._states(text, binding)) for text in texts]

    def _states(self, text: str, binding: Binding) -> bool:
        annotation = binding.annotator.annotate(text) if "attributes" in binding.annotator.reads else None
        if annotation is not None and annotation.attributes is not None:
            return annotation.attributes.get(self.field) == self.value
        words, stated = split_words(text.lower()), split_words(self.value.lower())
        return any(words[i : i + len(stated)] == stated for i in range(len(words)))

    def metrics(self, texts: Sequence[str], scores: Scores, binding: Binding) -> dict[str, Scores]:
        """Return the paper's metric (a substring), the check, and where it can be read, the share of accepted texts."""
        passed = passes(scores)
        accepted = binding.annotated(texts, "attributes", lambda stated: float(stated.get(self.field) == self.value))
        return {
            "attribute, value in the text (paper)": [float(self.value.lower() in text.lower()) for text in texts],
            "attribute, by the grammar where it accepts": passed,
            **({} if None in accepted else {"attribute, in an accepted text": accepted}),
            f"attribute, {self.field}": passed,
        }

    @classmethod
    def target_from(cls, row: CorpusRow, draw: random.Random, reader: Reader) -> Attribute | None:
        stated = sorted(reader.attributes(row).items())
        return cls(*draw.choice(stated)) if stated else None
