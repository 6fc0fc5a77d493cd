"""Score texts: the likelihood of each text under a model of any family.

Each model family has a scorer that yields a ``Bound`` for each text, in order: an upper bound by Monte Carlo for diffusion and
masked models, the likelihood itself for autoregressive ones. A new family is one line in ``SCORERS``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusionlm.config import Settings, UserError
from diffusionlm.data.batches import check_list, encode
from diffusionlm.evaluation.effect import given_of, unused_in_scoring
from diffusionlm.evaluation.flow_likelihood import flow_bound
from diffusionlm.evaluation.judge import Judge
from diffusionlm.evaluation.likelihood import Bound, bound, check_draws, in_batches
from diffusionlm.evaluation.masked_likelihood import masked_bound
from diffusionlm.evaluation.source_likelihood import source_likelihood
from diffusionlm.models.pieces import context_of
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import BasePipeline
from diffusionlm.pipelines.conditioning import conditioning, requested, room_of
from diffusionlm.pipelines.effect import check_given
from diffusionlm.pipelines.pieces import check_single
from diffusionlm.processes import leads

TERMS = ("prior", "reconstruction", "diffusion", "length")


@dataclass(frozen=True)
class ScoringConfig(Settings):
    """Settings of scoring.

    Args:
        strata: noise levels per text, one in each of as many parts of equal probability; more are more precise.
        orders: random orders of the any-order bound, tighter the more there are; 0 is the joint bound.
        flow: draws per text of the likelihood of the probability flow, which is another model's; 0 is the joint bound.
        seed: of the noise.
        batch_size: noisy copies of a text per call of the network.
        device: cpu, cuda, cuda:1; it needs float64, which mps has not.
        dtype: of the network's arithmetic, fp32 or bf16.
    """

    strata: int = 128
    orders: int = 0
    flow: int = 0
    seed: int = 0
    batch_size: int = 64
    device: str = "cpu"
    dtype: str = "fp32"

    def __post_init__(self) -> None:
        check_draws(self.strata, self.orders, self.flow)
        for name, least in (("seed", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: expected {least} or more, got {getattr(self, name)}")


Rows = Sequence[Sequence[int]]  # token ids with BOS and EOS
# The last argument is the number of the first text to score.
Scorer = Callable[[BasePipeline[Any], Rows, Sequence[str], ScoringConfig, Sequence[Any] | None, int], Iterator[Bound]]


def score(
    model: str | Path | BasePipeline[Any], texts: Sequence[str], options: ScoringConfig | None = None,
    *, places: Sequence[str] | None = None, given: Collection[str] | None = None,
    condition: Any = None, source: Sequence[str] | None = None, first: int = 0,
) -> Iterator[tuple[str, Bound]]:  # fmt: skip
    """Yield each of ``texts`` with its likelihood under ``model``; empty texts are skipped.

    The likelihood of a model with a condition is that of a text given it, -log p(text | condition).

    Args:
        model: a model folder or a run's, or a pipeline, which has its own device and dtype.
        texts: the texts to score.
        options: the settings.
        places: the place of each text for error messages, such as "reviews.csv, line 7".
        given: the options that the user gave, which must have an effect; by default those that differ from the defaults.
        condition: the value of the model's condition, for all texts, as ``Pipeline.stream`` takes it; or a list of
            ``conditioning.Requested``, one for each text.
        source: the source text of each text.
        first: the number of the first text to score, empty ones not counted.

    Raises:
        UserError: before the first text is scored: not a model folder, an option that has no effect for the model, a condition
            missing or impossible, or a text longer than the model's maximum (a mean without it would be another figure).
    """
    check_list(texts)
    options = ScoringConfig() if options is None else options
    pipeline = model if isinstance(model, BasePipeline) else open_pipeline(model, options.device, options.dtype)
    check_given(given_of(options, given), [unused_in_scoring(pipeline, options, pipeline is model)])
    if not pipeline.exact_likelihood:
        check_single(pipeline.model, "model")
    values = condition_values(pipeline, len(texts), condition, source)
    encoded = encode(texts, pipeline.tokenizer, sys.maxsize)
    values = None if values is None else [values[number] for number in encoded.texts]
    for index, (number, row) in enumerate(zip(encoded.texts, encoded.ids, strict=True)):
        longest = longest_text(pipeline, None if values is None else values[index], bool(options.flow))
        if len(row) > longest:
            place = f"text {number}" if places is None else places[number]
            got = f"{len(row) - 2} tokens, more than this model's maximum of {longest - 2}"
            raise UserError(f"{place}: {got}; shorten the text or leave it out")
    kept = [texts[number] for number in encoded.texts]
    bounds = SCORERS[pipeline.model.config.model_type](pipeline, encoded.ids, kept, options, values, first)
    return zip(kept[first:], bounds, strict=leads())


def condition_values(pipeline: BasePipeline[Any], count: int, condition: Any, source: Sequence[str] | None) -> list[Any] | None:
    """Return the encoded value of the model's condition for each of ``count`` texts; None for a model without one.

    Raises:
        UserError: a condition that the model does not have, or none; a number of sources that is not that of the texts.
    """
    if pipeline.conditional and condition is None and source is None:
        names = ", ".join(pipeline.model.settings.condition.keys)
        raise UserError(f"condition: this model was trained with one, {names}: expected its value, or the source of each text")
    if source is not None and pipeline.conditional:
        check_list(source)
        if len(source) != count:
            raise UserError(f"source: expected one for each of {count} texts, got {len(source)}")
    found = [each.value for each in requested(pipeline.model, pipeline.tokenizer, condition, source)]
    if not pipeline.conditional:
        return None
    if len(found) not in (1, count):
        raise UserError(f"condition: expected one for all or for each of {count} texts, got {len(found)}")
    return found if len(found) == count else found * count


def longest_text(pipeline: BasePipeline[Any], value: Any, flow: bool = False) -> int:
    """Return the most tokens, BOS and EOS counted, of a text with this encoded value of the model's condition.

    Models that were trained with context take texts of any length, but not for the ``flow``, which is that of one row.
    """
    if (pipeline.exact_likelihood and not pipeline.conditional) or (context_of(pipeline.model) and not flow):
        return sys.maxsize
    longest: int = pipeline.model.config.max_position_embeddings
    if value is None or not pipeline.model.settings.condition.shares_length:
        return longest
    return room_of(pipeline.model, conditioning(pipeline.model, [value]))


def check_unconditional(pipeline: BasePipeline[Any], where: str = "model") -> None:
    """Raise UserError for a model that was trained with a condition, which evaluations do not give."""
    if pipeline.conditional:
        without = "its figures without one would be those of another model; evaluate --references takes such models"
        raise UserError(f"{where}: expected a model without a condition, but this one was trained with one: {without}")


def by_bound(function: Callable[..., Iterator[Bound]]) -> Scorer:
    """Return the scorer of a ``bound(model, rows, texts, *, strata, orders, seed, batch_size, dtype, conditions)``."""
    return lambda pipeline, rows, texts, options, conditions, first: function(
        pipeline.model, rows, texts, strata=options.strata, orders=options.orders,
        seed=options.seed, batch_size=options.batch_size, dtype=pipeline.dtype, conditions=conditions,
        first=first,
    )  # fmt: skip


def by_bound_or_flow(
    pipeline: BasePipeline[Any], rows: Rows, texts: Sequence[str], options: ScoringConfig, conditions: Any, start: int
) -> Iterator[Bound]:
    """Return the bounds under a diffusion model, or its likelihoods by the probability flow."""
    if not options.flow:
        return by_bound(bound)(pipeline, rows, texts, options, conditions, start)
    return flow_bound(
        pipeline.model, rows, texts, draws=options.flow, seed=options.seed, batch_size=options.batch_size,
        dtype=pipeline.dtype, conditions=conditions, first=start,
    )  # fmt: skip


def exactly(
    pipeline: BasePipeline[Any], rows: Rows, texts: Sequence[str], options: ScoringConfig, conditions: Any, start: int
) -> Iterator[Bound]:
    """Yield the exact likelihood under an autoregressive model."""
    judge, size = Judge(pipeline.model, pipeline.tokenizer, pipeline.dtype), options.batch_size

    def of(number: int) -> list[Bound]:
        return judge.score(texts[number : number + size])

    yield from in_batches(len(texts), size, of, start)


SCORERS: dict[str, Scorer] = {  # by the model_type in the model's config, like the pipelines in pipelines/auto.py
    "diffusionlm": by_bound_or_flow,
    "diffusionlm-masked": by_bound(masked_bound),
    "llama": exactly,
    "t5": lambda pipeline, rows, texts, options, conditions, start: source_likelihood(
        pipeline, rows, texts, options.batch_size, conditions or [None] * len(rows), start
    ),
}


@dataclass(frozen=True)
class Summary:
    """The bound of a set of texts in nats per token (EOS counted), its four terms, and bits per character.

    ``standard_error`` is that of the Monte Carlo estimate for these texts, not over texts; it is 0 where ``exact``.
    ``evaluations`` are those of the probability flow per text, 0 for other likelihoods.
    """

    nats_per_token: float
    standard_error: float
    prior: float
    reconstruction: float
    diffusion: float
    length: float
    bits_per_character: float
    texts: int
    tokens: int
    characters: int
    unknown: int
    exact: bool
    evaluations: float = 0.0

    def __str__(self) -> str:
        """Return a summary of two lines."""
        terms = ", ".join(f"{name} {value:.4f}" for name in TERMS if (value := getattr(self, name)))
        nats = f"exactly {self.nats_per_token:.4f} nats per token"
        if not self.exact:
            nats = f"at most {self.nats_per_token:.4f} +- {self.standard_error:.4f} nats per token ({terms})"
        characters = f"; {self.bits_per_character:.3f} bits per character" if self.characters else ""
        if self.evaluations:
            nats = f"by the probability flow {nats}, {self.evaluations:.0f} evaluations per text"
        unknown = f", {self.unknown} of them unknown words" if self.unknown else ""
        return f"{nats}{characters}\n{self.texts} texts, {self.tokens} tokens: the words and EOS{unknown}"


def summary(bounds: Sequence[Bound]) -> Summary:
    """Return the summary of the bounds of a set of texts."""
    tokens, characters = sum(b.tokens for b in bounds), sum(b.characters for b in bounds)
    means = {name: sum(getattr(b, name) for b in bounds) / tokens for name in ("nats", *TERMS)}
    return Summary(
        nats_per_token=means.pop("nats"),
        standard_error=math.hypot(*(b.deviation for b in bounds)) / tokens,
        **means,
        bits_per_character=sum(b.nats for b in bounds) / (characters * math.log(2)) if characters else math.nan,
        texts=len(bounds),
        tokens=tokens,
        characters=characters,
        unknown=sum(b.unknown for b in bounds),
        exact=all(b.exact for b in bounds),
        evaluations=sum(b.evaluations for b in bounds) / len(bounds),
    )
