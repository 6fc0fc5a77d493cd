"""The choice among the candidates of a sample: those that pass their checks come first, and a ranking chooses among these.

A ranking gives each candidate a utility; the highest one wins, and of equals the first.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from diffusionlm.config import Component, UserError, may_import
from diffusionlm.controls import Outcome
from diffusionlm.controls.functions import ScoringFunction, imported, scores_of
from diffusionlm.data.typical import agreements
from diffusionlm.pipelines.conditioning import Requested

if TYPE_CHECKING:
    from diffusionlm.pipelines.base import BasePipeline, SamplingConfig

Groups = Sequence[Sequence[int]]  # for each sample, numbers of candidates


def passes(outcomes: Sequence[Outcome]) -> bool:
    """Return whether no check failed; a control that cannot be checked does not fail."""
    return all(outcome.passed is not False for outcome in outcomes)


@dataclass(frozen=True)
class Candidates:
    """The candidates of the samples of a batch, in the order of the samples; lists have an entry for each candidate.

    Args:
        pipeline: that sampled them.
        sampling: its settings.
        indices: of the samples that they are candidates of.
        requests: what they are conditioned on.
        ids: their tokens, without BOS, EOS and padding.
        texts: their texts.
        pools: for each sample, the numbers of the candidates that it is chosen among.
    """

    pipeline: BasePipeline[Any]
    sampling: SamplingConfig
    indices: Sequence[int]
    requests: Sequence[Requested]
    ids: Sequence[Sequence[int]]
    texts: Sequence[str]
    pools: Groups


def best_candidates(
    pipeline: BasePipeline[Any], sampling: SamplingConfig, indices: Sequence[int], requests: Sequence[Requested],
    ids: Sequence[Sequence[int]], texts: Sequence[str], checks: Sequence[Sequence[Outcome]] = (),
) -> list[int]:  # fmt: skip
    """Return the number of the best candidate of each sample, by the ranking of ``sampling``.

    ``indices`` and ``requests`` are those of the samples; ``ids`` and ``texts`` have consecutive candidates for each. Those
    that pass their ``checks`` come first.
    """
    count = sampling.candidates
    groups = [range(first, first + count) for first in range(0, len(texts), count)]
    pools = [[n for n in group if not checks or passes(checks[n])] or [*group] for group in groups]
    each = [(index, request) for index, request in zip(indices, requests, strict=True) for _ in range(count)]
    found = Candidates(pipeline, sampling, [i for i, _ in each], [r for _, r in each], ids, texts, pools)
    return sampling.ranking.best(found, pools)


class Ranking(Component, family="ranking"):
    """Base of the rankings of candidates. ``ranks_two`` is whether one of two candidates may be better than the other."""

    ranks_two: ClassVar[bool] = True

    def check(self, pipeline: BasePipeline[Any], requests: Sequence[Requested]) -> None:
        """Raise UserError where samples of ``pipeline`` for these ``requests`` cannot be ranked; before any sampling."""

    def unused(self, pipeline: BasePipeline[Any], sampling: SamplingConfig) -> Mapping[str, str]:
        """Return the settings of this ranking that have no effect, with the reason and what to do."""
        return {}

    def utilities(self, candidates: Candidates, numbers: Sequence[int]) -> Sequence[float]:
        """Return the utility of each of the candidates ``numbers``; higher is better."""
        raise NotImplementedError

    def leaders(self, candidates: Candidates, groups: Groups) -> list[list[int]]:
        """Return the candidates of the highest utility in each of ``groups``. Raises UserError where one is not a number."""
        doubtful = [number for group in groups if len(group) > 1 for number in group]
        found = dict(zip(doubtful, self.utilities(candidates, doubtful) if doubtful else (), strict=True))
        if wrong := [candidates.texts[number] for number in doubtful if math.isnan(found[number])]:
            raise UserError(f"ranking: expected a number as the utility of each text, got nan for {wrong[0][:60]!r}")
        best = [max((found.get(number, 0.0) for number in group), default=0.0) for group in groups]
        return [[n for n in group if found.get(n, 0.0) == most] for group, most in zip(groups, best, strict=True)]

    def best(self, candidates: Candidates, groups: Groups) -> list[int]:
        """Return the best candidate of each of ``groups``, the first of equals."""
        return [group[0] for group in self.leaders(candidates, groups)]


@dataclass(frozen=True)
class MinimumBayesRisk(Ranking, name="mbr"):
    """The candidate with the highest mean BLEU against the others (minimum Bayes risk).

    Kumar and Byrne 2004; Diffusion-LM (Li et al. 2022), section 5.2.
    """

    ranks_two = False

    def utilities(self, candidates: Candidates, numbers: Sequence[int]) -> list[float]:
        found, wanted = dict[int, float](), {*numbers}
        for pool in candidates.pools:
            asked = [place for place, number in enumerate(pool) if number in wanted]
            gains = agreements([candidates.texts[number] for number in pool], asked)
            found |= dict(zip((pool[place] for place in asked), gains, strict=True))
        return [found[number] for number in numbers]


@dataclass(frozen=True)
class FunctionRanking(Ranking, name="function"):
    """The candidate to which a function of texts gives the highest score; among equals another ranking decides.

    Args:
        function: ``function(texts)``, or its import path ``module:name``; it returns a finite number for each text. If it has
            a parameter called ``sources``, it receives there the source of each text (of an edit, the text that is edited).
        then: the ranking of candidates with equal scores. ``mbr`` compares these with all candidates, of any score.
    """

    function: ScoringFunction | str
    then: Ranking = field(default_factory=MinimumBayesRisk)

    def __post_init__(self) -> None:
        if not may_import.get():
            raise UserError("function: a saved model names no function to call; give it when you sample (--ranking function)")
        imported(self.function, "function")

    def check(self, pipeline: BasePipeline[Any], requests: Sequence[Requested]) -> None:
        if self._takes_sources(required=True) and any(request.source is None for request in requests):
            raise UserError("ranking: the function needs the source of each text, but there is none; give one (source)")
        self.then.check(pipeline, requests)

    def unused(self, pipeline: BasePipeline[Any], sampling: SamplingConfig) -> dict[str, str]:
        found = {f"then.{name}": reason for name, reason in self.then.unused(pipeline, sampling).items()}
        if sampling.candidates == 2 and not self.then.ranks_two:
            found["then"] = f"of two candidates {self.then.name!r} prefers none, so this setting has no effect; leave it out"
        return found

    def utilities(self, candidates: Candidates, numbers: Sequence[int]) -> list[float]:
        named: dict[str, Any] = {}
        sources = [candidates.requests[number].source for number in numbers]
        if self._takes_sources() and None not in sources:
            named["sources"] = sources
        texts = [candidates.texts[number] for number in numbers]
        return scores_of(imported(self.function, "ranking"), texts, "ranking", **named).tolist()

    def best(self, candidates: Candidates, groups: Groups) -> list[int]:
        return self.then.best(candidates, self.leaders(candidates, groups))

    def _takes_sources(self, required: bool = False) -> bool:
        """Return whether the function has a parameter ``sources``, and one that is ``required``."""
        try:
            found = inspect.signature(imported(self.function, "ranking")).parameters.get("sources")
        except (TypeError, ValueError):  # of some functions written in C
            return False
        return found is not None and (not required or found.default is found.empty)
