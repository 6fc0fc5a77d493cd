"""What a text states: a field of the corpus's attributes has a value (semantic content)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffusionlm.config import UserError, nearest
from diffusionlm.controls.binding import Binding, label_energy
from diffusionlm.controls.control import CompiledControl, Control
from diffusionlm.data.annotators import Grammar
from diffusionlm.data.tokenizers import split_words


@dataclass(frozen=True)
class Attribute(Control, name="attribute"):
    """The text states that ``field`` is ``value``, by the gradient of a classifier trained on the attributes.

    Checked by the grammar where it accepts the text, and else as the paper does: the value stands in the text (Li et al.
    2022, section 6.1).
    """

    field: str
    value: str
    classifier: str = "attributes"

    def compile(self, binding: Binding) -> CompiledControl:
        """Take the classifier's -log p. Raises UserError for a field or value that it does not know."""
        classifier = binding.classifier(self.classifier, "sequence")
        fields = {name.removeprefix("attributes."): name for name in classifier.labels}
        if self.field not in fields:
            raise UserError(f"{self}: no field of the texts' attributes is called {self.field!r}{nearest(self.field, fields)}")
        values = classifier.labels[fields[self.field]]
        if not self.value or self.value not in values:
            raise UserError(f"{self}: {self.field} is never {self.value!r}{nearest(self.value, filter(None, values))}")
        return CompiledControl(energies=(label_energy(classifier, fields[self.field], self.value),))

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        """Return 1 where it is stated."""
        return [float(self._states(text)) for text in texts]

    def _states(self, text: str) -> bool:
        parsed = Grammar().annotate(text)
        if parsed is not None and parsed.attributes is not None:
            return parsed.attributes.get(self.field) == self.value
        words, stated = split_words(text.lower()), split_words(self.value.lower())
        return any(words[i : i + len(stated)] == stated for i in range(len(words)))
