"""Third-party classifiers: any ``transformers`` sequence classifier, as an energy or as a reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from diffusionlm.config import UserError, nearest
from diffusionlm.core.guidance import Energy, GuidanceState
from diffusionlm.data.tokenizers import BLANK, load_tokenizer
from diffusionlm.models.io import model_folder

UNBOUNDED = 1e9  # tokenizers without a maximum length report a number far above this


class SequenceClassifier:
    """A ``transformers`` sequence classifier with its own tokenizer.

    It classifies decoded text. Where each token of our vocabulary is one of its tokens, it also classifies token posteriors,
    as mixtures of its own token embeddings, with a gradient.
    """

    def __init__(self, folder: str, tokenizer: PreTrainedTokenizerFast, device: torch.device) -> None:
        """Load it from a local folder, safetensors only; ``tokenizer`` is ours. Raises UserError where that fails."""
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
        """Return log-probabilities of exclusive labels, or of each label alone where several can hold."""
        return torch.nn.functional.logsigmoid(logits.float()) if self.many else logits.float().log_softmax(-1)

    @cached_property
    def aligned(self) -> Tensor | None:
        """Its token id (V,) for each of our tokens; None where a token has none, so that texts have to be decoded."""
        theirs, ours = self.tokenizer, self.ours
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
