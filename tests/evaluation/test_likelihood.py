"""The likelihood bound: toy languages whose truth is known, what the estimate depends on, how tokens are counted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffusionlm.config import UserError, build, merge, to_plain
from diffusionlm.core.objective import lowest_deviation
from diffusionlm.core.process import GaussianDiffusion, alpha, sigma
from diffusionlm.core.sampler import Denoise, Denoised
from diffusionlm.core.schedule import Sqrt
from diffusionlm.evaluation.likelihood import (
    Bound,
    Proposal,
    any_order_terms,
    bound,
    continuous_terms,
    discrete_time_terms,
    hidden_token_losses,
    length_nats,
    proposal_for,
    standard_kl,
)
from diffusionlm.models.diffusion import DiffusionLM, DiffusionLMConfig, ModelConfig
from diffusionlm.recipe.regression import bound_term, prior_kl

PAD, UNKNOWN, START, END = 0, 1, 2, 3
VOCABULARY, LONGEST = 12, 10
PAPER: dict[str, Any] = {
    "prediction": "x0",
    "embedding": "free",
    "self_conditioning": False,
    "explicit_length": False,
    "schedule": {"name": "sqrt", "T": 12},
}
ROWS = [[START, 5, 9, 4, 4, END], [START, 11, UNKNOWN, END], [START, 6, END]]


def _model(**settings: Any) -> DiffusionLM:
    small = {"dimension": 8, "backbone": {"name": "transformer", "layers": 1, "width": 16, "heads": 2}}
    config = build(ModelConfig, merge(small, settings))
    counts = [0, 0, 0, 3, 1, 0, 2]
    return DiffusionLM(
        DiffusionLMConfig(settings=to_plain(config), vocabulary=VOCABULARY, max_tokens=LONGEST, length_counts=counts)
    ).train(False)


def _nats(terms: Sequence[Bound]) -> tuple[float, float]:
    """Return the mean of prior + reconstruction + diffusion, and its standard error."""
    mean = sum(t.prior + t.reconstruction + t.diffusion for t in terms) / len(terms)
    return mean, math.sqrt(sum(t.deviation**2 for t in terms)) / len(terms)


# Toy languages, denoised exactly

SENTENCES = torch.tensor([[0, 1, 2], [0, 1, 3], [2, 1, 0], [4, 4, 4], [3, 2, 1]])
ODDS = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64)
WORDS = torch.tensor([[2.5, 0, 0], [0, 2, 0], [0, 0.5, 2], [-2, 0.5, 0], [0, -2, -1]], dtype=torch.float64)
ALL_FREE = torch.ones(3, dtype=torch.bool)


def bayes(xt: Tensor, gamma: Tensor) -> Denoised:
    """Denoise the toy language exactly, by Bayes' rule over its five sentences."""
    a, s2 = alpha(gamma)[:, None], sigma(gamma)[:, None] ** 2
    vectors = WORDS[SENTENCES]
    fit = a / s2 * torch.einsum("bld,nld->bn", xt, vectors) - a**2 / s2 / 2 * vectors.square().sum((1, 2))
    posterior = (ODDS.log() + fit).softmax(-1)
    words = torch.einsum("bn,nlv->blv", posterior, F.one_hot(SENTENCES, 5).double())
    return Denoised(words @ WORDS, words.clamp(min=1e-300).log())


def toy(denoise: Callable[[Tensor, Tensor], Denoised], proposal: Proposal, sentence: int, strata: int = 2**16) -> Bound:
    ids = SENTENCES[sentence]
    return continuous_terms(denoise, WORDS[ids], ids, ALL_FREE, proposal, strata=strata, batch_size=2**14)


def told(xt: Tensor, t: Tensor) -> Denoised:
    """Denoise the toy language exactly where words are clean (t 0) or noise (t 1)."""
    fits = ((xt[:, None] - WORDS[SENTENCES]).norm(dim=-1) < 1e-3) | (t > 0)[:, None]
    chances = ODDS * fits.all(-1) + 1e-12
    words = torch.einsum("bn,nlv->blv", chances / chances.sum(1, keepdim=True), F.one_hot(SENTENCES, 5).double())
    return Denoised(words @ WORDS, words.clamp(min=1e-300).log())


