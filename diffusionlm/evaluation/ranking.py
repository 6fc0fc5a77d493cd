"""The ranking of candidates by their likelihood under the model that sampled them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from diffusionlm.config import UserError
from diffusionlm.core.schedule import StepSchedule
from diffusionlm.evaluation.effect import EXACT
from diffusionlm.evaluation.judge import Judge
from diffusionlm.evaluation.likelihood import Bound
from diffusionlm.evaluation.scoring import SCORERS, ScoringConfig, longest_text
from diffusionlm.pipelines.base import BasePipeline, SamplingConfig
from diffusionlm.pipelines.causal import CausalPipeline
from diffusionlm.pipelines.conditioning import Requested
from diffusionlm.pipelines.ranking import Candidates, Ranking

STREAM = 10_000  # in the seed of a sample's noise levels: no candidate has this number, so sampling draws other numbers
SAME = "all candidates have the same number of tokens (length), so this setting has no effect; leave it out"


@dataclass(frozen=True)
class LikelihoodRanking(Ranking, name="likelihood"):
    """The candidate of the highest log-likelihood given its condition: exact, or the bound of diffusion and masked models.

    It is that of the sampled tokens and EOS, at temperature 1 and without guidance. A bound is a Monte Carlo estimate, at the
    same noise levels for all candidates of a sample; its draws depend on the seed and the sample's index alone.

    Args:
        per_token: divide it by the number of tokens, EOS counted; else short texts have an advantage.
        strata: noise levels for each candidate, of a masked model numbers of hidden words; more are more precise.
    """

    per_token: bool = False
    strata: int = 16

    def __post_init__(self) -> None:
        self.expect("2 to 100000", "strata")

    def check(self, pipeline: BasePipeline[Any], requests: Sequence[Requested]) -> None:
        if not pipeline.has_logits and not isinstance(schedule := pipeline.model.settings.schedule, StepSchedule):
            model = f"a model that predicts {pipeline.model.settings.prediction}, with the {schedule.name} schedule"
            raise UserError(f"ranking: {model}, has no likelihood bound; choose another ranking")

    def unused(self, pipeline: BasePipeline[Any], sampling: SamplingConfig) -> dict[str, str]:
        found = {"strata": EXACT} if pipeline.exact_likelihood else {}
        return found if sampling.length is None else {**found, "per_token": SAME}

    @torch.no_grad()
    def utilities(self, candidates: Candidates, numbers: Sequence[int]) -> list[float]:
        pipeline, texts = candidates.pipeline, [candidates.texts[number] for number in numbers]
        values = [candidates.requests[number].value for number in numbers]
        rows = [framed(pipeline, candidates.ids[number], value) for number, value in zip(numbers, values, strict=True)]
        seeds = [sample_seed(candidates.sampling.seed, candidates.indices[number]) for number in numbers]
        found = likelihoods(pipeline, rows, texts, values, seeds, self.strata, candidates.sampling.batch_size)
        return [-each.nats / (each.tokens if self.per_token else 1) for each in found]


def framed(pipeline: BasePipeline[Any], ids: Sequence[int], value: Any) -> list[int]:
    """Return sampled ``ids`` with BOS and EOS; where PAD is a word like others, cut to the room of the model."""
    tokenizer = pipeline.tokenizer
    row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    return row if getattr(pipeline.model, "explicit_length", True) else row[: longest_text(pipeline, value)]


def sample_seed(seed: int, index: int) -> int:
    """Return the seed of the noise levels for the candidates of the sample ``index`` of a run."""
    return int(numpy.random.SeedSequence([seed, index, STREAM]).generate_state(1, numpy.uint64)[0])


def likelihoods(
    pipeline: BasePipeline[Any], rows: Sequence[list[int]], texts: Sequence[str], values: Sequence[Any], seeds: Sequence[int],
    strata: int, batch_size: int,
) -> list[Bound]:  # fmt: skip
    """Return the likelihood of each of ``rows`` of token ids with BOS and EOS, given the encoded values of their condition."""
    options = ScoringConfig(strata=strata, batch_size=batch_size)
    if isinstance(pipeline, CausalPipeline):
        return Judge(pipeline.model, pipeline.tokenizer, pipeline.dtype).score(texts, rows=rows)
    score = SCORERS[pipeline.model.config.model_type]
    if pipeline.exact_likelihood:
        return list(score(pipeline, rows, texts, options, values, 0))
    given = [None if value is None else [value] for value in values]
    found: list[Bound] = []
    for row, text, value, seed in zip(rows, texts, given, seeds, strict=True):  # alone, so that a seed decides its noise
        found += score(pipeline, [row], [text], ScoringConfig(strata=strata, seed=seed, batch_size=batch_size), value, 0)
    return found
