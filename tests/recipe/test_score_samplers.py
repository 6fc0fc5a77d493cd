"""The samplers of the score family on densities whose score is known: mean, covariance, weights, order, ends, process."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from exact_scores import TILTED, TWO_MODES, Mixture, gaussian, samples
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.core.process import Process, VariancePreserving
from diffusionlm.core.sampler import Denoise, Denoised, Sampler, given, sample
from diffusionlm.core.schedule import NoiseSchedule, Sqrt
from diffusionlm.pipelines.noise import RowNoise
from diffusionlm.recipe.flow import Flow, solve
from diffusionlm.recipe.gumbel import Gumbel
from diffusionlm.recipe.heun import Heun
from diffusionlm.recipe.langevin import AnnealedLangevin, PredictorCorrector
from diffusionlm.recipe.processes import VarianceExploding
from diffusionlm.recipe.samplers import DDIM
from diffusionlm.recipe.schedules import Cosine, Geometric
from diffusionlm.recipe.score import divergence, lowest_time, rademacher, score

LADDER = Geometric(T=200, sigma_min=0.02, sigma_max=30)
PRESERVING, EXPLODING = VariancePreserving(LADDER), VarianceExploding(LADDER)
SAMPLERS: list[Sampler] = [
    Heun(), Heun(churn=0.2, s_noise=1.003), Flow(), AnnealedLangevin(), PredictorCorrector(), PredictorCorrector("ancestral", 2),
]  # fmt: skip


def spread(found: Tensor) -> float:
    """Return five standard errors of a variance of 1 that is estimated from ``found``."""
    return 5 * (2 / len(found)) ** 0.5


@pytest.mark.parametrize("process", [EXPLODING, VariancePreserving(Sqrt(T=500))], ids=repr)
@pytest.mark.parametrize(
    ("sampler", "steps"),
    [(Heun(), 30), (Heun(churn=0.2), 40), (Flow(), 1), (Flow(method="RK23"), 4), (PredictorCorrector(), 200)],
    ids=str,
)
def test_mean_and_covariance_of_a_gaussian(sampler: Sampler, steps: int, process: Process) -> None:
    found = samples(TILTED, process, sampler, steps, texts=10)
    assert bool(((found.mean(0) - TILTED.means[0]).abs() < 5 / len(found) ** 0.5).all())
    torch.testing.assert_close(found.T.cov(), TILTED.covariances[0], rtol=0, atol=spread(found))


def test_annealed_langevin_has_the_variance_of_its_recursion() -> None:
    """On N(0, c^2) a step multiplies x by 1 - a/2 / (c^2 + sigma^2) and adds variance a: the walk is known exactly."""
    sampler, c2, process = AnnealedLangevin(inner_steps=3, step_size=0.3), 0.7, VarianceExploding(Geometric(20, 0.1, 5))
    variance = 1.0 + 25
    for t in process.schedule.sampling_times(20)[:-1]:
        sigma2 = float(process.schedule.gamma(t).exp())
        for _ in range(3):
            variance = (1 - 0.15 * sigma2 / (c2 + sigma2)) ** 2 * variance + 0.3 * sigma2
    gain = c2 / (c2 + 0.01)
    found = samples(gaussian([0, 0], [[c2, 0], [0, c2]]), process, sampler, 20, texts=50)
    rung = math.exp(float(process.schedule.gamma(torch.zeros(1)))) / 0.01  # the last step goes to one rung below sigma_min
    kept = (1 - rung**0.5) * gain + rung**0.5  # of the noisy x, by DDIM
    assert float(found.var()) == pytest.approx(kept**2 * variance, rel=5 * (1 / len(found)) ** 0.5)


def test_annealed_langevin_recovers_the_weights_that_plain_langevin_loses() -> None:
    """Two modes far apart, of weights 0.8 and 0.2 (Song and Ermon 2019, section 3.2.2 and figure 3)."""
    annealed = samples(TWO_MODES, VarianceExploding(Geometric(60, 0.1, 20)), AnnealedLangevin(10), 60, texts=5)
    x = 16 * torch.rand(500, 2, dtype=torch.float64) - 8
    for _ in range(600):  # as many evaluations, at the lowest noise
        x = x + 0.05 * (TWO_MODES.noisy(x, 0.1)[1] - x) / 0.01 + 0.1**0.5 * torch.randn_like(x)
    shares = [float((TWO_MODES.responsibilities(each) == 0).double().mean()) for each in (annealed, x)]
    assert shares[0] == pytest.approx(0.8, abs=0.09)
    assert shares[1] == pytest.approx(0.5, abs=0.09)


def solution(truth: Mixture, process: Process, x: Tensor, to: Tensor) -> Tensor:
    """Return the exact solution of the probability flow of a Gaussian at time ``to`` from ``x`` (N, D) at time 1."""
    values, vectors = torch.linalg.eigh(truth.covariances[0])
    gammas = process.schedule.gamma(torch.stack([torch.ones(()), to]).double())
    (a, b), (before, after) = process.alpha_sigma(gammas)[0], gammas.exp()
    along = (x / a - truth.means[0]) @ vectors
    return b * (truth.means[0] + (along * ((values + after) / (values + before)).sqrt()) @ vectors.T)


@pytest.mark.parametrize("process", [PRESERVING, EXPLODING], ids=repr)
def test_heun_is_of_second_order_and_euler_of_first(process: Process) -> None:
    def error(sampler: Sampler, steps: int) -> float:
        torch.manual_seed(1)
        start = process.rescale(torch.randn(1, 50, 2, dtype=torch.float64), 1.0)
        *_, before, _ = sample(TILTED.denoiser(process), process, start, sampler=sampler, steps=steps)
        end = sampler.times(process.schedule, steps)[-2]  # the last step is of first order for all
        return float((before.x[0] - solution(TILTED, process, start[0], end)).norm())

    class Euler(Heun):
        def step(self, denoise: Denoise, process: Process, history: object, *rest: Tensor) -> object:  # type: ignore[override]
            return DDIM().step(denoise, process, [], *rest)  # type: ignore[arg-type]

    for sampler, order in ((Heun(), 2), (Euler(), 1)):
        ratio = error(sampler, 33) / error(sampler, 65)
        assert math.log2(ratio) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("process", [PRESERVING, EXPLODING], ids=repr)
def test_the_flow_is_solved_to_its_tolerance(process: Process) -> None:
    start = process.rescale(torch.randn(1, 50, 2, dtype=torch.float64), 1.0)
    ends = []
    for steps, tolerance in ((1, 1e-6), (3, 1e-6), (1, 1e-3)):
        states = list(sample(TILTED.denoiser(process), process, start, sampler=Flow(tolerance, tolerance), steps=steps))
        if steps > 1:
            middle = solution(TILTED, process, start[0], torch.tensor(states[1].t))
            torch.testing.assert_close(states[0].x[0], middle, rtol=1e-4, atol=1e-4)
        ends.append(states[-1].x)
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(ends[2], ends[0], rtol=0, atol=0.02)


@pytest.mark.parametrize("schedule", [Sqrt(T=50), Cosine(T=50), Gumbel(), Geometric(T=50)], ids=repr)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("level", [1.0, 0.5])
def test_the_network_is_not_evaluated_below_its_lowest_level(sampler: Sampler, schedule: NoiseSchedule, level: float) -> None:
    times: list[float] = []

    def denoise(xt: Tensor, t: Tensor) -> Denoised:
        times.append(float(t[0]))
        return Denoised(torch.ones_like(xt), torch.zeros(*xt.shape[:2], 1))

    process = VariancePreserving(schedule)
    start = process.noise(torch.ones(1, 2, 3), torch.full((1,), level, dtype=torch.float64))
    states = list(sample(denoise, process, start, sampler=sampler, steps=3, level=level))
    assert min(times) >= level * float(lowest_time(schedule)) - 1e-9 and max(times) <= 1
    assert len(states) == 3 and bool(states[-1].x.isfinite().all())
    if schedule.gamma(torch.zeros(1)) == -math.inf:  # there x_0 is the prediction
        torch.testing.assert_close(states[-1].x, torch.ones(1, 2, 3))


@pytest.mark.parametrize("sampler", [DDIM(), Heun(), Heun(churn=0.1), Flow(), AnnealedLangevin()], ids=str)
def test_one_denoiser_serves_both_processes(sampler: Sampler) -> None:
    """The same noise gives the same x_0 by the change of variables."""
    denoise, ends = TWO_MODES.denoiser(PRESERVING), []

    def changed(xt: Tensor, t: Tensor) -> Denoised:
        return denoise(EXPLODING.standardize(xt, LADDER.gamma(t)), t)

    pure = torch.randn(2, 5, 2, dtype=torch.float64)
    for process, one in ((PRESERVING, denoise), (EXPLODING, changed)):
        torch.manual_seed(3)
        *_, last = sample(one, process, process.rescale(pure, 1.0), sampler=sampler, steps=20)
        ends.append(process.standardize(last.x, LADDER.gamma(torch.zeros(1))))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_given_positions_end_where_they_were_held(sampler: Sampler) -> None:
    known, x0 = torch.tensor([[True, False, False]]), torch.randn(1, 3, 2)
    denoise = given(lambda xt, t: Denoised(0.5 * xt, torch.zeros(1, 3, 1)), known, x0)
    *_, last = sample(denoise, VariancePreserving(Sqrt()), torch.randn(1, 3, 2), sampler=sampler, steps=4)
    torch.testing.assert_close(last.x[known], x0[known])


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if not isinstance(s, Flow)], ids=str)
def test_a_text_does_not_depend_on_the_padding_beside_it(sampler: Sampler) -> None:
    def denoise(xt: Tensor, t: Tensor) -> Denoised:
        return Denoised(0.3 + 0.5 * xt, torch.zeros(*xt.shape[:2], 1))

    def run(lengths: list[int], width: int) -> Tensor:
        noise = RowNoise([(5, row) for row in range(len(lengths))], lengths)
        held = given(denoise, torch.arange(width) >= torch.tensor(lengths)[:, None], torch.ones(len(lengths), width, 2))
        start = noise(torch.zeros(len(lengths), width, 2, dtype=torch.float64))
        *_, last = sample(held, PRESERVING, start, sampler=sampler, steps=8, noise=noise)
        return last.x

    torch.testing.assert_close(run([4, 9], 9)[:1, :4], run([4], 4))


@pytest.mark.parametrize("process", [PRESERVING, EXPLODING, VarianceExploding(LADDER, 3.0)], ids=repr)
def test_the_score_is_the_slope_of_the_log_density(process: Process) -> None:
    t = torch.tensor([0.6], dtype=torch.float64)
    scale, gamma = float(process.alpha_sigma(LADDER.gamma(t))[0]), float(LADDER.gamma(t))
    x = torch.randn(1, 7, 2, dtype=torch.float64).requires_grad_()
    log_density, _ = TWO_MODES.noisy(x[0] / scale, math.exp(gamma / 2))
    (slope,) = torch.autograd.grad(log_density.sum(), x)
    x = x.detach()
    torch.testing.assert_close(score(process, TWO_MODES.denoiser(process)(x, t).x0, x, t), slope)


def test_the_divergence_is_the_trace_of_the_jacobian() -> None:
    matrix, x = torch.randn(5, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    probes = rademacher(torch.zeros(20_000, 5, dtype=torch.float64))
    value, along = divergence(lambda x: x @ matrix.T, x[:1].expand(20_000, -1), probes)
    torch.testing.assert_close(value[0], x[0] @ matrix.T)
    assert float(along.mean()) == pytest.approx(float(matrix.trace()), abs=5 * float(along.std()) / 20_000**0.5)
    _, exact = divergence(lambda x: x**3, x, rademacher(x))  # a diagonal Jacobian has no error
    torch.testing.assert_close(exact, (3 * x**2).sum(1))


def test_edm_time_steps_are_even_in_the_root_of_sigma() -> None:
    times = Heun(rho=7).times(LADDER, 5)
    sigmas = (LADDER.gamma(times[:-1]) / 2).exp()
    roots = torch.linspace(30 ** (1 / 7), 0.02 ** (1 / 7), 5, dtype=torch.float64)
    torch.testing.assert_close(sigmas, roots**7)
    assert (float(times[0]), float(times[-1])) == (1, 0)
    assert torch.equal(Heun(rho=None).times(LADDER, 5), LADDER.sampling_times(5))
    assert Heun().times(Gumbel(), 1).tolist() == [1, 0]
    with pytest.raises(UserError, match="steps: expected 1 to 200 for the geometric schedule, got 201"):
        Heun().times(LADDER, 201)


def test_the_rungs_of_the_ladder() -> None:
    ladder = Geometric(T=10, sigma_min=0.01, sigma_max=1)  # NCSN's
    levels = (ladder.gamma(torch.arange(1, 11) / 10) / 2).exp()
    torch.testing.assert_close(levels, torch.logspace(-2, 0, 10, dtype=torch.float64), rtol=1e-6, atol=0)
    assert set(ladder.training_times(torch.rand(1000)).mul(10).round().tolist()) == set(range(1, 11))
    torch.testing.assert_close(ladder.time(ladder.gamma(torch.tensor(0.37))), torch.tensor(0.37).double(), rtol=1e-6, atol=0)
    with pytest.raises(UserError, match=r"sigma_min, sigma_max: expected increasing numbers, got 2, 1"):
        Geometric(sigma_min=2, sigma_max=1)


def test_settings_beyond_a_method() -> None:
    with pytest.raises(UserError, match=r"churn: expected at most sqrt\(2\) - 1 = 0.4142 \(S_churn / steps\), got 0.5"):
        Heun(churn=0.5)
    with pytest.raises(UserError, match=r"s_max: expected 2.0 or more, which is s_min, got 1.0"):
        Heun(s_min=2.0, s_max=1.0)
    with pytest.raises(UserError, match="step_size: expected 0 to 2, got 3"):
        AnnealedLangevin(step_size=3)


@dataclass(frozen=True)
class Jagged:
    """A field whose slope jumps with each call, as no tolerance can follow."""

    def __call__(self, gamma: float, x: Tensor) -> Tensor:
        return 1e6 * torch.randn_like(x)


def test_a_flow_that_cannot_be_solved_is_an_error() -> None:
    with pytest.raises(UserError, match=r"the probability flow is not solved to rtol 1e-10, atol 1e-10.*[Rr]aise them"):
        solve(Jagged(), torch.zeros(3), 5.0, -5.0, 1e-10, 1e-10)
