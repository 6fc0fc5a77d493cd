"""The texts of a run as token ids, with a warning on stderr where a model can learn little from them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import numpy as np
from transformers import PreTrainedTokenizerFast

from diffusionlm.data.batches import DataConfig, Encoded, encode
from diffusionlm.data.tokenizers import BytePairs, WordTokenizer
from diffusionlm.models.spec import Splits

UNKNOWN = 0.05  # of the tokens of held-out texts: a larger share is reported
ONCE = 0.2  # of the tokens of training texts that occur in them once


def encode_splits(splits: Splits, tokenizer: PreTrainedTokenizerFast, data: DataConfig) -> dict[str, Encoded]:
    """Encode all splits but "test", and say how many texts were cut, split, dropped or skipped, and which words are unknown."""
    encoded = {split: _encode(rows["text"][:], split, tokenizer, data) for split, rows in splits.items() if split != "test"}
    for sentence in unknown_words(encoded, tokenizer, data):
        say(sentence)
    return encoded


def _encode(texts: list[str], split: str, tokenizer: PreTrainedTokenizerFast, data: DataConfig) -> Encoded:
    encoded = encode(texts, tokenizer, data.max_length, data.too_long)
    if encoded.too_long:
        done = {"truncate": "cut", "split": "split", "drop": "dropped"}[data.too_long]
        count = f"{encoded.too_long} of {len(texts)} texts"
        say(f"{split}: {count} are longer than {data.max_length} tokens and were {done}")
    if encoded.empty:
        say(f"{split}: {encoded.empty} empty texts were skipped")
    return encoded


def unknown_words(encoded: Mapping[str, Encoded], tokenizer: PreTrainedTokenizerFast, data: DataConfig) -> list[str]:
    """Return a sentence where many tokens of held-out texts are unknown, and one where many of training texts occur once."""
    train = _tokens(encoded["train"])
    counts = np.bincount(train, minlength=len(tokenizer))
    found = []
    if "validation" in encoded and tokenizer.unk_token_id is not None:
        share = float(np.mean(_tokens(encoded["validation"]) == tokenizer.unk_token_id))
        if share > UNKNOWN:
            found.append(f"validation: {share:.0%} of the tokens are not in the vocabulary ({tokenizer.unk_token})")
    if (share := np.count_nonzero(counts == 1) / len(train)) > ONCE:
        found.append(f"train: {share:.0%} of the tokens occur once in all texts, so there is nothing to learn about them")
    cures = {
        WordTokenizer: "data.tokenizer: bpe splits such words into known pieces",
        BytePairs: "use a smaller data.tokenizer.vocab_size, or more texts",
    }
    cure = cures.get(type(data.tokenizer), "use more texts, or another data.tokenizer")
    return [f"{sentence}; {cure}" for sentence in found]


def _tokens(encoded: Encoded) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the token ids of all texts, without BOS and EOS."""
    return np.concatenate([np.array(row[1:-1], np.int64) for row in encoded.ids])


def say(sentence: str) -> None:
    """Print a sentence on stderr, from the first of several processes alone."""
    if os.environ.get("RANK", "0") == "0":
        print(sentence, file=sys.stderr)
