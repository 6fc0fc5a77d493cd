"""The part of speech of every word."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from diffusionlm.config import UserError, nearest
from diffusionlm.constraints.dfa import DFA, any_number, everything, one_of, sequence, union
from diffusionlm.controls.binding import Binding
from diffusionlm.controls.control import CompiledControl, Control, Scores, passes
from diffusionlm.data.annotators import Reader
from diffusionlm.models.classifier.heads import LatentTokenClassifier

ONE, MANY = "*", "..."


@dataclass(frozen=True)
class PartsOfSpeech(Control, name="parts-of-speech"):
    """The words' tags, one after the other: ``DET NOUN AUX ADJ PUNCT``; ``*`` is any one word, ``...`` any number of them.

    By construction: a word can stand where the training texts gave it the tag at least in a share ``least`` of its
    places, as the classifier ``tags`` has counted them. Checked by tagging the text; the score is the share of the tags
    that are right (matches over gold length, as in Li et al. 2022, section 6.1), and 0 for what the annotator rejects.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"tags"})
    tags: str
    least: float = 0.3
    classifier: str = "tags"

    def __post_init__(self) -> None:
        """Check that there are tags."""
        if not self.tags.split():
            raise UserError("tags: expected tags such as 'DET NOUN AUX ADJ PUNCT'")

    def compile(self, binding: Binding) -> CompiledControl:
        """Return the texts whose words can have these tags. Raises UserError for an unknown tag."""
        return CompiledControl(automata=(tag_automaton([self.tags.split()], binding, self.classifier, self.least, str(self)),))

    def score(self, texts: Sequence[str], binding: Binding) -> Scores:
        """Return the share of right tags; of a pattern with ``...``, 1 where the whole text matches."""
        return binding.annotated(texts, "tags", lambda tags: tag_accuracy(self.tags.split(), tags))

    def metrics(self, texts: Sequence[str], scores: Scores, binding: Binding) -> dict[str, Scores]:
        """Return the paper's metric, where there is no ``...``, and the check."""
        wanted, metrics = self.tags.split(), {"tags, the whole text": passes(scores)}
        if MANY in wanted:
            return {**metrics}
        matches = binding.annotated(texts, "tags", lambda tags: tag_matches(wanted, tags))
        return {"tags, matches / gold length (paper)": matches, **metrics}

    @classmethod
    def target_from(cls, row: Mapping[str, Any], draw: random.Random, reader: Reader) -> PartsOfSpeech | None:
        """Return the tags of all words."""
        tags = reader.tags(row)
        return cls(" ".join(tags)) if tags else None


def tag_automaton(choices: Sequence[Sequence[str]], binding: Binding, classifier: str, least: float, where: str) -> DFA:
    """Return the texts whose words can have one of ``choices`` of tags. Raises UserError for an unknown tag."""
    trained = binding.classifier(classifier, LatentTokenClassifier)
    (field,) = trained.labels
    known, lexicon = trained.indices[field], trained.lexicon().cpu()
    size = len(lexicon)

    def words(tag: str) -> DFA:
        if tag == MANY:
            return any_number(one_of(lexicon.sum(1) > 0, size))
        if tag == ONE:
            return one_of(lexicon.sum(1) > 0, size)
        if tag not in known:
            raise UserError(f"{where}: no tag is called {tag!r}{nearest(tag, known)}")
        return one_of(_holding(lexicon, known[tag], least), size)

    parts = {tag: words(tag) for tag in dict.fromkeys(tag for tags in choices for tag in tags)}
    chains = [sequence(*(parts[tag] for tag in tags)) if tags else everything(size) for tags in choices]
    return union(*chains) if len(chains) > 1 else chains[0]


def _holding(lexicon: Tensor, tag: int, least: float) -> Tensor:
    """Tell which tokens (V,) have a tag often enough; the likeliest of all where none has."""
    held = lexicon[:, tag] >= least
    return held if bool(held.any()) else lexicon[:, tag] == lexicon[:, tag].max()


def tag_matches(wanted: Sequence[str], found: Sequence[str]) -> float:
    """Return the paper's score: the tags that stand in their place, as a share of ``wanted``; more words lose nothing."""
    return sum(one in (ONE, other) for one, other in zip(wanted, found, strict=False)) / len(wanted)


def tag_accuracy(wanted: Sequence[str], found: Sequence[str]) -> float:
    """Return the share of the ``wanted`` tags that stand in their place; below 1 for a text of another length.

    With ``...``, 1 where all of ``found`` matches.
    """
    if MANY in wanted:
        part = {MANY: r"(?:\S+ )*", ONE: r"\S+ "}
        pattern = "".join(part.get(tag, re.escape(tag) + " ") for tag in wanted)
        return float(re.fullmatch(pattern, "".join(f"{tag} " for tag in found)) is not None)
    right = tag_matches(wanted, found)
    return right if len(found) == len(wanted) else min(right, 1 - 1 / (len(wanted) + 1))