PROPOSALS = {
    "uniform": Proposal.between(-4.0, 9.0),
    "gumbel": Proposal.between(-4.0, 9.0, 0.0, 1.0),
    "another": Proposal.between(-4.0, 9.0, 2.0, 0.7),
    "wider": Proposal.between(-6.0, 12.0, 0.0, 1.0),
    "few bins": Proposal.between(-4.0, 9.0, 1.0, 1.0, bins=7),
}


@pytest.mark.parametrize("sentence", range(5))
def test_the_exact_denoiser_reaches_each_sentences_probability(sentence: int) -> None:
    """With Bayes' rule for a denoiser the bound is the likelihood itself, at every noise schedule."""
    truth = -math.log(ODDS[sentence])
    for name, proposal in PROPOSALS.items():
        found, error = _nats([toy(bayes, proposal, sentence)])
        # The rest at the noisiest level is below a thousandth of a nat here.
        assert found == pytest.approx(truth, abs=4 * error + 1e-3), name
        assert error < 0.07, name


def in_turn(denoise: Denoise, sentence: int, orders: int, seed: int = 0) -> Bound:
    ids, draw = SENTENCES[sentence], numpy.random.default_rng(seed)
    losses = hidden_token_losses(denoise, WORDS[ids], ids, draw)
    return any_order_terms(losses, ALL_FREE, draw, orders=orders, batch_size=50)


def test_words_in_turn_reach_each_sentences_probability() -> None:
    """With exact conditionals a text costs -log p in every order."""
    for sentence in range(5):
        terms = in_turn(told, sentence, orders=4)
        assert terms.prior == terms.reconstruction == 0
        assert terms.diffusion == pytest.approx(-math.log(ODDS[sentence]), abs=1e-6)
        assert terms.deviation == pytest.approx(0, abs=1e-6)


def test_more_orders_bound_the_mixture_of_all_of_them_tighter() -> None:
    """Conditionals that are not of one language give each order a probability of its own; the truth is their mean's."""

    def blurred(xt: Tensor, t: Tensor) -> Denoised:
        logits = told(xt, t).logits.clamp(min=-6) * (0.3 + 0.6 * (t[:, :1] == 0))[..., None]
        return Denoised(logits.softmax(-1) @ WORDS, logits)

    def chance(order: Sequence[int], sentence: Tensor) -> float:
        nats = 0.0
        for number, place in enumerate(order):
            hidden = torch.tensor([[other in order[number:] for other in range(3)]])
            xt = torch.where(hidden[..., None], 0, WORDS[sentence])
            nats -= float(blurred(xt, hidden.double()).logits.log_softmax(-1)[0, place, sentence[place]])
        return math.exp(-nats)

    every = list(itertools.permutations(range(3)))
    assert sum(chance(order, torch.tensor(s)) for order in every for s in itertools.product(range(5), repeat=3)) == (
        pytest.approx(len(every))
    )
    for sentence in (0, 2):
        truth = -math.log(sum(chance(order, SENTENCES[sentence]) for order in every) / len(every))
        few, many = ([in_turn(blurred, sentence, n, seed) for seed in range(200)] for n in (2, 60))
        mean_few, mean_many = (sum(terms.diffusion for terms in found) / 200 for found in (few, many))
        assert mean_few > mean_many + 0.01 and mean_many == pytest.approx(truth, abs=0.01)
        spread = float(torch.tensor([terms.diffusion for terms in many]).std())
        assert sum(terms.deviation for terms in many) / 200 == pytest.approx(spread, rel=0.2)


def test_the_any_order_bound_of_a_uniform_prediction() -> None:
    """All words but the three that cannot be are equally likely; a text of N words costs N ln 9, its ends nothing."""
    model = _model(evidence=0.0, evidence_input=False, self_conditioning=False)
    cast(Any, model.network).down.weight.data.zero_()
    for row, found in zip(ROWS, bound(model, ROWS, orders=5), strict=True):
        assert found.diffusion == pytest.approx((len(row) - 2) * math.log(VOCABULARY - 3), rel=1e-6)
        assert found.deviation == pytest.approx(0, abs=1e-6)


