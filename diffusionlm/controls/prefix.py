"""The beginning of a text."""

from __future__ import annotations

from dataclasses import dataclass

from diffusionlm.config import UserError
from diffusionlm.controls.phrase import ANYTHING, Chain, Phrase, PhraseControl, phrase
from diffusionlm.data.tokenizers import split_words


@dataclass(frozen=True)
class Prefix(PhraseControl, name="prefix"):
    """The text begins with the words of ``text``, with their case: ``Prefix("The Golden Lion is")``."""

    text: str

    def phrases(self) -> list[Phrase]:
        if not isinstance(self.text, str) or not split_words(self.text):
            raise UserError(f"text: expected the words that texts begin with, got {self.text!r}")
        return [Chain((phrase(self.text, cased=True), ANYTHING))]
