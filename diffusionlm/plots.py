"""Figures of an evaluation and of a learned schedule, as matplotlib's objects: no window, no global state.

matplotlib comes with the extra ``evaluate``; whatever can go without a figure asks ``available`` first.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def available() -> bool:
    """Tell whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, replaced whole."""
    staged = path.with_suffix(".new")
    figure.savefig(staged, format="png", dpi=150)
    staged.replace(path)


@dataclass(frozen=True)
class Line:
    """A frontier: points (entropy or success, perplexity), what is written beside each, and standard errors of perplexities."""

    label: str
    points: Sequence[tuple[float, float]]
    marks: Sequence[str]
    errors: Sequence[float]
    peer: bool = False
    ordered: bool = False  # the points are joined in the order given, not from left to right


ENTROPY = "entropy of the words (nats): more diverse to the right"


def frontier(lines: Sequence[Line], title: str, across: str = ENTROPY) -> Figure:
    """Draw judge perplexity (log scale), with its standard error, against what ``across`` names; a ``peer`` is dashed."""
    figure, axes = _new(8.0, 5.5)
    for line in lines:
        order = list(range(len(line.points)))
        order = order if line.ordered else sorted(order, key=lambda i: line.points[i])
        xs, ys = zip(*(line.points[i] for i in order), strict=True)
        number = [other for other in lines if not other.peer].index(line) if not line.peer else 0
        colour = "black" if line.peer else f"C{number % 10}"
        style = "*" if len(xs) == 1 and line.peer else "--s" if line.peer else "-o"
        errors = [line.errors[i] for i in order]
        size = 14 if style == "*" else 5
        axes.errorbar(xs, ys, errors, fmt=style, color=colour, elinewidth=0.7, label=line.label, markersize=size)
        for i in order:
            offset, side = ((-8, -10), "right") if style == "*" else ((5, -10), "left")
            axes.annotate(
                line.marks[i], line.points[i], offset, textcoords="offset points", fontsize=7, color=colour, ha=side
            )  # fmt: skip
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.set_xlabel(across)
    axes.set_ylabel("perplexity under the judge: more fluent below")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    return figure


def lengths(histograms: Mapping[str, Mapping[int, int]]) -> Figure:
    """Draw the shares of texts by their number of words; the first histogram is filled."""
    figure, axes = _new(8.0, 4.5)
    for number, (label, histogram) in enumerate(histograms.items()):
        counts = numpy.bincount(list(histogram), list(histogram.values()))
        edges = numpy.arange(len(counts) + 1) - 0.5
        colour = "lightgrey" if number == 0 else f"C{(number - 1) % 10}"
        axes.stairs(counts / counts.sum(), edges, fill=number == 0, color=colour, label=label)
    axes.set_xlabel("words a text, punctuation marks counted")
    axes.set_ylabel("share of the texts")
    axes.legend(fontsize=8)
    return figure


def schedule_fit(
    gammas: Sequence[float], losses: Sequence[float], shares: Sequence[float], fitted: Sequence[tuple[float, float]]
) -> Figure:
    """Draw cross-entropy against gamma: points seen in training (larger where more texts were), and the fitted curve."""
    figure, axes = _new(7.0, 4.5)
    sizes = 10 + 400 * numpy.asarray(shares)
    axes.scatter(gammas, losses, sizes, color="C0", alpha=0.6, label="seen in training (area: texts there)")
    xs, ys = zip(*fitted, strict=True)
    axes.plot(xs, ys, color="C1", label="fitted curve")
    density = numpy.gradient(ys, xs)
    beside = axes.twinx()
    beside.fill_between(xs, density / max(density.max(), 1e-9), color="C1", alpha=0.15)
    beside.set_ylim(0, 1)
    beside.set_yticks([])
    axes.set_xlabel("gamma = log(sigma² / alpha²): noisier to the right (shaded: the density that sampling follows)")
    axes.set_ylabel("cross-entropy (nats a token; no likelihood)")
    axes.legend(fontsize=8, loc="upper left")
    return figure


def by_noise(log_snrs: Sequence[float], lines: Mapping[str, tuple[Sequence[float], float]], label: str) -> Figure:
    """Draw scores against the log-SNR, clean texts (the first) at the left; beside each line its baseline, dotted."""
    figure, axes = _new(7.5, 4.5)
    for number, (name, (scores, baseline)) in enumerate(lines.items()):
        colour = "black" if name == "mean" else f"C{number % 10}"
        axes.plot(log_snrs, scores, "-o", color=colour, markersize=4, label=name)
        axes.plot(log_snrs[-1], baseline, "<", color=colour, markersize=7)
    axes.set_xticks(log_snrs, ["clean", *(f"{level:g}" for level in log_snrs[1:])])
    axes.invert_xaxis()
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("log-SNR: noisier to the right (the triangles: always the commonest value)")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _new(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots()
