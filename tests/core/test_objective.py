"""Objectives: closed-form losses, the bound of a toy language, where gradients go, what is noised and scored."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, cast

import numpy
import pytest
import torch
from torch import Tensor, nn

from diffusionlm.config import UserError, build, merge, to_plain
from diffusionlm.core.objective import Batch, Objective, lowest_deviation
from diffusionlm.core.process import Gaussian, GaussianDiffusion, alpha, sigma
from diffusionlm.core.sampler import Denoised
from diffusionlm.core.schedule import Sqrt
from diffusionlm.models.diffusion import DiffusionLM, DiffusionLMConfig, ModelConfig
from diffusionlm.recipe.cross_entropy import CrossEntropy, CrossEntropyObjective
from diffusionlm.recipe.gumbel import Gumbel
from diffusionlm.recipe.regression import ImportanceTimes, Regression, VariationalObjective, bound_term, kl, log_density

VOCABULARY, PAD, UNKNOWN, START, END = 12, 0, 1, 2, 3
SMALL: dict[str, Any] = {
    "dimension": 6,
    "backbone": {"name": "transformer", "layers": 1, "width": 16, "heads": 2},
}
VECTORS: dict[str, Any] = {
    "prediction": "x0",
    "embedding": "free",
    "self_conditioning": False,
    "schedule": {"name": "sqrt", "T": 20},
}


def _model(**settings: Any) -> DiffusionLM:
    config = build(ModelConfig, merge({**SMALL, "evidence_input": False}, settings))
    return DiffusionLM(DiffusionLMConfig(settings=to_plain(config), vocabulary=VOCABULARY, max_tokens=10))


def _batch(count: int, lengths: list[int], width: int = 10) -> Batch:
    ids, mask = _texts(count, lengths, width)
    return Batch(ids=ids, mask=mask)


def _texts(count: int, lengths: list[int], width: int = 10) -> tuple[Tensor, Tensor]:
    """Return ids (B, L) framed by START and END, and their mask; lengths repeat over the batch."""
    ids = torch.randint(4, VOCABULARY, (count, width))
    mask = torch.arange(width) < torch.tensor([lengths[i % len(lengths)] for i in range(count)])[:, None]
    ids[:, 0] = START
    ids.scatter_(1, mask.sum(1, keepdim=True) - 1, END)
    return torch.where(mask, ids, PAD), mask


class _Network(nn.Module):
    """A network that answers with ``output`` and keeps what it was last told."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output
        self.latents, self.t, self.gamma = torch.zeros(()), torch.zeros(()), torch.zeros(())

    def forward(self, latents: Tensor, t: Tensor, gamma: Tensor, mask: Tensor | None) -> Tensor:
        self.latents, self.t, self.gamma = latents, t, gamma
        return self.output.expand(*latents.shape[:2], -1)


@dataclass(frozen=True)
class SqrtAt(Sqrt):
    """The sqrt schedule, trained at one time only: step ``at``."""

    at: int = 1

    def training_times(self, u: Tensor) -> Tensor:
        return torch.full_like(u, self.at / self.T, dtype=torch.float64)


# The regression's closed forms


def test_the_lowest_level_of_the_papers_schedule() -> None:
    q = GaussianDiffusion(Sqrt())
    assert f"{lowest_deviation(q, Sqrt().T) ** 2:.10f}" == "0.0146413105"


@pytest.mark.parametrize(("at", "truth"), [(1, 1.0), (2, 1.0146413105), (1000, 1.0146413105), (2000, 1.0146413105)])
def test_the_error_of_a_zero_predictor_on_vectors_of_unit_variance(at: int, truth: float) -> None:
    model = _model(**VECTORS | {"embedding": "normalised"})
    model.set_schedule(SqrtAt(at=at))
    model.network = _Network(torch.zeros(6))
    ids = torch.randint(VOCABULARY, (4000, 10))
    loss = Regression().build(model)(Batch(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool)))["regression"]
    tolerance = 1e-5 if at == 1 else 5 * (4 * 0.0146 / ids.numel() / 6) ** 0.5
    assert loss.item() == pytest.approx(truth, abs=tolerance)


