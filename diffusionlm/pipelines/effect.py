"""Settings without effect. Each pipeline's ``unused`` is the one table of what its model and its controls do not use.

A setting that the user gives and that would change nothing is refused; settings saved with a model, and defaults, are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diffusionlm.config import UserError, to_plain
from diffusionlm.pipelines.gradient import unguided_settings, unused_every

if TYPE_CHECKING:
    from diffusionlm.controls import Control
    from diffusionlm.pipelines.base import BasePipeline, SamplingConfig
    from diffusionlm.pipelines.diffusion import Pipeline

Unused = Mapping[str, str]  # a setting without effect, or a group of settings, to the reason and what to do

# Values that say that something is not done, which is so where the setting has no effect.
OFF: dict[str, Any] = {
    "clamp": False, "passes": 1, "noise_shift": 0, "step_temperature": None, "sweeps": 0, "length": None,
    "length_temperature": 1, "candidates": 1, "tries": 1, "guidance.strength": 0, "cfg": 1, "self_cfg": 1,
    "guidance.constraint_every": 1, "particles.count": 1, "orders": 0, "flow": 0, "bound_texts": 0, "ranking.per_token": False,
}  # fmt: skip


def without_latents(model: str) -> dict[str, str]:
    """Return the settings that act on noisy vectors or through controls, for a ``model`` that has neither."""
    latents = f"{model} has no noisy vectors, so this setting has no effect; leave it out"
    controls = f"{model} takes no controls, so this setting has no effect; leave it out, or use a diffusion model"
    return {
        **dict.fromkeys(("clamp", "passes", "noise_shift", "step_temperature", "sweeps", "sweep_odds"), latents),
        **dict.fromkeys(("guidance", "particles", "tries", "annotator"), controls),
        "self_cfg": latents,
    }


CONDITIONAL = ("condition", "source", "cfg", "cfg_floor")
UNCONDITIONAL = "this model was trained without a condition; leave it out"
BELOW = "cfg is not above 1, so this setting has no effect; leave it out, or raise cfg"
VECTORS = "this model predicts no logits, of which this setting is a limit, so it has no effect; leave it out"
TWO = "of two candidates minimum-Bayes-risk selection prefers none, so this setting has no effect; give 3 or more, or 1"


def unused_length(pipeline: BasePipeline[Any], sampling: SamplingConfig) -> dict[str, str]:
    """Return what has no effect of the draw of lengths."""
    if pipeline.model.explicit_length and sampling.length is None:
        return {}
    reason = "the length is given" if pipeline.model.explicit_length else "this model generates PAD and draws no length"
    return {"length_temperature": f"{reason}, so this setting has no effect; leave it out"}


def unused_ranking(pipeline: BasePipeline[Any], sampling: SamplingConfig, checked: bool = False) -> dict[str, str]:
    """Return what has no effect of the candidates and their ranking; ``checked`` is whether checks choose among them first."""
    ranking = sampling.ranking
    if sampling.candidates == 1:
        return {"ranking": "there is one candidate, so this setting has no effect; leave it out, or give candidates"}
    found = {f"ranking.{name}": reason for name, reason in ranking.unused(pipeline, sampling).items()}
    if sampling.candidates == 2 and not (checked or ranking.ranks_two):
        found["candidates"] = TWO
    return found


def unused_floor(sampling: SamplingConfig, has_logits: bool = True) -> dict[str, str]:
    """Return whether the limit of classifier-free guidance has no effect, for a model with a condition."""
    reason = BELOW if sampling.cfg <= 1 else "" if has_logits else VECTORS
    return {"cfg_floor": reason} if reason else {}


def unused_in_diffusion(pipeline: Pipeline, sampling: SamplingConfig, controls: Sequence[Control]) -> Unused:
    """Return what has no effect for a diffusion model and ``controls``."""
    checked = any(control.checkable(pipeline.binding) for control in controls)
    found = unused_length(pipeline, sampling) | unused_ranking(pipeline, sampling, checked)
    found |= unused_floor(sampling, pipeline.model.has_logits)
    if pipeline.model.settings.condition is None:
        found |= dict.fromkeys(CONDITIONAL, UNCONDITIONAL)
    if not pipeline.model.self_conditions:
        found["self_cfg"] = "this model has no self-conditioning, so this setting has no effect; leave it out"
    if sampling.steps == 1:
        found["noise_shift"] = "there is one step, whose start stays, so this setting has no effect; leave it out"
    if pipeline.model.settings.distilled_for:
        found["noise_shift"] = "a distilled model takes the steps that it was trained for, no others; leave it out"
    if pipeline.model.joint is not None:
        drawn = "this model draws the tokens of each step, so this setting has no effect; leave it out"
        found |= {"step_temperature": drawn, "clamp": drawn}
    else:
        found["guidance.draws"] = "this model has no joint head to draw from, so this setting has no effect; leave it out"
    if not sampling.sweeps:
        found["sweep_odds"] = "there are no sweeps, so this setting has no effect; leave it out, or raise sweeps above 0"
    if not controls:
        nothing = "there are no controls, so this setting has no effect; leave it out, or add a control (--control, controls)"
        return found | dict.fromkeys(("guidance", "particles", "tries", "annotator"), nothing)
    compiled = pipeline.steering(controls, sampling).compiled
    names = " & ".join(map(str, controls))
    found |= unused_every(sampling.guidance, bool(compiled.energies), bool(compiled.automata))
    if not compiled.energies:
        reason = f"no gradient guides to {names}, so this setting has no effect; leave it out"
        found |= dict.fromkeys(unguided_settings(sampling.guidance, bool(compiled.automata)), reason)
    if not compiled.rewards:
        found["particles"] = f"{names} needs no particles, so this setting has no effect; leave it out"
    return found


def given_settings(plain: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Return settings by their dotted names; the name of a component, or the component itself, stands for all of it."""
    found: dict[str, Any] = {}
    for key, value in plain.items():
        name = place if key == "name" and place else f"{place}.{key}".lstrip(".")
        found |= given_settings(value, name) if isinstance(value, Mapping) else {name: value}
    return found


def given_names(names: Iterable[str], settings: object) -> dict[str, Any]:
    """Return the values in ``settings`` of dotted ``names``, as those of the command line; None is that of a group."""
    values = given_settings(to_plain(settings))
    return {name: values.get(name) for name in (each.removesuffix(".name") for each in names)}


def check_given(given: Mapping[str, Any], uses: Iterable[Unused], labels: Mapping[str, str] | None = None) -> None:
    """Raise UserError for a setting that has no effect in any of the ``uses``.

    Args:
        given: the settings that the user gave, by dotted name, with their values; one that switches something off passes.
        uses: what has no effect, by model or by list of controls; read only as far as a setting is in doubt.
        labels: how the user wrote a setting, where that is not its name.
    """
    doubtful = {name: "" for name, value in given.items() if name not in OFF or value != OFF[name]}
    for unused in uses:
        reasons = {name: unused.get(name) or unused.get(name.partition(".")[0]) for name in doubtful}
        doubtful = {name: reason for name, reason in reasons.items() if reason}
        if not doubtful:
            return
    for name, reason in doubtful.items():
        if reason:
            raise UserError(f"{(labels or {}).get(name, name)}: {reason}")
