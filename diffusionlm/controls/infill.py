"""Infilling: a given text with gaps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from diffusionlm.config import UserError
from diffusionlm.controls.binding import Binding
from diffusionlm.controls.control import Scores, passes
from diffusionlm.controls.phrase import Chain, OneOf, Phrase, PhraseControl, Repeat, phrase

_GAP = re.compile(r"\{\s*(?:(\d+)\s*(?:-\s*(\d+)\s*)?)?\}")


@dataclass(frozen=True)
class Infill(PhraseControl, name="infill"):
    """The text is ``template`` with its gaps filled: ``Infill("The Eagle is a {} pub near {3} .")``.

    ``{}`` is one word or more, ``{3}`` three words, ``{2-5}`` two to five; a punctuation mark counts as a word. The other words
    are matched with their case; the tokenizer decides whether a blank precedes a punctuation mark.
    """

    template: str

    def __post_init__(self) -> None:
        self.phrases()

    def phrases(self) -> list[Phrase]:
        """Return the given words and the gaps as one phrase. Raises UserError for a gap with a syntax error."""
        if not isinstance(self.template, str) or not self.template.strip():
            raise UserError(f"template: expected a text with gaps such as {{}} or {{2-5}}, got {self.template!r}")
        parts: list[Phrase] = []
        end = 0
        for gap in [*_GAP.finditer(self.template), None]:
            given = self.template[end : gap.start() if gap else None]
            if brace := re.search(r"[{}]", given):
                place = end + brace.start()
                raise UserError(
                    f"template: expected a gap such as {{}}, {{3}} or {{2-5}}, got {self.template[place:]!r} at {place}"
                )
            parts.append(phrase(given, cased=True))
            if gap:
                low = int(gap[1] or 1)
                high = int(gap[2] or low) if gap[1] else None
                if high is not None and not 1 <= low <= high:
                    raise UserError(f"template: expected a gap of one word or more, the lower number first, got {gap[0]!r}")
                parts.append(Repeat(OneOf(), low, high))
                end = gap.end()
        return [Chain(tuple(parts))]

    def metrics(self, texts: Sequence[str], scores: Scores, binding: Binding) -> dict[str, Scores]:
        """Return the check."""
        return {"infilling, context kept": passes(scores)}