@pytest.mark.parametrize(("at", "truth"), [(1, 0.0), (2, 0.0146413105), (1000, 0.0146413105), (2000, 0.0146413105)])
def test_the_error_of_an_exact_denoiser(at: int, truth: float) -> None:
    model = _model(**VECTORS)
    model.set_schedule(SqrtAt(at=at))
    ids = torch.randint(VOCABULARY, (4000, 10))
    model.network = _Network(model.word_vectors().detach()[ids])
    loss = Regression().build(model)(Batch(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool)))["regression"]
    assert loss.item() == pytest.approx(truth, rel=5 * (2 / ids.numel() / 6) ** 0.5)


def test_the_prior_term() -> None:
    model = _model(**VECTORS)
    model.set_schedule(Sqrt(T=2))  # of which a visible 0.001 alpha^2(1/2) of the words is left at t = 1
    ids = torch.randint(VOCABULARY, (4000, 10))
    prior = Regression().build(model)(Batch(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool)))["prior"]
    q, E = model.process, model.word_vectors()
    alpha2 = float(alpha(q.schedule.gamma(torch.ones(()))) ** 2)
    truth = alpha2 * (E[ids].square().mean().item() + lowest_deviation(q, 2) ** 2)
    assert prior.item() == pytest.approx(truth, rel=0.02)


@pytest.mark.parametrize("loss", ["l1", "huber"])
def test_the_other_regressions_of_a_known_error(loss: str) -> None:
    """An error of 2 in every coordinate costs 2 in L1 and 1.5 in Huber's loss."""
    model = _model(**VECTORS)
    model.set_schedule(SqrtAt(at=1))
    ids = torch.randint(VOCABULARY, (3, 10))
    model.network = _Network(model.word_vectors().detach()[ids] + 2)
    objective = build(Regression, {"loss": loss}).build(model)
    found = objective(Batch(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool)))["regression"]
    assert found.item() == pytest.approx({"l1": 2.0, "huber": 1.5}[loss], rel=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_target_is_what_the_model_predicts(prediction: str) -> None:
    """A network that puts out zeros errs by the target itself, whose mean square is closed-form."""
    model = _model(**VECTORS | {"prediction": prediction, "embedding": "normalised"})
    model.set_schedule(SqrtAt(at=600))
    model.network = _Network(torch.zeros(6))
    ids = torch.randint(VOCABULARY, (4000, 10))
    loss = Regression().build(model)(Batch(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool)))["regression"]
    gamma = model.process.schedule.gamma(torch.tensor(0.3, dtype=torch.float64))
    signal, noise = float(alpha(gamma) ** 2), float(sigma(gamma) ** 2)
    truth = {"eps": 1.0, "v": signal + noise * 1.0146413105}[prediction]
    assert loss.item() == pytest.approx(truth, rel=0.015)


# Gradients


