"""Sets of texts as automata: builders and algebra against every text of a tiny vocabulary, minimal automata."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from diffusionlm.config import UserError
from diffusionlm.constraints.dfa import (
    DFA,
    LARGEST,
    any_number,
    empty,
    erase,
    everything,
    from_table,
    of_lengths,
    one_of,
    repeat,
    sequence,
    union,
)

SIZE, LONGEST = 4, 5
TEXTS = [text for n in range(LONGEST + 1) for text in itertools.product(range(SIZE), repeat=n)]
ANY = one_of(range(SIZE), SIZE)


def random_language(seed: int, states: int = 5, classes: int = 3) -> DFA:
    """Return an automaton drawn at random, which need not be minimal."""
    generator = torch.Generator().manual_seed(seed)
    return DFA(
        torch.arange(SIZE)[torch.randperm(SIZE, generator=generator)] % classes,
        torch.randint(states, (states, classes), generator=generator),
        torch.rand(states, generator=generator) < 0.3,
    )


def members(language: DFA) -> set[tuple[int, ...]]:
    return {text for text in TEXTS if language.contains(text)}


def letters(*ids: int) -> DFA:
    return sequence(*[one_of([i], SIZE) for i in ids])


@pytest.mark.parametrize(
    ("language", "pattern"),
    [
        (ANY, "[0-3]"),
        (everything(SIZE), "[0-3]*"),
        (empty(SIZE), ""),
        (~everything(SIZE), "[^0-3]"),
        (one_of(torch.tensor([True, False, False, True]), SIZE), "[03]"),
        (letters(1, 1, 2), "112"),
        (sequence(any_number(ANY), letters(1, 2), any_number(ANY)), ".*12.*"),
        (any_number(letters(0, 1)), "(01)*"),
        (any_number(union(letters(0, 1), letters(0))), "(01|0)*"),
        (sequence(any_number(letters(0)), any_number(letters(1)), any_number(letters(2))), "0*1*2*"),
        (repeat(letters(3), 2, 4), "3{2,4}"),
        (repeat(letters(3), 0, 2), "3{0,2}"),
        (repeat(letters(3), 0, 0), ""),
        (of_lengths([3, 0, 1], SIZE), "(.|...)?"),
        (of_lengths([], SIZE) | letters(2), "2"),
        (repeat(letters(0, 2), 1), "(02)+"),
        (union(letters(0), letters(1, 2), repeat(ANY, 4, 4)), "0|12|.{4}"),
        (sequence(union(letters(0), empty(SIZE)), ~everything(SIZE)), "[^0-3]"),
        (any_number(sequence(letters(0), any_number(letters(1)))), "(01*)*"),
    ],
)
def test_builders_are_the_regular_expressions(language: DFA, pattern: str) -> None:
    expected = {text for text in TEXTS if re.fullmatch(pattern, "".join(map(str, text)))}
    assert members(language) == expected
    assert language.lengths(LONGEST) == sorted({len(text) for text in expected})
    assert language == language.minimal()
    assert len(language.step) == len(language.minimal().step)


@pytest.mark.parametrize("seed", range(8))
def test_algebra_against_all_texts(seed: int) -> None:
    a, b = random_language(seed), random_language(seed + 100)
    in_a, in_b = members(a), members(b)
    assert members(a & b) == in_a & in_b
    assert members(a | b) == in_a | in_b == members(union(a, b))
    assert members(~a) == set(TEXTS) - in_a
    assert members(a.minimal()) == in_a
    joined = {one + two for one in in_a for two in in_b if len(one + two) <= LONGEST}
    assert members(sequence(a, b)) == joined
    assert a.lengths(LONGEST) == sorted({len(text) for text in in_a})


@pytest.mark.parametrize("seed", range(8))
def test_laws(seed: int) -> None:
    a, b = random_language(seed), random_language(seed + 100)
    assert ~(a & b) == ~a | ~b
    assert ~(a | b) == ~a & ~b
    assert a & ~a == ~everything(SIZE)
    assert a | ~a == everything(SIZE)
    assert a & (a | b) == a
    assert (a == b) == (members(a) == members(b))
    assert any_number(any_number(a)) == any_number(a)
    assert sequence(a, empty(SIZE)) == a == sequence(empty(SIZE), a)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_erased_is_left_out(seed: int) -> None:
    a = random_language(seed)
    longer = [text for n in range(8) for text in itertools.product(range(SIZE), repeat=n)]
    expected = {tuple(i for i in text if i != 2) for text in longer if a.contains(text)}
    erased = erase(a, 2)
    assert {t for t in members(erased) if len(t) <= 3} == {t for t in expected if len(t) <= 3}


@pytest.mark.parametrize(
    ("language", "states", "classes"),
    [
        (everything(SIZE), 1, 1),
        (ANY, 3, 1),
        (repeat(ANY, 3, 3), 5, 1),
        (sequence(everything(SIZE), letters(0), everything(SIZE)), 2, 2),
        (sequence(everything(SIZE), letters(0, 1, 0)), 4, 3),  # Knuth, Morris and Pratt's automaton
        (sequence(everything(SIZE), letters(0), repeat(ANY, 4, 4)), 32, 2),  # which of the last five tokens were 0
        (any_number(sequence(ANY, ANY, ANY)), 3, 1),
    ],
)
def test_automata_are_minimal(language: DFA, states: int, classes: int) -> None:
    assert tuple(language.step.shape) == (states, classes)


def test_a_table_by_token_and_its_classes() -> None:
    language = from_table(
        torch.tensor([[1, 0, 1, 2], [1, 0, 1, 2], [2, 2, 2, 2], [0, 0, 0, 0]]), torch.tensor([True, True, False, False])
    )
    assert language == any_number(one_of([0, 1, 2], SIZE))
    assert language.classes.tolist() == [0, 0, 0, 1]
    assert language.accepting.tolist() == [True, False]


def test_refusals() -> None:
    with pytest.raises(UserError, match=f"more than {LARGEST:,} states"):
        sequence(everything(SIZE), letters(0), repeat(ANY, 20, 20))
    with pytest.raises(UserError, match=f"more than {LARGEST:,} states"):
        any_number(repeat(ANY, 163, 163)) & any_number(repeat(ANY, 167, 167))
    with pytest.raises(UserError, match="0 or more and no less at the end, got 3 to 2"):
        repeat(ANY, 3, 2)
    with pytest.raises(UserError, match=r"one vocabulary, got \[4, 5\] tokens"):
        everything(4) & everything(5)
