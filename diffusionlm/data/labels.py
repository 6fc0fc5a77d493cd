"""Training data of classifiers: encoded texts with labels from the columns of a corpus.

Positions are those of the token ids: BOS is position 0, so with one token per word, word k is position k + 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import datasets  # type: ignore[import-untyped]
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError, nearest
from diffusionlm.data.batches import Encoded
from diffusionlm.data.trees import read_tree, tags_of

Head = Literal["sequence", "token", "span"]
NONE, OTHER = "", "other"  # no value or no constituent; any value below min_count
MOST_UNKNOWN = 0.2  # share of the training tokens; above it the corpus does not fit the vocabulary


class Labelled(list[int]):
    """Token ids of a text, BOS and EOS included, with its labels by field.

    A label is a string for a text; for tokens a string or None (ignored) for each id; for spans a string by (i, j), the
    positions of the first and the last token. ``tags`` are those of a tree's words, where it has them.
    """

    def __init__(self, ids: Iterable[int], labels: dict[str, Any], tags: Sequence[str | None] | None = None) -> None:
        """Store ids, labels and tags."""
        super().__init__(ids)
        self.labels, self.tags = labels, tags


@dataclass(frozen=True)
class Field:
    """A field to classify: a column of the corpus, or the entry ``key`` of a column of mappings."""

    column: str
    key: str = ""

    @property
    def name(self) -> str:
        """Return the dotted name."""
        return f"{self.column}.{self.key}" if self.key else self.column

    def values(self, rows: datasets.Dataset) -> list[Any]:
        """Return the field's value in each row, None where it has none."""
        column = rows[self.column][:] if self.column in rows.column_names else [None] * len(rows)
        return [(value or {}).get(self.key) for value in column] if self.key else column


def fields_of(rows: datasets.Dataset, labels: Sequence[str], head: Head) -> list[Field]:
    """Return the fields that ``labels`` name, sorted; a column of mappings names all its keys.

    Raises:
        UserError: no such column or key, or its values are not what the head reads.
    """
    fields: list[Field] = []
    for label in labels:
        whole = label in rows.column_names
        column, _, key = (label, "", "") if whole else label.partition(".")
        if column not in rows.column_names:
            raise UserError(f"labels: the corpus has no column {column!r}{nearest(column, rows.column_names)}")
        values = [value for value in rows[column][:] if value is not None]
        if head == "sequence" and any(isinstance(value, Mapping) for value in values):
            keys = sorted({str(name) for value in values for name in value})
            if key and key not in keys:
                raise UserError(f"labels: no text of the corpus has {key!r} in its {column}{nearest(key, keys)}")
            fields += [Field(column, name) for name in ([key] if key else keys)]
        elif key:
            raise UserError(f"labels: expected mappings in the column {column!r} to take {key!r} from, got {values[:1]}")
        else:
            _check_values(column, values, head)
            fields.append(Field(column))
    return sorted(set(fields), key=lambda field: field.name)


def _check_values(column: str, values: Sequence[Any], head: Head) -> None:
    kinds: dict[str, tuple[Any, str]] = {
        "sequence": (str | int | float, "a word or a number"),
        "token": (list, "a list of words"),
        "span": (str, "a bracketed tree"),
    }
    kind, wanted = kinds[head]
    if not values:
        raise UserError(f"labels: the column {column!r} is empty")
    if wrong := [value for value in values if not isinstance(value, kind)]:
        got = str(wrong[0])[:60]
        raise UserError(f"labels: head {head!r} expects {wanted} for each text, but the column {column!r} holds {got}")


