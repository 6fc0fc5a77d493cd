"""Posteriors conditioned on a language: against the sum over every text of a tiny vocabulary."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from test_dfa import ANY, SIZE, letters, random_language
from torch import Tensor

from diffusionlm.constraints import inference
from diffusionlm.constraints.dfa import DFA, empty, everything, one_of, repeat, sequence, union
from diffusionlm.constraints.inference import (
    NEVER,
    Lookahead,
    _Acceptance,
    _backward,
    accepted,
    allowed_substitutes,
    condition,
    forced_tokens,
    log_probability,
    viterbi,
)

LENGTHS = torch.tensor([5, 3, 1, 0, 4])
KNOWN = [
    everything(SIZE),
    sequence(everything(SIZE), letters(0, 1), everything(SIZE)),
    ~sequence(everything(SIZE), letters(2), everything(SIZE)),
    repeat(one_of([0, 3], SIZE), 1, 3),
    ~empty(SIZE),
    ~everything(SIZE),
]
LANGUAGES = [
    *KNOWN,
    *(random_language(seed) for seed in range(5)),
    ~random_language(7),
    *(random_language(seed) & random_language(seed + 50) for seed in range(4)),
    random_language(8) | random_language(9),
]


def draw_logits(scale: float = 2.0) -> Tensor:
    return scale * torch.randn(len(LENGTHS), 6, SIZE, dtype=torch.float64)


def weighed(language: DFA, logits: Tensor, length: int) -> dict[tuple[int, ...], float]:
    """Return the log chance of every text of ``length`` that is in ``language``, under one row of logits."""
    log_p = logits.log_softmax(-1)
    texts = (text for text in itertools.product(range(SIZE), repeat=length) if language.contains(text))
    return {text: float(sum(log_p[i, w] for i, w in enumerate(text))) for text in texts}


def check_against_all_texts(language: DFA, logits: Tensor, lengths: Tensor) -> None:
    inside, mass, best = (
        condition(language, logits, lengths),
        log_probability(language, logits, lengths),
        viterbi(language, logits, lengths),
    )
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(inside[row, length:], logits[row, length:])
        assert torch.equal(best[row, length:], logits[row, length:].argmax(-1))
        chances = weighed(language, logits[row], length)
        total = float(torch.tensor([-math.inf, *chances.values()], dtype=torch.float64).logsumexp(0))
        torch.testing.assert_close(mass[row].item(), total, rtol=1e-6, atol=1e-6)
        if total == -math.inf:
            continue
        expected, possible = torch.zeros(length, SIZE, dtype=logits.dtype), torch.zeros(length, SIZE, dtype=torch.bool)
        for text, chance in chances.items():
            expected[range(length), text] += math.exp(chance - total)
            possible[range(length), text] |= chance > -math.inf
        torch.testing.assert_close(inside[row, :length].exp(), expected, rtol=1e-6, atol=1e-6)
        assert bool((inside[row, :length][~possible] == -math.inf).all())
        assert bool((inside[row, :length][expected > 0] > -math.inf).all())
        assert chances[tuple(best[row, :length].tolist())] == pytest.approx(max(chances.values()), abs=1e-9)
    assert not bool(inside.isnan().any() | mass.isnan().any())


@pytest.mark.parametrize("language", LANGUAGES)
def test_against_all_texts(language: DFA) -> None:
    check_against_all_texts(language, draw_logits(), LENGTHS)


@pytest.mark.parametrize("language", LANGUAGES)
def test_barred_tokens(language: DFA) -> None:
    logits = draw_logits()
    logits[..., 2] = -math.inf
    logits[0, 1, 0] = -math.inf
    check_against_all_texts(language, logits, LENGTHS)


@pytest.mark.parametrize("scale", [30.0, 200.0])
def test_peaked_posteriors(scale: float) -> None:
    """Chances as small as exp(-500) neither vanish nor spoil the others, in single precision too."""
    logits = draw_logits(scale)
    for language in LANGUAGES:
        check_against_all_texts(language, logits, LENGTHS)
        exact, single = condition(language, logits, LENGTHS), condition(language, logits.float(), LENGTHS)
        torch.testing.assert_close(single.exp(), exact.exp().float(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            log_probability(language, logits.float(), LENGTHS),
            log_probability(language, logits, LENGTHS).float(),
            rtol=1e-4,
            atol=1e-3,
        )


def test_no_mass_where_tokens_are_barred() -> None:
    language = sequence(letters(2), repeat(ANY, 2, 2))
    logits = draw_logits()[:2]
    logits[..., 2] = -math.inf
    lengths = torch.tensor([3, 3])
    assert log_probability(language, logits, lengths).tolist() == [-math.inf, -math.inf]
    inside = condition(language, logits, lengths)
    assert inside[:, 0].exp().tolist() == [[0, 0, 1, 0]] * 2
    torch.testing.assert_close(inside[:, 1:3, [0, 1, 3]], logits[:, 1:3, [0, 1, 3]].log_softmax(-1))
    assert all(language.contains(row[:3]) for row in viterbi(language, logits, lengths).tolist())


def test_no_text_of_a_length_leaves_the_row_alone() -> None:
    logits, lengths = draw_logits()[:2], torch.tensor([3, 2])
    language = repeat(letters(1), 2, 2)
    inside = condition(language, logits, lengths)
    assert torch.equal(inside[0], logits[0])
    assert inside[1, :2].exp().tolist() == [[0, 1, 0, 0]] * 2
    assert torch.equal(viterbi(language, logits, lengths)[0], logits[0].argmax(-1))
    assert log_probability(language, logits, lengths)[0] == -math.inf


def test_a_few_positions_at_a_time_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = draw_logits()[:1].float()  # of one row, which is not split further
    for language in LANGUAGES:
        whole = condition(language, logits, LENGTHS[:1]), log_probability(language, logits, LENGTHS[:1])
        with monkeypatch.context() as patch:
            patch.setattr(inference, "AT_ONCE", 2 * len(language.step))
            parts = condition(language, logits, LENGTHS[:1]), log_probability(language, logits, LENGTHS[:1])
        assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


@pytest.mark.parametrize("language", LANGUAGES)
def test_rows_are_accepted_together_as_each_alone(language: DFA) -> None:
    ids, lengths = torch.randint(SIZE, (40, 6)), torch.arange(40) % 7
    alone = [language.contains(row[:n]) for row, n in zip(ids.tolist(), lengths.tolist(), strict=True)]
    assert accepted(language, ids, lengths).tolist() == alone


@pytest.mark.parametrize("language", LANGUAGES)
def test_substitutes_keep_a_text_in_the_language(language: DFA) -> None:
    ids = torch.randint(SIZE, (5, 6))
    found = allowed_substitutes(language, ids, LENGTHS)
    for row, length, possible in zip(ids.tolist(), LENGTHS.tolist(), found.tolist(), strict=True):
        for place in range(6):
            changed = ([*row[:place], token, *row[place + 1 :]][:length] for token in range(SIZE))
            assert possible[place] == [place >= length or language.contains(text) for text in changed]


def test_all_barred_or_endless_logits_are_no_nan() -> None:
    logits = draw_logits()
    logits[0, 0], logits[1, 0, 1], logits[2, 0, 0] = -math.inf, math.inf, 1e38
    for language in LANGUAGES:
        assert not condition(language, logits, LENGTHS).isnan().any()
        assert not log_probability(language, logits, LENGTHS).isnan().any()
        assert viterbi(language, logits.float(), LENGTHS).shape == (5, 6)


@pytest.mark.parametrize("language", LANGUAGES)
def test_gradients_of_the_mass(language: DFA) -> None:
    possible = log_probability(language, draw_logits(), LENGTHS) > -math.inf
    if bool(possible.any()):
        logits = draw_logits(8.0)[possible].requires_grad_()
        assert torch.autograd.gradcheck(lambda x: log_probability(language, x, LENGTHS[possible]), logits)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_gradient_is_that_through_the_recursion(language: DFA) -> None:
    log_p, weights = draw_logits(8.0).log_softmax(-1).requires_grad_(), torch.randn(len(LENGTHS), dtype=torch.float64)
    start = _backward(language, log_p, LENGTHS)[1][0][0]
    (expected,) = torch.autograd.grad((start.where(start > NEVER / 2, 0) * weights).sum(), log_p)
    found: Tensor = _Acceptance.apply(log_p, language, LENGTHS)  # type: ignore[no-untyped-call]
    (gradient,) = torch.autograd.grad((found.where(found > NEVER / 2, 0) * weights).sum(), log_p)
    assert torch.equal(found, start)
    torch.testing.assert_close(gradient, expected)


def test_the_gradient_is_finite_without_mass() -> None:
    logits = draw_logits()
    logits[..., 2] = -math.inf
    logits.requires_grad_()
    mass = log_probability(sequence(letters(2), everything(SIZE)), logits, LENGTHS)
    mass.clamp(min=-5).sum().backward()
    assert mass.tolist() == [-math.inf] * 5
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


def test_the_score_is_the_gap_of_the_marginals() -> None:
    """d log p(member) / d logits is the conditioned posterior less the plain one."""
    logits = draw_logits().requires_grad_()
    language = KNOWN[1]
    log_probability(language, logits, torch.tensor([6] * 5)).sum().backward()
    gap = condition(language, logits.detach(), torch.tensor([6] * 5)).exp() - logits.detach().softmax(-1)
    torch.testing.assert_close(logits.grad, gap)


def test_forced_words_are_those_with_one_possible_token() -> None:
    template = sequence(letters(0, 1), repeat(ANY, 1, 2), letters(3))
    assert forced_tokens(template, torch.tensor([4, 5, 3]), 6).tolist() == [
        [0, 1, -1, 3, -1, -1],
        [0, 1, -1, -1, 3, -1],
        [-1] * 6,
    ]
    either = union(letters(0, 2), letters(1, 2))
    assert forced_tokens(either, torch.tensor([2]), 2).tolist() == [[-1, 2]]
    for language in LANGUAGES:
        logits = draw_logits(0.1)
        certain = condition(language, logits, LENGTHS).exp() > 1 - 1e-9
        held = forced_tokens(language, LENGTHS, 6)
        for row, length in enumerate(LENGTHS.tolist()):
            sure = certain[row, :length].long() * int(length in language.lengths(length))
            expected = torch.where(sure.any(-1), sure.argmax(-1), -1).tolist()
            assert held[row].tolist() == expected + [-1] * (6 - length)


@pytest.mark.parametrize("language", LANGUAGES)
def test_draws_with_a_lookahead_have_the_probability_given_acceptance(language: DFA) -> None:
    torch.manual_seed(3)
    logits = draw_logits()
    for row, length in enumerate(LENGTHS.tolist()):
        known = weighed(language, logits[row], length)
        total = torch.tensor(list(known.values())).logsumexp(0) if known else torch.tensor(0.0)
        for text, nats in list(known.items())[:5]:
            ahead, found = Lookahead(language, logits[row : row + 1], torch.tensor([length])), 0.0
            for i, word in enumerate(text):
                found += float(ahead.logits(i)[0].log_softmax(-1)[word])
                ahead.take(i, torch.tensor([word]))
            assert found == pytest.approx(float(nats - total), abs=1e-5)


def test_a_lookahead_leaves_what_is_behind_the_text_and_texts_of_impossible_lengths() -> None:
    logits, language = draw_logits(), repeat(one_of([0], SIZE), 3, 3)
    ahead = Lookahead(language, logits, LENGTHS)
    assert torch.equal(ahead.logits(0)[[0, 2, 3, 4]], logits[[0, 2, 3, 4], 0])  # only the second has three tokens
    for i in range(3):
        assert ahead.logits(i)[1].softmax(-1).tolist() == pytest.approx([1] + [0] * (SIZE - 1))
        ahead.take(i, torch.zeros_like(LENGTHS))
    assert torch.equal(ahead.logits(4), logits[:, 4])
