"""How right a classifier is at each noise level, beside what always naming the commonest value gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from diffusionlm import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLEAN = float("inf")
LOG_SNRS = (CLEAN, 2.0, 0.0, -1.0, -2.0, -3.0, -4.0)  # -gamma, from the words themselves to what hardly tells them


def value_scores(counts: Tensor) -> dict[str, float]:
    """Return the share that is right, its mean over the true values, and what the training texts' commonest value gets.

    ``counts`` (values, values) by true and predicted value, the commonest first.
    """
    total, true = counts.sum().clamp(min=1), counts.sum(1)
    recall = (counts.diag() / true.clamp(min=1))[true > 0]
    return {
        "accuracy": float(counts.trace() / total),
        "balanced": float(recall.mean()) if len(recall) else 0.0,
        "majority": float(true[0] / total),
    }


def span_scores(counts: Tensor) -> dict[str, float]:
    """Return labelled F1, precision and recall of constituents (EVALB's measures); "", no constituent, is value 0."""
    right = int(counts.diag()[1:].sum())
    true, found = int(counts[1:].sum()), int(counts[:, 1:].sum())
    return {
        "f1": 2 * right / max(true + found, 1),
        "precision": right / max(found, 1),
        "recall": right / max(true, 1),
        "majority": 0.0,  # "no constituent" everywhere
    }


@dataclass(frozen=True)
class Accuracy:
    """How right a classifier is on ``texts`` held-out texts: ``scores[field][measure]``, a figure for each of LOG_SNRS."""

    head: str
    reads: str
    texts: int
    scores: dict[str, dict[str, list[float]]]

    @property
    def measure(self) -> str:
        """Return the measure that is shown."""
        return "f1" if self.head == "span" else "accuracy"

    def shown(self) -> dict[str, dict[str, list[float]]]:
        """Return the fields' scores, and their mean where there are several."""
        if len(self.scores) < 2:
            return self.scores
        each = list(self.scores.values())
        mean = {
            measure: [sum(column) / len(each) for column in zip(*(one[measure] for one in each), strict=True)]
            for measure in each[0]
        }
        return {**self.scores, "mean": mean}

    def plain(self) -> dict[str, Any]:
        """Return plain data; the level of clean texts is null."""
        levels = [None if level == CLEAN else level for level in LOG_SNRS]
        return {"head": self.head, "reads": self.reads, "texts": self.texts, "log_snr": levels, "scores": self.shown()}

    def table(self) -> str:
        """Return a line for each field: what the commonest value gets, then the figure at each level, in percent."""
        levels = ["clean" if level == CLEAN else f"{level:+g}" for level in LOG_SNRS]
        width = max(len(name) for name in [*self.shown(), "log-SNR"])
        lines = [f"held-out {self.measure} (%) of {self.texts} texts, by the log-SNR of what is read"]
        lines.append(f"  {'log-SNR':{width}}  majority" + "".join(f"{level:>8}" for level in levels))
        for name, scores in self.shown().items():
            figures = "".join(f"{100 * figure:8.1f}" for figure in scores[self.measure])
            lines.append(f"  {name:{width}}  {100 * scores['majority'][0]:8.1f}" + figures)
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draw the same."""
        finite = [level for level in LOG_SNRS if level != CLEAN]
        levels = [max(finite) + 2 if level == CLEAN else level for level in LOG_SNRS]
        lines = {name: (scores[self.measure], scores["majority"][0]) for name, scores in self.shown().items()}
        return plots.by_noise(levels, lines, f"held-out {self.measure} of {self.texts} texts")
