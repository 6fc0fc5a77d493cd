"""Fine-tuning with further words: frequent words of the corpus that the base's tokenizer lacks become tokens.

A word that occurs often enough starts from the known words with similar contexts (``recipe.word_placing``), and a rarer one
that was split into known tokens as their mean. A word vector without either starts at random.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from diffusionlm.config import Settings, UserError
from diffusionlm.data.extension import MANY, count_words, new_words, reading, with_words
from diffusionlm.data.rows import token_counts
from diffusionlm.models.extension import extended_model
from diffusionlm.models.spec import ModelSpec, Rows
from diffusionlm.progress import say
from diffusionlm.recipe.word_init import context_vectors
from diffusionlm.recipe.word_placing import NEIGHBOURS, Means, mean_of, nearest

DIMENSION = 64  # of the context vectors
LEAST = 3  # occurrences of a word whose contexts say more than its pieces, and of a known one that others start from
SHARE = 0.85  # of a new word vector's squared length that is the mean of others, as of a new model's (``cooccurrence``)


@dataclass(frozen=True)
class VocabularyExtension(Settings):
    """Up to so many ``words`` of the corpus are added to the vocabulary of ``init_from``.

    They occur at least ``min_count`` times in the training texts, and are unknown or split into three tokens or more.
    """

    words: int = 0
    min_count: int = 3

    def __post_init__(self) -> None:
        self.expect("0 to 1000000", "words")
        self.expect("at least 1", "min_count")


@dataclass(frozen=True)
class NewWords:
    """The ``tokenizer`` of a run, and of each word that was added to its base's the tokens that it was split into before."""

    tokenizer: PreTrainedTokenizerFast
    pieces: dict[str, list[int]] = field(default_factory=dict)
    report: str = ""

    def added_to(self, model: PreTrainedModel, spec: ModelSpec, rows: Rows) -> PreTrainedModel:
        """Return ``model`` with the words, which start from their contexts in the ``rows`` or from their pieces, and say so."""
        if not self.pieces:
            return model
        means, starts = self._means(model.config.vocab_size, rows)
        shares = torch.tensor([0.0 if start == "random" else SHARE for start in starts])
        extended = extended_model(model, spec, means, shares)
        found = Counter(starts)
        say(f"extend_vocabulary: {self.report}; start: {', '.join(f'{found[start]} {name}' for start, name in STARTS.items())}")
        return extended

    def _means(self, known: int, rows: Rows) -> tuple[Means, list[str]]:
        """Return the mean over the ``known`` first tokens that each word starts from, and a key of ``STARTS`` for each."""
        counts, special = token_counts(rows), {*self.tokenizer.all_special_ids}
        ids = [i for i, number in counts.items() if number >= LEAST and i < known and i not in special]
        size, new = len(self.tokenizer), torch.arange(known, len(self.tokenizer))
        contexts = context_vectors(rows, size, DIMENSION)
        near = nearest(contexts, torch.tensor(ids), new) if ids else [([], [])] * len(new)
        frequent = sorted(ids, key=lambda i: -counts[i])[:NEIGHBOURS] or [i for i in range(known) if i not in special]
        rest = (frequent, [float(counts.get(i, 1)) for i in frequent])
        terms, starts = [], []
        for number, pieces, neighbours in zip(new.tolist(), self.pieces.values(), near, strict=True):
            whole = not special & {*pieces}
            often = counts.get(number, 0) >= (LEAST if whole else 1)
            start = "contexts" if neighbours[0] and often else "pieces" if whole else "random"
            terms.append({"contexts": neighbours, "pieces": (pieces, [1.0] * len(pieces)), "random": rest}[start])
            starts.append(start)
        return mean_of(terms), starts


STARTS = {"contexts": "from words with similar contexts", "pieces": "from their pieces", "random": "at random"}


def find_new_words(
    settings: VocabularyExtension, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], base: str | None
) -> NewWords:
    """Return the ``tokenizer`` of the model in ``base`` with the words of the training ``texts`` that are added to it.

    Raises:
        UserError: it takes no further words.
    """
    if not settings.words:
        return NewWords(tokenizer)
    try:
        counts = count_words(texts, tokenizer)
    except UserError as error:
        raise UserError(f"extend_vocabulary.words: {base}: {error}") from None
    words = new_words(counts, tokenizer, settings.words, settings.min_count)
    if not words:
        often = f"of the words that occur {settings.min_count} times or more"
        say(f"extend_vocabulary: no word was added: {often}, none is unknown to {base} or split into {MANY} tokens or more")
        return NewWords(tokenizer)
    extended = with_words(tokenizer, [*words])
    before, after = reading(counts, tokenizer), reading(counts, extended)
    report = f"new words: {len(words):,}, beside the {len(tokenizer):,} tokens of {base}"
    report += f"; unknown tokens: {before.unknown:.1%} before, {after.unknown:.1%} now"
    if before.tokens_per_word > 1:
        report += f"; tokens per word: {before.tokens_per_word:.2f} before, {after.tokens_per_word:.2f} now"
    return NewWords(extended, words, report)
