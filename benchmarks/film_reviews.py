"""Control the sentiment of film-review sentences, and measure success with a classifier that takes no part in the guidance.

    NLTK_DATA=nltk_data python benchmarks/film_reviews.py [--strengths 0 1 2 4]

NLTK_DATA contains NLTK's corpora/sentence_polarity (10,662 sentences), as ``nltk.download`` saves it. The script trains, on one
thread each and only if they are missing: the model (configs/film-reviews.yaml), an autoregressive judge LM for the perplexity
(configs/film-reviews-judge.yaml), and the classifier whose gradient guides the sampling (configs/classifiers/sentiment.yaml).
Success is measured by another classifier, NLTK's naive Bayes over words and pairs of words, trained on the same texts; the
first line of the output is its accuracy on held-out texts. The table goes to stdout, the report, the figure and the samples
to ``benchmarks/results/film-reviews``.
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
class Sentiment(Control, name="sentiment"):
    """A sentence with the sentiment ``label``.

    The classifier ``sentiment`` guides the sampling, and naive Bayes trained on the file ``texts`` measures success.
    """

    label: str
    texts: str

    def compile(self, binding: Binding) -> CompiledControl:
        """Compile guidance by the classifier ``sentiment``."""
        return Classifier(self.label, "sentiment").compile(binding)

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        """Return 1 for each text that naive Bayes assigns to ``label``, else 0."""
        classifier = naive_bayes(self.texts)
        return [float(classifier.classify(features(text)) == self.label) for text in texts]


@cache
def naive_bayes(texts: str) -> NaiveBayesClassifier:
    """Return a naive Bayes classifier trained on a JSON Lines file with ``text`` and ``label``."""
    rows = [json.loads(line) for line in Path(texts).read_text().splitlines()]
    return NaiveBayesClassifier.train([(features(row["text"]), row["label"]) for row in rows])


def features(text: str) -> dict[object, bool]:
    """Return the words and the pairs of adjacent words of a text, as features of naive Bayes."""
    words = text.split()
    return {each: True for each in [*words, *itertools.pairwise(words)]}


def prepare(folder: Path) -> dict[str, str]:
    """Write 80, 10 and 10 percent of the sentences to files for training, validation and test; return their paths."""
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
    """Return the accuracy of naive Bayes on held-out texts."""
    rows = [json.loads(line) for line in Path(paths["test"]).read_text().splitlines()]
    classifier = naive_bayes(paths["train"])
    return sum(classifier.classify(features(row["text"])) == row["label"] for row in rows) / len(rows)


def control_targets(paths: dict[str, str]) -> list[dict[str, object]]:
    """Return ``TARGETS`` targets per label, each with a held-out sentence of that label as the reference."""
    rows = [json.loads(line) for line in Path(paths["test"]).read_text().splitlines()]
    return [
        {"controls": [str(Sentiment(label, paths["train"]))], "reference": row["text"], "task": label}
        for label in LABELS
        for row in [row for row in rows if row["label"] == label][:TARGETS]
    ]


def train_if_missing(name: str, run: Path, changes: list[tuple[str, str]]) -> None:
    """Train configs/``name``.yaml unless ``run`` is finished. Raises KeyboardInterrupt if Ctrl-C stopped the training."""
    torch.set_num_threads(1)
    changes = [("training.threads", "1"), *changes]
    if not (run / "model" / "finished").exists() and not train(read_config([ROOT / "configs" / f"{name}.yaml"], changes), run):
        raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the missing models, evaluate the guidance, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0, 1, 2, 4], help="guidance strengths (%(default)s)")
    parser.add_argument(
        "--samples", type=int, default=10, help=f"samples for each of {TARGETS} targets per label (%(default)s)"
    )
    parser.add_argument("--steps", type=int, help="training steps, instead of those in the configs (for a quick run)")
    parser.add_argument("--runs", default="runs/film-reviews", help="folder of the data and the models (%(default)s)")
    parser.add_argument("--results", default=str(RESULTS), help="folder of the results (%(default)s)")
    options = parser.parse_args(arguments)
    folder = Path(options.runs)

    def run() -> None:
        paths = prepare(folder)
        changes = [("data.corpus", json.dumps({"name": "files", **paths}))]
        changes += [("training.steps", str(options.steps))] if options.steps else []
        model, judge = folder / "diffusion", folder / "judge"
        train_if_missing("film-reviews-judge", judge, changes)
        train_if_missing("film-reviews", model, changes)
        sentiment = [*changes, ("model.denoiser", str(model))]
        train_if_missing("classifiers/sentiment", model / "model" / "classifiers" / "sentiment", sentiment)
        print(f"accuracy of naive Bayes on held-out sentences: {accuracy(paths):.1%}", flush=True)
        targets = folder / "targets.jsonl"
        write_text(targets, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in control_targets(paths)))
        config = ControlConfig(samples=options.samples, strengths=tuple(options.strengths))
        out = Path(options.results) / "film-reviews"
        print(control_table(evaluate_control(judge, [model], read_tasks(targets), config, out=out)), end="", flush=True)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
