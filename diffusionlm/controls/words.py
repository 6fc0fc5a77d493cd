"""Words that a text contains."""

from __future__ import annotations

from dataclasses import dataclass

from diffusionlm.config import UserError
from diffusionlm.controls.control import literal
from diffusionlm.controls.phrase import ANYTHING, Chain, Phrase, PhraseControl, phrase
from diffusionlm.data.tokenizers import split_words


@dataclass(frozen=True, init=False)
class Words(PhraseControl, name="words"):
    """The text contains all of ``words``: ``Words("cheap", "near the river")``; ``~Words("cheap")`` excludes a word.

    Words in one string are adjacent. Case is ignored, and words are compared as units: "pub" is not in "public". With
    ``in_order`` they occur in this order, without overlap; else in any order, and they may overlap.
    """

    words: tuple[str, ...]
    in_order: bool = False

    def __init__(self, *words: str, in_order: bool = False) -> None:
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "in_order", in_order)
        self.__post_init__()

    def phrases(self) -> list[Phrase]:
        """Return one phrase for each of the words, or one for all in order."""
        if not self.words or not all(isinstance(word, str) and split_words(word) for word in self.words):
            raise UserError(
                f'words: expected words such as "cheap", "pub", got {", ".join(map(literal, self.words)) or "none"}'
            )
        wanted = [phrase(word) for word in self.words]
        if not self.in_order:
            return [Chain((ANYTHING, each, ANYTHING)) for each in wanted]
        return [Chain((ANYTHING, *(part for each in wanted for part in (each, ANYTHING))))]

    def __str__(self) -> str:
        return f"Words({', '.join([*map(literal, self.words), *(['in_order=True'] if self.in_order else [])])})"
