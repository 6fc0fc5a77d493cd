"""Regular expressions over words: as automata during sampling, and matched word by word as a check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_

from diffusionlm.config import UserError
from diffusionlm.constraints.dfa import DFA, repeat, sequence, union
from diffusionlm.constraints.spelling import Spelling, spelling
from diffusionlm.controls.binding import Binding
from diffusionlm.controls.control import CompiledControl, Control
from diffusionlm.data.tokenizers import split_words


class Phrase:
    """A set of sequences of words."""

    def automaton(self, spelling: Spelling, where: str) -> DFA:
        """Return its automaton over the characters of marked words. Raises UserError for a word that tokens cannot spell."""
        raise NotImplementedError

    def ends(self, words: Sequence[str], starts: set[int]) -> set[int]:
        """Return the places in ``words`` where a match that begins at one of ``starts`` can end."""
        raise NotImplementedError

    def matches(self, words: Sequence[str]) -> bool:
        """Return whether all of ``words`` match."""
        return len(words) in self.ends(words, {0})


@dataclass(frozen=True)
class Word(Phrase):
    """The word ``text``; without one any word."""

    text: str = ""
    cased: bool = False

    def automaton(self, spelling: Spelling, where: str) -> DFA:
        return spelling.word(self.text, cased=self.cased, where=where) if self.text else spelling.any_word

    def ends(self, words: Sequence[str], starts: set[int]) -> set[int]:
        return {start + 1 for start in starts if start < len(words) and self._is(words[start])}

    def _is(self, word: str) -> bool:
        return self.text in ("", word) or (not self.cased and word.lower() == self.text.lower())


@dataclass(frozen=True)
class Chain(Phrase):
    """All ``parts``, one after the other."""

    parts: tuple[Phrase, ...]

    def automaton(self, spelling: Spelling, where: str) -> DFA:
        return sequence(repeat(spelling.any_word, 0, 0), *(part.automaton(spelling, where) for part in self.parts))

    def ends(self, words: Sequence[str], starts: set[int]) -> set[int]:
        return reduce(lambda places, part: part.ends(words, places), self.parts, starts)


@dataclass(frozen=True)
class Either(Phrase):
    """One of ``parts``."""

    parts: tuple[Phrase, ...]

    def automaton(self, spelling: Spelling, where: str) -> DFA:
        parts = [_unwrapped(part) for part in self.parts]
        words = [part for part in parts if isinstance(part, Word) and part.text]
        found = [part.automaton(spelling, where) for part in parts if part not in words]
        for cased in {word.cased for word in words}:  # one trie of all words: hundreds of automata take seconds
            found.append(spelling.word(*(word.text for word in words if word.cased == cased), cased=cased, where=where))
        return union(*found)

    def ends(self, words: Sequence[str], starts: set[int]) -> set[int]:
        return set().union(*(part.ends(words, starts) for part in self.parts))


def _unwrapped(phrase: Phrase) -> Phrase:
    """Return the part of a chain of one."""
    return _unwrapped(phrase.parts[0]) if isinstance(phrase, Chain) and len(phrase.parts) == 1 else phrase


@dataclass(frozen=True)
class Repeat(Phrase):
    """``part``, ``low`` to ``high`` times, or ``low`` and more."""

    part: Phrase
    low: int = 0
    high: int | None = None

    def automaton(self, spelling: Spelling, where: str) -> DFA:
        if max(self.low, self.high or 0) > MOST:
            raise UserError(f"{where}: expected at most {MOST} times, got {max(self.low, self.high or 0)}")
        high = None if self.high is None else min(self.high, spelling.most_words)
        return repeat(self.part.automaton(spelling, where), min(self.low, spelling.most_words), high)

    def ends(self, words: Sequence[str], starts: set[int]) -> set[int]:
        places, found, count = starts, set(starts) if self.low == 0 else set(), 0
        while places and (self.high is None or count < self.high):
            places, count = self.part.ends(words, places), count + 1
            if count >= self.low:
                places = places - found if count > self.low else places
                found |= places
        return found


MOST = 512  # repetitions of a part: above the length of any text, and fast to build
ANYTHING = Repeat(Word())


def phrase(text: str, cased: bool = False) -> Chain:
    """Return the words of ``text``, one after the other."""
    return Chain(tuple(Word(word, cased) for word in split_words(text)))


class PhraseControl(Control):
    """Base of the controls of a text's words: it must match each of ``phrases``."""

    def __post_init__(self) -> None:
        self.phrases()

    def phrases(self) -> list[Phrase]:
        """Return the phrases that the words must match. Raises UserError for wrong fields."""
        raise NotImplementedError

    def compile(self, binding: Binding) -> CompiledControl:
        """Return the automaton of matching texts. Raises UserError for a word that is not in the vocabulary."""
        speller, where = spelling(binding.tokenizer), str(self)
        phrases = self.phrases()

        def make() -> DFA:
            return speller.over_tokens(reduce(and_, (phrase.automaton(speller, where) for phrase in phrases)))

        return CompiledControl(automata=(binding.automaton((*phrases,), make),))

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        """Return the share of the phrases that match."""
        wanted, cut = self.phrases(), [split_words(text) for text in texts]
        return [sum(phrase.matches(words) for phrase in wanted) / len(wanted) for words in cut]