def _gradients(objective: Objective, terms: list[Tensor]) -> dict[str, Tensor]:
    objective.zero_grad()
    cast(Tensor, sum(terms)).backward()
    return {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_rounding_never_touches_the_network(prediction: str) -> None:
    objective = Regression().build(_model(**VECTORS | {"prediction": prediction}))
    terms = objective(_batch(8, [10]))
    found = _gradients(objective, [terms["rounding"]])
    assert all(float(g.abs().max()) == 0 for name, g in found.items() if ".network." in name)
    assert float(found["model.embedding.weight"].abs().sum()) > 0
    assert float(found["model.rounding_bias"].abs().sum()) > 0


@pytest.mark.parametrize("loss", ["l2", "l1", "huber", "vlb"])
@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
@pytest.mark.parametrize("variance", ["posterior", "upper", "learned"])
@pytest.mark.parametrize("times", ["uniform", "importance"])
def test_every_regression_trains_every_weight(loss: str, prediction: str, variance: str, times: str) -> None:
    model = _model(**VECTORS | {"prediction": prediction, "learned_variance": variance == "learned"})
    objective = build(Regression, {"loss": loss, "variance": variance, "times": times}).build(model)
    terms = objective(_batch(60, [10, 7]))
    assert set(terms) == (
        {"vlb", "prior"} if loss == "vlb"
        else {"regression", "rounding", "prior", "vlb"} if variance == "learned"
        else {"regression", "rounding", "prior"}
    )  # fmt: skip
    assert all(term.shape == () and bool(term.isfinite()) for term in terms.values())
    found = _gradients(objective, list(terms.values()))
    assert set(found) == {name for name, p in objective.named_parameters() if p.requires_grad}
    assert all(bool(g.isfinite().all()) for g in found.values())
    # Positions beyond the texts' ends are all that the losses do not reach.
    assert all(float(g.abs().sum()) > 0 for g in found.values())


def test_learned_variances_leave_the_mean_to_the_regression() -> None:
    model = _model(**VECTORS | {"learned_variance": True})
    objective = Regression(variance="learned").build(model)
    found = _gradients(objective, [objective(_batch(60, [10]))["vlb"]])
    last = found["model.network.down.weight"]
    assert float(last[:6].abs().max()) == 0
    assert float(last[6:].abs().min()) > 0


@pytest.mark.parametrize("self_conditioning", [True, False])
@pytest.mark.parametrize("mixed_share", [0.0, 0.5, 1.0])
def test_cross_entropy_trains_every_weight(mixed_share: float, self_conditioning: bool) -> None:
    objective = CrossEntropy(mixed_share=mixed_share).build(_model(self_conditioning=self_conditioning))
    terms = objective(_batch(16, [10, 7]))
    found = _gradients(objective, list(terms.values()))
    assert set(found) == {name for name, _ in objective.named_parameters()}
    untouched = {"curve"} if mixed_share == 1 else set()
    assert {name for name, g in found.items() if not bool(g.isfinite().all()) or float(g.abs().sum()) == 0} == untouched


def test_cross_entropy_does_not_learn_the_schedule_nor_the_schedule_the_words() -> None:
    objective = CrossEntropy(mixed_share=0).build(_model())
    terms = objective(_batch(16, [10]))
    assert set(_gradients(objective, [terms["schedule"]])) == {"curve"}
    terms = objective(_batch(16, [10]))
    assert "curve" not in _gradients(objective, [terms["cross_entropy"]])


def test_a_frozen_embedding_stays_as_it_is() -> None:
    objective = CrossEntropy().build(_model(embedding="frozen"))
    terms = objective(_batch(16, [10]))
    assert "model.embedding.weight" not in _gradients(objective, list(terms.values()))


# Padding


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        (Regression(), VECTORS),
        (Regression(loss="vlb"), VECTORS),
        (Regression(variance="learned"), VECTORS | {"learned_variance": True}),
        (CrossEntropy(mixed_share=0.5), {}),
    ],
)
def test_padding_does_not_count(spec: CrossEntropy | Regression, settings: dict[str, Any]) -> None:
    objective = spec.build(_model(**settings)).train(False)
    ids, mask = _texts(8, [10, 7, 4])
    found = []
    for filler in (PAD, 7):
        torch.manual_seed(1)
        found.append({k: float(v.detach()) for k, v in objective(Batch(ids=torch.where(mask, ids, filler), mask=mask)).items()})
    assert found[0] == pytest.approx(found[1], rel=1e-5)


# The likelihood bound of a toy language


class _TwoWords:
    """What the bound asks of a model, for words at -1 and 1 in one dimension with equal odds: exact Bayes rounding."""

    def __init__(self, deviation: float) -> None:
        self.deviation = deviation

    def decode(self, x: Tensor) -> Tensor:
        return x * torch.tensor([-1.0, 1.0], dtype=x.dtype) / self.deviation**2


def test_the_bound_of_two_words() -> None:
    """The exact posterior mean's discrete bound is 0.733484 nats, above the language's entropy ln 2 = 0.6931."""
    schedule = Sqrt()
    q, T, deviation = GaussianDiffusion(schedule), schedule.T, lowest_deviation(GaussianDiffusion(schedule), schedule.T)
    nodes, weights = numpy.polynomial.hermite_e.hermegauss(40)
    pairs = torch.tensor(list(itertools.product(nodes, nodes)))
    weight = torch.tensor([a * b for a, b in itertools.product(weights, weights)]) / (2 * math.pi)
    first, second = pairs[:, 0].view(1, -1, 1), pairs[:, 1].view(1, -1, 1)
    terms = []
    for times in (torch.arange(1, T + 1, dtype=torch.float64) / T).chunk(8):
        words = torch.ones(len(times), len(pairs), 1, dtype=torch.float64)  # by symmetry the word at 1 is enough
        x0 = words + deviation * first
        xt = q.noise(x0, times, second.expand_as(x0))
        a, s = (level(schedule.gamma(times)).view(-1, 1, 1) for level in (alpha, sigma))
        spread = a**2 * deviation**2 + s**2  # the variance of x_t given the word
        word = torch.tanh(a * xt / spread)
        mean = word + a * deviation**2 / spread * (xt - a * word)
        term = bound_term(
            q, schedule.T, Denoised(mean, mean), words, x0, xt, times, torch.ones(words.shape[:2], dtype=torch.long),
            "posterior", cast(DiffusionLM, _TwoWords(deviation)),
        )  # fmt: skip
        terms.append(term @ weight)
    gamma = schedule.gamma(torch.ones(1, dtype=torch.float64))
    x0 = 1 + deviation * torch.tensor(nodes)
    last = kl(Gaussian(alpha(gamma) * x0, sigma(gamma) ** 2), Gaussian(torch.zeros(1), torch.ones(1).double()))
    prior = float(last @ torch.tensor(weights)) / math.sqrt(2 * math.pi)
    bound = float(torch.cat(terms).sum()) + prior
    assert f"{bound:.6f}" == "0.733484"
    assert f"{math.log(2):.4f}" == "0.6931"
    assert bound > math.log(2)


