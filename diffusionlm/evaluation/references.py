"""Figures of outputs against references: quality, variety, copies and slot errors, each with its standard error.

The figures are over all outputs of a system. Standard errors are the deviation over ``RESAMPLES`` bootstrap resamples of the
sources, each with all of its outputs: what a figure needs of an output (its *statistics*, such as counts of n-grams) is summed
over a resample, and the figure computed from the sums. sacrebleu's public bootstrap (``corpus_score(..., n_bootstrap=N)``)
resamples outputs, not sources, and its interval can be read only as rounded text, so BLEU, chrF and TER are resampled from the
statistics of its private ``_extract_corpus_statistics``; a test compares their sum with its public score. The information of
NIST's n-grams stays that of all references.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
from sacrebleu import BLEU, CHRF, TER

from diffusionlm.data.copies import tokenize
from diffusionlm.data.references import Item, paired
from diffusionlm.evaluation import overlap
from diffusionlm.evaluation.slot_patterns import SLOTS
from diffusionlm.evaluation.slots import Places, slot_errors
from diffusionlm.evaluation.text_metrics import TrainingTexts, distinct, self_bleu

RESAMPLES = 1000
Score = Callable[[numpy.ndarray], float]  # the sum of statistics -> the figure
Progress = Callable[[int], object]
SEVERAL = "needs several outputs per source"
INSTALL = "rouge-score or nltk is not installed (the extra `references` has them)"


@dataclass(frozen=True)
class Figure:
    """A figure with its standard error over sources; ``value`` is None, with the ``reason``, where it was not computed."""

    value: float | None
    error: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Scores:
    """Figures of a system's outputs by name, sacrebleu's signatures, and shares of slot errors by slot and kind."""

    sources: int
    outputs: int
    figures: dict[str, Figure]
    signatures: dict[str, str]
    slots: dict[str, dict[str, float]] = field(default_factory=dict)


def ratio(sums: numpy.ndarray) -> float:
    """Return 100 times the first sum over the second: a percentage, or a mean of shares."""
    return float(100 * sums[0] / sums[1]) if sums[1] else 0.0


def bootstrap(statistics: numpy.ndarray, score: Score, resamples: int = RESAMPLES, seed: int = 0) -> float | None:
    """Return the standard error of ``score(statistics.sum(0))`` over resamples of the rows; None for a single row.

    Args:
        statistics: (sources, n), the summed statistics of the outputs of each source.
        score: the figure of a sum of rows.
        resamples: how many resamples are drawn.
        seed: of the resamples.
    """
    if len(statistics) < 2:
        return None
    generator, count = numpy.random.default_rng(seed), len(statistics)
    draws = generator.multinomial(count, numpy.full(count, 1 / count), size=resamples)
    return float(numpy.std([score(row) for row in draws @ statistics], ddof=1))


def _score_of(metric: Any) -> Score:
    return lambda sums: float(metric._compute_score_from_stats(sums).score)


@dataclass
class Scorer:
    """Computes figures of ``outputs`` (for each of ``items``, one or more)."""

    items: Sequence[Item]
    outputs: Sequence[Sequence[str]]
    resamples: int = RESAMPLES
    seed: int = 0
    figures: dict[str, Figure] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pairs = paired(self.items, self.outputs)
        self.owners = numpy.array([number for number, _, _ in self.pairs])

    def add(self, name: str, rows: Sequence[Sequence[float]], score: Score, of_sources: bool = False) -> None:
        """Add a figure from the statistics of each output, or of each source."""
        values = numpy.asarray(rows, dtype=float)
        if not of_sources:
            summed = numpy.zeros((len(self.items), values.shape[1]))
            numpy.add.at(summed, self.owners, values)
            values = summed
        self.figures[name] = Figure(score(values.sum(0)), bootstrap(values, score, self.resamples, self.seed))

    def leave_out(self, names: str, reason: str) -> None:
        """Enter figures that cannot be computed."""
        self.figures |= {name: Figure(None, reason=reason) for name in names.split(", ")}

    def sacrebleu(self, ter: bool, progress: Progress) -> None:
        """Add BLEU (cased as by default, and in lower case as the E2E script), chrF, TER and the length ratio."""
        metrics: dict[str, Any] = {"BLEU": BLEU(), "BLEU, lower case": BLEU(lowercase=True), "chrF": CHRF(), "TER": TER()}
        if not ter:
            del metrics["TER"]
        for name, metric in metrics.items():
            rows = []
            for _, item, text in self.pairs:
                rows += metric._extract_corpus_statistics([text], [[reference] for reference in item.references])
                progress(1)
            counts = {len(item.references) for item in self.items}
            metric.num_refs = counts.pop() if len(counts) == 1 else -1  # what a call with all outputs would set
            self.signatures[name] = str(metric.get_signature())
            self.add(name, rows, _score_of(metric))
            if name == "BLEU":
                self.add("length ratio", [row[:2] for row in rows], ratio)
        if not ter:
            self.leave_out("TER", "left out")

    def overlap(self) -> None:
        """Add NIST, and ROUGE and METEOR as far as their packages and data are installed."""
        references = [[overlap.words_13a(text) for text in item.references] for item in self.items]
        weights = overlap.information(references)
        rows = [overlap.nist_statistics(overlap.words_13a(text), references[n], weights) for n, _, text in self.pairs]
        self.add("NIST", rows, overlap.nist)
        try:
            words, rouge = overlap.treebank(), overlap.rouge_scorer()
        except ImportError:
            self.leave_out("ROUGE-1, ROUGE-2, ROUGE-L, ROUGE-L (E2E), METEOR", INSTALL)
            return
        scores = [rouge(text, item.references) for _, item, text in self.pairs]
        for i, name in enumerate(("ROUGE-1", "ROUGE-2", "ROUGE-L")):
            self.mean(name, [row[i] for row in scores])
        tokenized = [[words(text) for text in item.references] for item in self.items]
        self.mean("ROUGE-L (E2E)", [overlap.rouge_l(words(text), tokenized[n]) for n, _, text in self.pairs])
        try:
            meteor = overlap.meteor_scorer()
        except LookupError:
            self.leave_out("METEOR", "nltk's WordNet data is not installed (python -m nltk.downloader wordnet)")
            return
        self.mean("METEOR", [meteor(text, item.references) for _, item, text in self.pairs])

    def mean(self, name: str, shares: Sequence[float], of_sources: bool = False) -> None:
        """Add the mean of one share for each output (or source), in percent."""
        self.add(name, [[share, 1.0] for share in shares], ratio, of_sources)

    def variety(self) -> None:
        """Add distinct-n, self-BLEU and the share of distinct outputs, each of the outputs of one source, then the mean.

        Also the share of distinct ones of the outputs of all sources together, which is no mean and has no standard error.
        """
        for n in (1, 2):
            self.mean(f"distinct-{n}", [distinct(texts, n) for texts in self.outputs], of_sources=True)
        texts = [text for _, _, text in self.pairs]
        self.figures["distinct outputs of all sources"] = Figure(100 * len({*texts}) / len(texts))
        if min(map(len, self.outputs)) < 2:
            self.leave_out("self-BLEU, unique outputs", SEVERAL)
            return
        self.mean("self-BLEU", [self_bleu(texts, self.seed) / 100 for texts in self.outputs], of_sources=True)
        self.mean("unique outputs", [len(set(texts)) / len(texts) for texts in self.outputs], of_sources=True)

    def copies(self, training: TrainingTexts | None) -> None:
        """Add the shares of outputs that equal their source, of the source's words repeated, and of copied training targets."""
        self.mean("copies of the source", [float(tokenize(text) == tokenize(item.source)) for _, item, text in self.pairs])
        self.mean("source's words repeated", [repeated(item.source, text) for _, item, text in self.pairs])
        if training is None:
            self.leave_out("copies of training targets", "no training data was named (--data.corpus or --config)")
            return
        self.mean("copies of training targets", [training.copied([text]) for _, _, text in self.pairs])

    def slots(self) -> dict[str, dict[str, float]]:
        """Add the slot errors, and return their shares by slot and kind, where the sources are E2E meaning representations."""
        names = "slot errors, slots missing, slots wrong, slots missing or wrong, slots added, outputs without slot error"
        if any(item.slots is None or not {*item.slots} <= {*SLOTS} for item in self.items):
            self.leave_out(names, "the sources are not meaning representations of the E2E challenge")
            return {}
        places = Places.of(item.slots for item in self.items if item.slots)
        found = [(item.slots or {}, slot_errors(item.slots or {}, text, places)) for _, item, text in self.pairs]
        kinds = ("missing", "wrong", "added")
        counts = [[sum(kind == each for each in errors.values()) for kind in kinds] for _, errors in found]
        self.add("slot errors", [[sum(row), len(mr)] for row, (mr, _) in zip(counts, found, strict=True)], ratio)
        for name, columns in {"missing": [0], "wrong": [1], "missing or wrong": [0, 1], "added": [2]}.items():
            rows = [[sum(row[i] for i in columns), len(mr)] for row, (mr, _) in zip(counts, found, strict=True)]
            self.add(f"slots {name}", rows, ratio)
        self.mean("outputs without slot error", [float(not errors) for _, errors in found])
        total = sum(len(mr) for mr, _ in found)
        return {
            slot: {kind: 100 * sum(errors.get(slot) == kind for _, errors in found) / total for kind in kinds} for slot in SLOTS
        }


