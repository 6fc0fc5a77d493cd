"""Infilling: a given text with gaps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from diffusionlm.config import UserError
from diffusionlm.controls.phrase import Chain, Phrase, PhraseControl, Repeat, Word, phrase

_GAP = re.compile(r"\{\{|\}\}|\{\s*(?:(\d+)\s*(?:-\s*(\d+)\s*)?)?\}")  # a doubled brace is the brace itself


@dataclass(frozen=True)
class Infill(PhraseControl, name="infill"):
    """The text is ``template`` with its gaps filled: ``Infill("The Eagle is a {} pub near {3} .")``.

    ``{}`` is one word or more, ``{3}`` three words, ``{2-5}`` two to five; a punctuation mark counts as a word; ``{{`` and
    ``}}`` are braces. The other words are matched with their case; the tokenizer decides whether a blank precedes a punctuation
    mark.
    """

    check: ClassVar[str] = "infilling, context kept"
    template: str

    def phrases(self) -> list[Phrase]:
        """Return the given words and the gaps as one phrase. Raises UserError for a gap with a syntax error."""
        if not isinstance(self.template, str) or not self.template.strip():
            raise UserError(f"template: expected a text with gaps such as {{}} or {{2-5}}, got {self.template!r}")
        parts: list[Phrase] = []
        end, given = 0, ""
        for gap in [*_GAP.finditer(self.template), None]:
            between = self.template[end : gap.start() if gap else None]
            if brace := re.search(r"[{}]", between):
                place = end + brace.start()
                raise UserError(
                    f"template: expected a gap such as {{}}, {{3}} or {{2-5}}, got {self.template[place:]!r} at {place}"
                )
            given, end = given + between, gap.end() if gap else 0
            if gap and gap[0] in ("{{", "}}"):
                given += gap[0][0]
                continue
            parts.append(phrase(given, cased=True))
            given = ""
            if gap:
                low = int(gap[1] or 1)
                high = int(gap[2] or low) if gap[1] else None
                if high is not None and not 1 <= low <= high:
                    raise UserError(f"template: expected a gap of one word or more, the lower number first, got {gap[0]!r}")
                parts.append(Repeat(Word(), low, high))
        return [Chain(tuple(parts))]
