"""The figures of a run's report: each line has its own colour and its own marker or dashes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from diffusionlm.plots import MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]
DASHES = ("-", "--", "-.", ":")
FEW = 40  # points, up to which each has a marker


def curves(panels: Mapping[str, Mapping[str, Points]], kept: int | None, lowest: tuple[float, float] | None) -> Figure:
    """Draw a panel for each y axis of ``panels`` over the steps, its lines by name.

    ``kept`` is the step of the saved weights, a vertical line; ``lowest`` is the point of the lowest validation loss.
    """
    figure = _new(9.0, 2.7 * ((len(panels) + 1) // 2))
    grid = figure.subplots((len(panels) + 1) // 2, 2, squeeze=False).flatten()
    for number, axes in enumerate(grid):
        axes.set_visible(number < len(panels))
    last = max(x for lines in panels.values() for line in lines.values() for x, _ in line)
    for axes, (label, lines) in zip(grid, panels.items(), strict=False):
        draw_lines(axes, lines)
        if label.startswith("validation") and lowest is not None:
            axes.plot(*lowest, "*", color="C1", markersize=13, label="lowest", zorder=3)
        if kept is not None:
            axes.axvline(kept, color="black", linestyle=":", linewidth=1.2, label=f"saved weights (step {kept})")
        axes.set_xlabel("step")
        axes.set_xlim(0, 1.03 * last)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel(label.replace(" (", "\n(").replace(", ", ",\n"), fontsize=8)
        axes.grid(alpha=0.3)
        if label.startswith("tokens"):
            axes.set_ylim(bottom=0)
        if label.startswith(("training", "validation")):
            axes.legend(fontsize=7)
    return figure


def draw_lines(axes: Axes, lines: Mapping[str, Points]) -> None:
    """Draw lines by name."""
    for number, (name, points) in enumerate(lines.items()):
        marker = MARKERS[number % len(MARKERS)] if len(points) <= FEW else ""
        axes.plot(
            *zip(*points, strict=True), marker=marker, markersize=3.5, linewidth=1.3, linestyle=DASHES[number % len(DASHES)],
            color=f"C{number}", label=name,
        )  # fmt: skip


def schedule(times: Sequence[float], gammas: Sequence[float], alphas: Sequence[float], sigmas: Sequence[float]) -> Figure:
    """Draw gamma over the time, and alpha and sigma beside it."""
    figure = _new(9.0, 3.2)
    left, right = figure.subplots(1, 2)
    left.plot(times, gammas)
    left.set_ylabel("gamma = log(sigma² / alpha²)")
    right.plot(times, alphas, label="alpha (signal)")
    right.plot(times, sigmas, "--", label="sigma (noise)")
    right.set_ylabel("alpha, sigma (x_t = alpha x_0 + sigma noise)")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.set_xlabel("time t (0: clean, 1: noise)")
        axes.grid(alpha=0.3)
    return figure


def by_level(points: Points, across: str, up: str) -> Figure:
    """Draw the loss at each noise level."""
    figure = _new(7.0, 3.6)
    axes = figure.add_subplot(xlabel=across, ylabel=up)
    axes.plot(*zip(*points, strict=True), "-o", markersize=4)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    return figure


def _new(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")
