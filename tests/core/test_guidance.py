"""Mechanisms of guidance against Bayes' rule where it can be computed, and against the paper's reference step."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from diffusionlm.config import UserError, build
from diffusionlm.core.guidance import Adagrad, Energy, Guidance, GuidanceState
from diffusionlm.core.process import Gaussian, GaussianDiffusion, alpha, sigma
from diffusionlm.core.sampler import Denoised
from diffusionlm.pipelines.gradient import Gradient, gini_impurity, linearised, word_slopes
from diffusionlm.pipelines.particles import ParticleFilter, Particles
from diffusionlm.recipe.energies import any_of, none_of, scaled, total
from diffusionlm.recipe.posterior import posterior_state
from diffusionlm.recipe.schedules import Cosine

MASK = torch.ones(1, 3, dtype=torch.bool)
E = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.2, -2.0], [0.0, 1.0]])


def _constant(p: float) -> Tensor:
    return torch.tensor([-math.log(p)])


def _belief(logits: Tensor, xt: Tensor | None = None) -> GuidanceState:
    xt = torch.zeros(*logits.shape[:2], 2) if xt is None else xt
    return GuidanceState(xt, torch.full((len(logits),), 0.5), MASK, lambda: Denoised(logits.softmax(-1) @ E, logits))


def test_the_algebra_is_that_of_independent_events() -> None:
    belief = _belief(torch.zeros(1, 3, 4))
    one, other = (lambda _: _constant(0.3)), (lambda _: _constant(0.4))
    assert float(total([one, other])(belief)) == pytest.approx(-math.log(0.12), rel=1e-5)
    assert float(any_of([one, other])(belief)) == pytest.approx(-math.log(1 - 0.7 * 0.6), rel=1e-5)
    assert float(none_of(one)(belief)) == pytest.approx(-math.log(0.7), rel=1e-5)
    assert float(scaled(one, 2.5)(belief)) == pytest.approx(-2.5 * math.log(0.3), rel=1e-5)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_opposite_of_certainty_is_finite(p: float) -> None:
    nats = torch.tensor([-math.log(p) if p else math.inf], requires_grad=True)
    value = none_of(lambda _: nats)(_belief(torch.zeros(1, 3, 4)))
    value.sum().backward()
    assert nats.grad is not None
    assert bool(value.isfinite().all()) and bool(nats.grad.isfinite().all())


def test_a_guidance_state_evaluates_the_denoiser_once_and_only_if_needed() -> None:
    calls: list[int] = []

    def denoise() -> Denoised:
        calls.append(1)
        return Denoised(torch.ones(1, 3, 2), torch.zeros(1, 3, 4))

    belief = GuidanceState(torch.zeros(1, 3, 2), torch.zeros(1), MASK, denoise)
    assert belief.xt.shape == (1, 3, 2) and not calls
    assert belief.x0.shape == (1, 3, 2) and belief.logits.shape == (1, 3, 4) and len(calls) == 1


def test_a_tilt_is_bayes_rule_where_log_p_is_linear_in_the_posterior() -> None:
    """With log p(c | w) = sum_i s(i, w_i), p(w | c) is p(w) exp(s), and the gradient is s itself."""
    logits, s = torch.randn(1, 3, 4), torch.randn(3, 4)

    def energy(belief: GuidanceState) -> Tensor:
        return -(belief.logits.exp() * s).sum((1, 2))

    for inner_steps in (1, 4):
        guidance = Gradient(logit_scale=1.0, early_multiplier=1.0, inner_steps=inner_steps)
        belief = posterior_state(logits, torch.zeros(1, 3, 2), torch.zeros(1), MASK, E)
        tilted = guidance.guide_logits(energy, logits, belief, E)
        torch.testing.assert_close(tilted.softmax(-1), (logits + s).softmax(-1))


def test_an_energy_is_differentiated_once_for_the_logits_and_through_the_denoiser() -> None:
    calls: list[int] = []
    to_logits, s, direction = torch.randn(2, 4), torch.randn(3, 4), torch.randn(2)

    def energy(belief: GuidanceState) -> Tensor:
        calls.append(1)
        return -(belief.logits.exp() * s).sum((1, 2)) + (belief.x0 @ direction).square().sum(1) + belief.xt.sin().sum((1, 2))

    def differentiated(through: Energy) -> tuple[Tensor, Tensor, GuidanceState]:
        xt = torch.linspace(-1, 1, 12).view(2, 3, 2).requires_grad_()
        belief = posterior_state(xt @ to_logits, xt, torch.zeros(2), MASK.expand(2, 3), E)
        weight = torch.tensor([3.0, 0.5])
        value = through(belief)
        (gradient,) = torch.autograd.grad((weight * value).sum(), xt, retain_graph=True)
        return value, gradient, belief

    value, expected, belief = differentiated(energy)
    slopes = word_slopes(energy, belief, E)
    calls.clear()
    found, gradient, belief = differentiated(partial(linearised, energy))
    assert torch.equal(found, value)
    torch.testing.assert_close(gradient, expected)
    assert torch.equal(word_slopes(energy, belief, E), slopes) and len(calls) == 1
    plain = _belief(torch.zeros(1, 3, 4))  # of a model without logits
    assert torch.equal(linearised(energy, plain), energy(plain))


def test_slopes_are_taken_through_vectors_and_of_noisy_vectors_too() -> None:
    logits, direction = torch.randn(1, 3, 4), torch.randn(2)
    xt, t = torch.randn(1, 3, 2), torch.full((1,), 0.5)
    expected = E @ direction
    expected = expected - (logits.softmax(-1) @ expected)[..., None]
    for energy in (lambda b: -(b.x0 @ direction).sum(1), lambda b: -(b.xt @ direction).sum(1)):
        torch.testing.assert_close(word_slopes(energy, posterior_state(logits, xt, t, MASK, E), E), expected)


def _token_energy(word: int, state: GuidanceState) -> Tensor:
    return -state.logits[:, 0, word]


def _pull(guidance: Gradient, energy: Energy, belief: GuidanceState, xt: Tensor) -> Tensor:
    """Return minus the gradient with respect to x_t of what is followed through the denoiser."""
    followed = guidance.denoiser_energy(energy, None)
    assert followed is not None
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(-followed(belief).sum(), xt, retain_graph=True)
    return slope


def test_the_early_multiplier_applies_while_the_posterior_is_open() -> None:
    xt, t, mask = torch.zeros(2, 3, 2), torch.zeros(2), torch.tensor([[True, True, True], [True, True, False]])
    logits = torch.zeros(2, 3, 4)
    logits[1, :2, 0] = 20.0  # sure of both of its words; what is beyond its end does not count
    torch.testing.assert_close(gini_impurity(posterior_state(logits, xt, t, mask, E)), torch.tensor([0.75, 0.0]))
    s = torch.randn(3, 4)

    def energy(belief: GuidanceState) -> Tensor:
        return -(belief.logits.exp() * s).sum((1, 2))

    once, thrice = (
        Gradient(logit_scale=1.0, early_multiplier=early_multiplier).guide_logits(
            energy, logits, posterior_state(logits, xt, t, mask, E), E
        )
        - logits
        for early_multiplier in (1.0, 3.0)
    )
    torch.testing.assert_close(thrice, once * torch.tensor([3.0, 1.0])[:, None, None])
    assert bool(once[0].abs().sum() > 0)


def test_guided_logits_start_from_the_state_of_the_shift() -> None:
    """The energy is evaluated once, and the guided logits have no gradient through the denoiser."""
    W, s, asked = torch.randn(2, 4), torch.randn(3, 4), []
    xt = torch.randn(1, 3, 2).requires_grad_()
    with torch.enable_grad():
        logits = xt @ W
        belief = posterior_state(logits, xt, torch.zeros(1), MASK, E)

    def energy(belief: GuidanceState) -> Tensor:
        if "once" not in belief.readings:
            asked.append(1)
            belief.readings["once"] = belief.logits.exp() * s + belief.xt.sum(-1, keepdim=True)
        return -belief.readings["once"].sum((1, 2))

    guidance = Gradient(logit_scale=1.0, denoiser_scale=1.0, early_multiplier=1.0)
    shift = _pull(guidance, energy, belief, xt)
    tilted = guidance.guide_logits(energy, logits.detach(), belief, E)
    assert len(asked) == 1
    p = (xt.detach() @ W).softmax(-1)
    slope = p * (s - (p * s).sum(-1, keepdim=True))
    torch.testing.assert_close(shift, slope @ W.T + 4)
    vector = (4 * E).sum(-1)
    expected = s + vector - (p * (s + vector)).sum(-1, keepdim=True)
    torch.testing.assert_close(tilted, logits.detach() + expected)


def test_the_gradient_through_the_denoiser_is_bayes_rule() -> None:
    """With the exact denoiser and log p(c | x_t) of one of its words, E[x_0 | x_t, c] is that word's vector."""
    q, t = GaussianDiffusion(Cosine()), torch.full((1,), 0.6, dtype=torch.float64)
    gamma = q.schedule.gamma(t)
    words = E.double()

    def denoise(xt: Tensor) -> Denoised:
        distances = (xt[..., None, :] - alpha(gamma) * words).square().sum(-1)
        logits = (-distances / (2 * sigma(gamma) ** 2)).log_softmax(-1)
        return Denoised(logits.softmax(-1) @ words, logits)

    xt = torch.randn(1, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    tweedie = (sigma(gamma) ** 2 / alpha(gamma))[:, None, None]
    for word in range(4):
        belief = GuidanceState(xt, t, MASK[:, :1], lambda: denoise(xt))
        shift = tweedie * _pull(Gradient(denoiser_scale=1.0, early_multiplier=1.0), partial(_token_energy, word), belief, xt)
        torch.testing.assert_close((denoise(xt).x0 + shift)[0, 0], words[word])


def test_strength_0_changes_nothing() -> None:
    logits = torch.randn(1, 3, 4)
    xt, t = torch.randn(1, 3, 2), torch.full((1,), 0.5)

    def energy(belief: GuidanceState) -> Tensor:
        return belief.logits.square().sum((1, 2)) + belief.xt.square().sum((1, 2))

    assert Gradient(strength=0.0).guide_logits(energy, logits, posterior_state(logits, xt, t, MASK, E), E) is logits
    assert Gradient(strength=0.0, denoiser_scale=3.0).denoiser_energy(energy, None) is None
    step = Gaussian(torch.zeros(1, 3, 2), torch.ones(1, 3, 2))
    moved = Adagrad(strength=0.0).guide_latents(energy, xt, t, step, lambda x: _belief(logits, x))
    assert torch.equal(moved, xt)


def test_a_fresh_adagrad_step_goes_along_the_sign() -> None:
    """x = (.3, -1.2, 0, 2), g = (1e-5, -40, 0, 3), learning rate .1: (.200001, -1.1, 0, 1.9)."""
    x, g = torch.tensor([[[0.3, -1.2, 0.0, 2.0]]]), torch.tensor([1e-5, -40.0, 0.0, 3.0])
    step = Gaussian(x, torch.ones_like(x))
    guidance = Adagrad(fluency=0.0, learning_rate=0.1, inner_steps=1)

    def believe(moved: Tensor) -> GuidanceState:
        return GuidanceState(moved, torch.ones(1), MASK[:, :1], lambda: Denoised(moved, moved))

    moved = guidance.guide_latents(lambda b: (b.xt * g).sum((1, 2)), x, torch.full((1,), 0.5), step, believe)
    torch.testing.assert_close(moved.flatten(), torch.tensor([0.200001, -1.1, 0.0, 1.9]), atol=1e-6, rtol=0)
    late = guidance.guide_latents(lambda b: (b.xt * g).sum((1, 2)), x, torch.full((1,), 0.04), step, believe)
    assert torch.equal(late, x)


def test_fresh_optimizers_take_longer_steps_than_one() -> None:
    """A kept Adagrad divides by the root of all squares so far: three equal gradients give 1 + 1/sqrt 2 + 1/sqrt 3 steps."""
    x = torch.zeros(1, 1, 2)
    step = Gaussian(x, torch.ones_like(x))

    def run(fresh: bool) -> float:
        guidance = Adagrad(fluency=0.0, learning_rate=0.1, inner_steps=3, fresh=fresh)
        moved = guidance.guide_latents(
            lambda b: b.xt.sum((1, 2)), x, torch.ones(1), step,
            lambda m: GuidanceState(m, torch.ones(1), MASK[:, :1], lambda: Denoised(m, m)),
        )  # fmt: skip
        return float(moved[0, 0, 0])

    assert run(True) == pytest.approx(-0.3, rel=1e-5)
    assert run(False) == pytest.approx(-0.1 * (1 + 1 / math.sqrt(2) + 1 / math.sqrt(3)), rel=1e-5)


def _swarm(count: int, texts: int = 1, strength: float = 1.0) -> ParticleFilter:
    generators = [torch.Generator().manual_seed(i) for i in range(texts)]
    return ParticleFilter(Particles(count=count, strength=strength), generators)


def test_particles_survive_in_proportion_to_their_weights() -> None:
    particle_filter = _swarm(8)
    particle_filter.weigh(torch.tensor([3.0, 3.0] + [math.log(1e-9)] * 6))
    kept = particle_filter.resample()
    assert kept is not None and kept.tolist() == [0] * 4 + [1] * 4
    assert bool((particle_filter.log_weights == 0).all())


def test_weights_count_what_has_changed_since_the_last_scoring() -> None:
    particle_filter = _swarm(4, strength=2.0)
    particle_filter.weigh(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    particle_filter.weigh(torch.tensor([0.5, 0.5, 0.5, 0.4]))
    torch.testing.assert_close(particle_filter.log_weights[0], 2 * torch.tensor([0.5, 0.5, 0.5, 0.4], dtype=torch.float64))
    assert particle_filter.resample() is None


def test_each_text_has_its_own_particles() -> None:
    particle_filter = _swarm(4, texts=2)
    particle_filter.weigh(torch.tensor([0.0, 0.0, 0.0, 0.0, 50.0, 0.0, 0.0, 0.0]))
    kept = particle_filter.resample()
    assert kept is not None and kept.tolist() == [0, 1, 2, 3, 4, 4, 4, 4]
    particle_filter.weigh(torch.tensor([0.0, 90.0, 0.0, 0.0, 50.0, 50.0, 140.0, 50.0]))
    assert particle_filter.chosen() == [1, 6]


def test_the_survivors_are_the_target_on_average() -> None:
    """Resampled counts average n times the weight (systematic resampling is unbiased)."""
    weights = torch.tensor([0.05, 0.15, 0.75, 0.05], dtype=torch.float64)
    counts = torch.zeros(4)
    for seed in range(2000):
        particle_filter = ParticleFilter(Particles(count=4, strength=1.0), [torch.Generator().manual_seed(seed)])
        particle_filter.weigh(weights.log())
        kept = particle_filter.resample()
        assert kept is not None
        counts += torch.bincount(kept, minlength=4)
    torch.testing.assert_close(counts / 8000, weights.float(), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("kind", "plain", "message"),
    [
        (Guidance, {"name": "gradient", "strength": -1}, "strength: expected 0 or more"),
        (Guidance, {"name": "gradient", "denoiser_scale": -1}, "denoiser_scale: expected 0 or more"),
        (Guidance, {"name": "adagrad", "inner_steps": 0}, "inner_steps: expected at least 1"),
        (Guidance, {"name": "gradient", "draft": 1}, "draft: expected a share from 0 to below 1"),
        (Guidance, {"name": "gradient", "inner_steps": 0}, "inner_steps: expected 1 to 10000"),
        (Guidance, "gradeint", "did you mean 'gradient'"),
        (Particles, {"count": 0}, "count: expected 1 to 10000"),
    ],
)
def test_wrong_settings_are_refused(kind: type, plain: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(kind, plain)
