"""From masks to words: the decoders of masked diffusion, the one loop that runs them, and the pipeline.

A masked model tells, for each hidden position, how likely each word is given the words that are shown. The loop draws a
word for every hidden position from that; a decoder is one function: which positions are hidden again at the next time.
Time t falls from 1, where everything is hidden, to 0, where nothing is. Shapes: B batch, L positions, V words.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diffusionlm.config import UserError, plain_name
from diffusionlm.core.process import Gaussian, Process
from diffusionlm.core.sampler import History, Sampler
from diffusionlm.data.batches import boundaries, text_mask
from diffusionlm.data.tokenizers import decode_texts
from diffusionlm.models.masked import MaskedLM, lowest, word_positions
from diffusionlm.pipelines.base import BasePipeline, SamplingConfig, Watch, check_length, check_no_latents
from diffusionlm.pipelines.lengths import draw_lengths
from diffusionlm.pipelines.noise import RowNoise

Predict = Callable[[Tensor, Tensor], Tensor]
"""A masked model: ids (B, L) and hidden (B, L), True where an id is not to be seen, to token logits (B, L, V)."""

ROUNDING = 1e-4  # a share of a count that is a whole number is not to fall below it


@dataclass(frozen=True)
class MaskedState:
    """A moment of a decoding run, at time ``t``; the tensors are (B, L).

    ``ids`` hold a word at every position, ``hidden`` is True where it will be drawn anew, ``confidence`` is the log
    probability that the word had when it was drawn, and ``words`` is True at the positions that are decoded at all.
    """

    t: float
    ids: Tensor
    hidden: Tensor
    confidence: Tensor
    words: Tensor

    @property
    def counts(self) -> Tensor:
        """Words a text, (B,)."""
        return self.words.sum(1)


class Unmasking(Sampler):
    """Base of the decoders, the masked models' samplers."""

    def hide(self, state: MaskedState, s: float, uniform: Tensor) -> Tensor:
        """Return which positions (B, L) are hidden at time ``s``, where ``state`` has drawn all that were hidden at its time.

        ``uniform`` (B, L) holds fresh draws between 0 and 1.
        """
        raise NotImplementedError

    def transition(self, q: Process, history: History, xt: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """Refuse to move word vectors."""
        raise UserError(f"sampler: {plain_name(type(self))!r} writes with masked models; see: diffusionlm show samplers")


@dataclass(frozen=True)
class Ancestral(Unmasking, name="ancestral"):
    """The reverse process itself: each hidden position is shown with chance (t - s)/t, and then stays.

    Austin et al. 2021, in the form of MDLM (Sahoo et al. 2024, section 3.2).
    """

    def hide(self, state: MaskedState, s: float, uniform: Tensor) -> Tensor:
        """Keep a position hidden with chance s/t."""
        return state.hidden & (uniform < s / state.t)


@dataclass(frozen=True)
class MaskPredict(Unmasking, name="mask-predict"):
    """Show all, then hide the least confident share s again, words of earlier steps included (Ghazvininejad et al. 2019).

    The paper takes the likeliest words, which is the limit of temperature 0: every text of a length is then the same.
    """

    def hide(self, state: MaskedState, s: float, uniform: Tensor) -> Tensor:
        """Hide the floor(s N) words of least confidence."""
        return lowest(state.confidence.masked_fill(~state.words, math.inf), (s * state.counts + ROUNDING).floor())


@dataclass(frozen=True)
class MaskGIT(Unmasking, name="maskgit"):
    """Show the most confident words, with Gumbel noise that fades, and keep them (Chang et al. 2022, section 3.2).

    Args:
        noise: of the confidences (log probabilities), times s. More is more diverse and less fluent: at 0 the likeliest go
            first, and common words crowd out the others; the authors have 4.5 for images.
        schedule: the share of hidden words over time; ``cosine`` shows few words at first.
    """

    noise: float = 1.0
    schedule: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        """Check the noise."""
        if self.noise < 0:
            raise UserError(f"noise: expected 0 or more, got {self.noise}")

    def hide(self, state: MaskedState, s: float, uniform: Tensor) -> Tensor:
        """Hide the least confident of the words just drawn; at least one is shown at each step while any is hidden."""
        share = math.cos(math.pi / 2 * (1 - s)) if self.schedule == "cosine" and s > 0 else s
        count = (share * state.counts + ROUNDING).floor().minimum(state.hidden.sum(1) - 1)
        gumbel = -(-uniform.clamp(1e-12, 1 - 1e-12).log()).log()
        noisy = state.confidence + self.noise * s * gumbel
        return lowest(noisy.masked_fill(~state.hidden, math.inf), count)


def unmask(
    predict: Predict,
    ids: Tensor,
    words: Tensor,
    *,
    decoder: Unmasking,
    steps: int,
    temperature: float = 1.0,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Iterator[MaskedState]:
    """Decode the positions ``words`` (B, L) of ``ids`` (B, L), one Draft a step; the last hides nothing.

    Words are drawn at ``temperature``; ``noise`` draws standard normal values like a tensor.
    """
    hidden, confidence = words, torch.zeros(ids.shape, dtype=torch.float64, device=ids.device)
    for step, later in itertools.pairwise(range(steps, -1, -1)):
        # Their distribution function makes normal draws uniform: one for the word, one for the order.
        uniform = torch.special.ndtr(noise(torch.zeros(*ids.shape, 2, device=ids.device)).double())
        drawn, certainty = draw_words(predict(ids, hidden)[hidden], uniform[..., 0][hidden], temperature)
        ids, confidence = ids.masked_scatter(hidden, drawn), confidence.masked_scatter(hidden, certainty)
        state = MaskedState(step / steps, ids, hidden, confidence, words)
        hidden = decoder.hide(state, later / steps, uniform[..., 1])
        yield replace(state, hidden=hidden)
        if not bool(hidden.any()):  # short texts are done before the steps are
            return


def draw_words(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Draw a word of each distribution ``logits`` (..., V) at ``temperature``; return ids and log probabilities (...).

    The ``uniform`` draws (...) pick by the cumulative distribution. In float64: in 32 bits the rarest words are
    never drawn, which passes for a lower temperature (Zheng et al. 2024). Confidence is that of temperature 1.
    """
    cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
    drawn = torch.searchsorted(cumulative, (uniform * cumulative[..., -1])[..., None], right=True).squeeze(-1)
    # Rounding may place a draw behind the last word that has a chance.
    drawn = drawn.minimum((cumulative < cumulative[..., -1:]).sum(-1))
    confidence = logits.double().log_softmax(-1).gather(-1, drawn[..., None]).squeeze(-1)
    return drawn, confidence


class MaskedPipeline(BasePipeline[MaskedLM]):
    """Writes texts with a masked model, its tokenizer, and defaults for the sampling."""

    @staticmethod
    def load_model(folder: Path) -> MaskedLM:
        """Read a masked model."""
        return MaskedLM.load(folder)

    def check(self, sampling: SamplingConfig) -> None:
        """Check the sampler and the length."""
        if not isinstance(sampling.sampler, Unmasking):
            known = [name for name, kind in Sampler.kinds().items() if issubclass(kind, Unmasking)]
            raise UserError(f"sampler: {sampling.sampler.name!r} moves word vectors; a masked model needs {' or '.join(known)}")
        check_no_latents(sampling, "a masked model")
        if sampling.length is not None:
            check_length(sampling.length, self.model.config.max_tokens - 2)

    @torch.no_grad()
    def sample_ids(self, seeds: Sequence[Sequence[int]], sampling: SamplingConfig, watch: Watch | None) -> list[list[int]]:
        """Hide all words, and unmask."""
        assert isinstance(sampling.sampler, Unmasking)
        lengths = draw_lengths(self.model.config.length_counts, seeds, sampling.length)
        mask = text_mask(lengths, self.model.device)
        _, ids = boundaries(mask, self.model.config.special_ids)
        drafts = unmask(
            self._predict(mask), ids, word_positions(mask), decoder=sampling.sampler, steps=sampling.steps,
            temperature=sampling.temperature, noise=RowNoise([[*seed, 0] for seed in seeds], lengths),
        )  # fmt: skip
        rows: list[list[int]] = []
        for state in drafts:
            rows = [row[1 : n - 1] for row, n in zip(state.ids.tolist(), lengths, strict=True)]
            if watch is not None:
                watch(state, decode_texts(self.tokenizer, rows))
        return rows

    def _predict(self, mask: Tensor) -> Predict:
        """Return the model for texts of ``mask`` (B, L), unknown words barred."""
        attend = None if bool(mask.all()) else mask
        unknown = self.model.config.special_ids.get("unk")

        def predict(ids: Tensor, hidden: Tensor) -> Tensor:
            with torch.autocast(mask.device.type, self.dtype, enabled=self.dtype != torch.float32):
                logits: Tensor = self.model(ids, hidden, attend)
            if unknown is not None:
                logits[..., unknown] = -math.inf
            return logits

        return predict
