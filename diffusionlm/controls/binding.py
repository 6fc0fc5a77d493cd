"""What controls are bound to: a model and its tokenizer, and the classifiers that were trained for it or come from outside."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from diffusionlm.config import UserError, nearest
from diffusionlm.core.guidance import Energy, GuidanceState
from diffusionlm.core.objective import collate
from diffusionlm.data.annotators import Annotator, Grammar
from diffusionlm.data.tokenizers import BLANK, load_tokenizer
from diffusionlm.models.classifier import LatentClassifier, find_classifier
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.models.io import model_folder

UNBOUNDED = 1e9  # tokenizers that know no bound of their own name a number far beyond this


@dataclass(frozen=True)
class Binding:
    """A model, its tokenizer, the folder it came from, and who annotates finished texts."""

    model: DiffusionLM
    tokenizer: PreTrainedTokenizerFast
    folder: Path | None = None
    annotator: Annotator = field(default_factory=Grammar)
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def classifier(self, name: str, head: str | None = None) -> LatentClassifier:
        """Return the model's classifier ``name``, or the one in the folder ``name``.

        Raises:
            UserError: there is none, it was trained on another model's word vectors, or it has another ``head``.
        """
        found: LatentClassifier = self._once(name, self._open)
        if head is not None and found.settings.head != head:
            raise UserError(f"classifier: expected one with head {head!r}, and {name!r} has {found.settings.head!r}")
        return found

    def has_classifier(self, name: str) -> bool:
        """Tell whether the model has a classifier ``name``, or a folder is called so."""
        return Path(name).is_dir() or (self.folder is not None and (model_folder(self.folder) / "classifiers" / name).is_dir())

    def _open(self, name: str) -> LatentClassifier:
        if not Path(name).is_dir() and self.folder is None:
            raise UserError(f"classifier: the model came from no folder, so {name!r} must be a classifier's folder")
        folder = Path(name) if Path(name).is_dir() else find_classifier(self.folder or "", name)
        classifier = LatentClassifier.load(folder)
        classifier.check_fits(self.model)
        torch.nn.Module.to(classifier, self.model.device)
        return classifier

    @property
    def folders(self) -> dict[str, Path]:
        """The folders of the classifiers that were read so far, by name."""
        return {name: Path(name) if Path(name).is_dir() else find_classifier(self.folder or "", name) for name in self._loaded}

    @property
    def networks(self) -> list[torch.nn.Module]:
        """The classifiers that were read so far."""
        return [getattr(loaded, "model", loaded) for loaded in self._loaded.values()]

    def foreign(self, name: str) -> SequenceClassifier | None:
        """Return the ``transformers`` classifier in the folder ``name``; None where it is none (but perhaps one of ours)."""
        try:
            plain = json.loads((model_folder(name) / "config.json").read_text())
        except (OSError, ValueError):
            return None
        if any(str(kind).endswith("ForSequenceClassification") for kind in plain.get("architectures") or []):
            return self._once(name, lambda path: SequenceClassifier(path, self.tokenizer, self.model.device))
        return None

    def _once(self, name: str, open_: Callable[[str], Any]) -> Any:
        if name not in self._loaded:
            self._loaded[name] = open_(name)
        return self._loaded[name]

    @torch.no_grad()
    def clean_log_probabilities(self, classifier: LatentClassifier, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return what a classifier says of finished texts, field by field: (B, values) and alike."""
        longest = self.model.config.max_tokens
        rows = [self.tokenizer(text)["input_ids"][:longest] for text in texts]
        batch = {k: v.to(self.model.device) for k, v in collate(rows, self.model.config.special_ids["pad"]).items()}
        latents, words = self.model.encode(batch["ids"]), classifier.chances(batch["ids"])
        found: dict[str, Tensor] = classifier(latents, torch.zeros(len(rows), device=latents.device), batch["mask"], words)
        return {name: value.cpu() for name, value in found.items()}


def _either(one: int | None, other: int | None) -> int | None:
    return other if one is None else one


def label_energy(classifier: LatentClassifier, name: str, value: str) -> Energy:
    """Return -log p of ``value`` in the field ``name`` of a text."""
    index = classifier.labels[name].index(value)
    return lambda belief: -read(classifier, belief)[name][:, index]


