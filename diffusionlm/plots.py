"""Figures of evaluations, learned schedules and classifiers, as matplotlib objects: no window, no global state.

matplotlib comes with the extra ``evaluate``; callers check ``available`` first.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from diffusionlm.files import write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito 2008, without black and yellow
MARKERS = "o^Dv<"  # of systems; squares and stars are those of references
MOST = 8  # lines whose legend has room inside a figure


def available() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def save(figure: Figure, path: Path) -> None:
    """Write a PNG or an SVG, as the suffix says. Raises UserError where it cannot be written."""
    import matplotlib

    kind = path.suffix[1:]
    with matplotlib.rc_context({"svg.hashsalt": "diffusionlm"}):  # the same figure is the same file
        write(
            path,
            lambda staged: figure.savefig(staged, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None),
        )


def svg(draw: Callable[[], Figure]) -> str:
    """Return the figure that ``draw`` makes as an SVG, in colours that the colour-blind tell apart; the same text each time."""
    import matplotlib
    from matplotlib.rcsetup import cycler

    cycle = cycler(color=OKABE_ITO)
    with matplotlib.rc_context({"svg.hashsalt": "diffusionlm", "axes.prop_cycle": cycle}):
        staged = io.StringIO()
        draw().savefig(staged, format="svg", metadata={"Date": None})
    return staged.getvalue()


def pixels(path: Path) -> numpy.ndarray:
    """Return a saved PNG as an array (height, width, 3) of bytes."""
    from PIL import Image

    with Image.open(path) as image:
        return numpy.asarray(image.convert("RGB"))


@dataclass(frozen=True)
class Line:
    """A frontier of points (entropy or success, perplexity, its standard error, the mark beside the point).

    A ``peer`` is a reference to compare with; ``ordered`` points are joined in the order given, not from left to right.
    """

    label: str
    points: Sequence[tuple[float, float, float, str]]
    peer: bool = False
    ordered: bool = False


LABEL_SHARE = 0.04  # of an axis, that a number under it takes
ENTROPY = "unigram entropy (nats; more diverse to the right)"


def frontier(lines: Sequence[Line], title: str, across: str = ENTROPY) -> Figure:
    """Draw judge perplexity (log scale) with its standard error against ``across``, the x axis; a ``peer`` is dashed."""
    figure, axes = _new(8.0, 5.5, across, "judge perplexity (lower is more fluent)")
    _draw_lines(axes, lines)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3, which="both")
    if len(lines) <= MOST:
        axes.legend(fontsize=8)
        return figure
    figure.set_figheight(5.5 + 0.09 * len(lines))
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=2)  # no data is under it
    return figure


def trade_off(
    lines: Sequence[Line], title: str, variety: str, setting: str,
    errors: Mapping[str, Sequence[Sequence[tuple[float, float, float, str]]]],
) -> Figure:  # fmt: skip
    """Draw BLEU against ``variety``, and where there are any, the shares of slot errors against a ``setting`` beside it.

    ``errors`` has points (setting, percent, standard error, "") for each kind of slot error and each of ``lines``.
    """
    errors = {kind: each for kind, each in errors.items() if any(each)}
    figure, axes = _new(11.0 if errors else 7.0, 5.2, variety, "BLEU", columns=2 if errors else 1)
    figure.suptitle(title, fontsize=10)
    _draw_lines(axes, lines)
    axes.margins(x=0.1)  # for the marks
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, loc="outside lower center")  # no data is under it
    if not errors:
        return figure
    beside = figure.add_subplot(1, 2, 2, xlabel=setting, ylabel="slots with an error (% of all slots)")
    for style, (kind, of_lines) in zip(("-o", "--s"), errors.items(), strict=True):
        beside.plot([], [], style, color="black", markersize=5, label=kind)  # for the legend
        for number, points in enumerate(of_lines):
            if points:
                xs, ys, bars, _ = zip(*points, strict=True)
                beside.errorbar(xs, ys, bars, fmt=style, color=f"C{number % 10}", elinewidth=0.7, markersize=5)
    beside.set_ylim(bottom=0)
    beside.grid(alpha=0.3)
    beside.legend(fontsize=8)
    return figure


def over_evaluations(
    panels: Mapping[str, str], lines: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], levels: Mapping[str, float],
    title: str,
) -> Figure:  # fmt: skip
    """Draw a panel for each key of ``panels``, whose values are the y axes, over numbers of evaluations (log scale).

    ``lines`` has points (evaluations, value) for each panel and system, ``levels`` the dashed value of the reference texts.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure((8.0, 7.3 + 0.2 * len(lines[next(iter(panels))])), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=[2, *[1] * (len(panels) - 1)], squeeze=False)[:, 0]
    for each, (name, label) in zip(axes, panels.items(), strict=True):
        for number, (system, points) in enumerate(lines[name].items()):
            if points:
                each.plot(*zip(*points, strict=True), "-o", color=f"C{number % 10}", markersize=5, label=system)
        each.axhline(levels[name], color="black", linestyle="--", label="reference texts")
        each.set_ylabel(label, fontsize=8)
        each.grid(alpha=0.3, which="both")
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_locator(LogLocator(subs=[2, 3, 5]))  # a 9 would touch the 10
    axes[0].yaxis.set_minor_formatter("{x:g}")
    axes[0].tick_params(axis="y", which="minor", labelsize=7)
    shown = apart({x for points in lines[next(iter(panels))].values() for x, _ in points})
    axes[-1].set_xscale("log", base=2)
    axes[-1].set_xticks(shown, [f"{x:g}" for x in shown])
    axes[-1].set_xlabel("evaluations of the network per text, at most")
    figure.suptitle(title, fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center")  # no data is under it
    return figure


def apart(values: Collection[float]) -> list[float]:
    """Return those of positive ``values``, in order, whose labels do not touch on a log axis; the last is one of them."""
    left = sorted(values, reverse=True)
    least = (left[0] / left[-1]) ** LABEL_SHARE
    found = left[:1]
    for value in left[1:]:
        if found[-1] / value >= least:
            found.append(value)
    return found[::-1]


def _draw_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Draw lines with their standard errors and marks; a ``peer`` is dashed."""
    colours = (f"C{number % 10}" for number in itertools.count())
    markers = itertools.cycle(MARKERS)
    for line in lines:
        points = line.points if line.ordered else sorted(line.points, key=lambda point: point[:2])
        xs, ys, errors, marks = zip(*points, strict=True)
        colour = "black" if line.peer else next(colours)
        alone = line.peer and len(xs) == 1
        style, size = ("*", 14) if alone else ("--s" if line.peer else f"-{next(markers)}", 5)
        axes.errorbar(xs, ys, errors, fmt=style, color=colour, elinewidth=0.7, label=line.label, markersize=size)
        offset, side = ((-8, -10), "right") if alone else ((5, -10), "left")
        for x, y, mark in zip(xs, ys, marks, strict=True):
            axes.annotate(mark, (x, y), offset, textcoords="offset points", fontsize=7, color=colour, ha=side)


def lengths(histograms: Mapping[str, Mapping[int, int]]) -> Figure:
    """Draw histograms of the number of words per text; the first one is filled."""
    figure, axes = _new(8.0, 4.5, "words per text (punctuation marks included)", "share of texts")
    for number, (label, histogram) in enumerate(histograms.items()):
        counts = numpy.bincount(list(histogram), list(histogram.values()))
        edges = numpy.arange(len(counts) + 1) - 0.5
        colour = "lightgrey" if number == 0 else f"C{(number - 1) % 10}"
        axes.stairs(counts / counts.sum(), edges, fill=number == 0, color=colour, label=label)
    axes.legend(fontsize=8)
    return figure


def schedule_fit(
    gammas: Sequence[float], losses: Sequence[float], shares: Sequence[float], fitted: Sequence[tuple[float, float]]
) -> Figure:
    """Draw cross-entropy against gamma: the measurements of training, with area by number of texts, and the fitted curve."""
    across = "gamma = log(sigma² / alpha²), noisier to the right (shaded: density of the sampling steps)"
    figure, axes = _new(7.0, 4.5, across, "cross-entropy (nats per token; no likelihood)")
    sizes = 10 + 400 * numpy.asarray(shares)
    axes.scatter(gammas, losses, sizes, color="C0", alpha=0.6, label="measured in training (area: number of texts)")
    xs, ys = zip(*fitted, strict=True)
    axes.plot(xs, ys, color="C1", label="fitted curve")
    density = numpy.gradient(ys, xs)
    beside = axes.twinx()
    beside.fill_between(xs, density / max(density.max(), 1e-9), color="C1", alpha=0.15)
    beside.set_ylim(0, 1)
    beside.set_yticks([])
    axes.legend(fontsize=8, loc="upper left")
    return figure


def by_noise(log_snrs: Sequence[float], lines: Mapping[str, tuple[Sequence[float], float]], label: str) -> Figure:
    """Draw scores against the log-SNR, clean texts (the first) at the left; a triangle marks each line's baseline."""
    figure, axes = _new(7.5, 4.5, "log-SNR, noisier to the right (triangles: predicting the most frequent value)", label)
    for number, (name, (scores, baseline)) in enumerate(lines.items()):
        colour = "black" if name == "mean" else f"C{number % 10}"
        axes.plot(log_snrs, scores, "-o", color=colour, markersize=4, label=name)
        axes.plot(log_snrs[-1], baseline, "<", color=colour, markersize=7)
    axes.set_xticks(log_snrs, ["clean", *(f"{level:g}" for level in log_snrs[1:])])
    axes.invert_xaxis()
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def points(panels: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str) -> Figure:
    """Draw clouds of points side by side on the same axes, each under its title."""
    from matplotlib.figure import Figure

    figure = Figure((3.2 * len(panels), 3.9), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for number, (each, (title, cloud)) in enumerate(zip(axes, panels.items(), strict=True)):
        colour = "black" if number == 0 else f"C{(number - 1) % 10}"
        each.scatter(*zip(*cloud, strict=True), s=3, color=colour, alpha=0.4, linewidths=0)
        each.set_title(title, fontsize=9)
        each.set_aspect("equal")
        each.grid(alpha=0.3)
    axes[0].set_ylabel(up)
    figure.supxlabel(across, fontsize=10)
    return figure


def _new(width: float, height: float, across: str, up: str, columns: int = 1) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    return figure, figure.add_subplot(1, columns, 1, xlabel=across, ylabel=up)
