"""The likelihood by the probability flow: densities and languages of known truth, and what the command prints and refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from exact_scores import TILTED, TWO_MODES, Mixture
from test_likelihood import ALL_FREE, ODDS, PAPER, ROWS, SENTENCES, START, WORDS, _model, bayes
from test_scoring import refusal, scored
from tiny_runs import ROOT
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.core.process import alpha, sigma
from diffusionlm.core.sampler import Denoised
from diffusionlm.evaluation.flow_likelihood import flow_bound, flow_terms
from diffusionlm.evaluation.likelihood import bound
from diffusionlm.evaluation.scoring import ScoringConfig
from diffusionlm.recipe.flow import flow_nats
from diffusionlm.recipe.processes import VarianceExploding
from diffusionlm.recipe.score import rademacher

MODEL = str(ROOT / "tests" / "golden" / "format-1")


@pytest.mark.parametrize("truth", [TILTED, TWO_MODES], ids=["gaussian", "mixture"])
def test_the_density_of_points(truth: Mixture) -> None:
    """At gamma = low the density is that of the noisy points; the trace is exact on average over the probes."""
    low, high, draws = -3.0, 9.0, 40
    a, s = (float(each(torch.tensor(low).double())) for each in (alpha, sigma))
    y = truth.means[-1] + torch.tensor([[0.4, -0.7], [0.0, 1.5]]).double()
    log_density, _ = truth.noisy(y, s / a)
    x = (a * y).repeat_interleave(draws, 0)
    nats, evaluations = flow_nats(truth.x0_at(), x, low, high, rademacher(x), 1e-5)
    found, errors = nats.view(2, draws).mean(1), nats.view(2, draws).std(1) / draws**0.5
    expected = -log_density + 2 * math.log(a)
    assert bool(((found - expected).abs() < 5 * errors + 5e-3).all())
    assert 20 < evaluations < 1000


def test_two_words_cost_ln_2() -> None:
    """Words at -1 and 1 in one dimension: one probe is exact, so every draw is the likelihood itself."""

    def exact(xt: Tensor, gamma: Tensor) -> Denoised:
        logit = (alpha(gamma) / sigma(gamma) ** 2)[:, None, None] * xt
        return Denoised(logit.tanh(), torch.cat([-logit, logit], -1))

    x0, ids, free = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.long), torch.ones(1, dtype=torch.bool)
    found = flow_terms(exact, x0, ids, free, -3.0, 12.0, draws=20, tolerance=1e-6)
    assert found.nats == pytest.approx(0.693147, abs=2e-4)
    assert found.deviation < 1e-4


@pytest.mark.parametrize("sentence", [0, 3])
def test_the_exact_denoiser_reaches_each_sentences_probability(sentence: int) -> None:
    ids = SENTENCES[sentence]
    found = flow_terms(bayes, WORDS[ids], ids, ALL_FREE, -3.0, 10.0, draws=60)
    assert found.nats == pytest.approx(-math.log(ODDS[sentence]), abs=4 * found.deviation + 0.01)
    assert found.deviation < 0.5  # of the trace: 2.9 nats in a draw


def test_given_words_cost_nothing() -> None:
    """With the first two words of a sentence given, the last costs the logarithm of its share."""
    ids, free = SENTENCES[0], torch.tensor([False, False, True])

    def held(xt: Tensor, gamma: Tensor) -> Denoised:
        odds = torch.tensor([0.5, 0.2], dtype=torch.float64)
        a, s2 = alpha(gamma)[:, None], sigma(gamma)[:, None] ** 2
        vectors = WORDS[SENTENCES[:2, 2]]
        posterior = (odds.log() + (a / s2) * (xt[:, 2] @ vectors.T) - a**2 / s2 / 2 * vectors.square().sum(1)).softmax(-1)
        words = torch.zeros(len(xt), 3, 5, dtype=torch.float64)
        words[:, 2, SENTENCES[:2, 2]] = posterior
        return Denoised(words @ WORDS, words.clamp(min=1e-300).log())

    found = flow_terms(held, WORDS[ids], ids, free, -3.0, 10.0, draws=60)
    assert found.nats == pytest.approx(-math.log(0.5 / 0.7), abs=4 * found.deviation + 0.01)


@pytest.mark.parametrize("settings", [{}, {**PAPER, "schedule": "geometric"}])
def test_an_estimate_depends_on_seed_text_and_number_alone(settings: dict[str, Any]) -> None:
    model = _model(**settings)
    one = list(flow_bound(model, [ROWS[2], ROWS[1]], draws=2, seed=3))
    assert list(flow_bound(model, ROWS[2:], draws=2, seed=3)) == one[:1]
    (apart,) = flow_bound(model, ROWS[2:], draws=2, seed=3, batch_size=1)
    assert apart.nats == pytest.approx(one[0].nats, rel=2e-3)  # the tolerance of the solver
    assert next(flow_bound(model, ROWS[2:], draws=2, seed=4)).nats != one[0].nats
    assert all(math.isfinite(each.nats) and each.deviation > 0 and each.evaluations > 10 for each in one)


def test_the_process_does_not_matter() -> None:
    model = _model()
    (one,) = flow_bound(model, ROWS[2:], draws=2)
    model.process = VarianceExploding(model.process.schedule, 3.0)
    (other,) = flow_bound(model, ROWS[2:], draws=2)
    assert other.nats == pytest.approx(one.nats, rel=1e-3)


def test_a_model_without_context_costs_what_its_bound_says() -> None:
    """A network that is silent leaves the evidence, an exact denoiser of equally probable words: both are the truth."""
    model = _model(dimension=16, self_conditioning=False)
    network: Any = model.network
    torch.nn.init.zeros_(network.down.weight)
    torch.nn.init.zeros_(network.down.bias)
    row = [START, 5, 9, 4, 11, 3]
    (flow,), (joint,) = flow_bound(model, [row], draws=12), bound(model, [row], strata=256)
    truth = 4 * math.log(9) + flow.length
    assert flow.nats == pytest.approx(truth, abs=4 * flow.deviation + 0.05)
    assert joint.nats == pytest.approx(truth, abs=4 * joint.deviation + 0.05)


def test_what_the_command_prints(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.txt").write_text("The food is good.")
    (row,), said = scored([MODEL, str(tmp_path / "one.txt")], capsys, ["--flow", "2"])
    assert "by the probability flow at most " in said and f"{row['evaluations']} evaluations per text" in said
    (other,), said = scored([MODEL, str(tmp_path / "one.txt")], capsys)
    assert "flow" not in said and "evaluations" not in other
    for extra, name in ((["--strata", "8"], "strata"), (["--orders", "4"], "orders")):
        error = refusal([MODEL, str(tmp_path / "one.txt"), "--flow", "2", *extra], capsys)
        assert f"{name}: the probability flow draws neither noise levels nor orders" in error


def test_the_number_of_draws() -> None:
    for wrong in (1, -1):
        with pytest.raises(UserError, match=r"flow: expected 0 \(the joint bound\) or 2 or more, got"):
            ScoringConfig(flow=wrong)
    with pytest.raises(UserError, match="flow: expected at most 10000, got 10001"):
        ScoringConfig(flow=10001)
