"""Annotators: part-of-speech tags, trees and attributes of finished texts, with which controls are checked.

An annotator depends on no model. A corpus may have an exact one (``Corpus.annotator``); for other texts the user names a tagger
or a parser.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import datasets  # type: ignore[import-untyped]
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import Component, UserError
from diffusionlm.data.reading import is_nan, nfc
from diffusionlm.data.tokenizers import split_words
from diffusionlm.files import read_json
from diffusionlm.progress import intervals


@dataclass(frozen=True)
class Annotation:
    """A text's words with their tags, tree and attributes; None for a part that the annotator does not read.

    Of each word, ``entities`` has the named entity as "B-PERSON", "I-PERSON" or "O", ``heads`` the number of the word on which
    it depends (its own for the root of a sentence), ``relations`` the name of this dependency.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None
    tree: str | None = None
    attributes: dict[str, str] | None = None
    entities: tuple[str, ...] | None = None
    heads: tuple[int, ...] | None = None
    relations: tuple[str, ...] | None = None


CorpusRow = Mapping[str, Any]  # of a corpus: ``text``, and where known ``attributes``, ``tags``, ``tree``


class Annotator(Component, family="annotator"):
    """Base of the annotators; ``reads`` names what a member can give, such as "tags", "tree", "attributes"."""

    reads: ClassVar[frozenset[str]] = frozenset({"tags", "tree", "attributes"})

    def annotate(self, text: str) -> Annotation | None:
        """Return the annotation of ``text``; None where the annotator rejects it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Plain(Annotator, name="words"):
    """Only the words, of any text."""

    reads: ClassVar[frozenset[str]] = frozenset()

    def annotate(self, text: str) -> Annotation:
        return Annotation(tuple(split_words(text)))


@dataclass(frozen=True)
class Reader:
    """Gives the labels of a corpus's row: the row's own where it has them, else the annotator's."""

    tokenizer: PreTrainedTokenizerFast
    annotator: Annotator

    def part(self, row: CorpusRow, part: str) -> Any:
        """Return a row's "tags", "tree" or "attributes" in Unicode's form C, None where they are not known."""
        return nfc(row.get(part) or getattr(self.annotator.annotate(row["text"]), part, None))

    def attributes(self, row: CorpusRow) -> dict[str, str]:
        """Return the attributes that have a value, as text."""
        stated = (self.part(row, "attributes") or {}).items()
        return {name: str(value) for name, value in stated if value not in (None, "") and not is_nan(value)}

    def length(self, row: CorpusRow) -> int:
        """Return the number of tokens, BOS and EOS not counted."""
        return len(self.tokenizer(row["text"], add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class Tagger(Annotator, name="tagger"):
    """A part-of-speech tagger: NLTK's averaged perceptron from a folder of its JSON files, such as one trained on Brown."""

    reads: ClassVar[frozenset[str]] = frozenset({"tags"})
    folder: str

    def annotate(self, text: str) -> Annotation | None:
        words = tuple(split_words(text))
        return Annotation(words, tuple(tag for _, tag in _tagger(self.folder).tag(words)))


@lru_cache(maxsize=2)
def _tagger(folder: str) -> Any:
    try:
        from nltk.tag import PerceptronTagger
    except ImportError:
        raise UserError("annotator: 'tagger' needs nltk; pip install nltk") from None
    tagger = PerceptronTagger(load=False)
    try:
        files = [next(Path(folder).glob(f"*{part}.json")) for part in ("weights", "tagdict", "classes")]
        tagger.decode_json_params(read_json(file) for file in files)
    except (OSError, ValueError, StopIteration) as error:
        raise UserError(
            f"annotator.folder: expected a tagger's weights.json, tagdict.json and classes.json in {folder} {error}".rstrip()
        ) from None
    return tagger


@dataclass(frozen=True)
class Stanza(Annotator, name="stanza"):
    """The neural pipeline of Stanza (Qi et al. 2020), tags and constituency trees, with its models in a local ``folder``.

    ``language`` is the code of the texts' language.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"tags", "tree"})
    folder: str
    language: str = "en"

    def annotate(self, text: str) -> Annotation | None:
        """Tag and parse the text, with our pre-tokenisation; the trees of its sentences stand under one ROOT."""
        document = _stanza(self.folder, self.language)(sentences(split_words(text)))
        words = [word for sentence in document.sentences for word in sentence.words]
        inner = [re.sub(r"^\(ROOT |\)$", "", str(sentence.constituency)) for sentence in document.sentences]
        return Annotation(tuple(w.text for w in words), tuple(w.upos for w in words), f"(ROOT {' '.join(inner)})")


@lru_cache(maxsize=2)
def _stanza(folder: str, language: str) -> Any:
    try:
        import stanza
    except ImportError:
        raise UserError("annotator: 'stanza' is not installed; pip install stanza, and download its models") from None
    try:
        return stanza.Pipeline(
            language, dir=folder, processors="tokenize,pos,constituency", tokenize_pretokenized=True, download_method=None,
            verbose=False,
        )  # fmt: skip
    except Exception as error:  # stanza raises its own kinds, and those of what it loads
        raise UserError(f"annotator.folder: no Stanza models for {language!r} in {folder}: {error}") from None


def sentences(words: Sequence[str]) -> list[list[str]]:
    """Split a text's words after each full stop, question mark and exclamation mark."""
    found: list[list[str]] = [[]]
    for word in words:
        found[-1].append(word)
        if word in (".", "?", "!"):
            found.append([])
    return [sentence for sentence in found if sentence]


def annotated(rows: datasets.Dataset, annotator: Annotator, columns: Sequence[str]) -> datasets.Dataset:
    """Fill the ``columns`` that a corpus lacks. Raises UserError where the annotator does not read one, or rejects a text."""
    missing = [column for column in columns if column not in rows.column_names]
    added: dict[str, list[Any]] = {column: [] for column in missing}
    for text in tqdm(rows["text"][:] if missing else [], desc="annotating", unit="text", **intervals()):
        annotation = annotator.annotate(text)
        for column in missing:
            if (value := getattr(annotation, column, None)) is None:
                raise UserError(f"annotator: {annotator.name!r} gives no {column} for {text[:60]!r}")
            added[column].append(value)
    for column, values in added.items():
        rows = rows.add_column(column, values)
    return rows
