"""A regular expression over words."""

from __future__ import annotations

import re
from dataclasses import dataclass

from diffusionlm.config import UserError
from diffusionlm.controls.phrase import Chain, Either, Phrase, PhraseControl, Repeat, Word, phrase

_WORD = re.compile(r"(?:\\\S|[^\s\\.*+?{}|()\[\]])+")
_COUNT = re.compile(r"\{\s*(\d+)\s*(,?)\s*(\d*)\s*\}")
_SHORT: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


@dataclass(frozen=True)
class Pattern(PhraseControl, name="pattern"):
    """The complete text matches ``pattern``, a regular expression over words.

    ``pub`` is this word, in any case; ``.`` is any one word or punctuation mark, ``[cheap pricey]`` one of these words, and
    ``\\.`` a full stop (a backslash escapes a sign). Blanks separate words. After a word or brackets, ``*`` is any number of
    times, ``+`` once or more, ``?`` at most once, ``{3}`` three times, ``{2,5}`` two to five times and ``{2,}`` twice or more.
    ``|`` is or, parentheses group: ``.* (cheap|low priced) pub .{0,4} \\.``.
    """

    pattern: str

    def phrases(self) -> list[Phrase]:
        """Return the pattern as a phrase. Raises UserError for a syntax error, with its place."""
        if not isinstance(self.pattern, str) or not self.pattern.strip():
            raise UserError(f"pattern: expected words and signs such as '.* cheap .*', got {self.pattern!r}")
        return [_Parser(self.pattern).parse()]


class _Parser:
    """Recursive descent: either = chain | chain ...; chain = counted counted ...; counted = one * ...; one = word, (either)."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0

    def parse(self) -> Phrase:
        found = self._either()
        if self._next():
            raise self._error("the end, or a word")
        return found

    def _either(self) -> Phrase:
        options = [self._chain()]
        while self._takes("|"):
            options.append(self._chain())
        return options[0] if len(options) == 1 else Either(tuple(options))

    def _chain(self) -> Phrase:
        parts: list[Phrase] = []
        while self._next() not in ("", "|", ")"):
            parts.append(self._counted())
        return Chain(tuple(parts))

    def _counted(self) -> Phrase:
        found = self._one()
        while (sign := self._next()) and sign in "*+?{":
            match = _COUNT.match(self.text, self.place)
            low, high = _SHORT.get(sign, (1, 0))  # of a brace without a count: never allowed
            if match:
                low, high = int(match[1]), int(match[3]) if match[3] else None if match[2] else int(match[1])
            if high is not None and high < low:
                raise self._error("a number of times such as {3}, {2,5} or {2,}")
            self.place = match.end() if match else self.place + 1
            found = Repeat(found, low, high)
        return found

    def _one(self) -> Phrase:
        if self._takes("."):
            return Word()
        if self._takes("("):
            found = self._either()
            if not self._takes(")"):
                raise self._error("a closing )")
            return found
        if self._takes("["):
            options = []
            while not self._takes("]"):
                options.append(self._words("a word or a closing ]"))
            if not options:
                raise self._error("words between [ and ]")
            return Either(tuple(options))
        return self._words("a word, a point, ( or [")

    def _words(self, expected: str) -> Phrase:
        self._next()
        match = _WORD.match(self.text, self.place)
        if match is None:
            raise self._error(expected)
        self.place = match.end()
        return phrase(re.sub(r"\\(.)", r"\1", match[0]))

    def _next(self) -> str:
        """Skip blanks; return the next sign, or nothing at the end."""
        while self.text[self.place : self.place + 1].isspace():
            self.place += 1
        return self.text[self.place : self.place + 1]

    def _takes(self, sign: str) -> bool:
        found = self._next() == sign
        self.place += found
        return found

    def _error(self, expected: str) -> UserError:
        rest = repr(self.text[self.place :]) if self._next() else "the end"
        return UserError(f"pattern: expected {expected}, got {rest} at character {self.place} of {self.text!r}")
