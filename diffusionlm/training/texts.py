"""The texts of a run as token ids, with a warning on stderr where a model can learn little from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import datasets  # type: ignore[import-untyped]
import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from diffusionlm.config import UserError
from diffusionlm.data.batches import DataConfig, Encoded, NothingLeft, encode, encodings
from diffusionlm.data.copies import KnownRows, KnownTexts
from diffusionlm.data.encoding import encode_large
from diffusionlm.data.rows import Texts, TokenRows, lengths_of, texts_of, token_counts
from diffusionlm.data.streamed_batches import StreamedBatches
from diffusionlm.data.tokenizers import BytePairs, TokenizerRecipe, WordTokenizer, decode_texts, join_sources, of_sources
from diffusionlm.data.typical import typical_rows
from diffusionlm.models.adapters import Adapter
from diffusionlm.models.conditions import Condition
from diffusionlm.models.spec import ModelSpec, Rows, Splits
from diffusionlm.progress import say

UNKNOWN = 0.05  # of the tokens of held-out texts: a larger share is reported
ONCE = 0.2  # of the tokens of training texts that occur in them once
COPIED = 0.3  # of the samples that are training texts, above the share that is normal for the corpus


def keep_typical(splits: Splits, spec: ModelSpec, data: DataConfig) -> Splits:
    """Return ``splits`` with the training texts that ``data.typical`` keeps of each source, and say how many these are.

    Raises:
        UserError: the model has no condition; no source has more texts.
    """
    if data.typical is None:
        return splits
    condition: Condition | None = getattr(spec, "condition", None)
    if condition is None:
        raise UserError("data.typical: this model has no source, of which texts could be typical; leave it out")
    rows = splits["train"]
    kept = typical_rows(rows, [str(value) for value in condition.values(rows)], data.typical)
    say(f"train: {len(kept):,} of {len(rows):,} texts are kept, at most {data.typical} of each source")
    return {**splits, "train": kept}


def check_stream(spec: ModelSpec, adapter: Adapter, data: DataConfig, batch_tokens: int) -> None:
    """Raise UserError where a run needs more of a streamed corpus than its texts, or a text may not fit into a batch."""
    if not spec.generates or any(getattr(part, "condition", None) is not None for part in (spec, adapter)):
        raise UserError("data.corpus.streaming: only texts are streamed, and not what this model needs beside them")
    if data.typical is not None:
        raise UserError("data.typical: the texts of a source are not together in a streamed corpus; leave it out")
    if data.max_length > batch_tokens:
        room = f"expected data.max_length, {data.max_length}, or more, the tokens that a streamed text may have"
        raise UserError(f"training.batch_tokens: {room}, got {batch_tokens}")


def streamed(data: DataConfig, tokenizer: PreTrainedTokenizerFast) -> StreamedBatches | None:
    """Return the batches of a streamed corpus, None for another one."""
    stream = data.corpus.stream()
    return None if stream is None else StreamedBatches(stream, tokenizer, data)


def encode_splits(
    splits: Splits, tokenizer: PreTrainedTokenizerFast, data: DataConfig, extensible: bool = False
) -> dict[str, Encoded]:
    """Encode all splits but "test", and say how many texts were cut, split, dropped or skipped, and which words are unknown.

    The run may add words to an ``extensible`` tokenizer, that of a model which it starts from.
    """
    used = {split: rows for split, rows in splits.items() if split != "test"}
    encoded = {split: _encode(texts_of(rows, used.values()), split, tokenizer, data) for split, rows in used.items()}
    for sentence in unknown_words(encoded, tokenizer, data, extensible):
        say(sentence)
    return encoded


def _encode(texts: Sequence[str], split: str, tokenizer: PreTrainedTokenizerFast, data: DataConfig) -> Encoded:
    try:
        if isinstance(texts, Texts):
            encoded = encode_large(texts, tokenizer, data.max_length, data.too_long, split, data.context, data.packing)
        else:
            encoded = encode(texts, tokenizer, data.max_length, data.too_long, data.context, data.packing)
    except NothingLeft as error:
        raise UserError(f"{split}: {error}") from None
    if data.packing == "wrap":
        say(f"{split}: {len(texts):,} texts are packed into {len(encoded.ids):,} rows of {data.max_length} tokens")
    if encoded.too_long:
        done = {"truncate": "cut", "split": "split", "drop": "dropped"}[data.too_long]
        count = f"{encoded.too_long} of {len(texts)} texts"
        say(f"{split}: {count} are longer than {data.max_length} tokens and were {done}")
    if encoded.empty:
        say(f"{split}: {encoded.empty} empty texts were skipped")
    return encoded


def unknown_words(
    encoded: Mapping[str, Encoded], tokenizer: PreTrainedTokenizerFast, data: DataConfig, extensible: bool = False
) -> list[str]:
    """Return a sentence where many tokens of held-out texts are unknown, and one where many of training texts occur once."""
    found = []
    if "validation" in encoded and tokenizer.unk_token_id is not None:
        counts = token_counts(encoded["validation"].ids)
        share = counts.get(tokenizer.unk_token_id, 0) / max(sum(counts.values()), 1)
        if share > UNKNOWN:
            found.append(f"validation: {share:.0%} of the tokens are not in the vocabulary ({tokenizer.unk_token})")
    if (share := _once(encoded["train"].ids)) > ONCE:
        found.append(f"train: {share:.0%} of the tokens occur once in all texts, so there is nothing to learn about them")
    cures = {
        WordTokenizer: "data.tokenizer: bpe splits such words into known pieces",
        BytePairs: "use a smaller data.tokenizer.vocab_size, or more texts",
    }
    cure = cures.get(type(data.tokenizer), "use more texts, or another data.tokenizer")
    cure = "extend_vocabulary.words adds frequent words to it, and min_count rarer ones" if extensible else cure
    return [f"{sentence}; {cure}" for sentence in found]


def add_source_tokenizer(
    spec: ModelSpec, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel | None
) -> bool:
    """Make the tokenizer of the sources in the training ``rows``, which goes with that of the texts, where none does yet.

    Return whether that was needed. A ``model`` to which an adapter adds the condition has its number of tokens in its config.

    Raises:
        UserError: a source is no text; no tokenizer can be made from them.
    """
    condition: Condition | None = getattr(spec, "condition", None)
    own = None if condition is None else condition.with_own_tokenizer
    if own is None or of_sources(tokenizer) is not None:
        return False
    try:
        sources = own.new_tokenizer(rows)
    except UserError as error:  # the condition of a loaded model is that of an adapter
        raise error if model is None else UserError(str(error).replace("model.", "adapter.", 1)) from None
    join_sources(tokenizer, sources)
    if model is not None:
        model.config.source_vocabulary = len(sources)
    return True


def report_unknown_sources(spec: ModelSpec, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, made: bool) -> None:
    """Say where many tokens of the texts of a model's condition are unknown to their tokenizer, ``made`` here or the base's."""
    condition: Condition | None = getattr(spec, "condition", None)
    own = None if condition is None else condition.with_own_tokenizer
    texts = own.values(rows) if own is not None else [] if condition is None else condition.texts(rows)
    reader = tokenizer if own is None else own.reader(tokenizer)
    if not texts or reader.unk_token_id is None:
        return
    ids = np.array([i for encoding in encodings(texts, reader) for i in encoding.ids])
    if (share := float(np.mean(ids == reader.unk_token_id))) > UNKNOWN:
        place, cure = "the base", "train a new model on the sources of both, or choose another base"
        if made:
            place, cure = "their tokenizer", "condition.tokenizer: bpe splits such words into known pieces"
        unknown = f"are not in the vocabulary of {place} and are all read as the same token {reader.unk_token}"
        say(f"train: {share:.0%} of the tokens of the sources {unknown}; {cure}")


class Copies:
    """Compares samples with the training texts, ``rows`` of token ids; ``dropout`` is the name of the run's setting of it."""

    def __init__(self, rows: Rows, tokenizer: PreTrainedTokenizerFast, recipe: TokenizerRecipe, dropout: str) -> None:
        self.rows, self.tokenizer, self.recipe, self.dropout = rows, tokenizer, recipe, dropout
        # A text of one token can be generated in no other words.
        self.single = int((lengths_of(rows) <= 3).sum()) > len(rows) / 2

    @cached_property
    def unspaced(self) -> bool:
        """Whether words seem to be whole lines, or occur once."""
        return isinstance(self.recipe, WordTokenizer) and (self.single or _once(self.rows) > ONCE)

    @cached_property
    def known(self) -> KnownTexts | KnownRows:
        """The texts as they are trained on, cut or split; of a large corpus their token ids."""
        if isinstance(self.rows, TokenRows):
            return KnownRows(self.rows, self.tokenizer)
        return KnownTexts(decode_texts(self.tokenizer, self.rows))

    def warning(self, samples: list[str]) -> str:
        """Return a sentence where many of the ``samples`` are training texts, "" otherwise.

        Where training texts occur in the corpus several times, as short ones do, so may as large a share of the samples.
        """
        share = self.known.copied(samples)
        if share <= COPIED + (0 if self.single else self.known.repeated):
            return ""
        cure = f"train on more texts, for fewer steps, or with dropout{self.dropout and f' ({self.dropout})'}"
        if self.unspaced:
            cure = "data.tokenizer: bpe splits lines without spaces, and words that occur once"
        return f"{share:.0%} of {len(samples)} samples are training texts, word for word; {cure}"


def _once(rows: Rows) -> float:
    """Return the share of the tokens that occur once."""
    counts = token_counts(rows).values()
    return sum(number == 1 for number in counts) / max(sum(counts), 1)
