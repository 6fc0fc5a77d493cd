"""Convert automata over words into automata over tokens, for any tokenizer.

Words are those of our pre-tokenisation (``data/tokenizers.py``), expressed as an automaton over characters with a mark before
each word: `` |The| pub|n't|,``. Each token is a string of characters, so a step of the token automaton is the step of the
character automaton over that string (compare Willard and Louf 2023). This covers every segmentation of a word into tokens, and
excludes tokens that join to a different word.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError, nearest
from diffusionlm.constraints.dfa import DFA, any_number, empty, erase, everything, one_of, over_strings, sequence, union
from diffusionlm.data.tokenizers import split_words

MARK, BLANK = "\0", " "
SPECIAL = BLANK + "\ufffd"  # the text of a special token: a word that no control names
CHUNK = 1000  # tokens whose words are counted at once
PRIVATE = range(0xF0000, 0x10FFFE)  # characters without a meaning
CLITICS = ("s", "m", "d", "re", "ve", "ll")


Array = NDArray[Any]


class Spelling:
    """The characters of a tokenizer's tokens, and automata over them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        backend = tokenizer.backend_tokenizer
        # Word-level tokenizers: each token starts a word.
        self.whole_words = isinstance(backend.model, models.WordLevel) and isinstance(backend.decoder, decoders.Metaspace)
        self.tokens = spelled_tokens(tokenizer)
        # No text has more words; repetitions beyond it are all alike, and slow to build.
        self.most_words = tokenizer.model_max_length * most_words(self.tokens) + 1
        found = set("".join(self.tokens))
        self.characters = [MARK, BLANK, *sorted(found - {MARK, BLANK})]
        self._rest, self._mark, self._letter = everything(len(self.characters)), self._of(MARK.__eq__), self._of(_is_letter)
        self._join, self._point, self._quote = (self._of(signs.__contains__) for signs in ("-&", ".,", "'’"))
        self._blank = self._of(BLANK.__eq__)
        self._start = sequence(union(empty(len(self.characters)), self._blank), self._mark)
        self._negation = sequence(self._letters("n"), self._quote, self._letters("t"))
        self._clitic = union(*map(self._letters, CLITICS))

    @cached_property
    def words(self) -> set[str]:
        """The texts of the tokens without blanks; for a word-level tokenizer its vocabulary."""
        return {token.strip() for token in self.tokens} - {"", SPECIAL.strip()}

    def word(self, *words: str, cased: bool, where: str) -> DFA:
        """Accept one of ``words``, with or without a blank before it. Raises UserError where the tokens cannot spell one."""
        fold: Callable[[str], str] = str if cased else str.lower
        known = {fold(each) for each in (self.words if self.whole_words else self.characters)}
        trie: list[dict[str, int]] = [{BLANK: 1, MARK: 2}, {MARK: 2}, {}]  # the next state by character
        ends = set()
        for word in words:
            if not known.issuperset(map(fold, [word] if self.whole_words else word)):
                hint = nearest(word, self.words, listed=False)
                raise UserError(f"{where}: the model's vocabulary has no word {word!r}{hint}")
            state = 2
            for character in map(fold, word):
                if character not in trie[state]:
                    trie[state][character] = len(trie)
                    trie.append({})
                state = trie[state][character]
            ends.add(state)
        read = {character: i for i, character in enumerate({character for after in trie for character in after})}
        table = numpy.full((len(trie) + 1, len(read) + 1), len(trie))  # the last state is no word, the last class no letter
        for state, after in enumerate(trie):
            for character, target in after.items():
                table[state, read[character]] = target
        classes = numpy.array([read.get(fold(own), len(read)) for own in self.characters])
        accepting = numpy.isin(numpy.arange(len(table)), sorted(ends))
        return DFA(*(torch.from_numpy(each) for each in (classes, table, accepting))).minimal()

    @cached_property
    def any_word(self) -> DFA:
        """The automaton of any one word: letters (with a hyphen after a clitic), ``n't``, a clitic, or a punctuation mark."""
        sign = self._of(lambda c: c not in (MARK, BLANK) and not _is_letter(c))
        hyphened, clitic = sequence(self._join, self._run), sequence(self._quote, self._clitic)
        return sequence(self._start, union(self._run, hyphened, self._negation, clitic, sign))

    def over_tokens(self, spelled: DFA) -> DFA:
        """Return the automaton of the token sequences that spell a sequence of marked words in ``spelled``."""
        automaton = spelled & self.proper
        if not self.whole_words:
            automaton = erase(automaton, 0)
        return over_strings(automaton, *self._codes)

    @cached_property
    def proper(self) -> DFA:
        """The automaton of marked texts whose marks are exactly where the pre-tokenisation cuts."""
        nothing, rest, mark, join, point = empty(len(self.characters)), self._rest, self._mark, self._join, self._point
        letter, digit, quote, run = self._letter, self._of(_is_digit), self._quote, self._run
        outside = self._of(lambda c: c != MARK and not _is_letter(c))
        ended = union(nothing, sequence(union(nothing, mark), outside, rest))
        hyphened = sequence(mark, join, letter, rest)  # correct only after a clitic: ``|it|'s|-like``
        wrong = union(
            sequence(letter, mark, run, union(nothing, sequence(union(mark, self._blank), rest))),
            sequence(letter, mark, join, mark, letter, rest),
            sequence(letter, join, ~sequence(union(letter, sequence(mark, self._negation)), rest)),
            sequence(digit, mark, point, mark, digit, rest),
            sequence(self._letters("n"), mark, quote, mark, self._letters("t"), ended),
            sequence(quote, mark, self._clitic, ended),
            sequence(quote, letter, any_number(letter), mark, letter, rest),
            sequence(union(outside, mark, sequence(mark, union(nothing, join), run)), hyphened),
        )
        return any_number(self.any_word) & ~union(sequence(rest, wrong), hyphened)

    @cached_property
    def _run(self) -> DFA:
        """Words of letters, digits and inner marks; a final hyphen occurs before ``n't``."""
        plain = self._of(lambda c: _is_letter(c) and not _is_digit(c))
        inner = union(self._letter, sequence(union(self._join, self._point), self._letter))
        wrong = union(sequence(plain, self._point), sequence(self._point, plain))
        words = sequence(self._letter, any_number(inner)) & ~sequence(self._rest, wrong, self._rest)
        return sequence(words, union(empty(len(self.characters)), self._join))

    @cached_property
    def _codes(self) -> tuple[Array, Array]:
        """The character indices of all tokens, one after the other, and where each token starts, (V + 1,)."""
        number = {character: i for i, character in enumerate(self.characters)}
        spelled = [f"{t[: -len(t.lstrip())]}{MARK}{t.lstrip()}" if self.whole_words else t for t in self.tokens]
        codes = numpy.fromiter(map(number.__getitem__, itertools.chain.from_iterable(spelled)), dtype=numpy.int64)
        return codes, numpy.cumsum([0, *map(len, spelled)])

    def _of(self, test: Callable[[str], bool]) -> DFA:
        return one_of([i for i, character in enumerate(self.characters) if test(character)], len(self.characters))

    def _letters(self, word: str) -> DFA:
        return sequence(*[self._of((letter + letter.upper()).__contains__) for letter in word])


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN" or character in "£$€\ufffd"


