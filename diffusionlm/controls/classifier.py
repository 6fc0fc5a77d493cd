"""A label of a classifier, trained here or third-party."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffusionlm.config import UserError, nearest
from diffusionlm.controls.binding import Binding, label_energy, label_index
from diffusionlm.controls.control import CompiledControl, Control, RewardFunction, literal
from diffusionlm.controls.probabilities import PATH, classifier_at, column_of, is_classifier, log_probabilities
from diffusionlm.core.guidance import Energy
from diffusionlm.data.folders import is_folder
from diffusionlm.models.classifier.heads import LatentSequenceClassifier


@dataclass(frozen=True)
class Classifier(Control, name="classifier"):
    """A classifier gives ``label`` a probability above one half.

    ``classifier`` is a name under the model's ``classifiers/`` or a folder; ``field`` is needed where it has several. One
    trained here guides by its gradient; so does any ``transformers`` sequence classifier that has all our tokens, any other one
    scores drafts for particles. So does a classifier of another library, or its import path ``module:attribute``; see
    ``probabilities``.
    """

    label: str
    classifier: Any
    field: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.classifier, str) and not is_classifier(self.classifier):
            expected = "expected the name or folder of a classifier in quotes, or a classifier with predict_proba"
            raise UserError(f"classifier: {expected}, got {self.classifier!r}")
        if self.field is not None and self._foreign:
            raise UserError("field: a classifier of another library has one alone; leave it out")

    @property
    def _foreign(self) -> bool:
        """Whether the classifier is one of another library."""
        name = self.classifier
        return not isinstance(name, str) or (PATH.fullmatch(name) is not None and not is_folder(name))

    def compile(self, binding: Binding) -> CompiledControl:
        """Return -log p(label) as an energy, or log p(label) as a reward. Raises UserError for an unknown label or field."""
        log_p, energy = self._bound(binding)
        return CompiledControl(rewards=(log_p,)) if energy is None else CompiledControl(energies=(energy,))

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        """Return 1 where p(label) of the finished text is above one half, else p(label)."""
        p = self._bound(binding)[0](texts).exp()
        return torch.where(p > 0.5, 1.0, p.double()).tolist()

    def _bound(self, binding: Binding) -> tuple[RewardFunction, Energy | None]:
        """Return log p(label) of finished texts, and -log p(label) as an energy, None where there is no gradient."""
        if self._foreign:
            where = str(self)
            found = classifier_at(self.classifier, where) if isinstance(self.classifier, str) else self.classifier
            column_of(found, self.label, where)
            return lambda texts: log_probabilities(found, self.label, texts, where), None
        third_party = binding.sequence_classifier(self.classifier)
        if third_party is not None:
            index = third_party.index(self.label, str(self))
            energy = None if third_party.aligned is None else third_party.energy(index)
            return lambda texts: third_party.log_probabilities(texts)[:, index], energy
        trained = binding.classifier(self.classifier, LatentSequenceClassifier)
        field = self.field or next(iter(trained.labels))
        if field not in trained.labels or (self.field is None and len(trained.labels) > 1):
            raise UserError(f"{self}: field: expected one of the classifier's{nearest(self.field or '', trained.labels)}")
        index = label_index(trained, field, self.label, f"{self}: {field}")
        return lambda texts: binding.log_probabilities(trained, texts)[field][:, index], label_energy(trained, field, index)

    def __str__(self) -> str:
        if isinstance(self.classifier, str):
            return super().__str__()
        return f"Classifier({literal(self.label)}, {getattr(self.classifier, '__name__', type(self.classifier).__name__)})"
