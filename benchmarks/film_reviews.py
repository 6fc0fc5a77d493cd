"""Sentiment on real text: steer film-review sentences both ways, and let a classifier judge that had no part in it.

    NLTK_DATA=nltk_data python benchmarks/film_reviews.py [--strengths 0 1 2 4]

NLTK_DATA holds NLTK's corpora/sentence_polarity, 10,662 sentences, as ``nltk.download`` leaves it. Trained, each on one thread
and only where they are missing: configs/film-reviews.yaml, an autoregressive judge of fluency, and the classifier
configs/classifiers/sentiment.yaml, whose gradient steers. Success is judged by a classifier of another kind, NLTK's naive Bayes
over words and pairs of words, trained on the same texts; the first line is its accuracy on held-out ones. The table goes to
stdout, the rest to ``benchmarks/results/film-reviews``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from measure import RESULTS, ROOT, exit_status
from nltk import NaiveBayesClassifier
from nltk.corpus import sentence_polarity

from diffusionlm.controls import Binding, Classifier, CompiledControl, Control
from diffusionlm.evaluation.control.evaluation import ControlConfig, evaluate_control
from diffusionlm.evaluation.control.report import control_table
from diffusionlm.evaluation.control.tasks import read_tasks
from diffusionlm.files import write_text
from diffusionlm.training.run import read_config, train

TARGETS = 25
LABELS = {"positive": "rt-polarity.pos", "negative": "rt-polarity.neg"}


@dataclass(frozen=True)
class Judged(Control, name="judged"):
    """A sentence of ``label``: steered by the classifier ``sentiment``, judged by naive Bayes trained on ``texts``."""

    label: str
    texts: str

    def compile(self, binding: Binding) -> CompiledControl:
        """Steer."""
        return Classifier(self.label, "sentiment").compile(binding)

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        """Judge."""
        judge = naive_bayes(self.texts)
        return [float(judge.classify(features(text)) == self.label) for text in texts]


@cache
def naive_bayes(texts: str) -> NaiveBayesClassifier:
    """Return a classifier trained on a file of rows."""
    rows = [json.loads(line) for line in Path(texts).read_text().splitlines()]
    return NaiveBayesClassifier.train([(features(row["text"]), row["label"]) for row in rows])


def features(text: str) -> dict[object, bool]:
    """Return the words and pairs of words that a text has."""
    words = text.split()
    return {each: True for each in [*words, *itertools.pairwise(words)]}


def prepare(folder: Path) -> dict[str, str]:
    """Write the sentences into three files, eight, one and one in ten of them; return their paths."""
    paths = {split: folder / f"{split}.jsonl" for split in ("train", "validation", "test")}
    if not all(path.exists() for path in paths.values()):
        rows = [
            {"text": " ".join(line.split()), "label": label}
            for label, file in LABELS.items()
            for line in sentence_polarity.raw(file).splitlines()
            if line.strip()
        ]
        random.Random(0).shuffle(rows)
        tenth = len(rows) // 10
        parts = (rows[2 * tenth :], rows[:tenth], rows[tenth : 2 * tenth])
        for path, part in zip(paths.values(), parts, strict=True):
            write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part))
    return {split: str(path) for split, path in paths.items()}


def accuracy(paths: dict[str, str]) -> float:
    """Return the share of held-out texts that naive Bayes judges right."""
    rows = [json.loads(line) for line in Path(paths["test"]).read_text().splitlines()]
    judge = naive_bayes(paths["train"])
    return sum(judge.classify(features(row["text"])) == row["label"] for row in rows) / len(rows)


def asked(paths: dict[str, str]) -> list[dict[str, object]]:
    """Return what is asked: each label as often as ``TARGETS``, each time with a held-out sentence to compare with."""
    rows = [json.loads(line) for line in Path(paths["test"]).read_text().splitlines()]
    return [
        {"controls": [str(Judged(label, paths["train"]))], "reference": row["text"], "task": label}
        for label in LABELS
        for row in [row for row in rows if row["label"] == label][:TARGETS]
    ]


def trained(name: str, run: Path, changes: list[tuple[str, str]]) -> None:
    """Train one of ``configs``, unless it is there. Raises KeyboardInterrupt where Ctrl-C stopped it."""
    torch.set_num_threads(1)
    changes = [("training.threads", "1"), *changes]
    if not (run / "model" / "finished").exists() and not train(read_config([ROOT / "configs" / f"{name}.yaml"], changes), run):
        raise KeyboardInterrupt


def main(words: Sequence[str] | None = None) -> int:
    """Train what is missing, steer, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0, 1, 2, 4], help="of the guidance (%(default)s)")
    parser.add_argument("--samples", type=int, default=10, help=f"texts for each of {TARGETS} targets (%(default)s)")
    parser.add_argument("--steps", type=int, help="of each training, in place of the configs' (for a first look)")
    parser.add_argument("--runs", default="runs/film-reviews", help="where data and models go (%(default)s)")
    parser.add_argument("--results", default=str(RESULTS), help="where the figures go (%(default)s)")
    options = parser.parse_args(words)
    folder = Path(options.runs)

    def ask() -> None:
        paths = prepare(folder)
        changes = [("data.corpus", json.dumps({"name": "files", **paths}))]
        changes += [("training.steps", str(options.steps))] if options.steps else []
        model, judge = folder / "diffusion", folder / "judge"
        trained("film-reviews-judge", judge, changes)
        trained("film-reviews", model, changes)
        sentiment = [*changes, ("model.denoiser", str(model))]
        trained("classifiers/sentiment", model / "model" / "classifiers" / "sentiment", sentiment)
        print(f"naive Bayes judges {accuracy(paths):.1%} of the held-out sentences right", flush=True)
        targets = folder / "targets.jsonl"
        write_text(targets, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in asked(paths)))
        config = ControlConfig(samples=options.samples, strengths=tuple(options.strengths))
        out = Path(options.results) / "film-reviews"
        print(control_table(evaluate_control(judge, [model], read_tasks(targets), config, out=out)), end="", flush=True)

    return exit_status(ask)


if __name__ == "__main__":
    sys.exit(main())
