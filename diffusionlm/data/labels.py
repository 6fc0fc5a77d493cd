"""Training data of classifiers: encoded texts with labels from the columns of a corpus.

Positions are those of the token ids: BOS is position 0, so with one token per word, word k is position k + 1.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets  # type: ignore[import-untyped]
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError, nearest
from diffusionlm.data.batches import Encoded, encodings
from diffusionlm.data.reading import is_nan, nfc
from diffusionlm.data.trees import read_tree, tags_of

NONE, OTHER = "", "other"  # no value or no constituent; any value below min_count
MOST_UNKNOWN = 0.2  # share of the training tokens; above it the corpus does not fit the vocabulary


class Labelled(list[int]):
    """Token ids of a text, BOS and EOS included, with its labels by field.

    A label is a string for a text; for tokens a string or None (ignored) for each id; for spans a string by (i, j), the
    positions of the first and the last token. ``tags`` are those of a tree's words, where it has them.
    """

    def __init__(self, ids: Iterable[int], labels: dict[str, Any], tags: Sequence[str | None] | None = None) -> None:
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
        """Return the field's value in each row, in Unicode's form C; None where it has none, as NaN says in tables."""
        column = rows[self.column][:] if self.column in rows.column_names else [None] * len(rows)
        if self.key:
            if wrong := [value for value in column if not isinstance(value, Mapping | None)]:
                raise UserError(f"labels: expected a mapping in each row of {self.column!r}, got {str(wrong[0])[:60]}")
            column = [nfc(value or {}).get(self.key) for value in column]
        return [None if is_nan(value) else nfc(value) for value in column]


class Labels:
    """Base of what a corpus's columns can label; a classifier's head says which of them it learns."""

    head: ClassVar[str]
    types: ClassVar[Any] = str
    expected: ClassVar[str]
    keyed: ClassVar[bool] = False  # whether a column may hold mappings, each of whose keys is a field
    of_words: ClassVar[bool] = True

    def read(
        self, rows: datasets.Dataset, encoded: Encoded, tokenizer: PreTrainedTokenizerFast, fields: Sequence[Field]
    ) -> list[Labelled]:
        """Return the encoded texts of a split with their labels, without those of words that were cut off.

        Of a word of several tokens, the first token has the label; a span runs to the last token of its last word. Raises
        UserError where a text has another number of words than of labels.
        """
        texts, values = rows["text"][:], {field.name: field.values(rows) for field in fields}
        words: list[list[int]] = [[]] * len(texts)  # the word of each token
        if self.of_words:
            words = [[-1 if word is None else word for word in e.word_ids] for e in encodings(texts, tokenizer)]
        labelled: list[Labelled] = []
        offset, before = 0, -1
        for ids, text in zip(encoded.ids, encoded.texts, strict=True):
            offset, before = offset if text == before else 0, text
            where = words[text], offset, len(ids) - 2, f"text {text} ({texts[text][:60]!r})"
            labels = {name: self.place(self._checked(column[text], where[-1]), *where) for name, column in values.items()}
            tags = self.tags(next(iter(values.values()))[text])
            # Trees without tags exist; in them a constituent of one word looks like a tag.
            tagged = tags and len(tags) == max(words[text], default=-1) + 1
            labelled.append(Labelled(ids, labels, _tag_tokens(tags, *where) if tagged else None))
            offset += len(ids) - 2
        return labelled

    def _checked(self, label: Any, place: str) -> Any:
        if label is not None and not isinstance(label, self.types):
            raise UserError(f"labels: {place}: head {self.head!r} expects {self.expected}, got {str(label)[:60]}")
        return label

    def place(self, label: Any, words: Sequence[int], offset: int, count: int, place: str) -> Any:
        """Return the labels of ``count`` tokens from ``offset`` on, between BOS and EOS; ``words`` numbers tokens' words."""
        raise NotImplementedError

    def tags(self, label: Any) -> list[str]:
        """Return the words' tags that the label of a text holds beside its values."""
        return []

    def each(self, label: Any) -> Iterable[str | None]:
        """Return the single labels in the label of one text."""
        raise NotImplementedError

    def values(self, rows: Iterable[Labelled], name: str, min_count: int) -> list[str]:
        """Return a field's values, most frequent first; values with fewer than ``min_count`` labels count as "other".

        "No value" never does: where it is rare it is no value.
        """
        counts = self._counts(rows, name)
        if counts[NONE] < min_count:
            del counts[NONE]
        kept: Counter[str] = Counter()
        for value, count in counts.items():
            kept[value if count >= min_count else OTHER] += count
        if rare := [value for value, count in counts.most_common() if count < min_count]:
            what = f"fewer than min_count = {min_count} labels and count as {OTHER!r}: {_shown(counts, rare)}"
            print(f"labels: {len(rare)} of {len(counts)} values of {name!r} have {what}", file=sys.stderr)
        return sorted(kept, key=lambda value: (-kept[value], value))

    def too_few(self, rows: Iterable[Labelled], name: str, min_count: int) -> str:
        """Say that a field has fewer than two values, with the counts of its labels and ``min_count``."""
        counts = self._counts(rows, name)
        shown = _shown(counts, [value for value, _ in counts.most_common()]) or "no label"
        hint = f"; min_count is {min_count}, and rarer labels count as {OTHER!r}" if len(counts) > 1 else ""
        return f"labels: expected two values of {name!r} or more in the training texts, got {shown}{hint}"

    def _counts(self, rows: Iterable[Labelled], name: str) -> Counter[str]:
        return Counter(value for row in rows for value in self.each(row.labels[name]) if value is not None)