def test_log_density() -> None:
    x = torch.linspace(-8, 9, 20_001, dtype=torch.float64)
    gaussian = Gaussian(torch.tensor(0.5, dtype=torch.float64), torch.tensor(1.7, dtype=torch.float64))
    density = log_density(gaussian, x).exp()
    assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=1e-8)
    assert float(torch.trapezoid(density * (x - 0.5) ** 2, x)) == pytest.approx(1.7, abs=1e-5)


# Importance-sampled times


def _seen(T: int = 4, times_each: int = 10) -> ImportanceTimes:
    """Return times whose losses were 1, 2, ..., T at t = 1/T, ..., 1."""
    importance = ImportanceTimes(T)
    t = torch.arange(1, T + 1, dtype=torch.float64) / T
    for _ in range(times_each):
        importance.update(t, t * T)
    return importance


def test_times_are_uniform_until_all_are_seen() -> None:
    importance = _seen(times_each=9)
    assert importance.probabilities().tolist() == [0.25] * 4
    importance.update(torch.tensor([0.25, 0.5, 0.75]), torch.tensor([1.0, 2, 3]))
    assert importance.probabilities().tolist() == [0.25] * 4
    importance.update(torch.tensor([1.0]), torch.tensor([4.0]))
    assert len(set(importance.probabilities().tolist())) == 4


def test_times_are_drawn_by_the_size_of_their_losses() -> None:
    importance = _seen()
    truth = 0.999 * torch.tensor([1, 2, 3, 4]) / 10 + 0.001 / 4
    torch.testing.assert_close(importance.probabilities(), truth)
    t, _ = importance.draw(40_000)
    counts = torch.bincount((t * 4).long(), minlength=5)[1:] / 40_000
    torch.testing.assert_close(counts, truth, rtol=0, atol=5 * (0.25 / 40_000) ** 0.5)


def test_importance_weights_keep_the_mean_unbiased() -> None:
    importance = _seen()
    t, weight = importance.draw(1000)
    chances = importance.probabilities()
    torch.testing.assert_close(weight, 1 / (4 * chances[(t * 4).long() - 1]))
    for loss in (torch.tensor([1.0, 2, 3, 4]), torch.tensor([5.0, 0, 7, 1])):
        expected = sum(chances[i] * loss[i] * weight[(t * 4).long() - 1 == i][0] for i in range(4))
        assert float(expected) == pytest.approx(float(loss.mean()), rel=1e-5)


@pytest.mark.parametrize("term", ["regression", "vlb"])
def test_importance_changes_no_term_in_expectation(term: str) -> None:
    """The terms that depend on t have the mean that uniform times give them, however uneven the chances are."""
    found = []
    ids = torch.randint(VOCABULARY, (30_000, 2))
    for times in ("uniform", "importance"):
        torch.manual_seed(0)
        model = _model(**VECTORS | {"learned_variance": True, "schedule": {"name": "sqrt", "T": 4}})
        model.network = _Network(torch.zeros(12))
        objective = build(Regression, {"variance": "learned", "times": times}).build(model).eval()
        assert isinstance(objective, VariationalObjective)
        if objective.importance is not None:
            objective.importance.load_state_dict(_seen().state_dict())
        found.append(objective(Batch(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool)))[term].item())
    assert found[1] == pytest.approx(found[0], rel=0.03)


