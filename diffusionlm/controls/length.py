"""The length of a text in tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from diffusionlm.config import UserError
from diffusionlm.constraints.dfa import DFA, of_lengths, repeat
from diffusionlm.constraints.spelling import spelling
from diffusionlm.controls.binding import Binding
from diffusionlm.controls.control import CompiledControl, Control, Scores, passes
from diffusionlm.data.annotators import CorpusRow, Reader


@dataclass(frozen=True)
class Length(Control, name="length"):
    """The text has ``low`` tokens, or ``low`` to ``high``, BOS and EOS not counted: ``Length(20)``, ``Length(10, 15)``."""

    low: int
    high: int | None = None

    def __post_init__(self) -> None:
        for number in (self.low, self.longest):
            if not isinstance(number, int) or isinstance(number, bool):
                raise UserError(f"length: expected a whole number of tokens, got {number!r}")
        if not 1 <= self.low <= self.longest:
            raise UserError(f"length: expected one token or more, the lower number first, got {self.low} to {self.longest}")

    @property
    def longest(self) -> int:
        """The largest number of tokens."""
        return self.low if self.high is None else self.high

    def compile(self, binding: Binding) -> CompiledControl:
        """Return the automaton; with a word-level tokenizer, of so many words. Raises UserError above the model's maximum."""
        speller, most = spelling(binding.tokenizer), binding.model.config.max_tokens - 2
        if self.low > most:
            raise UserError(f"{self}: expected at most {most} tokens for this model")
        longest = min(self.longest, most)

        def make() -> DFA:
            if speller.whole_words:
                return speller.over_tokens(repeat(speller.any_word, self.low, longest))
            return of_lengths(range(self.low, longest + 1), len(binding.tokenizer))

        return CompiledControl((binding.automaton((Length, self.low, longest), make),))

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        return self._within(0, texts, binding)

    def metrics(self, texts: Sequence[str], scores: Scores, binding: Binding) -> dict[str, Scores]:
        """Return the paper's metric, two tokens more or less, and the check."""
        return {"length, within two (paper)": self._within(2, texts, binding), "length, exact": passes(scores)}

    def _within(self, margin: int, texts: Sequence[str], binding: Binding) -> list[float]:
        counts = (len(binding.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
        return [float(self.low - margin <= count <= self.longest + margin) for count in counts]

    @classmethod
    def target_from(cls, row: CorpusRow, draw: random.Random, reader: Reader) -> Length:
        return cls(reader.length(row))
