"""Distillation of many small steps into one: what all methods share.

Without fresh noise, a step from t over u to s of a model that predicts x0 = p E, from the token posterior p, is one step with

    p_{t->s} = w p_{t->u} + (1 - w) p_{u->s}      w = (rho_u - rho_t) / (rho_s - rho_t)      rho = alpha / sigma

since x_s / sigma_s = x_t / sigma_t + (rho_s - rho_t) p_{t->s} E. Both parts are distributions, so their mixture is one, and the
student learns it by cross-entropy (Discrete Flow Maps 2026; progressive distillation, Salimans and Ho 2022, with a posterior in
place of x_0). The methods differ in who takes the two parts, and in u:

    method                 t -> u     u -> s     u
    progressive            teacher    teacher    halfway; the student is the teacher of the next round
    consistency            teacher    student    one of the teacher's steps below t
    flow-map semigroup     student    student    anywhere
    flow-map lagrangian    student    teacher    one of the teacher's steps above s
    flow-map eulerian      teacher    student    one of the teacher's steps below t

A share of the texts is denoised only (s = u = t, the teacher's posterior), so that a student still scores and infills texts.
Shapes: B batch, L positions, D latent dimension, V words; times (B, L).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.controls import read_controls
from diffusionlm.core.objective import Batch, Objective, ObjectiveConfig, expect_family
from diffusionlm.core.process import Process
from diffusionlm.models.student import Toward
from diffusionlm.pipelines.denoiser import Predictor, WordDenoiser
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.recipe.frozen import Frozen
from diffusionlm.recipe.samplers import renoised
from diffusionlm.recipe.schedules import times_at

BARRED = -1e4  # added to the logits of special tokens, which no sample has
MIXED_SHARE = 0.5  # of the texts that are denoised only: those with a noise level per position


class Step(NamedTuple):
    """A step from ``t`` over ``u`` to ``s``, times (B, L), or shares of a sampling run (B, 1)."""

    t: Tensor
    u: Tensor
    s: Tensor


@dataclass(frozen=True)
class Distillation(ObjectiveConfig):
    """Base of the distillation methods.

    Args:
        teacher: the folder of the teacher, a diffusion model or its run.
        evaluations: per sample, that the student is made for.
        passes: of the teacher, at each of its steps.
        temperature: of the teacher's posterior.
        cfg: scale of the teacher's classifier-free guidance, which the student then does in one evaluation.
        controls: that guide the teacher, and the student without them.
        denoising_share: share of the texts that are denoised only.
        previous: the student's estimate for self-conditioning: ``rolled`` is that of its own step before, as in sampling,
            ``perturbed`` that of the same vectors, moved by noise of ``perturbation`` (FastDiSS, 2026), ``none`` is none.
        perturbation: standard deviation of that noise.
    """

    teacher: str = ""
    evaluations: int = 4
    passes: int = 2
    temperature: float = 1.0
    cfg: float = 1.0
    controls: tuple[str, ...] = ()
    denoising_share: float = 0.2
    previous: Literal["rolled", "perturbed", "none"] = "rolled"
    perturbation: float = 0.3

    def __post_init__(self) -> None:
        self.expect("1 to 10000", "evaluations", "passes")
        self.expect("a positive number", "temperature")
        self.expect("0 or more", "cfg", "perturbation")
        self.expect("a share from 0 to below 1", "denoising_share")

    def check(self, model: Any) -> None:
        expect_family(self, model, "diffusion")
        if not self.teacher:
            raise UserError("objective.teacher: expected the folder of the model to distil, got none")
        if model.distilled_for != self.evaluations:
            wanted = f"model.distilled_for {self.evaluations}, the objective's evaluations"
            raise UserError(f"model: expected {wanted}, got {model.distilled_for}")
        if not model.explicit_length:
            raise UserError("model: distillation needs explicit_length")


class Teacher:
    """The frozen teacher: token posteriors (B, L, V) with its self-conditioning passes and guidance."""

    def __init__(self, spec: Distillation) -> None:
        pipe = Pipeline.from_pretrained(spec.teacher)
        self.frozen = Frozen(pipe.model)
        changes: dict[str, Any] = {"passes": spec.passes, "temperature": spec.temperature, "cfg": spec.cfg, "sweeps": 0}
        if not pipe.model.self_conditions:
            changes["passes"] = 1
        self.sampling = replace(pipe.sampling, **changes, step_temperature=None, clamp=False, candidates=1)
        self.steering = pipe.steering(read_controls(list(spec.controls)), self.sampling)

    def __call__(self, xt: Tensor, t: Tensor, batch: Batch, previous: Tensor | None = None) -> Tensor:
        """Return the posterior at times ``t`` (B, L), where boundaries are held clean."""
        model = self.frozen.on(xt.device)
        kind = xt.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        given = batch.condition and model.condition_on(batch.condition)
        predict = Predictor(model, batch.mask, dtype, given or None, cfg=self.sampling.cfg)
        denoiser = WordDenoiser(predict, self.sampling, self.steering)
        denoiser.previous = previous
        return denoiser.wrapped()(xt, t).logits.softmax(-1)


class DistillationObjective(Objective):
    """Base of the modules of the methods: ``distillation``, in nats per token, is KL(target || student)."""

    first: Literal["teacher", "student"] = "teacher"
    second: Literal["teacher", "student"] = "teacher"
    bar: Tensor

    def __init__(self, spec: Distillation, model: Any) -> None:
        super().__init__(model, model.config.special_ids["pad"], model.padded_width)
        self.spec, self.teacher = spec, Teacher(spec)
        model.embedding.weight.requires_grad_(False)  # student and teacher share the space of x_t
        self.register_buffer("bar", bar_of(model), persistent=False)

    def steps(self, count: int, device: torch.device) -> Step:
        """Draw a step for each of ``count`` texts, in shares of a sampling run (``times_at``) from 0, its end, to 1."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        process, free = self.model.process, self.model.free_positions(batch)
        x0 = self.model.encode(batch.ids)
        before, step, plain = self._drawn(batch, free)
        eps, clean = torch.randn_like(x0), process.rescale(x0, 0.0)

        def noisy(t: Tensor) -> Tensor:
            return torch.where(free[..., None], process.noise(x0, t, eps), clean).to(x0)

        condition, terms = self.conditioning(batch)
        free, xt = free & batch.mask, noisy(step.t)
        with torch.no_grad():
            previous = self._previous(noisy, xt, before, step, batch, condition)
            target = self._target(xt, step, plain, previous, batch, condition)
        logits = self._logits(xt, step.t, step.s, previous, batch, condition) + self.bar
        divergence = torch.xlogy(target, target).sum(-1) - (target * logits.log_softmax(-1)).sum(-1)
        return {"distillation": (divergence * free).sum() / free.sum(), **terms}

    def _drawn(self, batch: Batch, free: Tensor) -> tuple[Tensor, Step, Tensor]:
        """Draw the times before each step (B, L), the steps of a batch, and which texts are denoised only (B,)."""
        (B, L), device, schedule = batch.ids.shape, batch.ids.device, self.model.process.schedule
        plain = torch.rand(B, device=device) < self.spec.denoising_share
        mixed = torch.rand(B, 1, device=device) < MIXED_SHARE
        level = schedule.training_times(torch.where(mixed, torch.rand(B, L, device=device), torch.rand(B, 1, device=device)))
        drawn = self.steps(B, device)
        shares = torch.stack([(2 * drawn.t - drawn.s).clamp(max=1), *drawn])
        times = (torch.where(plain[:, None], level, each.expand(B, L)) for each in times_at(schedule, shares))
        before, *step = (torch.where(free, time, 0).double() for time in times)
        return before, Step(*step), plain

    def _previous(self, noisy: Any, xt: Tensor, before: Tensor, step: Step, batch: Batch, condition: Any) -> Tensor | None:
        """Return the estimate of x_0 (B, L, D) that the student receives; 0 where it has none: at t = 1."""
        if self.spec.previous == "none" or not self.model.self_conditions:
            return None
        if self.spec.previous == "perturbed":
            estimate = self._posterior(self.model, xt, step.t, step.s, None, batch, condition) @ self.model.word_vectors()
            return estimate + self.spec.perturbation * torch.randn_like(estimate)
        estimate = self._posterior(self.model, noisy(before), before, step.t, None, batch, condition)
        return (estimate @ self.model.word_vectors()) * (step.t < 1)[..., None]

    def _target(self, xt: Tensor, step: Step, plain: Tensor, previous: Tensor | None, batch: Batch, condition: Any) -> Tensor:
        """Return the target (B, L, V): the mixture of both parts, or the teacher's posterior where texts are denoised only."""
        process, embedding = self.model.process, self.model.word_vectors()
        first = self._part(self.first, xt, step.t, step.u, previous, batch, condition)
        if self.first == "student" and plain.any():
            rows = plain.nonzero()[:, 0]
            first[rows] = self.teacher(xt[rows], step.t[rows], rows_of(batch, rows)).to(first)
        share = two_part_share(process, step)[..., None].to(first)
        if bool((share == 1).all()):
            return first
        x0 = first @ embedding
        xu = renoised(process, x0, xt, step.t, step.u.clamp(min=0), torch.zeros_like(step.t)).mean.to(xt)
        xu = torch.where((step.t > step.u)[..., None], xu, xt)
        second = self._part(self.second, xu, step.u, step.s, x0, batch, condition)
        return torch.lerp(second, first, share)

    def _part(
        self, who: str, xt: Tensor, t: Tensor, s: Tensor, previous: Tensor | None, batch: Batch, condition: Any
    ) -> Tensor:
        if who == "teacher":
            return self.teacher(xt, t, batch, previous)
        return self._posterior(self.model, xt, t, s, previous, batch, condition)

    def _posterior(
        self, model: Any, xt: Tensor, t: Tensor, s: Tensor, previous: Tensor | None, batch: Batch, condition: Any
    ) -> Tensor:
        return (self._logits(xt, t, s, previous, batch, condition, model) + self.bar).softmax(-1)

    def _logits(
        self, xt: Tensor, t: Tensor, s: Tensor, previous: Tensor | None, batch: Batch, condition: Any, model: Any = None
    ) -> Tensor:
        toward = Toward(self.model.process.schedule.gamma(s), condition)
        logits: Tensor = (model or self.model).token_logits(xt, t, batch.attend, previous, None, toward)
        return logits


def bar_of(model: Any) -> Tensor:
    """Return what is added to logits (V,): ``BARRED`` at special tokens, else 0."""
    bar = torch.zeros(model.config.vocabulary)
    bar[[*model.config.special_ids.values()]] = BARRED
    return bar


def two_part_share(process: Process, step: Step) -> Tensor:
    """Return w (B, L), the weight of the first part, in float64; 1 where there is no second part."""
    (rho_t, rho_u, rho_s) = (torch.exp(-process.schedule.gamma(time) / 2) for time in step)
    share = (rho_u - rho_t) / (rho_s - rho_t)
    return torch.where(step.u <= step.s, 1.0, share.nan_to_num(0.0))


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    """Return the ``rows`` (B,) of a batch."""
    part = Batch({name: value[rows] for name, value in batch.items() if isinstance(value, Tensor)})
    if batch.condition:
        part["condition"] = {name: value[rows] for name, value in batch.condition.items()}
    return part
