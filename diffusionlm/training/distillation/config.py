"""The run that distils a model: its settings, from those of the model's own run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusionlm.config import UserError, build, merge, override, plain_name, read_yaml, to_plain
from diffusionlm.core.objective import ObjectiveConfig
from diffusionlm.data.reading import read_text
from diffusionlm.models.named import named_folder
from diffusionlm.models.spec import ModelSpec
from diffusionlm.pipelines.base import SamplingConfig, saved_sampling
from diffusionlm.pipelines.budget import affordable, joint_split, predictions
from diffusionlm.recipe.refine import APART
from diffusionlm.training.adapting import settings_of
from diffusionlm.training.distillation.joint import Joint
from diffusionlm.training.distillation.objective import Distillation
from diffusionlm.training.distillation.progressive import Progressive
from diffusionlm.training.distillation.through_time import ThroughTime
from diffusionlm.training.run import RunConfig

METHODS = {  # the family of models that each distils
    "joint": "diffusion", "progressive": "diffusion", "consistency": "diffusion", "flow-map": "diffusion", "sdtt": "masked"
}  # fmt: skip
STUDENT = {  # of the sampling of a diffusion model's student, whose steps are those that it is trained for
    "passes": 1, "sweeps": 0, "sampler": {"name": "ddim"}, "step_temperature": None, "noise_shift": 0.0,
}  # fmt: skip
WIDTH = 192  # of the joint head
JOINT = {  # of the sampling of a model with a joint head
    "passes": 1, "sampler": {"name": "ddpm"}, "temperature": 0.85, "step_temperature": None, "noise_shift": 0.0, "clamp": False,
}  # fmt: skip
UNUSED = ("clamp", "step_temperature")  # in the draws of a joint head
HEAD_OPTIMIZER = {"name": "adamw", "learning_rate": 0.003, "betas": (0.9, 0.98), "weight_decay": 0.01}
STEPS_SHARE = 0.5  # of the teacher's steps: one of distillation takes about twice the time of one of training


def distillation_config(
    teacher: str, method: str, evaluations: int, paths: Sequence[str | Path] = (), assignments: Sequence[tuple[str, str]] = ()
) -> RunConfig:
    """Return the settings of a run that distils ``teacher``, the folder of a run, or of a model with a config in ``paths``.

    Data and training are those of the teacher's run, with half of its steps, or for a joint head with as many and an optimizer
    of its own; ``assignments`` change them.

    Raises:
        UserError: a teacher without a config, of another family, or distilled itself; a wrong setting.
    """
    own = named_folder(Path(teacher)) / "config.yaml"  # of a Path, so that the hub is not asked
    configs = [Path(path) for path in paths] or [own]
    if not configs[0].is_file():
        raise UserError(f"{teacher}: expected a run folder, or a model folder and its run's config.yaml as --config")
    plain: dict[str, Any] = {}
    for path in configs:
        plain = merge(plain, read_yaml(read_text(path), str(path)))
    plain.pop("format_version", None)
    # A student is a complete model, with the words of its teacher.
    changed = {"objective": {"name": "cross-entropy"}, "init_from": None, "adapter": "full", "extend_vocabulary": {}}
    base = build(RunConfig, {**plain, **settings_of(teacher), **changed})
    expect_model(method, base.model)
    if any(getattr(base.model, name, None) for name in ("distilled_for", "joint_width")):
        raise UserError(f"{teacher}: this model is distilled itself; give the one that it was made from")
    given = {} if method == "joint" else {"teacher": teacher, "evaluations": evaluations}
    objective = build(ObjectiveConfig, {"name": method, **given})
    share = 1.0 if isinstance(objective, Joint) else STEPS_SHARE
    training = replace(base.training, steps=max(1, round(share * base.training.steps)))
    plain = to_plain(base) | {"objective": to_plain(objective), "training": to_plain(training), "init_from": teacher}
    plain["sampling"] = to_plain(saved_sampling(teacher)) | {"steps": evaluations}
    if isinstance(objective, Distillation):
        plain["model"] = to_plain(base.model) | {"distilled_for": evaluations}
        plain["sampling"] |= STUDENT
    elif isinstance(objective, Joint):
        plain["model"] = to_plain(base.model) | {"joint_width": WIDTH}
        plain["training"] |= {"optimizer": HEAD_OPTIMIZER}
        plain["sampling"] |= joint_sampling(saved_sampling(teacher), evaluations, base.model.excludes_self)
    config = build(RunConfig, override(plain, assignments, RunConfig))
    if config.adapter.adds_joint:  # to the teacher, which is saved nowhere else
        config = replace(config, model=replace(config.model, joint_width=None))  # type: ignore[type-var]
    if isinstance(objective, Distillation) and config.sampling.noise_shift:
        raise UserError("sampling.noise_shift: a student takes the steps that it is trained for, no others; leave it out")
    if isinstance(objective, Joint) and (unused := [name for name in UNUSED if getattr(config.sampling, name)]):
        raise UserError(f"sampling.{unused[0]}: a joint head draws the tokens of each step, without this; leave it out")
    return with_rounds(config, "objective.round_steps" in dict(assignments))


def joint_sampling(saved: SamplingConfig, evaluations: int, excludes_self: bool) -> dict[str, Any]:
    """Return the changes to a teacher's ``saved`` sampling settings, for a joint head of a number of ``evaluations``."""
    steps, sweeps = joint_split(predictions(saved, evaluations), 1 if excludes_self else APART)
    guidance = to_plain(affordable(saved.guidance, evaluations, ()))
    return JOINT | {"steps": steps, "sweeps": sweeps, "guidance": guidance}


def with_rounds(config: RunConfig, given: bool) -> RunConfig:
    """Return ``config`` with rounds of equal length, where the method has rounds and their length is not ``given``.

    Raises:
        UserError: the run would end before its last round.
    """
    objective = config.objective
    if not isinstance(objective, Progressive | ThroughTime):
        return config
    steps, rounds = config.training.steps, len(objective.rounds)
    if not given:
        equal: ObjectiveConfig = replace(objective, round_steps=max(1, steps // rounds))
        config = replace(config, objective=equal)
    elif steps <= (least := objective.round_steps * (rounds - 1)):
        halved = f"{rounds} rounds of objective.round_steps {objective.round_steps} go from {objective.teacher_steps} steps"
        raise UserError(f"training.steps: expected more than {least}, got {steps}: {halved} to {objective.evaluations}")
    return config


def expect_model(method: str, model: ModelSpec) -> None:
    """Raise UserError where there is no such ``method``, or it does not distil models of the spec ``model``."""
    ObjectiveConfig.find(method)
    if method not in METHODS:
        raise UserError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    family, wanted = plain_name(type(model)), METHODS[method]
    if family != wanted:
        able = [name for name, of in METHODS.items() if of == family]
        better = f"; take {' or '.join(able)}" if able else ""
        raise UserError(f"method: {method!r} distils {wanted} models, got a {family} model{better}")