def test_the_bound_of_a_worse_denoiser_is_above_the_truth() -> None:
    """Whatever the denoiser answers, on average no less than the entropy of the language is found."""
    entropy = float(-(ODDS * ODDS.log()).sum())

    def nothing(xt: Tensor, gamma: Tensor) -> Denoised:
        return Denoised(torch.zeros_like(xt), bayes(xt, gamma).logits)

    def flat(xt: Tensor, gamma: Tensor) -> Denoised:
        logits = bayes(xt, gamma).logits * 0.5
        return Denoised(logits.softmax(-1) @ WORDS, logits)

    def overconfident(xt: Tensor, gamma: Tensor) -> Denoised:
        sharp = bayes(xt, gamma).logits * 3
        return Denoised(sharp.softmax(-1) @ WORDS, sharp)

    def twice(xt: Tensor, gamma: Tensor) -> Denoised:  # self-conditioning: the second pass sees the first estimate
        first = bayes(xt, gamma)
        return Denoised(0.8 * bayes(xt + 0.1 * first.x0, gamma).x0 + 0.2 * first.x0, first.logits)

    odds = ODDS.tolist()
    for worse, above in ((nothing, 1.0), (flat, 0.1), (overconfident, 0.04), (twice, 0.0)):
        found = [_nats([toy(worse, PROPOSALS["gumbel"], i, 2**15)]) for i in range(5)]
        mean = sum(p * nats for p, (nats, _) in zip(odds, found, strict=True))
        error = math.sqrt(sum((p * e) ** 2 for p, (_, e) in zip(odds, found, strict=True)))
        assert mean > entropy + above - 4 * error, worse.__name__
        assert error < max(0.02, above / 4)
    for i in range(5):  # the integral of e^-gamma is known
        truth = (math.exp(4) - math.exp(-9)) / 2 * float(WORDS[SENTENCES[i]].square().sum())
        assert toy(nothing, PROPOSALS["uniform"], i, 2**12).diffusion == pytest.approx(truth, rel=1e-4)


def test_the_continuous_bound_of_two_words() -> None:
    """Words at -1 and 1 in one dimension, equal odds: ln 2, where the bound of 2000 steps is 0.733484."""

    def exact(xt: Tensor, gamma: Tensor) -> Denoised:
        logit = (alpha(gamma) / sigma(gamma) ** 2)[:, None, None] * xt
        return Denoised(logit.tanh(), torch.cat([-logit, logit], -1))

    x0, ids, free = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.long), torch.ones(1, dtype=torch.bool)
    proposal = Proposal.between(-4.0, 9.0, -1.0, 1.2)
    found, error = _nats([continuous_terms(exact, x0, ids, free, proposal, strata=2**18, batch_size=2**16)])
    assert error < 0.006
    assert found == pytest.approx(math.log(2), abs=4 * error + 2e-4)


def test_the_deviation_is_that_of_repeated_estimates() -> None:
    ids = SENTENCES[1]
    terms = [continuous_terms(bayes, WORDS[ids], ids, ALL_FREE, PROPOSALS["gumbel"], seed=(i,), strata=64) for i in range(300)]
    spread = torch.tensor([t.reconstruction + t.diffusion for t in terms]).std()
    claimed = math.sqrt(sum(t.deviation**2 for t in terms) / len(terms))
    assert 0.9 * spread < claimed < 1.3 * spread  # neighbours' differences err on the large side


def test_the_prior_in_closed_form() -> None:
    """KL N(.3, .25) || N(0, 1) and the like, from the definition."""
    gamma, x0 = torch.tensor(1.2), torch.tensor([[0.4, -2.0]], dtype=torch.float64)
    s2 = 1 / (1 + math.exp(-1.2))
    truth = sum(0.5 * (s2 + (1 - s2) * x**2 - 1 - math.log(s2)) for x in (0.4, -2.0))
    assert float(standard_kl(x0, gamma)) == pytest.approx(truth, rel=1e-6)