def _shown(counts: Counter[str], values: Sequence[str]) -> str:
    """Return the first ``values`` with their counts."""
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    return ", ".join(f"{value!r} ({counts[value]})" for value in values[:5]) + more


class TextLabels(Labels):
    """A word or a number for each text, "" where it has none."""

    head, types, expected, keyed, of_words = "sequence", (str, int, float), "a word or a number", True, False

    def place(self, label: Any, words: Sequence[int], offset: int, count: int, place: str) -> str:
        return NONE if label is None else str(label)

    def each(self, label: str) -> list[str | None]:
        return [label]


class TokenLabels(Labels):
    """A list with a tag for each word."""

    head, types, expected = "token", list, "a list of words"

    def place(self, label: Any, words: Sequence[int], offset: int, count: int, place: str) -> list[str | None]:
        return _tag_tokens(label, words, offset, count, place)

    def each(self, label: list[str | None]) -> list[str | None]:
        return label


class SpanLabels(Labels):
    """A bracketed tree for each text: a label for each run of words that is a constituent."""

    head, expected = "span", "a bracketed tree"

    def place(self, label: Any, words: Sequence[int], offset: int, count: int, place: str) -> dict[tuple[int, int], str]:
        spans, leaves = read_tree(label or "", f"labels: {place}")
        _check_count(leaves, words, place)
        begin = {word: i for i, word in reversed(list(enumerate(words)))}
        end = {word: i for i, word in enumerate(words)}
        placed = {(begin[i] - offset + 1, end[j] - offset + 1): label for (i, j), label in spans.items()}
        return {(i, j): label for (i, j), label in placed.items() if i >= 1 and j <= count}

    def tags(self, label: Any) -> list[str]:
        return tags_of(str(label))

    def each(self, label: dict[tuple[int, int], str]) -> Iterable[str | None]:
        return label.values()

    def values(self, rows: Iterable[Labelled], name: str, min_count: int) -> list[str]:
        """Return "" (no constituent) and the labels, most frequent first."""
        return [NONE, *super().values(rows, name, min_count)]


def fields_of(rows: datasets.Dataset, names: Sequence[str], labels: Labels) -> list[Field]:
    """Return the fields ``names``, sorted; a column of mappings names all its keys. Raises UserError where one does not fit."""
    fields: list[Field] = []
    for name in names:
        name = nfc(name)
        column, _, key = (name, "", "") if name in rows.column_names else name.partition(".")
        if column not in rows.column_names:
            raise UserError(f"labels: the corpus has no column {column!r}{nearest(column, rows.column_names)}")
        values = [value for value in rows[column][:] if value is not None and not is_nan(value)]
        if labels.keyed and any(isinstance(value, Mapping) for value in values):
            keys = sorted({nfc(str(name)) for value in values if isinstance(value, Mapping) for name in value})
            if key and key not in keys:
                raise UserError(f"labels: no text of the corpus has {key!r} in its {column}{nearest(key, keys)}")
            fields += [Field(column, name) for name in ([key] if key else keys)]
        elif key:
            raise UserError(f"labels: expected mappings in the column {column!r} to take {key!r} from, got {values[:1]}")
        elif not values:
            raise UserError(f"labels: the column {column!r} is empty")
        elif wrong := [value for value in values if not isinstance(value, labels.types)]:
            got, expected = str(wrong[0])[:60], f"head {labels.head!r} expects {labels.expected} for each text"
            raise UserError(f"labels: {expected}, but the column {column!r} holds {got}")
        else:
            fields.append(Field(column))
    return sorted(set(fields), key=lambda field: field.name)


def check_vocabulary(rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerFast, denoiser: str) -> None:
    """Raise UserError if too many tokens of the training texts are unknown to the tokenizer."""
    counts = Counter(i for row in rows for i in row[1:-1])
    share = counts[tokenizer.unk_token_id] / max(counts.total(), 1)
    if share > MOST_UNKNOWN:
        raise UserError(f"data.corpus: {share:.0%} of its words are unknown to {denoiser}, which was trained on other texts")


def _tag_tokens(tags: Sequence[str] | None, words: Sequence[int], offset: int, count: int, place: str) -> list[str | None]:
    """Return the tag of each of ``count`` tokens from ``offset`` on, between BOS and EOS; None behind a word's first."""
    tags = tags or []
    _check_count(len(tags), words, place)
    first = [i == 0 or words[i - 1] != word for i, word in enumerate(words)]
    inside = [tags[words[i]] if first[i] else None for i in range(offset, offset + count)]
    return [None, *inside, None]


def _check_count(labels: int, words: Sequence[int], place: str) -> None:
    found = max(words, default=-1) + 1
    if labels != found:
        raise UserError(f"labels: {place} has {found} words for this tokenizer, but labels for {labels}")
