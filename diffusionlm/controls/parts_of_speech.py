"""The part-of-speech tag of every word."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from diffusionlm.config import UserError, nearest
from diffusionlm.constraints.dfa import DFA, any_number, everything, one_of, sequence, union
from diffusionlm.controls.binding import Binding
from diffusionlm.controls.control import CompiledControl, Control, Scores, passes
from diffusionlm.data.annotators import CorpusRow, Reader
from diffusionlm.models.classifier.heads import LatentTokenClassifier

ONE, MANY = "*", "..."


@dataclass(frozen=True)
class PartsOfSpeech(Control, name="parts-of-speech"):
    """The words have these tags, in order: ``DET NOUN AUX ADJ PUNCT``; ``*`` is any one word, ``...`` any number of words.

    Enforced by an automaton: a word is allowed for a tag that at least a share ``least`` of its training occurrences have,
    counted by the classifier ``tags``. Checked by the annotator; the score is the share of correct tags (matches over gold
    length, as in Li et al. 2022, section 6.1), and 0 for a text that the annotator rejects.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"tags"})
    tags: str
    least: float = 0.3
    classifier: str = "tags"

    def __post_init__(self) -> None:
        self.expect("a share between 0 and 1", "least")
        if not self.tags.split():
            raise UserError("tags: expected tags such as 'DET NOUN AUX ADJ PUNCT'")

    def compile(self, binding: Binding) -> CompiledControl:
        """Return the automaton of the texts whose words can have these tags. Raises UserError for an unknown tag."""
        return CompiledControl(automata=(tag_automaton([self.tags.split()], binding, self.classifier, self.least, str(self)),))

    def score(self, texts: Sequence[str], binding: Binding) -> Scores:
        """Return the share of correct tags; of a pattern with ``...``, 1 for a complete match, else 0."""
        return binding.annotated(texts, "tags", lambda tags: tag_accuracy(self.tags.split(), tags))

    def metrics(self, texts: Sequence[str], scores: Scores, binding: Binding) -> dict[str, Scores]:
        """Return the paper's metric, where there is no ``...``, and the check."""
        wanted, metrics = self.tags.split(), dict[str, Scores]()
        if MANY not in wanted:
            matches = binding.annotated(texts, "tags", lambda tags: tag_matches(wanted, tags))
            metrics["tags, matches / gold length (paper)"] = matches
        return metrics | {"tags, the whole text": passes(scores)}

    @classmethod
    def target_from(cls, row: CorpusRow, draw: random.Random, reader: Reader) -> PartsOfSpeech | None:
        tags = reader.part(row, "tags")
        return cls(" ".join(tags)) if tags else None


def tag_automaton(choices: Sequence[Sequence[str]], binding: Binding, classifier: str, least: float, where: str) -> DFA:
    """Return the automaton of texts whose words can have one of the tag sequences. Raises UserError for an unknown tag."""
    trained = binding.classifier(classifier, LatentTokenClassifier)
    (field,) = trained.labels
    known, lexicon = trained.indices[field], trained.lexicon().cpu()
    size = len(lexicon)

    def words(tag: str) -> DFA:
        if tag in (MANY, ONE):
            word = one_of(lexicon.sum(1) > 0, size)
            return word if tag == ONE else any_number(word)
        if tag not in known:
            raise UserError(f"{where}: no tag is called {tag!r}{nearest(tag, known)}")
        shares = lexicon[:, known[tag]]
        return one_of(shares >= min(least, float(shares.max())), size)  # where none has it often enough, the nearest to that

    def make() -> DFA:
        parts = {tag: words(tag) for tag in dict.fromkeys(tag for tags in choices for tag in tags)}
        return union(*(sequence(*(parts[tag] for tag in tags)) if tags else everything(size) for tags in choices))

    return binding.automaton((classifier, least, *map(tuple, choices)), make)


def tag_matches(wanted: Sequence[str], found: Sequence[str]) -> float:
    """Return the paper's score: matching tags over the length of ``wanted``; additional words are not penalised."""
    return sum(one in (ONE, other) for one, other in zip(wanted, found, strict=False)) / len(wanted)


def tag_accuracy(wanted: Sequence[str], found: Sequence[str]) -> float:
    """Return matching tags over the length of ``wanted``, below 1 for a text of another length.

    With ``...``, 1 where the pattern matches all of ``found``, else 0.
    """
    if MANY in wanted:
        part = {MANY: r"(?:\S+ )*", ONE: r"\S+ "}
        pattern = "".join(part.get(tag, re.escape(tag) + " ") for tag in wanted)
        return float(re.fullmatch(pattern, "".join(f"{tag} " for tag in found)) is not None)
    right = tag_matches(wanted, found)
    return right if len(found) == len(wanted) else min(right, 1 - 1 / (len(wanted) + 1))
