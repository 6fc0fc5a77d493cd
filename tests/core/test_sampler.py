"""Samplers and wrappers: identities between samplers, closed-form Gaussian truths, clamping, given words, row noise."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.core.process import Gaussian, GaussianDiffusion, alpha, over_coordinates, sigma
from diffusionlm.core.sampler import DDPM, Denoise, Denoised, Sampler, State, clamp, given, nearest_rows, reverse_step, sample
from diffusionlm.core.schedule import NoiseSchedule, Sqrt
from diffusionlm.pipelines.noise import RowNoise
from diffusionlm.recipe.gumbel import Gumbel
from diffusionlm.recipe.posterior import apply_temperature
from diffusionlm.recipe.refine import blockwise_icm, parallel_icm
from diffusionlm.recipe.samplers import DDIM, DPMSolver, Renoise, renoised
from diffusionlm.recipe.schedules import Cosine, Linear


@dataclass(frozen=True)
class Straight(NoiseSchedule):
    """Gamma rises in a straight line from ``-reach`` to ``reach``: finite everywhere, so solvers keep their order."""

    reach: float = 4.0

    @property
    def max_steps(self) -> int:
        return 10_000

    def gamma(self, t: Tensor) -> Tensor:
        return self.reach * (2 * t.double() - 1)


SCHEDULES: list[NoiseSchedule] = [Sqrt(), Cosine(), Linear(), Gumbel(), Straight()]
SAMPLERS: list[Sampler] = [DDPM(), DDPM("upper"), DDIM(), DDIM(0.5), Renoise(), DPMSolver()]


def _times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _no_words(x0: Tensor) -> Denoised:
    return Denoised(x0, torch.zeros(*x0.shape[:-1], 1, dtype=x0.dtype))


def _always(x0: Tensor) -> Denoise:
    """Return a denoiser that believes in ``x0`` whatever it sees."""
    return lambda xt, t: _no_words(x0.expand_as(xt))


def _gaussian_denoiser(q: GaussianDiffusion, mean: Tensor, covariance: Tensor) -> Denoise:
    """Return the exact posterior mean of x_0 ~ N(mean, covariance)."""

    def denoise(xt: Tensor, t: Tensor) -> Denoised:
        gamma = q.schedule.gamma(t[:1])
        a, s = alpha(gamma), sigma(gamma)
        gain = a * covariance @ torch.linalg.inv(a**2 * covariance + s**2 * torch.eye(len(mean), dtype=torch.float64))
        return _no_words(mean + (xt - a * mean) @ gain.T)

    return denoise


# Identities between samplers


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_at_eta_1_is_ancestral(schedule: NoiseSchedule) -> None:
    q, t, s = GaussianDiffusion(schedule), _times(1, 0.7, 0.4, 0.2), _times(0.9, 0.3, 0.39, 0)
    x0, xt = _draw(4, 3, 2), _draw(4, 3, 2)
    history = [(t, _no_words(x0))]
    ddim, ddpm = DDIM(eta=1).transition(q, history, xt, t, s), DDPM().transition(q, history, xt, t, s)
    torch.testing.assert_close(ddim.mean, ddpm.mean)
    torch.testing.assert_close(ddim.variance, ddpm.variance)
    family = renoised(q, x0, xt, t, s, 1 - torch.exp(schedule.gamma(s) - schedule.gamma(t)))
    torch.testing.assert_close(family.mean, ddpm.mean)
    torch.testing.assert_close(family.variance, ddpm.variance)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_keeps_the_marginal(eta: float) -> None:
    """If x_t is distributed as q(x_t | x_0), so is x_s: mean alpha_s x_0, variance sigma_s^2."""
    q, t, s = GaussianDiffusion(Sqrt()), _times(0.8), _times(0.3)
    x0, eps = _draw(1, 1, 1), _draw(1, 1, 1)
    history = [(t, _no_words(x0))]
    step = DDIM(eta).transition(q, history, q.noise(x0, t, eps), t, s)
    gamma = q.schedule.gamma(s)
    centre = over_coordinates(alpha(gamma), x0) * x0
    spread = ((step.mean - centre) / eps) ** 2 + step.variance
    torch.testing.assert_close(spread.flatten(), sigma(gamma) ** 2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_first_step_of_dpm_solver_is_ddim(schedule: NoiseSchedule) -> None:
    q, t, s = GaussianDiffusion(schedule), _times(1, 0.5), _times(0.9, 0.2)
    xt, history = _draw(2, 3, 2), [(t, _no_words(_draw(2, 3, 2)))]
    ours, ddim = DPMSolver().transition(q, history, xt, t, s), DDIM().transition(q, history, xt, t, s)
    torch.testing.assert_close(ours.mean, ddim.mean)
    assert float(ours.variance.abs().max()) == 0


def test_the_second_step_of_dpm_solver_is_the_papers() -> None:
    """Check x_s = (sigma_s/sigma_t) x_t - alpha_s (e^-h - 1) [(1 + 1/2rho) x0_t - (1/2rho) x0_before]."""
    q, before, t, s = GaussianDiffusion(Cosine()), _times(0.9), _times(0.6), _times(0.5)
    xt, first, second = _draw(1, 3, 2), _draw(1, 3, 2), _draw(1, 3, 2)
    ours = DPMSolver().transition(q, [(before, _no_words(first)), (t, _no_words(second))], xt, t, s)
    gamma = {name: q.schedule.gamma(time) for name, time in {"before": before, "t": t, "s": s}.items()}
    h, h_before = (gamma["t"] - gamma["s"]) / 2, (gamma["before"] - gamma["t"]) / 2
    rho = h_before / h
    combined = (1 + 1 / (2 * rho)) * second - 1 / (2 * rho) * first
    truth = sigma(gamma["s"]) / sigma(gamma["t"]) * xt - alpha(gamma["s"]) * torch.expm1(-h) * combined
    torch.testing.assert_close(ours.mean, truth)


@pytest.mark.parametrize("sampler", [DDIM(), DPMSolver()])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_with_a_fixed_prediction_two_half_steps_are_one(sampler: Sampler, schedule: NoiseSchedule) -> None:
    q, x, belief = GaussianDiffusion(schedule), _draw(2, 3, 4), _no_words(_draw(2, 3, 4))
    t, middle, s = (_times(time, time) for time in (0.9, 0.5, 0.2))
    whole = sampler.transition(q, [(t, belief)], x, t, s).mean
    half = sampler.transition(q, [(t, belief)], x, t, middle).mean
    both = sampler.transition(q, [(t, belief), (middle, belief)], half, middle, s).mean
    torch.testing.assert_close(both, whole)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_renoise_draws_from_the_forward_process(schedule: NoiseSchedule) -> None:
    q, t, s = GaussianDiffusion(schedule), _times(0.9, 0.5), _times(0.4, 0)
    x0, xt = _draw(2, 3, 2), _draw(2, 3, 2)
    step = Renoise().transition(q, [(t, _no_words(x0))], xt, t, s)
    gamma = schedule.gamma(s)
    torch.testing.assert_close(step.mean, over_coordinates(alpha(gamma), x0) * x0)
    torch.testing.assert_close(step.variance.flatten(), sigma(gamma) ** 2)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", [Sqrt(), Cosine(), Linear()])
def test_a_run_ends_at_the_prediction(sampler: Sampler, schedule: NoiseSchedule) -> None:
    belief = torch.randn(1, 3, 4)
    *_, last = sample(_always(belief), GaussianDiffusion(schedule), torch.randn(2, 3, 4), sampler=sampler, steps=7)
    torch.testing.assert_close(last.x, belief.expand(2, 3, 4))


# Closed-form truths


def _flow_error(sampler: Sampler, steps: int) -> float:
    """Return how far a run ends from the exact probability flow of x_0 ~ N(0.7, 0.3^2), whose solution is linear."""
    q, mean, variance = GaussianDiffusion(Straight()), _times(0.7), 0.09
    denoise = _gaussian_denoiser(q, mean, torch.tensor([[variance]], dtype=torch.float64))
    start = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 9, 1)
    *_, last = sample(denoise, q, start, sampler=sampler, steps=steps)

    def moments(t: float) -> tuple[Tensor, Tensor]:
        gamma = q.schedule.gamma(_times(t))
        return alpha(gamma) * mean, (alpha(gamma) ** 2 * variance + sigma(gamma) ** 2).sqrt()

    (centre, width), (centre_end, width_end) = moments(1), moments(0)
    truth = centre_end + width_end * (start - centre) / width
    return float((last.x - truth).abs().max())


@pytest.mark.parametrize(("sampler", "order"), [(DDIM(), 1), (DPMSolver(), 2)])
def test_order_of_convergence(sampler: Sampler, order: int) -> None:
    coarse, fine, finest = (_flow_error(sampler, steps) for steps in (64, 128, 256))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)
    assert math.log2(fine / finest) == pytest.approx(order, abs=0.15)


def test_the_second_order_solver_is_nearer_at_few_steps() -> None:
    assert _flow_error(DPMSolver(), 16) < _flow_error(DDIM(), 16) / 3


@pytest.mark.parametrize("sampler", [DDPM(), DDPM("upper"), DDIM(1.0), DPMSolver(), DDIM()])
def test_the_optimal_denoiser_of_a_gaussian_gives_it_back(sampler: Sampler) -> None:
    mean = _times(1.0, -0.5)
    covariance = torch.tensor([[0.8, 0.3], [0.3, 0.4]], dtype=torch.float64)
    q, count = GaussianDiffusion(Straight(reach=9.0)), 20_000
    *_, last = sample(_gaussian_denoiser(q, mean, covariance), q, _draw(1, count, 2), sampler=sampler, steps=400)
    found = last.x[0]
    torch.testing.assert_close(found.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(found.T.cov(), covariance, rtol=0, atol=0.03)


# Variances


@pytest.mark.parametrize(("index", "beta"), [(1, 8.8890877688e-3), (49, 1.8809372431e-3), (999, 1.2061229573e-3)])
def test_the_upper_variance_is_beta(index: int, beta: float) -> None:
    q, t, s = GaussianDiffusion(Sqrt()), _times((index + 1) / 2000), _times(index / 2000)
    x = _draw(1, 2, 3)
    upper = DDPM("upper").transition(q, [(t, _no_words(x))], x, t, s)
    assert float(upper.variance.flatten()[0]) == pytest.approx(beta, rel=1e-10)
    torch.testing.assert_close(upper.mean, q.posterior(x, x, t, s).mean)


def test_learned_variances_lie_between_the_two() -> None:
    q, t, s = GaussianDiffusion(Sqrt()), _times(0.5, 0.1), _times(0.4, 0.05)
    x = _draw(2, 3, 4)
    lower, upper = (reverse_step(q, _no_words(x), x, t, s, kind).variance.expand_as(x) for kind in ("posterior", "upper"))
    for share, truth in [(0.0, lower), (1.0, upper), (0.5, (lower * upper).sqrt())]:
        denoised = Denoised(x, x, torch.full_like(x, share))
        found = DDPM("learned").transition(q, [(t, denoised)], x, t, s)
        torch.testing.assert_close(found.variance, truth)
        torch.testing.assert_close(found.mean, q.posterior(x, x, t, s).mean)
    assert bool((lower < upper).all())


def test_learned_variances_of_a_model_without_any() -> None:
    q, x = GaussianDiffusion(Sqrt()), _draw(1, 2, 3)
    with pytest.raises(UserError) as caught:
        next(sample(_always(x), q, x, sampler=DDPM("learned"), steps=3))
    sentence = "sampler.variance: 'learned' needs a model that predicts variances; use 'posterior'"
    assert str(caught.value) == sentence


def test_eta_is_a_share() -> None:
    with pytest.raises(UserError, match=r"^eta: expected a number between 0 and 1, got 1\.5$"):
        DDIM(1.5)


# The loop


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_last_step_adds_no_noise(sampler: Sampler) -> None:
    drawn: list[int] = []

    def noise(like: Tensor) -> Tensor:
        drawn.append(1)
        return torch.full_like(like, 1e6) if len(drawn) == 5 else torch.zeros_like(like)

    states = list(
        sample(_always(_draw(1, 3, 2)), GaussianDiffusion(Sqrt()), _draw(1, 3, 2), sampler=sampler, steps=5, noise=noise)
    )
    assert len(drawn) == 4
    assert float(states[-1].x.abs().max()) < 10


def test_a_run_yields_a_state_for_every_step() -> None:
    times: list[Tensor] = []

    def denoise(xt: Tensor, t: Tensor) -> Denoised:
        times.append(t)
        return _no_words(torch.zeros_like(xt))

    states = list(sample(denoise, GaussianDiffusion(Sqrt()), torch.randn(3, 4, 2), sampler=DDPM(), steps=5))
    assert [state.t for state in states] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert [t.tolist() for t in times] == [[state.t] * 3 for state in states]
    assert all(state.x.shape == (3, 4, 2) for state in states)


def test_a_run_can_be_left_early() -> None:
    asked: list[float] = []

    def denoise(xt: Tensor, t: Tensor) -> Denoised:
        asked.append(float(t[0]))
        return _no_words(torch.zeros_like(xt))

    run = sample(denoise, GaussianDiffusion(Sqrt()), torch.randn(1, 2, 2), sampler=DDPM(), steps=100)
    seen = [state.t for state in itertools.islice(run, 3)]
    assert asked == seen == pytest.approx([1, 0.99, 0.98])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_decides_a_run(sampler: Sampler) -> None:
    q, belief, start = GaussianDiffusion(Sqrt()), torch.randn(2, 3, 4), torch.randn(2, 3, 4)

    def run(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [
            state.x
            for state in sample(
                _always(belief), q, start, sampler=sampler, steps=6,
                noise=lambda like: torch.randn(like.shape, generator=generator),
            )
        ]  # fmt: skip

    assert all(torch.equal(a, b) for a, b in zip(run(1), run(1), strict=True))
    random = sampler not in (DDIM(), DPMSolver())
    assert torch.equal(run(1)[2], run(2)[2]) != random


@pytest.mark.parametrize(("schedule", "steps"), [(Sqrt(T=5), 6), (Sqrt(), 0), (Gumbel(), 5000)])
def test_step_counts_that_a_schedule_has_not(schedule: NoiseSchedule, steps: int) -> None:
    x = torch.randn(1, 2, 2)
    with pytest.raises(UserError, match=r"^steps: expected 1 to \d+ for the \w+ schedule"):
        next(sample(_always(x), GaussianDiffusion(schedule), x, sampler=DDPM(), steps=steps))


def test_steering_moves_every_step_but_the_last() -> None:
    moved: list[float] = []

    def steer(x: Tensor, s: Tensor, step: Gaussian) -> Tensor:
        moved.append(float(s[0]))
        return torch.full_like(x, 100.0)

    states: list[State] = list(
        sample(
            _always(torch.zeros(1, 2, 2)), GaussianDiffusion(Sqrt()), torch.randn(1, 2, 2),
            sampler=DDPM(), steps=4, steer=steer,
        )
    )  # fmt: skip
    assert moved == pytest.approx([0.75, 0.5, 0.25])
    assert all(bool((state.x == 100).all()) for state in states[:-1])
    assert bool((states[-1].x == 0).all())


# Wrappers


def test_the_two_rounding_rules_differ() -> None:
    words, x = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[[1.0, 0.0]]])
    assert int((x @ words.T).argmax(-1)) == 1
    assert int(nearest_rows(x, words)) == 0


def test_nearest_rows_are_the_nearest() -> None:
    words, x = torch.randn(50, 5, dtype=torch.float64) * torch.rand(50, 1) * 3, _draw(4, 7, 5)
    assert torch.equal(nearest_rows(x, words), torch.cdist(x, words.expand(4, -1, -1)).argmin(-1))


def test_clamping_returns_words_and_changes_them_no_more() -> None:
    words, x = torch.randn(20, 5), torch.randn(2, 3, 5)
    once = clamp(lambda xt, t: _no_words(xt), words)
    twice = clamp(once, words)
    t = torch.ones(2)
    assert torch.equal(once(x, t).x0, words[nearest_rows(x, words)])
    assert torch.equal(twice(x, t).x0, once(x, t).x0)
    assert torch.equal(once(words.expand(2, -1, -1), t).x0, words.expand(2, -1, -1))


def test_temperature() -> None:
    words, logits = torch.randn(20, 5), torch.randn(2, 3, 20)
    plain = Denoised(logits.softmax(-1) @ words, logits)
    same = apply_temperature(plain, words, 1.0)
    torch.testing.assert_close(same.x0, plain.x0)
    assert torch.equal(same.logits, logits)
    cold = apply_temperature(plain, words, 1e-4)
    torch.testing.assert_close(cold.x0, words[logits.argmax(-1)])
    hot = apply_temperature(plain, words, 1e6)
    torch.testing.assert_close(hot.x0, words.mean(0).expand_as(plain.x0), rtol=0, atol=1e-4)
    half = apply_temperature(plain, words, 0.5)
    squared = logits.softmax(-1) ** 2
    torch.testing.assert_close(half.x0, squared / squared.sum(-1, keepdim=True) @ words)


@pytest.mark.parametrize("wide", [False, True])
def test_given_positions_are_held(wide: bool) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def denoise(xt: Tensor, t: Tensor) -> Denoised:
        seen.append((xt, t))
        return _no_words(-xt)

    known = torch.tensor([[True, False, True, False], [False, False, False, True]])
    x0, xt, t = torch.randn(2, 4, 3), torch.randn(2, 4, 3), torch.tensor([0.3, 0.8], dtype=torch.float64)
    result = given(denoise, known, x0)(xt, t[:, None].expand(2, 4) if wide else t)
    shown, levels = seen[0]
    assert torch.equal(result.x0[known], x0[known])
    assert torch.equal(result.x0[~known], -xt[~known])
    assert torch.equal(shown[known], x0[known])
    assert torch.equal(shown[~known], xt[~known])
    assert torch.equal(levels, torch.where(known, 0, t[:, None]))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_given_positions_end_where_they_were_held(sampler: Sampler) -> None:
    known, x0 = torch.tensor([[True, False, False]]), torch.randn(1, 3, 2)
    denoise = given(lambda xt, t: _no_words(0.5 * xt), known, x0)
    *_, last = sample(denoise, GaussianDiffusion(Sqrt()), torch.randn(1, 3, 2), sampler=sampler, steps=9)
    torch.testing.assert_close(last.x[known], x0[known])


def test_row_noise_does_not_depend_on_the_batch() -> None:
    seeds, lengths = [(7, 0), (7, 1), (7, 2)], [4, 2, 6]
    together, again, alone = RowNoise(seeds, lengths), RowNoise(seeds, lengths), RowNoise(seeds[:1], lengths[:1])
    for _ in range(3):
        wide = together(torch.zeros(3, 6, 5))
        assert torch.equal(wide, again(torch.zeros(3, 6, 5)))
        assert torch.equal(wide[:1, :4], alone(torch.zeros(1, 4, 5)))
        assert float(wide[0, 4:].abs().max()) == float(wide[1, 2:].abs().max()) == 0
        assert bool((wide[2] != 0).all())


def test_row_noise_differs_between_seeds_and_draws() -> None:
    noise = RowNoise([(0, 0), (0, 1), (1, 0), (1, 1)], [3] * 4)
    draws = torch.cat([noise(torch.zeros(4, 3, 2)), noise(torch.zeros(4, 3, 2))])
    assert len({tuple(row.flatten().tolist()) for row in draws}) == 8


def test_row_noise_is_standard_normal() -> None:
    drawn = RowNoise([(3, row) for row in range(200)], [50] * 200)(torch.zeros(200, 50, 10, dtype=torch.float64))
    assert drawn.dtype == torch.float64
    assert float(drawn.mean()) == pytest.approx(0, abs=5 / 100_000**0.5)
    assert float(drawn.var()) == pytest.approx(1, abs=5 * (2 / 100_000) ** 0.5)
    between = drawn.flatten(1) @ drawn.flatten(1).T / 500  # rows' inner products, of deviation 1 / sqrt(500)
    assert float((between - between.diag().diag()).abs().max()) < 6 / 500**0.5


def test_sweeps_replace_what_the_other_tokens_make_improbable() -> None:
    words = torch.tensor([[5, 1, 1, 2, 1], [5, 3, 4, 4, 4]])
    free = torch.tensor([[False, True, True, True, True], [False, True, True, True, False]])
    asked = torch.zeros_like(words)

    def posterior(words: Tensor, hidden: Tensor) -> Tensor:
        asked.add_(hidden)
        # Each row wants the word that most of its visible places hold, e times as much for each place.
        votes = torch.nn.functional.one_hot(words, 6) * ~hidden[..., None]
        return votes[:, 1:].sum(1, keepdim=True).expand(-1, words.shape[1], -1).float()

    once = blockwise_icm(words, free, posterior, sweeps=1, odds=2.0, apart=2)
    assert once.tolist() == [[5, 1, 1, 1, 1], [5, 4, 4, 4, 4]]
    assert torch.equal(asked, free.long())
    assert torch.equal(blockwise_icm(words, free, posterior, sweeps=3, odds=1e9, apart=2), words)


def test_settling_changes_what_fits_least_and_asks_again() -> None:
    words, free = torch.tensor([[0, 1, 2, 0]]), torch.tensor([[False, True, True, False]])
    asked = 0

    def cloze(words: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        # Each of the two wants to be the other, the right one more, and the ends want to be what they are not.
        logits = torch.zeros(1, 4, 4)
        logits[0, 1, words[0, 2]], logits[0, 2, words[0, 1]], logits[0, 0, 3] = 2.0, 3.0, 9.0
        return logits

    assert parallel_icm(words, free, cloze, rounds=9, odds=2.0).tolist() == [[0, 1, 1, 0]]
    assert asked == 2
    assert parallel_icm(words, free, cloze, rounds=1, odds=2.0, near=0).tolist() == [[0, 2, 1, 0]]
    assert torch.equal(parallel_icm(words, free, cloze, rounds=3, odds=21.0), words)  # e to the third is 20.1


def test_two_words_that_contradict_each_other_from_afar_settle() -> None:
    words = torch.tensor([[0, 1, 0, 0, 0, 0, 0, 0, 2, 0]])

    def cloze(words: Tensor) -> Tensor:
        logits = torch.zeros(1, 10, 3)
        logits[0, 1, words[0, 8]], logits[0, 8, words[0, 1]] = 3.0, 2.0
        return logits

    free = words > 0
    assert parallel_icm(words, free, cloze, rounds=1, odds=2.0).tolist() == [[0, 2, 0, 0, 0, 0, 0, 0, 1, 0]]  # both give way
    assert parallel_icm(words, free, cloze, rounds=6, odds=2.0).tolist() == [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0]]


def test_settling_stays_within_what_is_allowed() -> None:
    words, free = torch.tensor([[1, 2, 1], [1, 2, 2]]), torch.ones(2, 3, dtype=torch.bool)

    def cloze(words: Tensor) -> Tensor:
        logits = torch.zeros(2, 3, 4)
        logits[:, 0, 3], logits[:, 2, 3] = 2.0, 3.0
        logits[1, 1] = -math.inf  # nothing may stand there, and so nothing changes
        return logits

    def allowed(words: Tensor) -> Tensor:
        return (words == 3).sum(1) < 2

    assert parallel_icm(words, free, cloze, rounds=1, odds=2.0, near=0).tolist() == [[3, 2, 3], [3, 2, 3]]
    assert parallel_icm(words, free, cloze, rounds=1, odds=2.0, near=0, allowed=allowed).tolist() == [[1, 2, 3], [1, 2, 3]]
