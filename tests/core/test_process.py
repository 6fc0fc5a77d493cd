"""The Gaussian process: the posterior's numbers and identities, conversions, divergences, moments of noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from diffusionlm.core.process import Gaussian, GaussianDiffusion, Process, VariancePreserving, alpha, over_coordinates, sigma
from diffusionlm.core.schedule import NoiseSchedule, Sqrt
from diffusionlm.recipe.gumbel import Gumbel
from diffusionlm.recipe.regression import kl
from diffusionlm.recipe.schedules import Cosine, Linear

PROCESS = GaussianDiffusion(Sqrt())
SCHEDULES: list[NoiseSchedule] = [Sqrt(), Cosine(), Linear(), Gumbel()]


def _times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _posterior_numbers(q: GaussianDiffusion, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the posterior's variance and its coefficients of x_0 and x_t at each of the times (B,)."""
    one, zero = torch.ones(len(t), 1, 1, dtype=torch.float64), torch.zeros(len(t), 1, 1, dtype=torch.float64)
    of_x0, of_xt = q.posterior(one, zero, t, s), q.posterior(zero, one, t, s)
    return of_x0.variance.flatten(), of_x0.mean.flatten(), of_xt.mean.flatten()


@pytest.mark.parametrize(
    ("index", "variance", "of_x0", "of_xt"),
    [
        (0, "0.0000000000e+00", "1.0000000000", "0.0000000000"),
        (1, "5.5618163102e-03", "0.3770803182", "0.6229032200"),
        (49, "1.8608400445e-03", "0.0115777673", "0.9883844695"),
        (999, "1.2055112152e-03", "0.0009320305", "0.9988898654"),
        (1999, "9.9879836340e-01", "0.0141998807", "0.0316163939"),
    ],
)
def test_posterior_reference(index: int, variance: str, of_x0: str, of_xt: str) -> None:
    found = _posterior_numbers(PROCESS, _times((index + 1) / 2000), _times(index / 2000))
    printed = f"{float(found[0]):.10f}" if index == 1999 else f"{float(found[0]):.10e}"
    assert printed == (f"{float(variance):.10f}" if index == 1999 else variance)
    assert f"{float(found[1]):.10f}" == of_x0
    assert f"{float(found[2]):.10f}" == of_xt


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_posterior_identities(schedule: NoiseSchedule) -> None:
    q = GaussianDiffusion(schedule)
    t, s = _times(0.01, 0.3, 0.5, 0.8, 0.999, 1), _times(0.005, 0.1, 0.499, 0.2, 0.998, 0.5)
    variance, of_x0, of_xt = _posterior_numbers(q, t, s)
    gamma_t, gamma_s = schedule.gamma(t), schedule.gamma(s)
    alpha2_t, alpha2_s = torch.sigmoid(-gamma_t), torch.sigmoid(-gamma_s)
    torch.testing.assert_close(of_x0 + of_xt * alpha2_t.sqrt(), alpha2_s.sqrt())
    torch.testing.assert_close(variance + of_xt**2 * torch.sigmoid(gamma_t), torch.sigmoid(gamma_s))
    torch.testing.assert_close(of_x0**2 / (2 * variance), (torch.exp(-gamma_s) - torch.exp(-gamma_t)) / 2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_posterior_is_bayes_rule(schedule: NoiseSchedule) -> None:
    """The posterior's precision is that of x_s given x_0 plus that which x_t brings."""
    q, t, s = GaussianDiffusion(schedule), _times(0.6), _times(0.2)
    gamma_t, gamma_s = schedule.gamma(t), schedule.gamma(s)
    step = alpha(gamma_t) / alpha(gamma_s)
    step_variance = sigma(gamma_t) ** 2 - step**2 * sigma(gamma_s) ** 2
    variance = 1 / (1 / sigma(gamma_s) ** 2 + step**2 / step_variance)
    x0, xt = torch.randn(1, 3, 2, dtype=torch.float64), torch.randn(1, 3, 2, dtype=torch.float64)
    mean = variance * (alpha(gamma_s) * x0 / sigma(gamma_s) ** 2 + step * xt / step_variance)
    found = q.posterior(x0, xt, t, s)
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.variance.flatten(), variance)


def test_posterior_at_time_0_is_x0() -> None:
    x0, xt = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    found = PROCESS.posterior(x0, xt, torch.tensor([0.1, 1.0]), torch.zeros(2))
    torch.testing.assert_close(found.mean, x0, rtol=0, atol=0)
    assert float(found.variance.abs().max()) == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", [(5,), (5, 3)])
def test_conversions_round_trip(schedule: NoiseSchedule, shape: tuple[int, ...]) -> None:
    q = GaussianDiffusion(schedule)
    t = 0.02 + 0.95 * torch.rand(shape, dtype=torch.float64)
    x0, eps = (torch.randn(5, 3, 4, dtype=torch.float64) for _ in range(2))
    xt = q.noise(x0, t, eps)
    torch.testing.assert_close(q.eps_from_x0(x0, xt, t), eps)
    torch.testing.assert_close(q.x0_from_eps(eps, xt, t), x0)
    gamma = schedule.gamma(t)
    velocity = over_coordinates(alpha(gamma), x0) * eps - over_coordinates(sigma(gamma), x0) * x0
    torch.testing.assert_close(q.v_from_x0(x0, xt, t), velocity)
    torch.testing.assert_close(q.x0_from_v(velocity, xt, t), x0)


