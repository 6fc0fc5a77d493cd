"""Masked diffusion language models: the baseline with the same network and words, and MASK in place of Gaussian noise.

    q(x_t | x_0): each word is masked with probability t          MaskedLM(ids, hidden) -> log p(word | visible words)
    -log p(x_0) <= E_t [ 1/t sum over masked words of -log p(w) ]   = E_k [ N/k sum over k masked words of -log p(w) ]

The first is the absorbing process of D3PM (Austin et al. 2021, section 3.1) with alpha_t = 1 - t, the second its bound
in continuous time (MDLM, Sahoo et al. 2024, section 3.4; Shi et al. 2024). A set of k of the N words is masked with
probability t^k (1-t)^(N-k); its integral over t with 1/t is 1/k over the number of such sets, so k is uniform on 1 to N on
the right side, which has less variance (Hoogeboom et al. 2022; Ou et al. 2024). The posterior of a word given the visible
ones does not depend on t, so the network does not receive t (Ou et al. 2024, theorem 1; nor does MDLM's).

Lengths are drawn first: BOS and EOS are given, and PAD is never attended to. Shape letters: B batch, L positions, D latent
dimension, V words, N words of a text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from diffusionlm.config import build_untrusted, to_plain
from diffusionlm.core.objective import Batch, Objective, ObjectiveConfig, expect_family
from diffusionlm.models.backbones import Backbone, Transformer
from diffusionlm.models.conditions import Condition
from diffusionlm.models.diffusion import DiffusionLMConfig, WordVectorModel, WordVectorSpec
from diffusionlm.models.large_vocabulary import has_plain_output, without_output
from diffusionlm.models.spec import ModelSpec
from diffusionlm.recipe.chunks import in_chunks, is_large, token_losses


@dataclass(frozen=True)
class MaskedConfig(WordVectorSpec, name="masked"):
    """Hyperparameters of a masked diffusion model.

    Args:
        dimension: D, the number of coordinates of a word vector.
        backbone: the network.
        embedding: ``normalised`` rows of norm sqrt(D), ``free`` rows, or ``frozen`` (normalised, not learned).
        cooccurrence: share of a normalised row's squared norm that starts from co-occurrences in the training texts.
        condition: what samples are conditioned on.
    """

    dimension: int = 64
    backbone: Backbone = field(default_factory=Transformer)
    embedding: Literal["normalised", "free", "frozen"] = "normalised"
    cooccurrence: float = 0.85
    condition: Condition | None = None

    def make(self, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sequence[int]], max_length: int) -> MaskedLM:
        return MaskedLM.new(self, tokenizer, rows, max_length)

    def load(self, folder: str | Path) -> MaskedLM:
        return MaskedLM.load(folder)


class MaskedLMConfig(DiffusionLMConfig):
    """The saved form of a masked model's config: ``settings`` is a plain ``MaskedConfig``."""

    model_type = "diffusionlm-masked"

    def __init__(self, settings: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(settings=settings or to_plain(MaskedConfig()), **kwargs)


class MaskedLM(WordVectorModel):
    """A masked diffusion language model."""

    settings: MaskedConfig
    config_class = MaskedLMConfig
    base_model_prefix = "diffusionlm"
    main_input_name = "ids"
    output_modalities = ("text",)

    def __init__(self, config: MaskedLMConfig) -> None:
        """Make a model with random weights; see ``DiffusionLM``."""
        super().__init__(config)
        self.settings = build_untrusted(MaskedConfig, config.settings, "settings")
        D, V = self.settings.dimension, config.vocabulary
        self.set_vectors(V, D, self.settings.embedding)
        self.mask_vector = nn.Parameter(torch.zeros(D))
        self.build_network(self.settings, D, V, config.max_tokens)
        self.post_init()  # type: ignore[no-untyped-call]

    def clean_inputs(self, ids: Tensor) -> Tensor:
        return self.encode(ids)

    def forward(self, ids: Tensor, hidden: Tensor, mask: Tensor | None = None, condition: Any = None) -> Tensor:
        """Return token logits (B, L, V) for ``ids`` (B, L), of which those at ``hidden`` (B, L) are masked.

        ``mask`` (B, L) is True at non-padding tokens. The logits of BOS, EOS and PAD are -inf.
        """
        return self.framed(self.output(ids, hidden, mask, condition))

    def output(self, ids: Tensor, hidden: Tensor, mask: Tensor | None, condition: Any) -> Tensor:
        """Return the network's output (B, L, V); its arguments are those of ``forward``."""
        with torch.autocast(ids.device.type, enabled=False):
            vectors = torch.where(hidden[..., None], self.mask_vector.float(), self.encode(ids))
        still = torch.zeros(len(ids), device=ids.device)
        return self.run_network(vectors, still, still, mask, condition)

    def framed(self, output: Tensor) -> Tensor:
        """Return the token logits (..., V) of the network's output: -inf at BOS, PAD and, unless rows are packed, EOS."""
        frame = sorted({id for name, id in self.config.special_ids.items() if name != "unk" and self.barred(id)})
        return output.float().index_fill(-1, torch.tensor(frame, device=output.device), -math.inf)


AutoConfig.register(MaskedLMConfig.model_type, MaskedLMConfig)
AutoModel.register(MaskedLMConfig, MaskedLM)


def word_positions(mask: Tensor) -> Tensor:
    """Return the positions of words in texts of ``mask`` (B, L): all tokens but the first and the last."""
    return F.pad(mask[:, 2:], (1, 1))


def stratified(count: int, device: torch.device) -> Tensor:
    """Draw ``count`` numbers in (0, 1], one in each of as many equal parts, in random order (Kingma et al. 2021)."""
    return 1 - (torch.randperm(count, device=device) + torch.rand(count, device=device)) / count


def lowest(scores: Tensor, counts: Tensor) -> Tensor:
    """Mark the ``counts`` (B,) smallest numbers of each row of ``scores`` (B, L); ties go to the first."""
    return scores.argsort(dim=1, stable=True).argsort(dim=1) < counts[:, None]


def hide(words: Tensor, counts: Tensor, uniform: Tensor) -> Tensor:
    """Choose ``counts`` (B,) of the positions ``words`` (B, L) uniformly, by the ``uniform`` draws (B, L)."""
    return lowest(uniform.masked_fill(~words, math.inf), counts) & words


def masked_token_losses(model: MaskedLM, ids: Tensor, mask: Tensor, hidden: Tensor, condition: Any = None) -> Tensor:
    """Return -log p of each masked word given the visible ones (B, L), in nats; 0 elsewhere."""
    attend, size = None if bool(mask.all()) else mask, model.config.vocabulary
    if is_large(ids.numel(), size) and has_plain_output(model.network):  # the logits of masked words alone, a few at a time
        with without_output(model.network) as down:
            features = model.output(ids, hidden, attend, condition)[hidden]
        found = in_chunks(lambda x, i: token_losses(model.framed(down(x)), i), size, features, ids[hidden])
        return found.new_zeros(ids.shape).masked_scatter(hidden, found)
    logits = model(ids, hidden, attend, condition)
    targets = ids.masked_fill(~hidden, -100)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none").view_as(ids)


@dataclass(frozen=True)
class MaskedWords(ObjectiveConfig, name="masked"):
    """Cross-entropy of masked words; their number is uniform from one to all words of a text.

    Args:
        weighting: ``equal`` gives all masked words the same weight; ``bound`` gives each the weight N/k of the likelihood
            bound, which trains a little worse, even by the bound.
    """

    weighting: Literal["equal", "bound"] = "equal"

    def check(self, model: ModelSpec) -> None:
        expect_family(self, model, "masked")

    def build(self, model: MaskedLM) -> MaskedObjective:
        self.check(model.settings)
        return MaskedObjective(self, model)


class MaskedObjective(Objective):
    """The module of ``MaskedWords``."""

    ranks = True
    model: MaskedLM

    def __init__(self, spec: MaskedWords, model: MaskedLM) -> None:
        super().__init__(model, model.config.special_ids["pad"])
        self.spec = spec

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``bound`` (nats per word) or ``cross_entropy`` (nats per masked word, not a likelihood).

        Given words stay visible, and N counts the others: the bound is that of their probability under the given ones.
        """
        ids, words = batch.ids, word_positions(batch.mask) & batch.free
        total = words.sum(1)
        counts = (stratified(len(ids), ids.device) * total).ceil().clamp(min=1)
        hidden = hide(words, counts, torch.rand(ids.shape, device=ids.device))
        condition, terms = self.conditioning(batch)
        losses = masked_token_losses(self.model, ids, batch.mask, hidden, condition).sum(1)
        if self.spec.weighting == "bound":
            return {"bound": (total / counts * losses).sum() / total.sum(), **terms}
        return {"cross_entropy": losses.sum() / hidden.sum(), **terms}