def test_the_oldest_loss_is_forgotten_first() -> None:
    importance = _seen()
    importance.update(torch.tensor([0.25]), torch.tensor([9.0]))
    assert importance.losses[0].tolist() == [9.0] + [1.0] * 9
    truth = math.sqrt((81 + 9) / 10)
    chances = importance.probabilities()
    assert float(chances[0] / chances[1]) == pytest.approx(truth / 2, rel=5e-3)


def test_seen_losses_are_saved_with_the_run() -> None:
    fresh = ImportanceTimes(4)
    fresh.load_state_dict(_seen().state_dict())
    assert torch.equal(fresh.probabilities(), _seen().probabilities())


def test_only_training_fills_the_history() -> None:
    objective = Regression(times="importance").build(_model(**VECTORS))
    assert isinstance(objective, VariationalObjective)
    assert objective.importance is not None
    batch = _batch(30, [10])
    objective.eval()(batch)
    assert int(objective.importance.seen.sum()) == 0
    objective.train()(batch)
    assert int(objective.importance.seen.sum()) == 30


# Cross-entropy


def _listening(mixed_share: float, **settings: Any) -> tuple[Objective, _Network]:
    """Return a cross-entropy whose network puts out zeros, without evidence or self-conditioning."""
    settings = {"evidence": 0.0, "self_conditioning": False, **settings}
    model = _model(**settings)
    network = model.network = _Network(torch.zeros(VOCABULARY))
    return CrossEntropy(mixed_share=mixed_share).build(model), network


def test_knowing_nothing_costs_the_logarithm_of_the_vocabulary() -> None:
    objective, _ = _listening(0.5)
    assert objective(_batch(8, [10, 5]))["cross_entropy"].item() == pytest.approx(math.log(VOCABULARY), rel=1e-6)


def test_boundaries_are_clean_and_not_scored() -> None:
    objective, network = _listening(0.5)
    ids, mask = _texts(40, [10, 5, 3])
    boundary = (ids == START) | (ids == END)
    network.output = torch.where((boundary | ~mask)[..., None], 1e4 * torch.randn(40, 10, VOCABULARY), 0)
    assert objective(Batch(ids=ids, mask=mask))["cross_entropy"].item() == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    x0 = objective.model.encode(ids)
    assert torch.equal(network.latents[boundary], x0[boundary])
    assert bool((network.t[boundary] == 0).all())
    inside = mask & ~boundary
    assert bool((network.t[inside] > 0).all())
    assert bool((network.latents[inside] != x0[inside]).any(-1).all())


def test_a_model_of_padding_learns_every_position() -> None:
    objective, network = _listening(0.5, explicit_length=False)
    ids, _ = _texts(40, [10, 5, 3])
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    network.output = torch.where((ids == PAD)[..., None], torch.tensor([50.0] + [0.0] * (VOCABULARY - 1)), 0)
    truth = math.log(VOCABULARY) * float((ids != PAD).float().mean())
    assert objective(Batch(ids=ids, mask=everywhere))["cross_entropy"].item() == pytest.approx(truth, rel=1e-5)
    assert bool((network.t > 0).all())


@pytest.mark.parametrize("mixed_share", [0.0, 1.0, 0.9])
def test_the_share_of_texts_with_mixed_levels(mixed_share: float) -> None:
    objective, network = _listening(mixed_share)
    objective(_batch(1000, [10]))
    inside = network.t[:, 1:-1]
    mixed = (inside != inside[:, :1]).any(1).float().mean()
    assert float(mixed) == pytest.approx(mixed_share, abs=5 * (mixed_share * (1 - mixed_share) / 1000) ** 0.5)
    if mixed_share == 1:
        assert all(len(set(row)) == 8 for row in inside.tolist())


CLOZE: dict[str, Any] = {"backbone": {"name": "leave-one-out", "query_layers": 1}, "evidence": 50.0}


