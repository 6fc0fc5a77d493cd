"""How a number of network evaluations is spent: on sampling steps, self-conditioning passes and refinement sweeps.

Measured with a conditional model of E2E (100 development sources, two samples each; BLEU of one sample):

    evaluations   steps of one pass     steps and sweeps          steps of two passes, and sweeps
              2   2: 22                 1 and 1: 32
              4   4: 43                 3 and 1: 40               2: 39
              8   8: 56                 7 and 1: 57               4: 58       3 and 2: 57
             16   16: 61                14 and 2: 61              7 and 2: 62
             32   26 and 6: 62          28 and 4: 63              14 and 4: 63

With eight or more they are within a BLEU of each other; samples without a condition gain more from sweeps.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from diffusionlm.config import UserError, plain_name
from diffusionlm.core.sampler import Sampler
from diffusionlm.recipe.refine import APART

if TYPE_CHECKING:
    from diffusionlm.models.diffusion import DiffusionLM
    from diffusionlm.pipelines.base import SamplingConfig

SPENT = ("steps", "passes", "sweeps")  # the settings that a number of evaluations decides
ENOUGH = 8  # evaluations from which passes and sweeps have a share


def check_evaluations(evaluations: object, given: Collection[str]) -> int:
    """Return a number of evaluations. Raises UserError where it is none, or where a setting that it decides is ``given``."""
    if type(evaluations) is not int or not 1 <= evaluations <= 10000:
        raise UserError(f"evaluations: expected a whole number from 1 to 10000, got {evaluations!r}")
    if both := [name for name in SPENT if name in given]:
        raise UserError(f"{both[0]}: evaluations decides steps, passes and sweeps; leave it out, or leave evaluations out")
    return evaluations


def spent_on(model: DiffusionLM, sampling: SamplingConfig, evaluations: int) -> SamplingConfig:
    """Return ``sampling`` with the steps, passes and sweeps of at most a number of ``evaluations`` per candidate.

    Guidance from a null condition and from no estimate costs one more evaluation of each; those of a sweep are one where the
    network excludes each position's own input, else as many as its blocks.

    Raises:
        UserError: too few for one step; a sampler whose steps take several evaluations.
    """
    if type(sampling.sampler).step is not Sampler.step:
        name = plain_name(type(sampling.sampler))
        raise UserError(f"evaluations: the sampler {name!r} takes several evaluations in a step; give steps instead")
    each = 1 + (sampling.cfg != 1) + (sampling.self_cfg != 1)
    left, sweep = evaluations // each, 1 if model.excludes_self else APART
    if not left:
        raise UserError(f"evaluations: expected at least {each} with guidance (cfg, self_cfg), got {evaluations}")
    able = model.has_logits and model.explicit_length
    if made := model.settings.distilled_for:
        steps = min(left, made)
        return replace(sampling, steps=steps, passes=1, sweeps=able * (left - steps) // sweep)
    passes = 2 if model.self_conditions and left >= ENOUGH else 1
    sweeps = able * ((left // ENOUGH or int(left == 2)) // sweep)
    steps = (left - sweeps * sweep) // passes
    rest = left - sweeps * sweep - steps * passes
    return replace(sampling, steps=steps, passes=passes, sweeps=sweeps + able * rest // sweep)
