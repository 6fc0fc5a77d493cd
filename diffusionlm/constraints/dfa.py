"""Deterministic finite automata (DFAs) over the vocabulary: lengths, given words, templates, patterns.

A DFA accepts a regular language, a set of token sequences; regular languages are closed under ``&``, ``|`` and ``~``. Automata
are kept minimal and in one state order, so equal languages have equal tables (Hopcroft, Motwani and Ullman 2006, ch. 2 to 4).

Shapes: V vocabulary, S states, C classes of tokens that no state tells apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusionlm.config import UserError

Array = NDArray[Any]

LARGEST = 20_000  # most states of an automaton
MOST_STEPS = 10_000_000  # most transitions that are looked up to make an automaton deterministic: a few seconds


@dataclass(frozen=True, eq=False)
class DFA:
    """A complete deterministic finite automaton that starts in state 0.

    Args:
        classes: class of each token, (V,); every class has a token.
        step: next state, (S, C).
        accepting: whether a sequence that ends in a state is accepted, (S,) bool.
    """

    classes: Tensor
    step: Tensor
    accepting: Tensor

    def __and__(self, other: DFA) -> DFA:
        """Return the intersection. Raises UserError where the automaton grows too large, as do ``|`` and all builders."""
        if id(other) not in self._intersections:
            self._intersections[id(other)] = other, self._intersection(other)
        return self._intersections[id(other)][1]

    @cached_property
    def _intersections(self) -> dict[int, tuple[DFA, DFA]]:
        """The intersections found so far, with the other automaton, by its identity."""
        return {}

    def _intersection(self, other: DFA) -> DFA:
        classes, (a, b) = _refined([self, other])
        step_a, step_b, width = self.step.numpy()[:, a], other.step.numpy()[:, b], len(other.step)

        def after(pairs: Array) -> Array:
            return step_a[pairs // width] * width + step_b[pairs % width]

        known, fresh = {0}, [0]
        while fresh:
            fresh = [pair for pair in numpy.unique(after(numpy.array(fresh))).tolist() if pair not in known]
            known.update(fresh)
            _check_size(len(known))
        pairs = numpy.array(sorted(known))
        accepting = self.accepting.numpy()[pairs // width] & other.accepting.numpy()[pairs % width]
        return _minimal(classes, numpy.searchsorted(pairs, after(pairs)), accepting)

    def __or__(self, other: DFA) -> DFA:
        return ~(~self & ~other)

    def __invert__(self) -> DFA:
        return self._complement

    @cached_property
    def _complement(self) -> DFA:
        other = DFA(self.classes, self.step, ~self.accepting)
        vars(other)["_complement"] = self
        return other

    def __eq__(self, other: object) -> bool:
        """Return whether two automata accept the same language: their minimal automata are then equal."""
        if not isinstance(other, DFA) or len(self.classes) != len(other.classes):
            return NotImplemented
        tables = zip(vars(self.minimal()).values(), vars(other.minimal()).values(), strict=True)
        return all(torch.equal(one, two) for one, two in tables)

    __hash__ = None  # type: ignore[assignment]

    def minimal(self) -> DFA:
        """Return the equivalent automaton with the fewest states and classes, numbered in the order of first use."""
        return _minimal(self.classes.numpy(), self.step.numpy(), self.accepting.numpy())

    def contains(self, ids: Sequence[int]) -> bool:
        """Return whether the automaton accepts the tokens ``ids``."""
        step, state = self.step.numpy(), 0
        for symbol in self.classes.numpy()[list(ids)].tolist() if len(ids) else ():
            state = step[state, symbol]
        return bool(self.accepting[state])

    def lengths(self, longest: int) -> list[int]:
        """Return the lengths, 0 to ``longest`` tokens, of the accepted sequences."""
        return (self.reached(longest) & self.accepting).any(1).nonzero().flatten().tolist()

    def reached(self, longest: int) -> Tensor:
        """Return which states are reachable by n tokens, (longest + 1, S) bool, by n."""
        reached = torch.zeros(longest + 1, len(self.step), dtype=torch.bool)
        reached[0, 0] = True
        for n in range(longest):
            reached[n + 1, self.step[reached[n]].flatten()] = True
        return reached

    @cached_property
    def membership(self) -> Tensor:
        """1 where a token is in a class, (V, C)."""
        return torch.nn.functional.one_hot(self.classes, self.step.shape[1]).float()

    @cached_property
    def members(self) -> tuple[Tensor, ...]:
        """The tokens of each class."""
        return self.classes.argsort(stable=True).split(self.classes.bincount(minlength=self.step.shape[1]).tolist())

    @cached_property
    def edges(self) -> tuple[Tensor, Tensor, Tensor]:
        """The edges from each state to each next one from which an accepting state is reachable, with merged classes.

        Returns targets (S, N) and labels (S, N) of at most N edges, where label K is padding, and the classes of each label,
        (C, K), 1 or 0.
        """
        step = self.step.numpy()
        source, symbol = numpy.nonzero(_live(step, self.accepting.numpy())[step])
        pairs, edge = numpy.unique(source * len(step) + step[source, symbol], return_inverse=True)
        sets = numpy.zeros((len(pairs), step.shape[1]), dtype=numpy.float32)
        sets[edge.reshape(-1), symbol] = 1
        labels, label = numpy.unique(sets, axis=0, return_inverse=True)
        labels = labels if len(labels) else numpy.ones((1, step.shape[1]), dtype=numpy.float32)  # of no edge
        source, target = numpy.divmod(pairs, len(step))
        place = numpy.arange(len(pairs)) - numpy.searchsorted(source, source)
        shape = len(step), int(place.max(initial=0)) + 1
        targets, table = numpy.zeros(shape, dtype=numpy.int64), numpy.full(shape, len(labels))
        targets[source, place], table[source, place] = target, label.reshape(-1)
        return torch.from_numpy(targets), torch.from_numpy(table), torch.from_numpy(labels.T.copy())


# Builders


def one_of(tokens: Tensor | Iterable[int], size: int) -> DFA:
    """Accept one token, given as a mask (V,) or as ids, in a vocabulary of ``size``."""
    chosen = numpy.zeros(size, dtype=numpy.int64)
    chosen[tokens.numpy() if isinstance(tokens, Tensor) else list(tokens)] = 1
    return _minimal(chosen, numpy.array([[2, 1], [2, 2], [2, 2]]), numpy.array([False, True, False]))


def everything(size: int) -> DFA:
    """Accept every sequence over a vocabulary of ``size``."""
    return _minimal(numpy.zeros(size, dtype=numpy.int64), numpy.array([[0]]), numpy.array([True]))


def empty(size: int) -> DFA:
    """Accept only the empty sequence."""
    return _minimal(numpy.zeros(size, dtype=numpy.int64), numpy.array([[1], [1]]), numpy.array([True, False]))


def union(*parts: DFA) -> DFA:
    """Return the union of ``parts``."""
    classes, symbols = _refined(parts)
    rows: list[list[int]] = []
    start = accepting = 0
    for part, symbol in zip(parts, symbols, strict=True):
        start |= 1 << len(rows)
        accepting |= _bits(part.accepting.numpy()) << len(rows)
        arrive = [bit << len(rows) for bit in _live_bits(part)]
        rows += [[arrive[t] for t in row] for row in part.step.numpy()[:, symbol].tolist()]
    return _determinise(classes, rows, start, accepting)


def any_number(part: DFA) -> DFA:
    """Return the Kleene star: any number of sequences of ``part``, zero included."""
    return union(empty(len(part.classes)), sequence(part, again=True))


def sequence(*parts: DFA, again: bool = False) -> DFA:
    """Return the concatenation of ``parts``; ``again`` connects the accepting states of the only part to its start."""
    classes, symbols = _refined(parts)
    offsets = numpy.cumsum([0, *(len(part.step) for part in parts)]).tolist()
    rows: list[list[int]] = []
    entry = 1 if again else 0
    for part, symbol, offset in reversed(list(zip(parts, symbols, offsets[:-1], strict=True))):
        ends = part.accepting.tolist()
        arrive = [bit << offset | (entry if end and bit else 0) for bit, end in zip(_live_bits(part), ends, strict=True)]
        rows = [[arrive[t] for t in row] for row in part.step.numpy()[:, symbol].tolist()] + rows
        entry = 1 << offset | (entry if ends[0] else 0)
    return _determinise(classes, rows, entry, _bits(parts[-1].accepting.numpy()) << offsets[-2])


def repeat(part: DFA, low: int, high: int | None = None) -> DFA:
    """Return the concatenation of ``low`` to ``high`` sequences of ``part``; without ``high`` of ``low`` or more."""
    if low < 0 or (high is not None and high < low):
        raise UserError(f"repeat: expected 0 or more and no less at the end, got {low} to {high}")
    _check_size(len(part.step) * max(low, high or 0))
    nothing = empty(len(part.classes))
    rest = [any_number(part)] if high is None else [union(part, nothing)] * (high - low)
    return sequence(nothing, *[part] * low, *rest)


def of_lengths(lengths: Iterable[int], size: int) -> DFA:
    """Accept every sequence with one of ``lengths``, over a vocabulary of ``size``."""
    wanted = set(lengths)
    longest = max(wanted, default=-1)
    step = numpy.array([[min(n + 1, longest + 1)] for n in range(longest + 2)])
    return _minimal(numpy.zeros(size, dtype=numpy.int64), step, numpy.isin(numpy.arange(longest + 2), sorted(wanted)))


def erase(automaton: DFA, token: int) -> DFA:
    """Return the automaton of the accepted sequences with every ``token`` deleted."""
    step, arrive = automaton.step.numpy(), _live_bits(automaton)
    silent = step[:, int(automaton.classes[token])].tolist()
    closure = [0] * len(step)
    for state in range(len(step)):
        at = state
        while arrive[at] and not closure[state] & arrive[at]:
            closure[state] |= arrive[at]
            at = silent[at]
    classes = automaton.classes.numpy().copy()
    classes[token] = step.shape[1]
    rows = [[*(closure[t] for t in row), 0] for row in step.tolist()]
    return _determinise(classes, rows, closure[0], _bits(automaton.accepting.numpy()))


def from_table(table: Tensor, accepting: Tensor) -> DFA:
    """Return the automaton with the next state ``table`` (S, V) for each token."""
    return _minimal(numpy.arange(table.shape[1]), table.numpy(), accepting.numpy())


def over_strings(automaton: DFA, codes: Array, starts: Array) -> DFA:
    """Return the automaton over strings of symbols, of which string i is ``codes[starts[i] : starts[i + 1]]``.

    Strings are read side by side, a symbol at a time, and those that lead each state to the same one are read as one from
    there on. They are few, however many strings there are.
    """
    step, classes = automaton.step.numpy(), automaton.classes.numpy()
    symbols, lengths = classes[codes], numpy.diff(starts)
    width, effect = step.shape[1], numpy.zeros(len(lengths), dtype=numpy.int64)  # which of the effects a string has so far
    effects = numpy.arange(len(step), dtype=numpy.int32)[None]  # the state that each state leads to, (E, S)
    for place in range(int(lengths.max(initial=0))):
        longer = numpy.flatnonzero(lengths > place)
        pairs, which = _renumbered(effect[longer] * width + symbols[starts[longer] + place], len(effects) * width)
        found = step.astype(numpy.int32).T[pairs % width, effects[pairs // width].T].T
        kept, same = equal_rows(numpy.concatenate([effects, found]))
        effects, effect = numpy.concatenate([effects, found])[kept], same[effect]
        effect[longer] = same[len(same) - len(pairs) :][which]
    return _minimal(effect, effects.T.astype(numpy.int64), automaton.accepting.numpy())


# Algorithms. A set of states of a non-deterministic automaton is an integer with a bit for each state.


def _bits(states: Array) -> int:
    return sum(1 << state for state in numpy.flatnonzero(states).tolist())


def _live(step: Array, accepting: Array) -> Array:
    """Return from which states (S,) an accepting one is reachable."""
    live = accepting.copy()
    while (more := live | live[step].any(1)).sum() > live.sum():
        live = more
    return live


def _live_bits(automaton: DFA) -> list[int]:
    live = _live(automaton.step.numpy(), automaton.accepting.numpy())
    return [1 << state if alive else 0 for state, alive in enumerate(live.tolist())]


def _refined(parts: Sequence[DFA]) -> tuple[Array, Array]:
    """Return the coarsest classes (V,) that refine those of all ``parts``, and each one's class in each part (parts, C)."""
    if len({len(part.classes) for part in parts}) != 1:
        sizes = sorted({len(part.classes) for part in parts})
        raise UserError(f"automaton: expected automata over one vocabulary, got {sizes} tokens")
    classes = parts[0].classes.numpy()
    symbols: list[Array] = [numpy.arange(parts[0].step.shape[1])]
    tables = [parts[0].classes]
    for part in parts[1:]:
        if (same := next((i for i, table in enumerate(tables) if table is part.classes), None)) is not None:
            symbols.append(symbols[same])
        else:  # pairs as single integers, which are few: sorting columns of an array is a hundred times slower
            width = part.step.shape[1]
            used, classes = _renumbered(classes * width + part.classes.numpy(), (classes.max(initial=0) + 1) * width)
            symbols = [*(each[used // width] for each in symbols), used % width]
        tables.append(part.classes)
    return classes, numpy.stack(symbols)


def _renumbered(numbers: Array, limit: int) -> tuple[Array, Array]:
    """Return the different ``numbers``, in order, and the place of each number among them; all are below ``limit``."""
    used = numpy.flatnonzero(numpy.bincount(numbers, minlength=limit))
    place = numpy.zeros(limit, dtype=numpy.int64)
    place[used] = numpy.arange(len(used))
    return used, place[numbers]


def equal_rows(rows: Array) -> tuple[Array, Array]:
    """Return the first of each set of equal ``rows`` (N, M), in order, and the set of each row (N,)."""
    if not rows.size:
        return numpy.arange(min(len(rows), 1)), numpy.zeros(len(rows), dtype=numpy.int64)
    rows = numpy.ascontiguousarray(rows)
    plain = rows.view(numpy.dtype((numpy.void, rows.shape[1] * rows.itemsize)))[:, 0].tolist()  # of bytes: hashes are exact
    number = dict(zip(dict.fromkeys(plain), itertools.count(), strict=False))
    which = numpy.fromiter(map(number.__getitem__, plain), dtype=numpy.int64, count=len(plain))
    first = numpy.empty(len(number), dtype=numpy.int64)
    first[which[::-1]] = numpy.arange(len(plain))[::-1]  # of equal indices the last one counts
    return first, which


def _determinise(classes: Array, rows: list[list[int]], start: int, accepting: int) -> DFA:
    """Return the subset construction (Rabin and Scott 1959); ``rows`` has the set of next states of each state, by class."""
    known, order, step, steps = {start: 0}, [start], [], 0
    for states in order:
        steps += states.bit_count() * len(rows[0])
        if steps > MOST_STEPS:
            raise UserError("control: the constraint takes too long to build; nest fewer repetitions, or repeat fewer times")
        after = [0] * len(rows[0])
        while states:
            lowest = states & -states
            after = [a | b for a, b in zip(after, rows[lowest.bit_length() - 1], strict=True)]
            states ^= lowest
        for found in dict.fromkeys(after):
            if found not in known:
                known[found] = len(order)
                order.append(found)
                _check_size(len(order))
        step.append([known[found] for found in after])
    return _minimal(classes, numpy.array(step), numpy.array([bool(states & accepting) for states in order]))


def _check_size(states: int) -> None:
    if states > LARGEST:
        raise UserError(f"control: the constraint automaton needs more than {LARGEST:,} states; combine fewer constraints")


def _minimal(classes: Array, step: Array, accepting: Array) -> DFA:
    """Merge equivalent states (Moore 1956) and equivalent classes; number both by first use."""
    classes, step = _merge_classes(classes, step)
    step, accepting = _number_states(step, accepting)
    member, block = equal_rows(accepting[:, None])
    while True:
        finer, renamed = equal_rows(numpy.column_stack([block, block[step]]).astype(numpy.int32))
        if len(finer) == len(member):
            break
        member, block = finer, renamed
    start = block[0]
    classes, step = _merge_classes(classes, block[step[member]])
    step, accepting = _number_states(step, accepting[member], start)
    return DFA(*(torch.from_numpy(a) for a in (classes, step, accepting)))


def _merge_classes(classes: Array, step: Array) -> tuple[Array, Array]:
    """Merge equal columns, drop unused ones, number them by their first token."""
    used, classes = _renumbered(classes, step.shape[1])
    step = step[:, used]
    kept, column = equal_rows(step.T)
    classes, step = column[classes], step[:, kept]
    first = numpy.empty(len(kept), dtype=numpy.int64)
    first[classes[::-1]] = numpy.arange(len(classes))[::-1]  # of equal indices the last one counts
    order = numpy.argsort(first)
    return numpy.argsort(order)[classes], step[:, order]


def _number_states(step: Array, accepting: Array, start: int = 0) -> tuple[Array, Array]:
    """Number states in breadth-first order and drop unreachable ones."""
    reached = {int(start): 0}
    queue = list(reached)
    for state in queue:
        fresh = [t for t in dict.fromkeys(step[state].tolist()) if t not in reached]
        reached.update(zip(fresh, range(len(queue), len(queue) + len(fresh)), strict=True))
        queue += fresh
    number = numpy.zeros(len(step), dtype=numpy.int64)
    number[queue] = range(len(queue))
    return number[step[queue]], accepting[queue]
