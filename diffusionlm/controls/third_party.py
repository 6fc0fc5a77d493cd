"""Third-party classifiers: any ``transformers`` sequence classifier, as an energy or as a reward."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from diffusionlm.config import UserError, nearest
from diffusionlm.core.guidance import Energy, GuidanceState
from diffusionlm.data.folders import damage_errors
from diffusionlm.data.tokenizers import BLANK, load_tokenizer
from diffusionlm.models.io import model_config, model_folder, read_weights

UNBOUNDED = 1e9  # tokenizers without a maximum length report a number far above this
MOST_MEASURED = 2048  # tokens of the longest text that is tried when a classifier is loaded


class SequenceClassifier:
    """A ``transformers`` sequence classifier with its own tokenizer.

    It classifies decoded text. Where each token of our vocabulary is one of its tokens, it also classifies token posteriors,
    as mixtures of its own token embeddings, with a gradient.
    """

    def __init__(self, folder: str, tokenizer: PreTrainedTokenizerFast, device: torch.device) -> None:
        """Load it from a local folder, safetensors only; ``tokenizer`` is ours. Raises UserError where that fails."""
        path = model_folder(folder)
        self.folder, self.ours = folder, tokenizer
        check_labels(model_config(path), folder)
        self.tokenizer = load_tokenizer(path)
        self.model: Any = read_weights(AutoModelForSequenceClassification, path, path)
        if self.model.config.num_labels < 2:
            raise UserError(f"{folder}: this one gives one number, not labels; a Reward can follow it")
        self.many = self.model.config.problem_type == "multi_label_classification"
        self.labels = {str(name): int(i) for i, name in self.model.config.id2label.items()}
        self.model.to(device).train(False).requires_grad_(False)
        known, largest = self.model.get_input_embeddings().num_embeddings, max(self.tokenizer.get_vocab().values())
        if largest >= known:
            raise UserError(f"{folder}: expected token ids below its vocabulary of {known}, but its tokenizer has {largest}")
        self.longest = min(self.tokenizer.model_max_length, positions(self.model))
        self._warned = False
        with damage_errors(folder, "the classifier cannot be used"):
            self._measure()

    @torch.no_grad()
    def _measure(self) -> None:
        """Classify a text of the maximum length, and find whether the model ignores padding, after ids and after vectors."""
        ids = self.tokenizer("a a a a", truncation=True, max_length=int(min(self.longest - 2, 8)))["input_ids"]
        if self.longest < MOST_MEASURED:
            self._logits((ids * int(self.longest))[: int(self.longest)])
        alone, pad = self._logits(ids), self.tokenizer.pad_token_id

        def like_alone(logits: Tensor) -> bool:
            return bool(torch.allclose(logits, alone, atol=1e-4))

        row = torch.tensor([[*ids, *[pad or 0] * 2]], device=self.model.device)
        mask = torch.tensor([[*[1] * len(ids), 0, 0]], device=self.model.device)
        self.pads = pad is not None and like_alone(self.model(input_ids=row, attention_mask=mask).logits)
        self.takes_vectors = False
        with suppress(Exception):  # whatever a model raises that takes none, such as an encoder with a decoder
            vectors = self.model.get_input_embeddings()(row)
            self.takes_vectors = like_alone(self.model(inputs_embeds=vectors, attention_mask=mask).logits)

    def _logits(self, ids: list[int]) -> Tensor:
        """Return the logits (1, labels) of a text of these ids."""
        row = torch.tensor([ids], device=self.model.device)
        logits: Tensor = self.model(input_ids=row, attention_mask=torch.ones_like(row)).logits
        return logits

    def index(self, label: str, where: str) -> int:
        """Return the index of a label. Raises UserError where there is none of that name."""
        if label not in self.labels:
            raise UserError(f"{where}: {self.folder} has no label {label!r}{nearest(label, self.labels)}")
        return self.labels[label]

    @torch.no_grad()
    def log_probabilities(self, texts: Sequence[str]) -> Tensor:
        """Return the log-probability (B, labels) of each label of each text; of a text that is too long, of its beginning.

        Texts are classified one by one where the tokenizer has no pad token, or the model takes it for a part of the text.
        """
        longest = int(self.longest) if self.longest < UNBOUNDED else None
        self._warn_of_long(texts)
        cut = {"return_tensors": "pt", "truncation": longest is not None, "max_length": longest}
        batches = [list(texts)] if self.pads else [[text] for text in texts]
        logits = []
        for rows in batches:
            batch = self.tokenizer(rows, padding=self.pads, **cut).to(self.model.device)
            batch.pop("token_type_ids", None)
            logits.append(self.model(**batch).logits)
        return self._log_probabilities(torch.cat(logits)).cpu()

    def _warn_of_long(self, texts: Sequence[str]) -> None:
        """Say once that texts are longer than the classifier reads."""
        if self._warned or self.longest >= UNBOUNDED:
            return
        found = max(map(len, self.tokenizer(list(texts), verbose=False)["input_ids"]), default=0)
        if found > self.longest:
            self._warned = True
            cut = f"reads {int(self.longest)} tokens; of longer texts, such as one of {found}, only the beginning counts"
            print(f"classifier: {self.folder} {cut}", file=sys.stderr)

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        """Return log-probabilities of exclusive labels, or of each label alone where several can hold."""
        return torch.nn.functional.logsigmoid(logits.float()) if self.many else logits.float().log_softmax(-1)

    @cached_property
    def aligned(self) -> Tensor | None:
        """Its token id (V,) for each of our tokens; None where texts have to be decoded.

        That is so where a token has none, our longest texts are too long for it, or it classifies no padded vectors.
        """
        theirs, ours = self.tokenizer, self.ours
        if not self.takes_vectors or self.longest < min(ours.model_max_length, UNBOUNDED):
            return None
        vocabulary, unknown = theirs.get_vocab(), theirs.unk_token_id
        special = {
            ours.pad_token_id: theirs.pad_token_id,
            ours.unk_token_id: unknown,
            ours.bos_token_id: theirs.bos_token_id if theirs.cls_token_id is None else theirs.cls_token_id,
            ours.eos_token_id: theirs.eos_token_id if theirs.sep_token_id is None else theirs.sep_token_id,
        }

        def same(token: str) -> int | None:
            if token in vocabulary:
                return int(vocabulary[token])
            pieces = theirs(token.replace(BLANK, " "), add_special_tokens=False)["input_ids"]
            return pieces[0] if len(pieces) == 1 and pieces[0] != unknown else None

        tokens = sorted(ours.get_vocab().items(), key=lambda item: item[1])
        ids = [special[index] if index in special else same(token) for token, index in tokens]
        return None if None in ids else torch.tensor(ids, device=self.model.device)

    def energy(self, index: int) -> Energy:
        """Return -log p of the label ``index`` as a function of the token posteriors; needs ``aligned``."""
        assert self.aligned is not None
        vectors = self.model.get_input_embeddings().weight[self.aligned]

        def energy(state: GuidanceState) -> Tensor:
            p = state.logits.softmax(-1)
            logits: Tensor = self.model(inputs_embeds=p @ vectors.to(p), attention_mask=state.mask.long()).logits
            return -self._log_probabilities(logits)[:, index]

        return energy


def positions(model: nn.Module) -> float:
    """Return the most tokens that a model has positions for; RoBERTa's begin after the number of its pad token."""
    found = [float(getattr(model.config, "max_position_embeddings", None) or UNBOUNDED)]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            found.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return min(found)


def check_labels(plain: Mapping[str, Any], folder: str) -> None:
    """Raise UserError where a config names its labels in ways that contradict each other."""
    by_id, by_name, count = plain.get("id2label"), plain.get("label2id"), plain.get("num_labels")
    if by_id is None and by_name is None:
        return
    if not isinstance(by_id, dict) or not all(isinstance(name, str) for name in by_id.values()):
        raise UserError(f"{folder}: id2label: expected the name of each label by its number, got {by_id}")
    if {*by_id} != {*map(str, range(len(by_id)))} or len({*by_id.values()}) < len(by_id):
        raise UserError(f"{folder}: id2label: expected labels numbered from 0 on, each name once, got {by_id}")
    if by_name is not None and by_name != {name: int(i) for i, name in by_id.items()}:
        raise UserError(f"{folder}: label2id {by_name} contradicts id2label {by_id}; which label is meant is not known")
    if count is not None and count != len(by_id):
        raise UserError(f"{folder}: num_labels: expected {len(by_id)}, as many as id2label names, got {count}")