def test_a_cloze_scores_every_word_by_its_context_alone() -> None:
    model = _model(**CLOZE).requires_grad_(False)
    ids, mask = _texts(30, [10, 5])
    scored = mask & (ids != START) & (ids != END)
    x0, clean = model.encode(ids), torch.zeros(30)
    context = model.token_logits(x0, clean, mask, evidence_mask=torch.zeros_like(mask))
    with_evidence = model.token_logits(x0, clean, mask)
    assert float(nn.functional.cross_entropy(with_evidence[scored], ids[scored])) < 1e-3  # clean words say who they are
    found = CrossEntropy(cloze_share=1.0, cloze_hidden=0.0).build(model)(Batch(ids=ids, mask=mask))
    expected = nn.functional.cross_entropy(context[scored], ids[scored])
    torch.testing.assert_close(found["cross_entropy"], expected)
    assert found["schedule"].item() == 0  # the curve is of texts with one level


def test_clozes_hide_words_and_noise_no_others() -> None:
    model = _model(**CLOZE)
    network = model.network = _Network(torch.zeros(VOCABULARY))
    objective = CrossEntropy(cloze_share=0.5, cloze_hidden=0.4, mixed_share=1.0, self_conditioning_share=1.0).build(model)
    ids, mask = _texts(2000, [10])
    objective(Batch(ids=ids, mask=mask))
    levels = network.t[:, 1:-1]
    cloze = ((levels == 0) | (levels == 1)).all(1)
    assert float(cloze.float().mean()) == pytest.approx(0.5, abs=0.06)
    assert float((levels[cloze] == 1).float().mean()) == pytest.approx(0.2, abs=0.02)
    told = network.latents[:, :, 6:].abs().amax((1, 2))  # a cloze is denoised once, without an estimate
    assert bool((told[cloze] == 0).all())
    assert bool((told[~cloze] > 0).all())


@pytest.mark.parametrize(("backbone", "share"), [("transformer", 0.0), ("leave-one-out", 0.5)])
def test_half_of_the_texts_are_clozes_where_a_word_is_left_out(backbone: str, share: float) -> None:
    objective = CrossEntropy().build(_model(backbone={"name": backbone}))
    assert isinstance(objective, CrossEntropyObjective)
    assert objective.cloze_share == share


def test_a_cloze_needs_a_network_that_leaves_the_word_out() -> None:
    with pytest.raises(
        UserError, match=r"^objective.cloze_share: needs a backbone that excludes .* got 'transformer'; leave it"
    ):
        CrossEntropy(cloze_share=0.5).build(_model())


@pytest.mark.parametrize("mixed_share", [0.0, 1.0])
def test_levels_are_stratified_over_the_batch(mixed_share: float) -> None:
    """One draw falls into each of as many equal parts of the schedule's quantile as there are draws."""
    objective, network = _listening(mixed_share, schedule={"name": "gumbel", "uniform_share": 1.0}, explicit_length=False)
    ids = torch.randint(4, VOCABULARY, (50, 10))
    objective(Batch(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool)))
    levels = network.t.flatten() if mixed_share else network.t[:, 0]
    assert torch.equal(torch.floor(levels * len(levels)).sort().values, torch.arange(len(levels)).float())


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_of_texts_that_see_an_estimate(share: float) -> None:
    model = _model(evidence=0.0)
    network = model.network = _Network(torch.zeros(VOCABULARY))
    network.output = torch.arange(VOCABULARY, dtype=torch.float32)
    objective = CrossEntropy(self_conditioning_share=share).build(model)
    objective(_batch(40, [10]))
    estimate = network.latents[..., 6:]
    shown = (estimate != 0).any(-1).any(-1)
    assert int(shown.sum()) == round(40 * share)
    truth = network.output.softmax(-1) @ model.word_vectors()
    torch.testing.assert_close(estimate[shown], truth.expand(int(shown.sum()), 10, 6))


class _Gumbel(nn.Module):
    """A network whose cross-entropy on ``ids`` is exactly entropy * exp(-exp(-(gamma - location) / scale))."""

    def __init__(self, ids: Tensor, location: float, scale: float, entropy: float) -> None:
        super().__init__()
        self.ids, self.location, self.scale, self.entropy = ids, location, scale, entropy

    def forward(self, latents: Tensor, t: Tensor, gamma: Tensor, mask: Tensor | None) -> Tensor:
        loss = self.entropy * torch.exp(-torch.exp(-(gamma - self.location) / self.scale))
        right = -torch.log(torch.expm1(loss.double().clamp(min=1e-9)) / (VOCABULARY - 1))
        return torch.where(nn.functional.one_hot(self.ids, VOCABULARY) > 0, right[..., None], 0).float()


