"""How a number of network evaluations is spent: on sampling steps, self-conditioning passes and refinement sweeps.

Measured with a conditional model of E2E (BLEU of one sample, 100 development sources, two samples each, ± 2), and with the
quickstart's model after a minute of training (percent of 250 samples that the grammar accepts, ± 3):

    evaluations   steps, passes, sweeps: E2E / restaurants
              2   2, 1, 0: 22              1, 1, 1: 32
              4   4, 1, 0: 43 /  0         3, 1, 1: 40 /  0
              8   8, 1, 0: 56 /  6         6, 1, 2: 57 / 12         3, 2, 2: 57 /  9         4, 2, 0: 58 /  5
             16   16, 1, 0: 61 / 21        14, 1, 2: 61 / 36        7, 2, 2: 62 / 36         6, 2, 4: 61 / 37
             32   28, 1, 4: 63 / 43        24, 1, 8: - / 42         14, 2, 4: 63 / 50        12, 2, 8: 63 / 46

With a source, steps at more noise (``noise_shift``; the same E2E sources, and 250 of the restaurants corpus):

    evaluations   shift 0     1.5 to 2    2.5 to 3
              8   55 / 32     61 / 41     61 / 42
             16   62 / 51      - / 55     64 / -
         32, 62   63 / 56     64 / 56

With a joint head (restaurants corpus, a teacher of 6,500 steps and a head of 3,500, temperature .85; percent of 512 samples
that the grammar accepts, ± 2; entropies of 5.15 to 5.17):

    evaluations   steps, sweeps
        1, 2, 8   1, 0: 69              1, 1: 77              6, 2: 85
              4   2, 2: 83              3, 1: 82

Gradients through the network cost two more evaluations in each step, so they are left out, and so is the draft pass of few
steps. Attributes of the restaurants corpus (success / percent accepted by the grammar; 20 to 30 targets, four samples each, one
standard error about .06; with 62 evaluations and 28 such gradients .90 / 76):

    evaluations   without, no draft    without, draft of .4    with
              8   .72 / 25             .68 / 24                2 steps, 2 sweeps, no draft: .65 / 1
             32   .78 / 70             .82 / 76                8 steps, 8 sweeps, draft: .69 / 40
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffusionlm.config import UserError, plain_name
from diffusionlm.core.guidance import Guidance
from diffusionlm.core.sampler import Sampler
from diffusionlm.models.conditions import condition_of
from diffusionlm.pipelines.gradient import Gradient
from diffusionlm.recipe.refine import APART

if TYPE_CHECKING:
    from diffusionlm.models.diffusion import DiffusionLM
    from diffusionlm.pipelines.base import SamplingConfig

SPENT = ("steps", "passes", "sweeps")  # the settings that a number of evaluations decides
SHIFTS = ((16, 3.0), (32, 2.0))  # evaluations below which a model with a source has a noise shift, and that shift
SWEPT, PASSED = 8, 16  # evaluations from which sweeps have a share, and from which steps have two passes and guidance a draft


def check_evaluations(evaluations: object, given: Collection[str]) -> int:
    """Return a number of evaluations. Raises UserError where it is none, or where a setting that it decides is ``given``."""
    if type(evaluations) is not int or not 1 <= evaluations <= 10000:
        raise UserError(f"evaluations: expected a whole number from 1 to 10000, got {evaluations!r}")
    if both := [name for name in SPENT if name in given]:
        raise UserError(f"{both[0]}: evaluations decides steps, passes and sweeps; leave it out, or leave evaluations out")
    return evaluations


def predictions(sampling: SamplingConfig, evaluations: int) -> int:
    """Return how many predictions a number of ``evaluations`` pays for, with guidance, if there is any, in each.

    Guidance from the null condition and from no estimate costs one more evaluation each. Raises UserError for none.
    """
    each = 1 + (sampling.cfg != 1) + (sampling.self_cfg != 1)
    if evaluations < each:
        raise UserError(f"evaluations: expected at least {each} with guidance (cfg, self_cfg), got {evaluations}")
    return evaluations // each


def spent_on(model: DiffusionLM, sampling: SamplingConfig, evaluations: int) -> SamplingConfig:
    """Return ``sampling`` with the steps, passes and sweeps of at most a number of ``evaluations`` per candidate.

    A sweep takes one where the network excludes each position's own input, else as many as its blocks.

    Raises:
        UserError: too few for one step; a sampler whose steps take several evaluations.
    """
    if type(sampling.sampler).step is not Sampler.step:
        name = plain_name(type(sampling.sampler))
        raise UserError(f"evaluations: the sampler {name!r} takes several evaluations in a step; give steps instead")
    left, sweep = predictions(sampling, evaluations), 1 if model.excludes_self else APART
    able = model.has_logits and model.explicit_length
    if made := model.settings.distilled_for:
        steps = min(left, made)
        return replace(sampling, steps=steps, passes=1, sweeps=able * (left - steps) // sweep)
    if model.joint is not None:
        steps, sweeps = joint_split(left, sweep)
        return replace(sampling, steps=steps, passes=1, sweeps=sweeps)
    passes = 2 if model.self_conditions and left >= PASSED else 1
    refined = left // (8 if left >= PASSED else 4) if left >= SWEPT else int(left == 2)
    sweeps = able * (refined // sweep)
    steps = (left - sweeps * sweep) // passes
    rest = left - sweeps * sweep - steps * passes
    return replace(sampling, steps=steps, passes=passes, sweeps=sweeps + able * rest // sweep)


def joint_split(evaluations: int, sweep: int) -> tuple[int, int]:
    """Return the steps and the sweeps, of ``sweep`` evaluations each, of a model with a joint head."""
    refined = evaluations // 2 if evaluations >= SWEPT else int(evaluations > 1)
    sweeps = refined // sweep
    return evaluations - sweeps * sweep, sweeps


def noise_shift_for(model: Any, sampling: SamplingConfig, evaluations: int, given: Collection[str]) -> float:
    """Return the noise shift of a few ``evaluations``: that of ``sampling``, or a larger one for a model with a source."""
    condition = condition_of(model)
    if "noise_shift" in given or sampling.noise_shift or model.settings.distilled_for or model.settings.joint_width:
        return sampling.noise_shift
    if condition is None or "source" not in condition.keys:
        return sampling.noise_shift
    return next((shift for most, shift in SHIFTS if evaluations < most), 0.0)


def affordable(guidance: Guidance, evaluations: int, given: Collection[str]) -> Guidance:
    """Return ``guidance`` without gradients through the network, and of few ``evaluations`` without a draft.

    Settings that are ``given``, dotted, stay as they are.
    """
    if type(guidance) is not Gradient or {"guidance", "guidance.name"} & {*given}:
        return guidance
    off: dict[str, Any] = {"denoiser_scale": 0.0, "constraint_scale": 0.0, **({} if evaluations >= PASSED else {"draft": 0.0})}
    return replace(guidance, **{name: value for name, value in off.items() if f"guidance.{name}" not in given})
