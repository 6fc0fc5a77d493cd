"""Sampling from a masked diffusion model: its decoders, the loop that runs them, and the pipeline.

A masked model predicts the token of each hidden position from the visible ones. The loop draws a token at every hidden
position; a decoder is one function, which positions are hidden again at the next time. Time t falls from 1, where all
positions are hidden, to 0, where none is. Shapes: B batch, L positions, V words.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from diffusionlm.config import UserError, plain_name
from diffusionlm.controls import Control
from diffusionlm.core.process import Gaussian, Process
from diffusionlm.core.sampler import History, Sampler
from diffusionlm.data.batches import boundaries, text_mask
from diffusionlm.models.conditions import Conditioning
from diffusionlm.models.masked import MaskedLM, lowest, word_positions
from diffusionlm.pipelines.base import SamplingConfig, UnguidedPipeline, Watch, check_unused
from diffusionlm.pipelines.budget import predictions
from diffusionlm.pipelines.conditioning import conditioning, expected_counts, fixed_tokens, guided_logits
from diffusionlm.pipelines.effect import (
    CONDITIONAL,
    UNCONDITIONAL,
    Unused,
    unused_floor,
    unused_length,
    unused_ranking,
    without_latents,
)
from diffusionlm.pipelines.lengths import draw_lengths, fixed_length
from diffusionlm.pipelines.memory import samples_at_once
from diffusionlm.pipelines.noise import RowNoise
from diffusionlm.pipelines.pieces import (
    Piece,
    check_tokens,
    fill_given,
    inner_borders,
    sample_in_pieces,
    seeds_of,
    text_prior,
)
from diffusionlm.pipelines.rows import decoded

Predict = Callable[[Tensor, Tensor], Tensor]
"""A masked model: ids (B, L) and hidden (B, L), True where an id is replaced by the mask, to token logits (B, L, V)."""

ROUNDING = 1e-4  # added to a share of a count, so that rounding errors do not lower its floor


UNUSED: Unused = without_latents("a masked model")


@dataclass(frozen=True)
class MaskedState:
    """The state of a decoding run at time ``t``; the tensors are (B, L).

    ``ids`` are the tokens drawn, ``hidden`` is True where they will be drawn again, ``confidence`` is the log-probability of
    each token when it was drawn, and ``words`` is True at the positions that are decoded: neither BOS, EOS nor padding.
    """

    t: float
    ids: Tensor
    hidden: Tensor
    confidence: Tensor
    words: Tensor


class Unmasking(Sampler):
    """Base of the decoders, the samplers of masked models."""

    def hide(self, state: MaskedState, s: float, uniform: Tensor) -> Tensor:
        """Return which positions (B, L) are hidden at time ``s``; ``state`` has drawn all that were hidden at its time.

        ``uniform`` (B, L) holds uniform draws from 0 to 1.
        """
        raise NotImplementedError

    def transition(self, q: Process, history: History, xt: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        raise UserError(f"sampler: {plain_name(type(self))!r} decodes masked models; see: diffusionlm show samplers")


@dataclass(frozen=True)
class Ancestral(Unmasking, name="ancestral"):
    """The reverse process: each hidden position becomes visible with probability (t - s)/t, and then stays.

    Austin et al. 2021, in the form of MDLM (Sahoo et al. 2024, section 3.2).
    """

    def hide(self, state: MaskedState, s: float, uniform: Tensor) -> Tensor:
        return state.hidden & (uniform < s / state.t)


@dataclass(frozen=True)
class MaskPredict(Unmasking, name="mask-predict"):
    """Draw all tokens, then hide the least confident share s again, also of earlier steps (Ghazvininejad et al. 2019).

    The paper takes the most probable tokens, the limit of temperature 0: all samples of a length are then the same.
    """

    def hide(self, state: MaskedState, s: float, uniform: Tensor) -> Tensor:
        return lowest(state.confidence.masked_fill(~state.words, math.inf), (s * state.words.sum(1) + ROUNDING).floor())


@dataclass(frozen=True)
class MaskGIT(Unmasking, name="maskgit"):
    """Keep the most confident tokens, one or more a step, with Gumbel noise that decreases over time.

    Chang et al. 2022, section 3.2.

    Args:
        noise: scale of the noise on the confidences (log-probabilities), times s. More gives more diverse and less fluent
            samples; at 0 frequent tokens come first and displace others. The authors use 4.5 for images.
        schedule: share of hidden tokens over time; ``cosine`` keeps few tokens at first.
    """

    noise: float = 1.0
    schedule: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        self.expect("0 or more", "noise")

    def hide(self, state: MaskedState, s: float, uniform: Tensor) -> Tensor:
        share = math.cos(math.pi / 2 * (1 - s)) if self.schedule == "cosine" and s > 0 else s
        count = (share * state.words.sum(1) + ROUNDING).floor().minimum(state.hidden.sum(1) - 1)
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
    """Decode the positions ``words`` (B, L) of ``ids`` (B, L); yield a state per step, the last without hidden positions.

    Tokens are drawn at ``temperature``; ``noise`` draws standard normal values like a tensor.
    """
    hidden, confidence = words, torch.zeros(ids.shape, dtype=torch.float64, device=ids.device)
    for step, later in itertools.pairwise(range(steps, -1, -1)):
        # The normal distribution function makes the draws uniform: one for the token, one for the order.
        uniform = torch.special.ndtr(noise(torch.zeros(*ids.shape, 2, device=ids.device)).double())
        drawn, certainty = draw_words(predict(ids, hidden)[hidden], uniform[..., 0][hidden], temperature)
        ids, confidence = ids.masked_scatter(hidden, drawn), confidence.masked_scatter(hidden, certainty)
        state = MaskedState(step / steps, ids, hidden, confidence, words)
        hidden = decoder.hide(state, later / steps, uniform[..., 1])
        yield replace(state, hidden=hidden)
        if not bool(hidden.any()):  # short samples need fewer steps
            return


def draw_words(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Draw a token of each distribution ``logits`` (..., V) at ``temperature``; return ids and log-probabilities (...).

    By inverting the cumulative distribution at ``uniform`` (...), in float64: in float32 the rarest tokens are never drawn,
    which has the effect of a lower temperature (Zheng et al. 2024). The log-probabilities are those at temperature 1.
    """
    cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
    drawn = torch.searchsorted(cumulative, (uniform * cumulative[..., -1])[..., None], right=True).squeeze(-1)
    # Rounding may place a draw behind the last token of nonzero probability.
    drawn = drawn.minimum((cumulative < cumulative[..., -1:]).sum(-1))
    confidence = logits.double().log_softmax(-1).gather(-1, drawn[..., None]).squeeze(-1)
    return drawn, confidence


