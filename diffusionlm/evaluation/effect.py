"""Settings of scoring and of evaluations without effect, as ``pipelines.effect`` does for those of sampling."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from diffusionlm.config import Settings, UserError, build, override, to_plain
from diffusionlm.evaluation.report import NO_PACE, Pace
from diffusionlm.pipelines.base import BasePipeline, SamplingConfig
from diffusionlm.pipelines.effect import Unused, check_given

if TYPE_CHECKING:
    from diffusionlm.evaluation.benchmark import EvaluationConfig
    from diffusionlm.evaluation.scoring import ScoringConfig

EXACT = "an autoregressive model's likelihood is exact and draws nothing, so this setting has no effect; leave it out"
BOUNDED = "this model predicts no logits, so it has no any-order bound; leave orders at 0"


def given_of(settings: Settings, names: Collection[str] | None) -> dict[str, Any]:
    """Return the values of the settings ``names``; of None, of those that differ from their default."""
    known: Sequence[Any] = fields(settings)  # type: ignore[arg-type]  # every group of settings is a dataclass
    names = [each.name for each in known if getattr(settings, each.name) != each.default] if names is None else names
    return {name: getattr(settings, name) for name in names}


def unused_in_scoring(pipeline: BasePipeline[Any], options: ScoringConfig, loaded: bool) -> Unused:
    """Return the settings of scoring without effect; ``loaded`` is whether the caller loaded the model."""
    found = dict.fromkeys(("device", "dtype"), "a pipeline has its own; give it to from_pretrained") if loaded else {}
    if pipeline.exact_likelihood:
        return found | dict.fromkeys(("strata", "orders", "flow", "seed"), EXACT)
    if not pipeline.has_flow:
        found["flow"] = "only diffusion on word vectors has a probability flow, so this setting has no effect; leave it out"
    if options.flow:
        draws = "the probability flow draws neither noise levels nor orders; leave it out, or leave flow at 0"
        found |= dict.fromkeys(("strata", "orders"), draws)
    if options.orders:
        found["strata"] = "the any-order bound draws orders, not noise levels; leave it out, or leave orders at 0"
    if not pipeline.any_order_bound:
        found["orders"] = BOUNDED
    return found


def check_evaluation(
    config: EvaluationConfig, given: Collection[str] | None, sampling: Sequence[tuple[str, str]], dtype: str,
    pipelines: Mapping[str, BasePipeline[Any]],
) -> None:  # fmt: skip
    """Raise UserError for a setting of an evaluation, or a change of the sampling settings, without effect for every model."""
    chosen = given_of(config, given)
    names = [name.removesuffix(".name") for name, _ in sampling]
    for name, better in {"temperature": "temperatures", "seed": "seed"}.items():
        if name in names:
            raise UserError(f"sampling.{name}: an evaluation sets it itself; use its setting {better}")
    if not pipelines:
        nothing = "no model is evaluated, so this setting has no effect; leave it out, or name a model"
        alone = dict.fromkeys(("steps", "evaluations", "bound_texts", "strata", "orders", "dtype", *names), nothing)
        check_given({**chosen, **dict.fromkeys(names), **({} if dtype == "fp32" else {"dtype": dtype})}, [alone])
    check_given(chosen, (unused_in_evaluation(pipeline, config) for pipeline in pipelines.values()))
    uses = ((pipeline, each) for pipeline in pipelines.values() for _, each in at_each_pace(pipeline, config, sampling))
    check_sampling(names, (pipeline.unused(each) for pipeline, each in uses))


def at_each_pace(
    pipeline: BasePipeline[Any], config: EvaluationConfig, changes: Sequence[tuple[str, str]]
) -> Iterator[tuple[Pace, SamplingConfig]]:
    """Yield a model's sampling settings with ``changes`` at each number of evaluations or of steps, which both may be absent.

    A model that samples one token after the other has neither.
    """
    base = changed_sampling(pipeline, changes)
    if pipeline.exact_likelihood:
        yield NO_PACE, base
    elif config.evaluations:
        given = [name for name, _ in changes]
        for number in dict.fromkeys(config.evaluations):
            yield Pace(evaluations=number), pipeline.with_evaluations(base, number, given)
    else:
        for number in dict.fromkeys(config.steps or [base.steps]):
            yield Pace(steps=number), replace(base, steps=number)


def changed_sampling(pipeline: BasePipeline[Any], changes: Sequence[tuple[str, str]]) -> SamplingConfig:
    """Return a model's sampling settings with ``changes``, dotted. Raises UserError where one is wrong."""
    return build(SamplingConfig, override(to_plain(pipeline.sampling), changes, SamplingConfig), "sampling")


def check_sampling(names: Sequence[str], uses: Iterator[Unused]) -> None:
    """Raise UserError for a change of the sampling settings ``names``, dotted, without effect in all ``uses``."""
    check_given(dict.fromkeys(names), uses, {name: f"sampling.{name}" for name in names})


def unused_in_evaluation(pipeline: BasePipeline[Any], config: EvaluationConfig) -> Unused:
    """Return the settings of an evaluation without effect for a model."""
    steps = {why for name, why in pipeline.unused(SamplingConfig()).items() if name == "steps"}
    found = {name: why for why in steps for name in ("steps", "evaluations")}
    if not config.bound_texts:
        return found | dict.fromkeys(
            ("strata", "orders"), "no likelihood is computed, so this setting has no effect; leave it out"
        )
    if pipeline.exact_likelihood:
        return found | dict.fromkeys(("strata", "orders"), EXACT)
    return found if pipeline.any_order_bound else {**found, "orders": BOUNDED}
