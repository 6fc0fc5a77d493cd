"""Automata over many tokens, and inference with them, give what the definition and one call give."""

from __future__ import annotations

import functools
import operator
import random

import numpy
import pytest
import torch
from torch import Tensor

from diffusionlm.constraints import inference
from diffusionlm.constraints.dfa import (
    DFA,
    any_number,
    equal_rows,
    from_table,
    of_lengths,
    one_of,
    over_strings,
    sequence,
    union,
)
from diffusionlm.constraints.spelling import most_words
from diffusionlm.data.tokenizers import split_words

VOCABULARY = 60


def letters() -> DFA:
    """Return the automaton of "ab" any number of times, and "c" anywhere, over five letters."""
    a, b, c = (one_of([i], 5) for i in range(3))
    return any_number(union(sequence(a, b), c))


def test_strings_are_read_as_their_symbols_one_after_the_other() -> None:
    draw = random.Random(0)
    strings = [[draw.randrange(5) for _ in range(draw.randrange(6))] for _ in range(200)]
    spelled, starts = numpy.array([symbol for string in strings for symbol in string]), numpy.cumsum([0, *map(len, strings)])
    letter = letters()
    found = over_strings(letter, spelled, starts)
    step = letter.step[:, letter.classes]
    table = torch.stack([functools.reduce(lambda at, symbol: step[at, symbol], s, torch.arange(len(step))) for s in strings], 1)
    expected = from_table(table, letter.accepting)
    for one, other in zip((found.classes, found.step), (expected.classes, expected.step), strict=True):
        assert torch.equal(one, other)
    for _ in range(200):
        ids = draw.choices(range(len(strings)), k=3)
        assert found.contains(ids) == letter.contains([symbol for i in ids for symbol in strings[i]])


def test_no_strings_and_empty_strings_change_no_state() -> None:
    found = over_strings(letters(), numpy.zeros(0, dtype=numpy.int64), numpy.zeros(4, dtype=numpy.int64))
    assert found.contains([0, 1, 2])
    assert found.step.shape == (1, 1)


def test_equal_rows_are_numbered_in_the_order_of_their_first() -> None:
    first, which = equal_rows(numpy.array([[3, 1], [0, 2], [3, 1], [0, 1], [0, 2]]))
    assert first.tolist() == [0, 1, 3]
    assert which.tolist() == [0, 1, 0, 2, 1]
    assert [each.tolist() for each in equal_rows(numpy.zeros((3, 0)))] == [[0], [0, 0, 0]]


def test_the_most_words_of_a_token_are_counted_as_its_words_are_cut() -> None:
    tokens = ["", " ", " cat", "don't", " 1,000.5-x", "a.b.c", "''", " it's-so", "\ufffd", "...", " B&B"]
    for count in range(1, len(tokens) + 1):
        assert most_words(tokens[:count]) == max(1, *(len(split_words(token)) for token in tokens[:count]), 1)


def test_an_intersection_is_made_once() -> None:
    one, other = of_lengths([3, 5], 9), one_of([2], 9)
    assert (one & other) is (one & other)
    assert ~~one is one
    assert (~one & other) is (~one & other)
    assert (one | other) is (one | other)


def constrained() -> tuple[DFA, Tensor, Tensor]:
    torch.manual_seed(0)
    token = torch.arange(VOCABULARY)
    few, many = one_of(token % 7 == 1, VOCABULARY), one_of(token % 7 != 1, VOCABULARY)
    automaton = sequence(any_number(many), few, any_number(many)) & of_lengths([3, 4, 6], VOCABULARY)
    logits = 6 * torch.randn(9, 6, VOCABULARY)
    logits[2, :, ::3] = -torch.inf
    logits[4, :, 1::7] = -200.0
    return automaton, logits, torch.tensor([3, 4, 6, 3, 6, 5, 4, 4, 6])


@pytest.mark.parametrize("dense", [True, False])
def test_inference_a_few_rows_at_a_time_is_that_of_one_call(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    automaton, logits, lengths = constrained()
    functions = (inference.condition, inference.log_probability, inference.viterbi)
    expected = [function(automaton, logits, lengths) for function in functions]
    monkeypatch.setattr(inference, "AT_ONCE", 2 * 6 * VOCABULARY)
    if not dense:
        monkeypatch.setattr(inference, "DENSE", 0)
    for function, wanted in zip(functions, expected, strict=True):
        torch.testing.assert_close(function(automaton, logits, lengths), wanted, rtol=1e-5, atol=1e-4)


def test_the_gradient_of_a_few_rows_at_a_time_is_that_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    automaton, logits, lengths = constrained()

    def gradient() -> Tensor:
        given = logits.clone().requires_grad_()
        found = inference.log_probability(automaton, given, lengths)
        (slope,) = torch.autograd.grad(found[found.isfinite()].sum(), given)
        return slope

    expected = gradient()
    monkeypatch.setattr(inference, "AT_ONCE", 6 * VOCABULARY)
    torch.testing.assert_close(gradient(), expected, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(inference, "DENSE", 0)
    torch.testing.assert_close(gradient(), expected, rtol=1e-5, atol=1e-6)


def test_the_members_of_the_classes_are_all_tokens() -> None:
    automaton, *_ = constrained()
    for number, tokens in enumerate(automaton.members):
        assert tokens.tolist() == (automaton.classes == number).nonzero().flatten().tolist()
    assert functools.reduce(operator.add, map(len, automaton.members)) == VOCABULARY