class MaskedPipeline(UnguidedPipeline[MaskedLM]):
    """Samples from a masked diffusion model."""

    load_model = staticmethod(MaskedLM.load)

    def check(self, sampling: SamplingConfig) -> None:
        if not isinstance(sampling.sampler, Unmasking):
            known = " or ".join(name for name, kind in Sampler.kinds().items() if issubclass(kind, Unmasking))
            given = plain_name(type(sampling.sampler))
            raise UserError(f"sampler: {given!r} moves word vectors; a masked model needs {known}")
        check_unused(sampling, UNUSED)
        if sampling.length is not None:
            check_tokens(self.model, sampling.length)

    def unused(self, sampling: SamplingConfig, controls: Sequence[Control] = ()) -> Unused:
        unconditional = self.model.settings.condition is None
        return {
            **UNUSED,
            **unused_floor(sampling),
            **(dict.fromkeys(CONDITIONAL, UNCONDITIONAL) if unconditional else {}),
            **unused_length(self, sampling),
            **unused_ranking(self, sampling),
        }

    def spent_on(self, sampling: SamplingConfig, evaluations: int) -> SamplingConfig:
        return replace(sampling, steps=predictions(sampling, evaluations))

    def sample_ids(
        self, seeds: Sequence[Sequence[int]], sampling: SamplingConfig, watch: Watch | None, values: Sequence[Any] = ()
    ) -> list[list[int]]:
        room = samples_at_once(len(seeds), self.model.config.max_tokens, self.model, guided=False) if seeds else 1
        parts = ((seeds[i : i + room], values[i : i + room]) for i in range(0, len(seeds), room))
        return [ids for part, given in parts for ids in self._sample_ids(part, sampling, watch, given)]

    @torch.no_grad()
    def _sample_ids(
        self, seeds: Sequence[Sequence[int]], sampling: SamplingConfig, watch: Watch | None, values: Sequence[Any]
    ) -> list[list[int]]:
        condition = conditioning(self.model, values, self.dtype)
        lengths = self._lengths(seeds, sampling, values, condition)

        def rows(samples: list[int], pieces: list[Piece]) -> list[list[int]]:
            given = None if condition is None else condition.rows(torch.tensor(samples, device=self.model.device))
            return self._piece_ids([seeds[i] for i in samples], pieces, sampling, watch, given)

        return sample_in_pieces(self.model, lengths, (), rows)

    def _piece_ids(
        self, seeds: Sequence[Sequence[int]], pieces: Sequence[Piece], sampling: SamplingConfig, watch: Watch | None,
        condition: Conditioning | None,
    ) -> list[list[int]]:  # fmt: skip
        """Return the token ids of a piece of the sample of each seed, those that are given included."""
        assert isinstance(sampling.sampler, Unmasking)
        lengths = [piece.tokens for piece in pieces]
        mask = text_mask(lengths, self.model.device)
        given = fill_given(torch.full(mask.shape, -1, device=mask.device), pieces)
        _, ids = boundaries(mask, self.model.config.special_ids, given, inner_borders(pieces, mask.device))
        states = unmask(
            self._predict(mask, condition, sampling), ids, word_positions(mask) & (given < 0), decoder=sampling.sampler,
            steps=sampling.steps, temperature=sampling.temperature, noise=RowNoise([*seeds_of(seeds, pieces)], lengths),
        )  # fmt: skip
        rows: list[list[int]] = []
        for state in states:
            rows = [row[1 : n - 1] for row, n in zip(state.ids.tolist(), lengths, strict=True)]
            if watch is not None:
                watch(state, decoded(self.model, self.tokenizer, rows)[0])
        return rows

    def _lengths(
        self, seeds: Sequence[Sequence[int]], sampling: SamplingConfig, values: Sequence[Any], condition: Conditioning | None
    ) -> list[int]:
        """Return the number of tokens of each sample, BOS and EOS counted: given, fixed by its condition, or drawn."""
        if sampling.length is not None:
            return draw_lengths(fixed_length(sampling.length + 2), seeds)
        priors = expected_counts(self.model, condition) or [text_prior(self.model)] * len(seeds)
        fixed = [fixed_tokens(self.model, value) for value in values] or [None] * len(seeds)
        return [
            draw_lengths(prior, [seed], sampling.length_temperature)[0] if tokens is None else tokens + 2
            for prior, seed, tokens in zip(priors, seeds, fixed, strict=True)
        ]

    def _predict(self, mask: Tensor, condition: Conditioning | None, sampling: SamplingConfig) -> Predict:
        """Return the model for samples of ``mask`` (B, L), with probability 0 for [UNK]."""
        attend = None if bool(mask.all()) else mask
        unknown = self.model.config.special_ids.get("unk")

        def predict(ids: Tensor, hidden: Tensor) -> Tensor:
            with torch.autocast(mask.device.type, self.dtype, enabled=self.dtype != torch.float32):
                logits: Tensor = self.model(ids, hidden, attend, condition)
                if condition is not None and sampling.cfg != 1:
                    null: Tensor = self.model(ids, hidden, attend, None)
                    logits = guided_logits(null, logits, sampling.cfg, sampling.cfg_floor)
            if unknown is not None:
                logits[..., unknown] = -math.inf
            return logits

        return predict
