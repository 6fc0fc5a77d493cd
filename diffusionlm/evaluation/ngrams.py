"""Word n-gram models with interpolated Kneser-Ney smoothing: a reference that is read in seconds and is no neural network.

    p_n(w | h) = (c(h w) - d)+ / c(h)  +  d N(h .) / c(h)  p_n-1(w | h without its first word)

N(h .) is the number of different words after h, and d = n1 / (n1 + 2 n2) for each order, from the n-grams that occur once and
twice. The highest order counts occurrences; lower ones count the different words before an n-gram, and the lowest is
interpolated with the uniform distribution (Kneser and Ney 1995; Chen and Goodman 1999, section 3).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from diffusionlm.config import UserError
from diffusionlm.data.tokenizers import split_words
from diffusionlm.evaluation.likelihood import Bound

Words = tuple[str, ...]
BEGIN, END, UNKNOWN = "[START]", "[END]", "[UNK]"


class NGrams:
    """A model of ``order`` words; words that occur ``least`` times in its texts are known, others are one unknown word."""

    def __init__(self, texts: Iterable[str], order: int = 3, least: int = 2) -> None:
        """Count the n-grams of ``texts``. Raises UserError without a word, or for an order below 1."""
        if order < 1:
            raise UserError(f"order: expected 1 or more, got {order}")
        split = [split_words(text) for text in texts]
        seen = Counter(word for words in split for word in words)
        self.known = {word for word, count in seen.items() if count >= least}
        if not self.known:
            raise UserError(f"texts: no word occurs {least} times")
        self.order = order
        counted = Counter(gram for words in split for gram in self._grams(words))
        self.levels: list[dict[Words, Counter[str]]] = []
        self.discounts: list[float] = []
        for _ in range(order):  # from the highest to the lowest
            table: dict[Words, Counter[str]] = defaultdict(Counter)
            for gram, count in counted.items():
                table[gram[:-1]][gram[-1]] = count
            once, twice = (sum(count == n for count in counted.values()) for n in (1, 2))
            self.levels.append(dict(table))
            self.discounts.append(once / (once + 2 * twice) if once else 0.5)
            counted = Counter(gram[1:] for gram in counted)
        self.totals = [{history: sum(after.values()) for history, after in level.items()} for level in self.levels]

    def _grams(self, words: Sequence[str]) -> Iterable[Words]:
        """Yield the n-gram that ends at each word of a text and at its end."""
        padded = [BEGIN] * (self.order - 1) + [word if word in self.known else UNKNOWN for word in words] + [END]
        return (tuple(padded[i : i + self.order]) for i in range(len(padded) - self.order + 1))

    def probability(self, gram: Words) -> float:
        """Return p(last word | the words before it)."""
        p = 1 / (len(self.known) + 2)
        for place in reversed(range(self.order)):  # from the lowest order to the highest
            history, discount = gram[place:-1], self.discounts[place]
            if after := self.levels[place].get(history):
                p = (max(after[gram[-1]] - discount, 0) + discount * len(after) * p) / self.totals[place][history]
        return p

    def score(self, texts: Sequence[str]) -> list[Bound]:
        """Return the exact likelihood of each text; its tokens are its words and its end."""
        found = []
        for text in texts:
            words = split_words(text)
            nats = -sum(math.log(self.probability(gram)) for gram in self._grams(words))
            unknown = sum(word not in self.known for word in words)
            found.append(Bound(reconstruction=nats, tokens=len(words) + 1, characters=len(text), unknown=unknown, exact=True))
        return found
