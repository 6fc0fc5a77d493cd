"""Further words for a tokenizer: frequent words of other texts become tokens behind those that it has, whose ids stay.

A word is a piece of the tokenizer's own pre-tokenisation. It is worth a token where it is unknown, or is split into many
tokens; those come first that save the most of them. Byte pairs read a word that is a token as a whole, before any merge.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow  # type: ignore[import-untyped]
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError
from diffusionlm.data.rows import Texts, word_counts
from diffusionlm.data.tokenizers import finish, join_sources, of_sources, piece_counts, splits_at_blanks

MANY = 3  # tokens of a word for which one of its own is worth while
KINDS = ("WordLevel", "BPE", "WordPiece")


@dataclass(frozen=True)
class Reading:
    """How a tokenizer reads words: the share of its tokens that are unknown, and the number of tokens per word."""

    unknown: float
    tokens_per_word: float


def count_words(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Counter[str]:
    """Return how often each word occurs, as the model of the tokenizer receives it.

    Raises:
        UserError: the tokenizer takes no further words.
    """
    check_extensible(tokenizer)
    if splits_at_blanks(tokenizer):
        blocks = texts.blocks() if isinstance(texts, Texts) else [pyarrow.array(texts, pyarrow.string())]
        return piece_counts(word_counts(blocks), tokenizer.backend_tokenizer)
    return piece_counts(Counter(texts), tokenizer.backend_tokenizer)


def check_extensible(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise UserError where words cannot be added to a tokenizer in such a way that it reads others as before."""
    backend = tokenizer.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    if model["type"] not in KINDS or backend.pre_tokenizer is None:
        raise UserError(f"expected a tokenizer of words or of pieces of words ({', '.join(KINDS)}), got {model['type']}")
    if model["type"] == "BPE" and (model["continuing_subword_prefix"] or model["end_of_word_suffix"]):
        raise UserError("expected byte pairs without marks inside or at the end of words, but this tokenizer has such marks")
    read = {*model["vocab"]} if model["type"] == "WordLevel" else set()  # as special tokens already
    words = [token for token in tokenizer.all_special_tokens if token not in read]
    if special := [token for token in words if [*piece_counts({token: 1}, backend)] == [token]]:
        raise UserError(f"expected a tokenizer that splits {special[0]!r} in a text, which would be read as a special token")


def new_words(counts: Mapping[str, int], tokenizer: PreTrainedTokenizerFast, most: int, min_count: int) -> dict[str, list[int]]:
    """Return up to ``most`` words to add, with the ids of their tokens so far, in the order of the tokens that they save.

    They occur at least ``min_count`` times.
    """
    known, found = tokenizer.get_vocab(), dict[str, list[int]]()
    for word, number in counts.items():
        if number >= min_count and word not in known:
            ids = token_ids(word, tokenizer)
            if len(ids) >= MANY or tokenizer.unk_token_id in ids:
                found[word] = ids
    saved = sorted(found, key=lambda word: (-counts[word] * max(1, len(found[word]) - 1), word))
    return {word: found[word] for word in saved[:most]}


def token_ids(word: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the ids of the tokens of one word."""
    return [token.id for token in tokenizer.backend_tokenizer.model.tokenize(word)]


def reading(counts: Mapping[str, int], tokenizer: PreTrainedTokenizerFast) -> Reading:
    """Return how the ``tokenizer`` reads the words of ``counts``."""
    tokens = unknown = 0
    for word, number in counts.items():
        ids = token_ids(word, tokenizer)
        tokens += number * len(ids)
        unknown += number * sum(i == tokenizer.unk_token_id for i in ids)
    return Reading(unknown / max(tokens, 1), tokens / max(sum(counts.values()), 1))


def with_words(tokenizer: PreTrainedTokenizerFast, words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer that also has the ``words`` as tokens, behind the others."""
    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    # Special tokens too: those outside the model's vocabulary would be numbered anew behind the words.
    plain["model"]["vocab"] = tokenizer.get_vocab() | {word: len(tokenizer) + i for i, word in enumerate(words)}
    if plain["model"]["type"] == "BPE":
        plain["model"]["ignore_merges"] = True
    special = (tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token)
    extended = finish(Tokenizer.from_str(json.dumps(plain)), tokenizer.model_max_length, *special)
    if (sources := of_sources(tokenizer)) is not None:
        join_sources(extended, sources)
    return extended