def test_the_schedule_finds_the_curve_of_the_data() -> None:
    model = _model(evidence=0.0, self_conditioning=False, schedule={"name": "gumbel", "location": 2.0, "entropy": 2.5})
    ids, mask = _texts(64, [10])
    model.network = _Gumbel(ids, location=1.2, scale=1.3, entropy=2.3)
    objective = CrossEntropy(mixed_share=0).build(model)
    assert isinstance(objective, CrossEntropyObjective)
    assert objective.curve is not None
    optimizer = torch.optim.Adam([objective.curve], 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        objective(Batch(ids=ids, mask=mask))["schedule"].backward()
        optimizer.step()
    objective.finish()
    found = model.settings.schedule
    assert isinstance(found, Gumbel)
    assert (found.location, found.scale, found.entropy) == pytest.approx((1.2, 1.3, 2.3), abs=1e-3)
    assert model.process.schedule == found
    assert build(ModelConfig, model.config.settings).schedule == found


def test_the_curve_fits_texts_of_one_level_only() -> None:
    objective = CrossEntropy(mixed_share=1).build(_model())
    assert objective(_batch(8, [10]))["schedule"].item() == 0


def test_the_fit_is_drawn_through_what_training_saw() -> None:
    objective = CrossEntropy(mixed_share=0, self_conditioning_share=0).build(_model())
    assert isinstance(objective, CrossEntropyObjective)
    ids, mask = _texts(64, [9])
    terms = objective(Batch(ids=ids, mask=mask))
    texts, losses = objective.seen
    assert float(texts.sum()) == 64
    assert float(losses.sum()) / 64 == pytest.approx(terms["cross_entropy"].item(), rel=1e-5)  # texts of equal length
    before = objective.seen.clone()
    objective.eval()(Batch(ids=ids, mask=mask))
    assert torch.equal(objective.seen, before)  # evaluations are not training
    objective.train()(Batch(ids=ids, mask=mask))
    assert float(objective.seen[0].sum()) == pytest.approx(64 * 1.99)  # a hundredth of the old is forgotten
    figure = objective.figures()["schedule"]
    axes = figure.axes[0]
    shown = numpy.asarray(axes.collections[0].get_offsets())
    known = objective.seen[0] > 0
    assert shown[:, 1] == pytest.approx((objective.seen[1] / objective.seen[0])[known].numpy())
    location, log_scale, entropy = objective.curve.detach().tolist() if objective.curve is not None else (0, 0, 0)
    x, y = numpy.asarray(axes.lines[0].get_xydata()).T
    assert y == pytest.approx(entropy * numpy.exp(-numpy.exp(-(x - location) / math.exp(log_scale))), rel=1e-4)
    assert CrossEntropy().build(_model(schedule="sqrt")).figures() == {}


def test_another_schedule_is_not_fitted() -> None:
    objective = CrossEntropy().build(_model(schedule={"name": "sqrt", "T": 20}))
    assert set(objective(_batch(8, [10]))) == {"cross_entropy"}


# Mistakes


@pytest.mark.parametrize(
    ("spec", "settings", "sentence"),
    [
        (CrossEntropy(), VECTORS, "objective: 'cross-entropy' needs model.prediction 'logits', got 'x0'"),
        (Regression(), {}, "objective: 'regression' needs model.prediction 'x0', 'eps' or 'v', got 'logits'"),
        (
            Regression(),
            {"prediction": "v"},
            "objective: 'regression' needs a schedule of T steps, got 'gumbel'",
        ),
        (
            Regression(variance="learned"),
            VECTORS,
            "objective.variance: 'learned' goes with model.learned_variance true, and only with it",
        ),
        (
            Regression(),
            VECTORS | {"learned_variance": True},
            "objective.variance: 'learned' goes with model.learned_variance true, and only with it",
        ),
    ],
)
def test_an_objective_and_a_model_that_do_not_match(
    spec: CrossEntropy | Regression, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        spec.build(_model(**settings))
    assert str(caught.value) == sentence


@pytest.mark.parametrize("name", ["mixed_share", "self_conditioning_share", "cloze_share", "cloze_hidden"])
@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_shares_are_shares(name: str, share: float) -> None:
    with pytest.raises(UserError) as caught:
        build(CrossEntropy, {name: share})
    assert str(caught.value) == f"{name}: expected a share between 0 and 1, got {share}"