def repeated(source: str, text: str) -> float:
    """Return the share of the distinct words of ``source`` (without punctuation, in lower case) that ``text`` has too."""
    words = {word for word in tokenize(source.lower()) if word[0].isalnum()}
    return len(words & {*tokenize(text.lower())}) / max(len(words), 1)


def score_outputs(
    items: Sequence[Item], outputs: Sequence[Sequence[str]], *, training: TrainingTexts | None = None, ter: bool = True,
    resamples: int = RESAMPLES, seed: int = 0, progress: Progress | None = None,
) -> Scores:  # fmt: skip
    """Compute all figures of a system's outputs.

    Args:
        items: sources with their references.
        outputs: for each of ``items``, its outputs: one or more.
        training: the training targets, of which copies are counted.
        ter: whether TER is computed, which takes minutes for thousands of references.
        resamples: bootstrap resamples of the sources.
        seed: of the resamples, and of the outputs that self-BLEU compares.
        progress: called with 1 for each output and each of four (without TER three) metrics of sacrebleu.

    Raises:
        ValueError: an item has no output, or their numbers differ.
    """
    if not items or not all(outputs):
        raise ValueError("outputs: expected at least one for each item")
    scorer = Scorer(items, outputs, resamples, seed)
    scorer.sacrebleu(ter, progress or (lambda done: None))
    scorer.overlap()
    scorer.variety()
    scorer.copies(training)
    by_slot = scorer.slots()
    return Scores(len(items), len(scorer.pairs), scorer.figures, scorer.signatures, by_slot)


def left_out(items: Sequence[Item], seed: int = 0) -> tuple[list[Item], list[list[str]]]:
    """Return the items with two or more references without one of them, drawn at random, and that one as the output of each."""
    generator, kept, outputs = random.Random(seed), [], []
    for item in items:
        if len(item.references) > 1:
            number = generator.randrange(len(item.references))
            outputs.append([item.references[number]])
            rest = item.references[:number] + item.references[number + 1 :]
            kept.append(Item(item.source, rest, item.slots))
    return kept, outputs
