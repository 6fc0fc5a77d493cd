"""A label of a classifier, trained here or third-party."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffusionlm.config import UserError, nearest
from diffusionlm.controls.binding import Binding, label_energy
from diffusionlm.controls.control import CompiledControl, Control
from diffusionlm.models.classifier.heads import LatentSequenceClassifier


@dataclass(frozen=True)
class Classifier(Control, name="classifier"):
    """A classifier gives ``label`` a probability above one half.

    Args:
        label: one of its labels.
        classifier: a name under the model's ``classifiers/`` or a folder. A classifier trained here guides by its gradient; so
            does any ``transformers`` sequence classifier that has all our tokens, any other one scores drafts for particles.
        field: of a classifier that has several.
    """

    label: str
    classifier: str
    field: str | None = None

    def compile(self, binding: Binding) -> CompiledControl:
        """Return -log p(label) as an energy, or log p(label) as a reward. Raises UserError for an unknown label or field."""
        third_party = binding.sequence_classifier(self.classifier)
        if third_party is not None:
            index = third_party.index(self.label, str(self))
            if third_party.aligned is not None:
                return CompiledControl(energies=(third_party.energy(index),))
            return CompiledControl(rewards=(lambda texts: third_party.log_probabilities(texts)[:, index],))
        classifier = binding.classifier(self.classifier, LatentSequenceClassifier)
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
        """Return 1 where p(label) of the finished text is above one half, else p(label)."""
        third_party = binding.sequence_classifier(self.classifier)
        if third_party is not None:
            logs = third_party.log_probabilities(texts)[:, third_party.index(self.label, str(self))]
        else:
            classifier = binding.classifier(self.classifier, LatentSequenceClassifier)
            field = self._field(classifier.labels)
            logs = binding.log_probabilities(classifier, texts)[field][:, classifier.labels[field].index(self.label)]
        p = logs.exp()
        return torch.where(p > 0.5, 1.0, p.double()).tolist()