def label_rows(
    rows: datasets.Dataset, encoded: Encoded, tokenizer: PreTrainedTokenizerFast, fields: Sequence[Field], head: Head
) -> list[Labelled]:
    """Return the encoded texts of a split with their labels.

    The first token of a word carries its label; a span goes from the first token of its first word to the last token of its
    last. Labels of words that truncation removed are dropped.

    Raises:
        UserError: a text has another number of words than of labels.
    """
    values = {field.name: field.values(rows) for field in fields}
    if head == "sequence":
        texts: list[dict[str, Any]] = [
            {name: NONE if value is None else str(value) for name, value in zip(values, row, strict=True)}
            for row in zip(*values.values(), strict=True)
        ]
        return [Labelled(ids, texts[text]) for ids, text in zip(encoded.ids, encoded.texts, strict=True)]
    words = list(_words_of_tokens(rows["text"][:], tokenizer))
    labelled: list[Labelled] = []
    offset, before = 0, -1
    for ids, text in zip(encoded.ids, encoded.texts, strict=True):
        offset, before = offset if text == before else 0, text
        place = f"text {text} ({rows[text]['text'][:60]!r})"
        where = words[text], offset, len(ids) - 2, place
        label = _of_tokens if head == "token" else _of_spans
        labels = {name: label(column[text], *where) for name, column in values.items()}
        tags = tags_of(str(next(iter(values.values()))[text])) if head == "span" else []
        # Trees without tags exist; in them a constituent of one word looks like a tag.
        tagged = len(tags) == max(words[text], default=-1) + 1
        labelled.append(Labelled(ids, labels, _of_tokens(tags, *where) if tagged else None))
        offset += len(ids) - 2
    return labelled


def values_of(rows: Iterable[Labelled], name: str, head: Head, min_count: int) -> list[str]:
    """Return a field's values in index order: frequent first, those below ``min_count`` merged; for spans "" is first."""
    counts: Counter[str] = Counter()
    for row in rows:
        label = row.labels[name]
        counts.update([label] if isinstance(label, str) else label.values() if isinstance(label, dict) else label)
    del counts[cast("str", None)]  # tokens that are not counted
    kept: Counter[str] = Counter()
    for value, count in counts.items():
        kept[value if count >= min_count else OTHER] += count
    values = sorted(kept, key=lambda value: (-kept[value], value))
    return [NONE, *values] if head == "span" else values


def check_vocabulary(rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerFast, denoiser: str) -> None:
    """Raise UserError if too many tokens of the training texts are unknown to the tokenizer."""
    counts = Counter(i for row in rows for i in row[1:-1])
    share = counts[tokenizer.unk_token_id] / max(counts.total(), 1)
    if share > MOST_UNKNOWN:
        raise UserError(f"data.corpus: {share:.0%} of its words are unknown to {denoiser}, which was trained on other texts")


def _words_of_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[list[int]]:
    """Yield, for each text, the word index of each token."""
    for start in range(0, len(texts), 10_000):
        encodings = tokenizer(texts[start : start + 10_000], add_special_tokens=False, verbose=False).encodings
        yield from ([-1 if word is None else word for word in encoding.word_ids] for encoding in encodings or [])


def _of_tokens(tags: Sequence[str] | None, words: Sequence[int], offset: int, count: int, place: str) -> list[str | None]:
    """Return the tag of each of ``count`` tokens from ``offset`` on, between None for BOS and EOS."""
    tags = tags or []
    _check_count(len(tags), words, place)
    first = [i == 0 or words[i - 1] != word for i, word in enumerate(words)]
    inside = [tags[words[i]] if first[i] else None for i in range(offset, offset + count)]
    return [None, *inside, None]


def _of_spans(tree: str | None, words: Sequence[int], offset: int, count: int, place: str) -> dict[tuple[int, int], str]:
    """Return the constituents within ``count`` tokens from ``offset`` on, by position."""
    spans, leaves = read_tree(tree or "", f"labels: {place}")
    _check_count(leaves, words, place)
    begin = {word: i for i, word in reversed(list(enumerate(words)))}
    end = {word: i for i, word in enumerate(words)}
    placed = {(begin[i] - offset + 1, end[j] - offset + 1): label for (i, j), label in spans.items()}
    return {(i, j): label for (i, j), label in placed.items() if i >= 1 and j <= count}


def _check_count(labels: int, words: Sequence[int], place: str) -> None:
    found = max(words, default=-1) + 1
    if labels != found:
        raise UserError(f"labels: {place} has {found} words for this tokenizer, but labels for {labels}")
