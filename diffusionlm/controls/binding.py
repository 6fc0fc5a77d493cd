"""What controls are compiled against: a model, its tokenizer, its classifiers, and the annotator of finished texts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError, build_untrusted, nearest, read_yaml
from diffusionlm.constraints.dfa import DFA
from diffusionlm.controls.third_party import SequenceClassifier
from diffusionlm.core.guidance import Energy, GuidanceState
from diffusionlm.core.objective import collate
from diffusionlm.data.annotators import Annotator, Plain
from diffusionlm.data.corpora import Corpus
from diffusionlm.data.folders import is_folder, read_object
from diffusionlm.data.reading import read_text
from diffusionlm.models.classifier import LatentClassifier, classifier_homes, find_classifier
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.models.hub import repository
from diffusionlm.models.io import model_folder

KEPT_AUTOMATA = 64
C = TypeVar("C", bound=LatentClassifier)


@dataclass(frozen=True)
class Binding:
    """A model, its tokenizer, the folder it was loaded from, and the annotator that checks finished texts."""

    model: DiffusionLM
    tokenizer: PreTrainedTokenizerFast
    folder: Path | None = None
    annotator: Annotator = field(default_factory=Plain)
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _automata: dict[Hashable, DFA] = field(default_factory=dict, repr=False, compare=False)

    def automaton(self, key: Hashable, make: Callable[[], DFA]) -> DFA:
        """Return the automaton of ``key``, made once; a number of those used last are kept."""
        found = self._automata.pop(key, None)
        self._automata[key] = found = make() if found is None else found  # the last of the dictionary
        if len(self._automata) > KEPT_AUTOMATA:
            del self._automata[next(iter(self._automata))]
        return found

    def classifier(self, name: str, kind: type[C]) -> C:
        """Return the model's classifier ``name``, or the one in the folder ``name``.

        Raises UserError where there is none, or one of another model's word vectors, or of another head than ``kind``.
        """
        found = self._loaded.get(name)
        if found is None:
            found = LatentClassifier.load(self._path(name))
            found.check_fits(self.model)
            self._loaded[name] = torch.nn.Module.to(found, self.model.device)
        if not isinstance(found, kind):
            expected, got = kind.reads_labels.head, found.settings.head
            raise UserError(f"classifier: expected one with head {expected!r}, and {name!r} has {got!r}")
        return found

    def has_classifier(self, name: str) -> bool:
        """Return whether the model has a classifier ``name``, or there is a folder of this name."""
        homes = [] if self.folder is None else classifier_homes(self.folder)
        return is_folder(name) or any(is_folder(home / name) for home in homes)

    def _path(self, name: str) -> Path:
        if is_folder(name) or repository(name) is not None:
            return model_folder(name)
        if self.folder is None:
            raise UserError(f"classifier: the model came from no folder, so {name!r} must be a classifier's folder")
        return find_classifier(self.folder, name)

    @property
    def folders(self) -> dict[str, Path]:
        """The folders of the classifiers loaded so far, by name."""
        return {name: self._path(name) for name in self._loaded}

    @property
    def networks(self) -> list[torch.nn.Module]:
        """The classifiers loaded so far."""
        return [getattr(loaded, "model", loaded) for loaded in self._loaded.values()]

    def sequence_classifier(self, name: str) -> SequenceClassifier | None:
        """Return the ``transformers`` sequence classifier in the folder ``name``; None where it holds none."""
        path = model_folder(name) / "config.json"
        kinds = read_object(path).get("architectures") if is_folder(path.parent) and path.exists() else None
        if not isinstance(kinds, list) or not any(str(kind).endswith("ForSequenceClassification") for kind in kinds):
            return None
        if name not in self._loaded:
            self._loaded[name] = SequenceClassifier(name, self.tokenizer, self.model.device)
        return self._loaded[name]

    @torch.no_grad()
    def log_probabilities(self, classifier: LatentClassifier, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return a classifier's log-probabilities for finished texts, by field: (B, values) and alike."""
        longest = self.model.config.max_tokens
        rows = [self.tokenizer(text)["input_ids"][:longest] for text in texts]
        batch = {k: v.to(self.model.device) for k, v in collate(rows, self.model.config.special_ids["pad"]).items()}
        latents, words = self.model.encode(batch["ids"]), classifier.word_probabilities(batch["ids"])
        found: dict[str, Tensor] = classifier(latents, torch.zeros(len(rows), device=latents.device), batch["mask"], words)
        return {name: value.cpu() for name, value in found.items()}

    def annotated(self, texts: Sequence[str], part: str, score: Callable[[Any], float]) -> list[float | None]:
        """Return ``score`` of the ``part`` ("tags", "tree", "attributes") of each text's annotation.

        A text that the annotator rejects has 0; None stands for a part that it does not read.
        """
        if part not in self.annotator.reads:
            return [None] * len(texts)
        found = [(annotation, getattr(annotation, part, None)) for annotation in map(self.annotator.annotate, texts)]
        return [0.0 if text is None else None if value is None else score(value) for text, value in found]


def annotator_for(folder: Path | None) -> Annotator:
    """Return the annotator of the corpus that the model in ``folder`` was trained on, else ``words``.

    The corpus is read from the run's ``config.yaml``; one defined outside the library counts only if its module is imported.
    """
    for path in [] if folder is None else [folder / "config.yaml", folder.resolve().parent / "config.yaml"]:
        try:
            plain = read_yaml(read_text(path), str(path))
            return build_untrusted(Corpus, plain["data"]["corpus"]).annotator()
        except (OSError, ValueError, KeyError, TypeError):  # UserError and damaged text are ValueErrors
            continue
    return Plain()


def label_index(classifier: LatentClassifier, field: str, value: str, where: str) -> int:
    """Return the index of ``value`` among a field's labels. Raises UserError where it is none of them."""
    values = classifier.labels[field]
    if not value or value not in values:
        raise UserError(f"{where} is never {value!r}{nearest(value, filter(None, values))}")
    return values.index(value)


def label_energy(classifier: LatentClassifier, field: str, index: int) -> Energy:
    """Return -log p of a text's label ``index`` in ``field``."""
    return lambda state: -classified(classifier, state)[field][:, index]


def classified(classifier: LatentClassifier, state: GuidanceState) -> dict[str, Tensor]:
    """Return a classifier's log-probabilities for the latents it was trained on, computed once for each state."""
    if id(classifier) not in state.readings:
        latents = state.xt if classifier.settings.reads == "noisy" else state.x0
        words = state.logits.softmax(-1) if classifier.settings.points else None
        state.readings[id(classifier)] = classifier(latents, state.t, state.mask, words)
    return state.readings[id(classifier)]
