"""Noise schedules: reference numbers, monotonicity, the times they train and sample at, the Gumbel density."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.core.schedule import NoiseSchedule, Sqrt, StepSchedule
from diffusionlm.recipe.gumbel import Gumbel
from diffusionlm.recipe.schedules import Cosine, Geometric, Linear, shifted, times_at

STEP_SCHEDULES: list[StepSchedule] = [Sqrt(), Cosine(), Linear(), Sqrt(T=7), Cosine(T=7), Linear(T=100)]
ALL: list[NoiseSchedule] = [*STEP_SCHEDULES, Gumbel()]


def _time(index: int, T: int = 2000) -> Tensor:
    """Return the time of index ``index`` of the released code, where index 0 is the first noisy level."""
    return torch.tensor((index + 1) / T, dtype=torch.float64)


def _alpha2(schedule: NoiseSchedule, t: Tensor) -> float:
    return float(torch.sigmoid(-schedule.gamma(t)))


@pytest.mark.parametrize(
    ("index", "alpha2", "deviation", "beta"),
    [
        (0, "0.9853586895", "0.1210012832", "1.4641310533e-02"),
        (1, "0.9765997496", "0.1529714039", "8.8890877688e-03"),
        (49, "0.8500709140", "0.3872067743", "1.8809372431e-03"),
        (999, "0.2957803148", "0.8391779818", "1.2061229573e-03"),
        (1999, "2.0204040808e-07", "0.9999998990", "9.9900000000e-01"),
    ],
)
def test_sqrt_reference(index: int, alpha2: str, deviation: str, beta: str) -> None:
    now, before = Sqrt().gamma(_time(index)), Sqrt().gamma(_time(index - 1))
    signal = float(torch.sigmoid(-now))
    assert f"{signal:.10{'e' if 'e' in alpha2 else 'f'}}" == alpha2
    assert f"{float(torch.sigmoid(now).sqrt()):.10f}" == deviation
    assert f"{1 - signal / float(torch.sigmoid(-before)):.10e}" == beta


def test_sqrt_closed_form() -> None:
    t = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)
    truth = (1 - torch.sqrt(t + 1e-4)) / (1 - math.sqrt(1e-4))
    torch.testing.assert_close(torch.sigmoid(-Sqrt().gamma(t)), truth, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("schedule", "deviation"), [(Sqrt(), "0.387207"), (Cosine(), "0.049871"), (Linear(T=2000), "0.092528")]
)
def test_deviation_at_index_49(schedule: StepSchedule, deviation: str) -> None:
    assert f"{float(torch.sigmoid(schedule.gamma(_time(49))).sqrt()):.6f}" == deviation


@pytest.mark.parametrize("schedule", ALL)
def test_the_time_of_a_level_is_the_inverse(schedule: NoiseSchedule) -> None:
    t = torch.tensor([[0.01, 0.3], [0.5, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.gamma(t)), t, rtol=1e-9, atol=1e-9)


def test_linear_is_the_product_of_one_minus_beta() -> None:
    beta = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    t = torch.arange(1, 1000, dtype=torch.float64) / 1000
    truth = torch.cumprod(1 - beta, 0)[:-1]
    torch.testing.assert_close(torch.sigmoid(-Linear().gamma(t)), truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("schedule", STEP_SCHEDULES)
def test_step_schedules_start_clean_and_end_at_their_last_beta(schedule: StepSchedule) -> None:
    T = schedule.T
    assert float(schedule.gamma(torch.zeros(()))) == -math.inf
    ratio = _alpha2(schedule, _time(T - 1, T)) / _alpha2(schedule, _time(T - 2, T))
    last = 1 - 0.02 * 1000 / T if isinstance(schedule, Linear) else 1e-3
    assert ratio == pytest.approx(last, rel=1e-9)


@pytest.mark.parametrize("schedule", ALL)
def test_gamma_rises(schedule: NoiseSchedule) -> None:
    t = torch.linspace(0, 1, min(schedule.max_steps, 2000) + 1, dtype=torch.float64)
    assert bool((schedule.gamma(t).diff() > 0).all())
    fine = schedule.gamma(torch.linspace(0, 1, 9973, dtype=torch.float64))
    assert bool((fine.diff() >= 0).all())


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_shape_in_the_same_shape_out_in_float64(
    schedule: NoiseSchedule, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    u = torch.rand(shape, dtype=dtype)
    for result in (schedule.gamma(u), schedule.training_times(u)):
        assert result.shape == shape
        assert result.dtype == torch.float64


@pytest.mark.parametrize("schedule", STEP_SCHEDULES)
def test_training_times_reach_every_step_equally(schedule: StepSchedule) -> None:
    T = schedule.T
    u = (torch.arange(3 * T, dtype=torch.float64) + 0.5) / (3 * T)
    times = schedule.training_times(u).sort().values
    torch.testing.assert_close(times, (torch.arange(1, T + 1, dtype=torch.float64) / T).repeat_interleave(3))
    assert float(schedule.training_times(torch.zeros(()))) == 1 / T


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_sampling_times_fall_from_1_to_0(schedule: NoiseSchedule, steps: int) -> None:
    times = schedule.sampling_times(steps)
    assert times.shape == (steps + 1,)
    assert (float(times[0]), float(times[-1])) == (1, 0)
    assert bool((times.diff() < 0).all())


@pytest.mark.parametrize("schedule", [*ALL, Geometric()])
@pytest.mark.parametrize("shift", [-30.0, -1.5, 0.0, 0.7, 30.0])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_a_shift_moves_gamma_between_the_ends_of_the_schedule(schedule: NoiseSchedule, shift: float, steps: int) -> None:
    own = schedule.sampling_times(steps)
    times = shifted(own, schedule, shift)
    assert times.shape == own.shape and bool((times.diff() < 0).all())
    assert torch.equal(times[[0, -1]], own[[0, -1]])
    gamma, moved = schedule.gamma(own[1:-1]), schedule.gamma(times[1:-1])
    lowest = schedule.gamma(own[-1:])
    lowest = lowest if bool(lowest.isfinite()) else schedule.gamma(torch.tensor([1 / schedule.max_steps]))
    inside = (gamma + shift < schedule.gamma(own[:1]) - 0.1) & (gamma + shift > lowest + 0.1)
    torch.testing.assert_close(moved[inside], (gamma + shift)[inside], rtol=0, atol=1e-3)
    if abs(shift) < 1 and steps == 6:
        assert int(inside.sum()) >= 3


@pytest.mark.parametrize("schedule", [*ALL, Geometric(), Cosine(offset=0), Gumbel(low=-1, end=0, high=1)])
@pytest.mark.parametrize("shift", [-100.0, -1e-9, 0.5, 100.0])
def test_a_shift_never_leaves_the_schedule_whatever_the_number_of_steps(schedule: NoiseSchedule, shift: float) -> None:
    for steps in (2, schedule.max_steps // 2, schedule.max_steps):
        times = shifted(schedule.sampling_times(steps), schedule, shift)
        assert (float(times[0]), float(times[-1])) == (1, 0) and bool((times.diff() < 0).all())
        assert bool(schedule.gamma(times[:-1]).isfinite().all())
        if not bool(schedule.gamma(times[-1:]).isfinite()):  # no step is at less noise than those of training
            assert float(times[-2]) >= 1 / schedule.max_steps - 1e-12


@pytest.mark.parametrize("schedule", [*ALL, Geometric()])
def test_shares_of_a_run_are_nested_and_those_of_its_own_steps(schedule: NoiseSchedule) -> None:
    few, many = (times_at(schedule, torch.linspace(1, 0, steps + 1)) for steps in (4, 8))
    assert torch.equal(few, many[::2]) and (float(few[0]), float(few[-1])) == (1, 0) and bool((many.diff() < 0).all())
    steps = min(1024, schedule.max_steps)
    own = schedule.sampling_times(steps)
    torch.testing.assert_close(times_at(schedule, torch.linspace(1, 0, steps + 1, dtype=torch.float64)), own)
    between = times_at(schedule, torch.tensor([[0.3, 0.3 + 0.2 / 1024]]))
    assert between.shape == (1, 2) and float(between[0, 0]) < float(between[0, 1])


@pytest.mark.parametrize("schedule", STEP_SCHEDULES)
def test_step_schedules_sample_at_even_times(schedule: StepSchedule) -> None:
    torch.testing.assert_close(schedule.sampling_times(4), torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64))
    assert len(schedule.sampling_times(schedule.T)) == schedule.T + 1


@pytest.mark.parametrize(
    ("schedule", "limit", "name"), [(Sqrt(), 2000, "sqrt"), (Linear(T=10), 10, "linear"), (Gumbel(), 4096, "gumbel")]
)
@pytest.mark.parametrize("excess", [True, False])
def test_impossible_step_counts(schedule: NoiseSchedule, limit: int, name: str, excess: bool) -> None:
    steps = limit + 1 if excess else 0
    with pytest.raises(UserError, match=rf"^steps: expected 1 to {limit} for the {name} schedule, got {steps}$"):
        schedule.sampling_times(steps)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"end": -7.0}, "low, end, high: expected low <= end < high, got -6.0, -7.0, 9.0"),
        ({"end": 9.0}, "low, end, high: expected low <= end < high, got -6.0, 9.0, 9.0"),
        ({"scale": 0.0}, "scale: expected a positive number, got 0.0"),
        ({"uniform_share": 1.5}, "uniform_share: expected a share between 0 and 1, got 1.5"),
    ],
)
def test_impossible_gumbels(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        Gumbel(**settings)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("kind", [Sqrt, Cosine, Linear])
def test_a_schedule_needs_two_steps(kind: type[Sqrt] | type[Cosine] | type[Linear]) -> None:
    with pytest.raises(UserError, match=r"^T: expected at least 2 steps, got 1$"):
        kind(T=1)


@pytest.mark.parametrize(("dimension", "end"), [(16, "-0.19"), (32, "0.50"), (64, "1.19"), (128, "1.89")])
def test_gumbel_for_words(dimension: int, end: str) -> None:
    schedule = Gumbel.for_words(dimension, 821, 4.5)
    assert f"{schedule.end:.2f}" == end
    assert schedule.location == pytest.approx(math.log(dimension / (2 * math.log(821))) + 1.1)
    assert (schedule.scale, schedule.entropy) == (0.9, 4.5)


def _truncated_cdf(schedule: Gumbel, gamma: Tensor) -> Tensor:
    """Return the closed-form distribution function of the Gumbel law kept between ``end`` and ``high``."""

    def whole(g: Tensor | float) -> Tensor:
        return torch.exp(-torch.exp(-(torch.as_tensor(g, dtype=torch.float64) - schedule.location) / schedule.scale))

    lowest, highest = whole(schedule.end), whole(schedule.high)
    return (whole(gamma) - lowest) / (highest - lowest)


GUMBELS = [
    Gumbel(),
    Gumbel(location=1.0, scale=1.4, entropy=3, end=0.0, uniform_share=0.25, training_shift=0),
    Gumbel(uniform_share=0),
]


@pytest.mark.parametrize("schedule", GUMBELS)
def test_gumbel_training_times_follow_its_density(schedule: Gumbel) -> None:
    learned = 1 - schedule.uniform_share
    quantile = torch.linspace(0, 0.999, 500, dtype=torch.float64)
    gamma = schedule.gamma(schedule.training_times(quantile * learned))
    drawn_from = replace(schedule, location=schedule.location - schedule.training_shift)
    torch.testing.assert_close(_truncated_cdf(drawn_from, gamma), quantile, rtol=0, atol=1e-9)
    assert schedule.end - 1e-9 <= float(gamma.min())
    assert float(gamma.max()) <= schedule.high


@pytest.mark.parametrize("schedule", GUMBELS[:2])
def test_a_share_of_gumbel_training_times_is_uniform(schedule: Gumbel) -> None:
    share = schedule.uniform_share
    position = torch.linspace(0.001, 0.999, 100, dtype=torch.float64)
    times = schedule.training_times(1 - share + share * position)
    torch.testing.assert_close(schedule.gamma(times), schedule.low + (schedule.high - schedule.low) * position)


def test_all_gumbel_training_times_uniform() -> None:
    u = torch.linspace(0, 0.999, 100, dtype=torch.float64)
    torch.testing.assert_close(Gumbel(uniform_share=1).training_times(u), u)


@pytest.mark.parametrize("schedule", GUMBELS)
@pytest.mark.parametrize("steps", [2, 3, 64])
def test_gumbel_sampling_grid_is_even_in_quantile(schedule: Gumbel, steps: int) -> None:
    gamma = schedule.gamma(schedule.sampling_times(steps))
    truth = torch.linspace(1, 0, steps, dtype=torch.float64)
    torch.testing.assert_close(_truncated_cdf(schedule, gamma[:-1]), truth, rtol=0, atol=1e-9)
    assert float(gamma[-2]) == pytest.approx(schedule.end)
    assert float(gamma[-1]) == schedule.low
