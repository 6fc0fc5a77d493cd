"""The accuracy of classifiers at each noise level, beside that of always predicting the most frequent value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from diffusionlm import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLEAN = float("inf")
LOG_SNRS = (CLEAN, 2.0, 0.0, -1.0, -2.0, -3.0, -4.0)  # -gamma, from clean words to nearly pure noise


def value_measures(confusion: Tensor) -> dict[str, float]:
    """Return ``accuracy``, ``balanced`` (the mean recall of the values) and ``majority`` (that of the most frequent value).

    ``confusion`` (values, values) counts true and predicted values, the most frequent in training first. Where it counts
    nothing, since no text has a label, the measures are NaN.
    """
    total, true = confusion.sum(), confusion.sum(1)
    return {
        "accuracy": float(confusion.trace() / total),
        "balanced": float((confusion.diag() / true)[true > 0].mean()),
        "majority": float(true[0] / total),
    }


def span_measures(confusion: Tensor) -> dict[str, float]:
    """Return labelled ``f1``, ``precision`` and ``recall`` of constituents (as EVALB), NaN where there is none to find.

    Value 0 is no constituent.
    """
    right = int(confusion.diag()[1:].sum())
    true, found = int(confusion[1:].sum()), int(confusion[:, 1:].sum())
    return {
        "f1": 2 * right / (true + found) if true else math.nan,
        "precision": right / max(found, 1) if true else math.nan,
        "recall": right / true if true else math.nan,
        "majority": 0.0,  # no constituent anywhere
    }


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of a classifier on held-out texts: ``scores[field][measure]`` has a number for each of ``LOG_SNRS``."""

    head: str
    reads: str
    texts: int
    scores: dict[str, dict[str, list[float]]]

    @property
    def measure(self) -> str:
        """The main measure, which is the first."""
        return next(iter(next(iter(self.scores.values()))))

    @property
    def unmeasured(self) -> list[str]:
        """The fields of which no held-out text has a label."""
        return [name for name, scores in self.scores.items() if math.isnan(scores[self.measure][0])]

    def shown(self) -> dict[str, dict[str, list[float]]]:
        """Return the scores of the fields, with the mean over those that were measured if there are several."""
        each = [scores for name, scores in self.scores.items() if name not in self.unmeasured]
        if len(each) < 2:
            return self.scores
        mean = {
            measure: [sum(column) / len(each) for column in zip(*(one[measure] for one in each), strict=True)]
            for measure in each[0]
        }
        return {**self.scores, "mean": mean}

    def plain(self) -> dict[str, Any]:
        """Return plain data; the log-SNR of clean texts is null, and so are the scores of a field without labels."""
        levels = [None if level == CLEAN else level for level in LOG_SNRS]
        scores = {
            name: {measure: [None if math.isnan(figure) else figure for figure in row] for measure, row in measures.items()}
            for name, measures in self.shown().items()
        }
        return {"head": self.head, "reads": self.reads, "texts": self.texts, "log_snr": levels, "scores": scores}

    def table(self) -> str:
        """Return a table in percent: a row per field with the majority baseline, then the measure at each log-SNR."""
        levels = ["clean" if level == CLEAN else f"{level:+g}" for level in LOG_SNRS]
        width = max(len(name) for name in [*self.shown(), "log-SNR"])
        lines = [f"held-out {self.measure} (%) on {self.texts} texts, by log-SNR of the input"]
        lines.append(f"  {'log-SNR':{width}}  majority" + "".join(f"{level:>8}" for level in levels))
        for name, scores in self.shown().items():
            if name in self.unmeasured:
                lines.append(f"  {name:{width}}  not measured: no held-out text has a label that the training texts have")
                continue
            figures = "".join(f"{100 * figure:8.1f}" for figure in scores[self.measure])
            lines.append(f"  {name:{width}}  {100 * scores['majority'][0]:8.1f}" + figures)
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draw the main measure against the log-SNR."""
        finite = [level for level in LOG_SNRS if level != CLEAN]
        levels = [max(finite) + 2 if level == CLEAN else level for level in LOG_SNRS]
        lines = {
            f"{name} (not measured)" if name in self.unmeasured else name: (scores[self.measure], scores["majority"][0])
            for name, scores in self.shown().items()
        }
        return plots.by_noise(levels, lines, f"held-out {self.measure} on {self.texts} texts")