def _is_digit(character: str) -> bool:
    return unicodedata.category(character)[0] == "N"


def most_words(tokens: Sequence[str]) -> int:
    """Return the largest number of words in one of ``tokens``, at least 1."""
    used = set("".join(tokens))
    between = next(character for character in map(chr, PRIVATE) if character not in used)
    tokens = [token for token in tokens if not _one_word(token)]
    most = 1
    for first in range(0, len(tokens), CHUNK):  # between blanks words are the same as alone
        words = split_words(f" {between} ".join(tokens[first : first + CHUNK]))
        ends = [-1, *(i for i, word in enumerate(words) if word == between), len(words)]
        most = max(most, *(after - before - 1 for before, after in itertools.pairwise(ends)))
    return most


def _one_word(token: str) -> bool:
    """Return whether a token is letters and digits alone; of other tokens it takes longer to find out."""
    return token.strip(BLANK).isalnum() and max(token) < "\ud800"


def spelled_tokens(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return the text that each token adds to the text before it."""
    decoder, special = tokenizer.backend_tokenizer.decoder, set(tokenizer.all_special_ids)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if decoder is None:
        return [SPECIAL if i in special else BLANK + token for i, token in enumerate(tokens)]
    return [SPECIAL if i in special else decoder.decode(["a", token])[1:] for i, token in enumerate(tokens)]


spelling = lru_cache(maxsize=8)(Spelling)  # of a tokenizer


@lru_cache(maxsize=8)
def proper_texts(tokenizer: PreTrainedTokenizerFast) -> DFA:
    """Return the automaton of all sequences of words; words that need a blank between them have one."""
    speller = spelling(tokenizer)
    return speller.over_tokens(any_number(speller.any_word))
