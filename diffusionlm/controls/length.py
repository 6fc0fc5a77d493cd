"""How long a text is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffusionlm.config import UserError
from diffusionlm.constraints.dfa import of_lengths, repeat
from diffusionlm.constraints.spelling import spelling
from diffusionlm.controls.binding import Binding
from diffusionlm.controls.control import CompiledControl, Control


@dataclass(frozen=True)
class Length(Control, name="length"):
    """Has ``low`` tokens, or ``low`` to ``high``, start and end not counted: ``Length(20)``, ``Length(10, 15)``."""

    low: int
    high: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
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
        """Return the texts of this length; where tokens are words, those whose words stay apart.

        Raises:
            UserError: the model writes no texts that long.
        """
        speller, size, most = spelling(binding.tokenizer), len(binding.tokenizer), binding.model.config.max_tokens - 2
        if self.low > most:
            raise UserError(f"{self}: no text of up to {most} tokens, which is what this model writes, is so long")
        longest = min(self.longest, most)
        if speller.whole_words:
            return CompiledControl(automata=(speller.over_tokens(repeat(speller.any_word, self.low, longest)),))
        return CompiledControl(automata=(of_lengths(range(self.low, longest + 1), size),))

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        """Return 1 where the tokenizer makes of the text as many tokens as asked, else 0."""
        counts = (len(binding.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
        return [float(self.low <= count <= self.longest) for count in counts]
