"""The probability flow: the ordinary differential equation with the marginals of the process, by an adaptive solver.

    dx / dgamma = alpha/2 (alpha x - x0(x, gamma))                                          variance-preserving coordinates
    log p(x_low) = log N(x_high; 0, I) + int_low^high div (dx / dgamma) dgamma              instantaneous change of variables

Song et al. 2021, section 4.3, equations 13 and 39, with gamma for the time: the speed is bounded at any noise level. The solver
is ``scipy.integrate.solve_ivp``. It needs finite ends: from gamma(1) down to the lowest level that samplers use, after which
the predicted x_0 is the last step, as of any sampler.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.core.process import Gaussian, Process, alpha
from diffusionlm.core.sampler import Denoise, Denoised, History, Noise, Sampler
from diffusionlm.recipe.samplers import renoised
from diffusionlm.recipe.score import divergence, lowest_time

MOST_EVALUATIONS = 10_000  # of one solve: more is a tolerance below the rounding errors of the network

Field = Callable[[float, Tensor], Tensor]


def solve(
    field: Field, x: Tensor, start: float, end: float, rtol: float = 1e-4, atol: float = 1e-4, method: str = "RK45"
) -> tuple[Tensor, int]:
    """Return the solution at ``end`` of dx / dgamma = field(gamma, x) from ``x`` at ``start``, and the evaluations it took.

    The state is float64; the step size is one for all of ``x``, by the root mean square of its errors.

    Raises:
        UserError: scipy is not installed; a tolerance that is not reached.
    """
    if importlib.util.find_spec("scipy") is None:
        raise UserError("the probability flow needs scipy: pip install 'diffusion-lm[flow]'")
    from scipy.integrate import solve_ivp

    evaluations = 0
    unsolved = f"the probability flow is not solved to rtol {rtol:g}, atol {atol:g}"

    def slope(gamma: float, flat: object) -> object:
        nonlocal evaluations
        evaluations += 1
        if evaluations > MOST_EVALUATIONS:
            raise UserError(f"{unsolved} within {MOST_EVALUATIONS} evaluations; raise them")
        found = field(float(gamma), torch.from_numpy(flat).view(x.shape).to(x))
        return found.double().flatten().cpu().numpy()

    found = solve_ivp(slope, (start, end), x.double().flatten().cpu().numpy(), method=method, rtol=rtol, atol=atol)
    if not found.success:
        raise UserError(f"{unsolved}: {found.message} Raise them")
    return torch.from_numpy(found.y[:, -1]).view(x.shape).to(x), evaluations


@dataclass(frozen=True)
class Flow(Sampler, name="flow"):
    """The probability flow by an adaptive solver, deterministic: it chooses its own steps between those of the run.

    ``steps`` 1 is one solve from noise to text; more steps are the points where it is interrupted, to show or to steer the
    texts, and each costs a few evaluations.

    Args:
        rtol: relative tolerance of a step; the score SDE has 1e-5 for both.
        atol: absolute tolerance.
        method: Runge-Kutta method of ``scipy.integrate.solve_ivp``: of order 3, 5 or 8.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    method: Literal["RK23", "RK45", "DOP853"] = "RK45"

    def __post_init__(self) -> None:
        self.expect("1e-12 to 1", "rtol")
        self.expect("1e-12 to 1", "atol")

    def step(
        self, denoise: Denoise, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor, noise: Noise
    ) -> tuple[Denoised, Gaussian]:
        schedule, last = process.schedule, not bool((s > 0).all())
        end = torch.minimum(t, lowest_time(schedule).to(t)) if last else s
        start_gamma, end_gamma = (float(schedule.gamma(time)[0]) for time in (t, end))
        predictions: list[Denoised] = []

        def field(gamma: float, x: Tensor) -> Tensor:
            level = torch.full_like(t, gamma)
            time = schedule.time(level).clamp(0, 1)
            denoised = denoise(process.rescale(x, time), time)
            predictions[1:] = [denoised]
            a = alpha(torch.tensor(gamma, dtype=torch.float64)).item()
            return a / 2 * (a * x - denoised.x0)

        x = process.standardize(xt, schedule.gamma(t))
        if end_gamma < start_gamma:
            x, _ = solve(field, x, start_gamma, end_gamma, self.rtol, self.atol, self.method)
        if not last:
            return predictions[0], Gaussian(process.rescale(x, s), torch.zeros_like(x))
        x = process.rescale(x, end)
        denoised = denoise(x, end)
        return denoised, renoised(process, denoised.x0, x, end, s, torch.zeros_like(s))


def flow_nats(
    x0_at: Callable[[Tensor, float], Tensor], x: Tensor, low: float, high: float, probes: Tensor, tolerance: float = 1e-4
) -> tuple[Tensor, int]:
    """Return -log p(x) (K,) in nats by the probability flow, and the evaluations of ``x0_at``.

    Args:
        x0_at: maps x (K, ...) in variance-preserving coordinates, and gamma, to the predicted x_0.
        x: noisy vectors (K, ...) at gamma ``low``.
        low: the level of ``x``.
        high: the level at which the density is standard normal.
        probes: v (K, ...) of Hutchinson's estimate, the same at all levels.
        tolerance: relative and absolute, of the solver's steps.
    """
    count, size = len(x), x[0].numel()

    def field(gamma: float, state: Tensor) -> Tensor:
        a = alpha(torch.tensor(gamma, dtype=torch.float64)).item()
        vectors = state[:, :-1].reshape(x.shape).to(x)
        x0, along = divergence(lambda vectors: x0_at(vectors, gamma), vectors, probes)
        speed = a / 2 * (a * vectors - x0)
        return torch.cat([speed.flatten(1), (a / 2 * (a * size - along))[:, None]], 1)

    state = torch.cat([x.flatten(1).double(), x.new_zeros(count, 1).double()], 1)
    state, evaluations = solve(field, state, low, high, tolerance, tolerance)
    prior = 0.5 * (state[:, :-1] ** 2).sum(1) + size / 2 * math.log(2 * math.pi)
    return prior - state[:, -1], evaluations
