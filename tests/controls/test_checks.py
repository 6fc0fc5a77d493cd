"""Checks by the annotator of a corpus that is not the embedded one: what it reads is checked, all else gives no score."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets  # type: ignore[import-untyped]
import pytest
import yaml

from diffusionlm.config import UserError, build
from diffusionlm.controls import Attribute, Binding, Control, Length, PartsOfSpeech, Span, Tree, annotator_for, outcomes
from diffusionlm.data.annotators import Annotation, Annotator, Plain, Reader
from diffusionlm.data.corpora import Corpus, TextMetric
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.evaluation.control.metrics import ALL, SCORE, over_targets, target_metrics
from diffusionlm.evaluation.control.tasks import Target, Task

NOTHING: Any = None  # no control here reads the model
RHYME = "The cat sat on the mat"


@dataclass(frozen=True)
class Numerals(Annotator):
    """Reads texts of words and numbers: their tags, and the number as an attribute."""

    reads: ClassVar[frozenset[str]] = frozenset({"tags", "attributes"})

    def annotate(self, text: str) -> Annotation | None:
        words = tuple(text.split())
        numbers = [word for word in words if word.isdigit()]
        if not words or "?" in text:
            return None
        return Annotation(words, tuple("NUM" if w.isdigit() else "X" for w in words), None, {"count": "".join(numbers)})


@dataclass(frozen=True)
class Counts(Corpus):
    """A corpus with an annotator and a metric of its own."""

    def load(self) -> dict[str, datasets.Dataset]:
        rows = datasets.Dataset.from_list([{"text": f"{n} cats"} for n in range(9)])
        return {"train": rows, "validation": rows, "test": rows}

    def annotator(self) -> Annotator:
        return Numerals()

    def metrics(self, training: Collection[str]) -> dict[str, TextMetric]:
        def even(texts: Sequence[str]) -> list[float | None]:
            numbers = [re.search(r"\d+", text) for text in texts]
            return [None if number is None else float(int(number[0]) % 2 == 0) for number in numbers]

        return {"even": even}


@dataclass(frozen=True)
class Rhymes(Control):
    """The last word ends as ``word`` does."""

    word: str

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        return [float(text.endswith(self.word[-2:])) for text in texts]

    @classmethod
    def target_from(cls, row: Any, draw: random.Random, reader: Reader) -> Rhymes | None:
        return cls(draw.choice(row["text"].split())) if reader.length(row) > 3 else None


def _binding(annotator: Annotator) -> Binding:
    return Binding(NOTHING, WordTokenizer().make([RHYME]), None, annotator)


def test_without_an_annotator_tags_and_trees_have_no_score() -> None:
    plain = _binding(Plain())
    for control in (PartsOfSpeech("X NUM"), Tree("(S (X a) (X b))"), Span(0, 1, "NP")):
        assert not control.checkable(plain) and not (control & Length(2)).checkable(plain) and not (~control).checkable(plain)
        assert list(control.score(["a b", ""], plain)) == list((~control).score(["a b", ""], plain)) == [None, None]
        ((outcome,), _) = outcomes([control], ["a b", "c"], plain)
        assert outcome.passed is None and outcome.score is None
    assert Length(2).checkable(plain) and Attribute("count", "2").checkable(plain)


def test_what_the_annotator_reads_is_checked() -> None:
    binding = _binding(Numerals())
    assert list(PartsOfSpeech("NUM X").score(["2 cats", "two cats", "2 cats?"], binding)) == [1.0, 0.5, 0.0]
    assert list(Tree("(S (X a) (X b))").score(["2 cats"], binding)) == [None]
    assert PartsOfSpeech("X").checkable(binding) and not Span(0, 1, "NP").checkable(binding)
    # "12 cats" states the count 12, in which the words of "2" do not stand; a rejected text is searched for the words.
    assert Attribute("count", "2").score(["2 cats", "12 cats", "2 cats?", "3 cats?"], binding) == [1.0, 0.0, 1.0, 0.0]
    assert Attribute("count", "2").score(["2 cats", "two"], _binding(Plain())) == [1.0, 0.0], "the paper's rule"


def test_a_part_that_cannot_be_checked_decides_nothing_that_another_part_decides() -> None:
    binding, tags = _binding(Plain()), PartsOfSpeech("X")
    assert list((tags & Length(2)).score(["the cat", "the"], binding)) == [None, 0.0]
    assert list((tags | Length(2)).score(["the cat", "the"], binding)) == [1.0, None]
    assert list((2 * tags).score(["the"], binding)) == [None]


def test_metrics_leave_out_what_cannot_be_checked() -> None:
    target = Target((PartsOfSpeech("X X"), Length(2)))
    found = target_metrics(target, ["the cat", "the cat sat"], _binding(Plain()))
    assert found == {
        SCORE: [1.0, 0.0],
        "length, exact": [1.0, 0.0],
        "length, within two (paper)": [1.0, 1.0],
    }
    assert ALL not in found and over_targets([found[SCORE]]).mean == 0.5
    assert set(target_metrics(Target((Tree("(S (X a) (X b))"),)), ["the cat"], _binding(Plain()))) == set()
    assert "attribute, in an accepted text" not in target_metrics(
        Target((Attribute("a", "cat"),)), ["the cat"], _binding(Plain())
    )


def test_a_runs_corpus_names_the_annotator(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    assert annotator_for(None) == annotator_for(model) == Plain()
    for corpus, expected in [
        ("restaurants", Annotator.find("grammar")()),
        ({"name": "files", "train": "a.txt"}, Plain()),
        (f"{__name__}:Counts", Numerals()),
        ("not_imported:Corpus", Plain()),
        (5, Plain()),
    ]:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"corpus": corpus}}))
        assert annotator_for(model) == annotator_for(tmp_path) == expected
    (tmp_path / "config.yaml").write_text("- a list")
    assert annotator_for(model) == Plain()


def test_a_corpus_has_metrics_of_its_own() -> None:
    (even,) = Counts().metrics([]).values()
    assert even(["4 cats", "5 cats", "cats"]) == [1.0, 0.0, None]
    files = build(Corpus, {"name": "files", "train": "a.txt"})
    assert files.metrics([]) == {} and files.annotator() == Plain()


def test_the_restaurants_corpus_reports_accepted_and_new_texts() -> None:
    corpus = Corpus.find("restaurants")()
    text = "The Golden Lion is a cheap pub near the old bridge. The staff are friendly."
    accepted, new = corpus.metrics([text]).values()
    texts = [text, text.replace("cheap", "popular"), "No text of it."]
    assert (accepted(texts), new(texts)) == ([1.0, 1.0, 0.0], [0.0, 1.0, None])


def test_targets_of_any_control() -> None:
    reader = Reader(WordTokenizer().make([RHYME]), Plain())
    rows = datasets.Dataset.from_list([{"text": RHYME}, {"text": "The cat"}, {"text": "The mat sat on the cat"}])
    task = build(Task, {"name": "control", "control": f"{__name__}:Rhymes"})
    first, second = task.targets(rows, reader, 0, 2)
    assert task.targets(rows, reader, 0, 2) == [first, second] and first != second
    assert isinstance(first.controls[0], Rhymes) and first.controls[0].word in (first.reference or "").split()
    assert target_metrics(first, ["A rat", "A dog"], _binding(Plain())).keys() == {ALL, SCORE, "Rhymes, passed"}
    (length, *_) = build(Task, {"name": "control", "control": "length"}).targets(rows, reader, 0, 3)
    assert length.controls[0] == Length(reader.length({"text": length.reference}))
    with pytest.raises(UserError, match="control: 'words' has no target_from, so no targets can be drawn from a text"):
        build(Task, {"name": "control", "control": "words"})
    with pytest.raises(UserError, match="no control is called 'lenght'; did you mean 'length'"):
        build(Task, {"name": "control", "control": "lenght"})


def test_general_code_does_not_import_the_restaurants_corpus() -> None:
    program = (
        "import sys, diffusionlm.controls, diffusionlm.data.corpora, diffusionlm.data.annotators\n"
        "import diffusionlm.pipelines.diffusion\n"
        "print(sorted(name for name in sys.modules if name.startswith('diffusionlm.restaurants')))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.stdout == "[]\n", run.stderr
