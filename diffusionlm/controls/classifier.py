"""What a classifier of the user's says of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffusionlm.config import UserError, nearest
from diffusionlm.controls.binding import Binding, label_energy
from diffusionlm.controls.control import CompiledControl, Control


@dataclass(frozen=True)
class Classifier(Control, name="classifier"):
    """A classifier finds ``label`` in the text, likelier than not.

    Args:
        label: one of its labels.
        classifier: a name under the model's ``classifiers/`` or a folder: of a classifier trained here, whose gradient
            steers; or of any ``transformers`` sequence classifier, which steers alike where each of our words is one of its
            tokens, and else scores drafts for particles.
        field: of a classifier that has several.
    """

    label: str
    classifier: str
    field: str | None = None

    def compile(self, binding: Binding) -> CompiledControl:
        """Take -log p(label), or log p(label) of drafts. Raises UserError for an unknown label or field."""
        foreign = binding.foreign(self.classifier)
        if foreign is not None:
            index = foreign.index(self.label, str(self))
            if foreign.aligned is not None:
                return CompiledControl(energies=(foreign.energy(index),))
            return CompiledControl(rewards=(lambda texts: foreign.log_probabilities(texts)[:, index],))
        classifier = binding.classifier(self.classifier, "sequence")
        return CompiledControl(energies=(label_energy(classifier, self._field(classifier.labels), self.label),))

    def _field(self, labels: dict[str, list[str]]) -> str:
        field = self.field or next(iter(labels))
        if field not in labels or (self.field is None and len(labels) > 1):
            raise UserError(f"{self}: field: expected one of the classifier's{nearest(self.field or '', labels)}")
        if not self.label or self.label not in labels[field]:
            known = filter(None, labels[field])
            raise UserError(f"{self}: {field} is never {self.label!r}{nearest(self.label, known)}")
        return field

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        """Return 1 where p(label) is above one half, else p(label), of the finished text."""
        foreign = binding.foreign(self.classifier)
        if foreign is not None:
            chances = foreign.log_probabilities(texts)[:, foreign.index(self.label, str(self))].exp()
        else:
            classifier = binding.classifier(self.classifier)
            field = self._field(classifier.labels)
            chances = binding.clean_log_probabilities(classifier, texts)[field][
                :, classifier.labels[field].index(self.label)
            ].exp()
        return torch.where(chances > 0.5, 1.0, chances.double()).tolist()