@pytest.mark.parametrize(
    ("first", "second", "divergence"),
    [
        ((0, 1), (0, 1), "0.0000000000"),
        ((1, 1), (0, 1), "0.5000000000"),
        ((0, 4), (0, 1), "0.8068528194"),
        ((0.3, 0.25), (-0.2, 0.5), "0.3465735903"),
    ],
)
def test_divergence_reference(first: tuple[float, float], second: tuple[float, float], divergence: str) -> None:
    a, b = (Gaussian(*(torch.tensor(x, dtype=torch.float64) for x in pair)) for pair in (first, second))
    assert f"{float(kl(a, b)):.10f}" == divergence


def test_divergence_is_the_mean_log_ratio() -> None:
    a = Gaussian(torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64))
    b = Gaussian(torch.tensor(-1.0, dtype=torch.float64), torch.tensor(2.5, dtype=torch.float64))
    x = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    log_a, log_b = (-((x - g.mean) ** 2 / g.variance + torch.log(2 * torch.pi * g.variance)) / 2 for g in (a, b))
    truth = torch.trapezoid(log_a.exp() * (log_a - log_b), x)
    torch.testing.assert_close(kl(a, b), truth)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [0.001, 0.5, 1])
def test_moments_of_noise(schedule: NoiseSchedule, t: float) -> None:
    q, count = GaussianDiffusion(schedule), 200_000
    x0 = torch.full((1, count // 4, 4), 1.5)
    xt = q.noise(x0, _times(t))
    gamma = schedule.gamma(_times(t))
    variance = float(sigma(gamma) ** 2)
    assert float(xt.mean()) == pytest.approx(1.5 * float(alpha(gamma)), abs=5 * (variance / count) ** 0.5 + 1e-6)
    assert float(xt.var()) == pytest.approx(variance, rel=5 * (2 / count) ** 0.5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_levels_per_position_equal_levels_per_text(schedule: NoiseSchedule) -> None:
    q = GaussianDiffusion(schedule)
    x0, xt, eps = (torch.randn(3, 5, 4) for _ in range(3))
    t, s = _times(0.3, 0.7, 1), _times(0.1, 0.69, 0)
    t_wide, s_wide = t[:, None].expand(3, 5), s[:, None].expand(3, 5)
    assert torch.equal(q.noise(x0, t, eps), q.noise(x0, t_wide, eps))
    assert torch.equal(q.eps_from_x0(x0, xt, t), q.eps_from_x0(x0, xt, t_wide))
    assert torch.equal(q.x0_from_eps(eps, xt, t), q.x0_from_eps(eps, xt, t_wide))
    assert torch.equal(q.v_from_x0(x0, xt, t), q.v_from_x0(x0, xt, t_wide))
    assert torch.equal(q.x0_from_v(eps, xt, t), q.x0_from_v(eps, xt, t_wide))
    by_text, by_position = q.posterior(x0, xt, t, s), q.posterior(x0, xt, t_wide, s_wide)
    assert torch.equal(by_text.mean, by_position.mean)
    assert torch.equal(by_text.variance.expand_as(xt), by_position.variance.expand_as(xt))


def test_positions_may_have_levels_of_their_own() -> None:
    x0, eps = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    t = _times(0, 0.4, 1, 0.2, 0.6, 0).view(2, 3)
    together = PROCESS.noise(x0, t, eps)
    for row in range(2):
        for position in range(3):
            spot = (slice(row, row + 1), slice(position, position + 1))
            assert torch.equal(together[spot], PROCESS.noise(x0[spot], t[row, position].view(1), eps[spot]))
    assert torch.equal(together[0, 0], x0[0, 0])


def test_results_keep_the_dtype_of_the_vectors() -> None:
    x0, t = torch.randn(2, 3, 4), _times(0.3, 0.5)
    assert PROCESS.noise(x0, t).dtype == torch.float32
    found = PROCESS.posterior(x0, x0, t, t / 2)
    assert (found.mean.dtype, found.variance.dtype) == (torch.float32, torch.float32)


@dataclass(frozen=True)
class _VarianceExploding(Process):
    schedule: NoiseSchedule = field(default_factory=Gumbel)

    def alpha_sigma(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(gamma), torch.exp(gamma / 2)


def test_processes_of_one_schedule_are_rescalings_of_each_other() -> None:
    """x_t, the posterior and the variance of a step are those of the variance-preserving process times 1 / alpha."""
    one, other = VariancePreserving(Gumbel()), _VarianceExploding()
    t, s = _times(0.9, 0.4), _times(0.7, 0.1)
    x0, eps = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    xt, exploded = one.noise(x0, t, eps), other.noise(x0, t, eps)
    gamma_t, gamma_s = Gumbel().gamma(t), Gumbel().gamma(s)
    torch.testing.assert_close(other.standardize(exploded, gamma_t), xt)
    torch.testing.assert_close(other.rescale(xt[:1], float(t[0])), exploded[:1])
    torch.testing.assert_close(other.eps_from_x0(x0, exploded, t), eps)
    found, expected = other.posterior(x0, exploded, t, s), one.posterior(x0, xt, t, s)
    scale = over_coordinates(alpha(gamma_s), x0)
    torch.testing.assert_close(found.mean * scale, expected.mean)
    torch.testing.assert_close(found.variance * scale**2, expected.variance)
    torch.testing.assert_close(other.step_variance(t, s), torch.exp(gamma_t) - torch.exp(gamma_s))
    torch.testing.assert_close(one.step_variance(t, s), 1 - alpha(gamma_t) ** 2 / alpha(gamma_s) ** 2)