def read(classifier: LatentClassifier, belief: GuidanceState) -> dict[str, Tensor]:
    """Return a classifier's log-probabilities, of the latents that it was trained on; once for each belief."""
    if id(classifier) not in belief.readings:
        latents = belief.xt if classifier.settings.reads == "noisy" else belief.x0
        words = belief.logits.softmax(-1) if classifier.settings.points else None
        belief.readings[id(classifier)] = classifier(latents, belief.t, belief.mask, words)
    found: dict[str, Tensor] = belief.readings[id(classifier)]
    return found


class SequenceClassifier:
    """Any ``transformers`` sequence classifier, with a tokenizer of its own.

    It reads decoded text; where every word of our vocabulary is one of its tokens, also beliefs, as mixtures of its own
    token vectors, with a gradient.
    """

    def __init__(self, folder: str, tokenizer: PreTrainedTokenizerFast, device: torch.device) -> None:
        """Load it from a local folder, safetensors only. Raises UserError where that fails."""
        path = model_folder(folder)
        self.folder, self.ours = folder, tokenizer
        self.tokenizer = load_tokenizer(path)
        try:
            self.model: Any = AutoModelForSequenceClassification.from_pretrained(
                path, use_safetensors=True, local_files_only=True, trust_remote_code=False, dtype=torch.float32
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{folder}: cannot load a sequence classifier from here: {str(error).splitlines()[0]}") from None
        if self.model.config.num_labels < 2:
            raise UserError(f"{folder}: this one gives one number, not labels; a Reward can follow it")
        self.many = self.model.config.problem_type == "multi_label_classification"
        self.model.to(device).train(False).requires_grad_(False)

    def index(self, label: str, where: str) -> int:
        """Return the index of a label. Raises UserError where there is none of that name."""
        known = {str(name): int(i) for name, i in self.model.config.label2id.items()}
        if label not in known:
            raise UserError(f"{where}: {self.folder} has no label {label!r}{nearest(label, known)}")
        return known[label]

    @torch.no_grad()
    def log_probabilities(self, texts: Sequence[str]) -> Tensor:
        """Return the log-probability (B, labels) of each label of each text."""
        longest = min(self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", None) or math.inf)
        batch = self.tokenizer(
            list(texts), return_tensors="pt", padding=True, truncation=True,
            max_length=int(longest) if longest < UNBOUNDED else None,
        ).to(self.model.device)  # fmt: skip
        batch.pop("token_type_ids", None)
        return self._log_probabilities(self.model(**batch).logits).cpu()

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        """Return those of labels that exclude each other, or of each alone where several can hold."""
        return torch.nn.functional.logsigmoid(logits.float()) if self.many else logits.float().log_softmax(-1)

    @cached_property
    def aligned(self) -> Tensor | None:
        """Its token id (V,) for each of our tokens, or None where one has none: texts then have to be decoded."""
        vocabulary, unknown = self.tokenizer.get_vocab(), self.tokenizer.unk_token_id
        special = {
            self.ours.pad_token_id: self.tokenizer.pad_token_id,
            self.ours.unk_token_id: unknown,
            self.ours.bos_token_id: _either(self.tokenizer.cls_token_id, self.tokenizer.bos_token_id),
            self.ours.eos_token_id: _either(self.tokenizer.sep_token_id, self.tokenizer.eos_token_id),
        }
        ids = []
        for token, index in sorted(self.ours.get_vocab().items(), key=lambda item: item[1]):
            if index in special:
                ids.append(special[index])
                continue
            same = vocabulary.get(token)
            spelled = (
                [same] if same is not None else self.tokenizer(token.replace(BLANK, " "), add_special_tokens=False)["input_ids"]
            )
            ids.append(spelled[0] if len(spelled) == 1 and spelled[0] != unknown else None)
        return None if None in ids else torch.tensor(ids, device=self.model.device)

    def energy(self, index: int) -> Energy:
        """Return -log p of a label as a function of beliefs; needs ``aligned``."""
        assert self.aligned is not None
        vectors = self.model.get_input_embeddings().weight[self.aligned]

        def energy(belief: GuidanceState) -> Tensor:
            p = belief.logits.softmax(-1)
            logits: Tensor = self.model(inputs_embeds=p @ vectors.to(p), attention_mask=belief.mask.long()).logits
            return -self._log_probabilities(logits)[:, index]

        return energy