def test_the_proposals_density_is_that_of_its_draws() -> None:
    proposal = Proposal.between(-1.0, 9.0, 2.0, 0.8)
    levels, index = proposal.draw((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)
    weight = (proposal.edges.diff() / proposal.mass)[index]
    assert float(weight.mean()) == pytest.approx(10, rel=1e-4)  # the mean of 1 / density is the range
    assert float((weight * levels).mean()) == pytest.approx((81 - 1) / 2, rel=1e-4)
    assert bool((levels.diff() >= 0).all())
    assert (float(levels[0]), float(levels[-1])) == pytest.approx((-1, 9), abs=1e-2)


# Models of logits


def test_a_model_without_context_pays_for_uniform_words() -> None:
    """A network that is silent leaves the evidence: exact for words of equal odds, which cost ln of their number."""
    model = _model(dimension=16)
    network = cast(Any, model.network)
    torch.nn.init.zeros_(network.down.weight)
    torch.nn.init.zeros_(network.down.bias)
    rows = [[START, *torch.randint(4, VOCABULARY, (8,)).tolist(), END] for _ in range(40)]
    found = list(bound(model, rows))
    nats = sum(b.nats - b.length for b in found) / len(found)
    error = math.sqrt(sum(b.deviation**2 for b in found)) / len(found)
    choices = VOCABULARY - 3  # start, end and pad are barred
    assert error < 0.15
    assert nats == pytest.approx(8 * math.log(choices), abs=4 * error + 0.02)


def test_counts_and_the_length() -> None:
    model = _model()
    first, second, third = bound(model, ROWS, ["a b c c", "d [UNK]", "e"], strata=4)
    assert [b.tokens for b in (first, second, third)] == [5, 3, 2]  # words and END
    assert [b.unknown for b in (first, second, third)] == [0, 1, 0]
    assert [b.characters for b in (first, second, third)] == [7, 7, 1]
    # Six texts, and one more of each of the eight lengths that can be.
    assert first.length == pytest.approx(-math.log(3 / 14))
    assert sum(math.exp(-length_nats(model, tokens)) for tokens in range(3, LONGEST + 1)) == pytest.approx(1)
    assert length_nats(model, LONGEST) == pytest.approx(math.log(14))
    assert first.nats == first.prior + first.reconstruction + first.diffusion + first.length
    assert next(bound(_model(explicit_length=False), ROWS, strata=4)).length == 0
    assert next(bound(model, ROWS, strata=4)).characters == 0


def test_the_ends_are_given_where_the_length_is() -> None:
    """Neither the reconstruction nor the diffusion term asks for START and END, whose vectors are clean."""
    terms = [next(bound(_model(), [row], strata=4)) for row in (ROWS[0], ROWS[2])]
    one, four = terms[1].prior, terms[0].prior
    assert four == pytest.approx(4 * one, rel=1e-5)  # rows of E are of equal length


@pytest.mark.parametrize("orders", [0, 3])
@pytest.mark.parametrize("settings", [{}, {"explicit_length": False}, {"schedule": "cosine"}, PAPER])
def test_an_estimate_depends_on_seed_text_and_number_alone(settings: dict[str, Any], orders: int) -> None:
    model = _model(**settings)
    if orders and not model.has_logits:
        with pytest.raises(UserError, match="orders: this model predicts x0, not logits; leave it at 0"):
            next(bound(model, ROWS, orders=orders))
        return
    state = torch.get_rng_state()
    whole = list(bound(model, ROWS, strata=6, seed=3, orders=orders))
    assert torch.equal(state, torch.get_rng_state())
    assert list(bound(model, ROWS[:2], strata=6, seed=3, orders=orders)) == whole[:2]
    for mine, theirs in zip(bound(model, ROWS, strata=6, seed=3, batch_size=3, orders=orders), whole, strict=True):
        assert mine.nats == pytest.approx(theirs.nats, rel=1e-5)
    assert next(bound(model, ROWS, strata=6, seed=4, orders=orders)).nats != whole[0].nats
    assert all(math.isfinite(b.nats) and b.deviation > 0 for b in whole)


def test_self_conditioning_sees_an_estimate_from_the_same_noise() -> None:
    model, seen = _model(), []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    next(bound(model, ROWS, strata=4, batch_size=100))
    first, second = seen
    D = 8
    assert bool((first[..., D : 2 * D] == 0).all())
    assert bool((second[..., D : 2 * D] != 0).any())
    assert torch.equal(first[..., :D], second[..., :D])
    assert torch.equal(first[..., 2 * D :], second[..., 2 * D :])


def test_half_precision_changes_little() -> None:
    model = _model()
    full, half = (list(bound(model, ROWS, strata=64, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16))
    for a, b in zip(full, half, strict=True):
        assert a.nats != b.nats
        assert b.nats == pytest.approx(a.nats, rel=2e-3)


def test_temperature_changes_the_bound_of_logits_only() -> None:
    one, hot = (next(bound(_model(), ROWS, strata=4, temperature=x)).nats for x in (1.0, 2.0))
    assert one != hot
    with pytest.raises(UserError, match="temperature: this model predicts x0"):
        next(bound(_model(**PAPER), ROWS, temperature=2.0))


def test_the_range_of_levels() -> None:
    gumbel = _model()
    schedule = cast(Any, gumbel.settings.schedule)
    edges = proposal_for(gumbel).edges
    assert (float(edges[0]), float(edges[-1])) == (schedule.end, schedule.high)
    edges = proposal_for(_model(schedule="sqrt")).edges
    assert (float(edges[0]), float(edges[-1])) == (-4, 12)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="strata: expected 2 or more, got 1"):
        next(bound(_model(), ROWS, strata=1))
    for orders in (1, -1):
        with pytest.raises(UserError, match=r"orders: expected 0 \(the joint bound\) or 2 or more, got"):
            next(bound(_model(), ROWS, orders=orders))
    with pytest.raises(UserError, match="expected 11 or more, the longest row, got 10"):
        next(bound(_model(), [[START, *[4] * 9, END]]))


# The paper's process


class TwoWords:
    """Words at -1 and 1 in one dimension, equal odds, with noise of their own, denoised and rounded exactly."""

    def __init__(self) -> None:
        self.settings = SimpleNamespace(schedule=Sqrt(), learned_variance=False)
        self.process = GaussianDiffusion(Sqrt())
        self.deviation = lowest_deviation(self.process, Sqrt().T)

    def encode(self, ids: Tensor) -> Tensor:
        return (2.0 * ids - 1).double()[..., None]

    def decode(self, x: Tensor) -> Tensor:
        return x * torch.tensor([-1.0, 1.0], dtype=x.dtype) / self.deviation**2

    def __call__(self, xt: Tensor, t: Tensor, condition: None = None) -> Denoised:
        a, s = (level(Sqrt().gamma(t)).view(-1, 1, 1) for level in (alpha, sigma))
        spread = a**2 * self.deviation**2 + s**2
        word = torch.tanh(a * xt / spread)
        mean = word + a * self.deviation**2 / spread * (xt - a * word)
        return Denoised(mean, mean)


def test_the_discrete_bound_of_two_words() -> None:
    """0.733484 nats at T = 2000, as integrated in test_objective.py."""
    model = cast(DiffusionLM, TwoWords())
    ids = torch.ones(1, 1, dtype=torch.long)
    found, error = _nats([discrete_time_terms(model, ids, strata=2**19, batch_size=2**17)])
    assert error < 0.008
    assert found == pytest.approx(0.733484, abs=4 * error)


@pytest.mark.parametrize("changes", [{}, {"learned_variance": True}, {"prediction": "eps"}, {"prediction": "v"}])
def test_the_sampled_steps_are_all_the_steps(changes: dict[str, Any]) -> None:
    """The mean over sampled steps is the sum over all of them, whose noise is averaged out here."""
    model = _model(**PAPER | changes)
    ids = torch.tensor([[START, 5, 9, END, *[PAD] * 6]])
    q, schedule = model.process, cast(Sqrt, model.settings.schedule)
    draws = 2000
    words = model.encode(ids).detach()
    total, variance = 8 * float(prior_kl(q, schedule.T, words).sum()), 0.0
    for step in range(1, schedule.T + 1):
        t = torch.full((draws,), step / schedule.T, dtype=torch.float64)
        x0 = words + lowest_deviation(q, schedule.T) * torch.randn(draws, *words.shape[1:])
        xt = q.noise(x0, t)
        with torch.no_grad():
            term = bound_term(
                q, schedule.T, model(xt, t), words.expand_as(x0), x0, xt, t, ids.expand(draws, -1),
                "learned" if changes.get("learned_variance") else "posterior", model,
            )  # fmt: skip
        nats = 8 * term.sum(1)
        total, variance = total + float(nats.mean()), variance + float(nats.var()) / draws
    found, error = _nats([discrete_time_terms(model, ids, strata=256, seed=(i,)) for i in range(20)])
    assert found == pytest.approx(total, abs=4 * math.hypot(error, math.sqrt(variance)))
    assert error < 0.05 * total


def test_padding_is_paid_for_where_it_is_modelled() -> None:
    """The prior of the paper's process counts all positions, of texts of any length."""
    model = _model(**PAPER)
    q, schedule = model.process, cast(Sqrt, model.settings.schedule)
    for row, found in itertools.zip_longest(ROWS, bound(model, ROWS, strata=4)):
        padded = torch.tensor([row + [PAD] * (LONGEST - len(row))])
        assert isinstance(found, Bound)
        assert found.prior == pytest.approx(8 * float(prior_kl(q, schedule.T, model.encode(padded)).sum().detach()), rel=1e-5)
