"""What benchmarks/growth.py makes of its measurements: power laws, the first walls, tables and the figure."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy
from tabulate import tabulate

from diffusionlm import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FARTHEST = 1000  # times the largest measured size: no wall is named beyond it
DAY, LINE = 86_400.0, 8.5  # seconds; tokens of a generated line, its EOS counted
PEAK = "peak memory"
MEMORY, STEP, EPOCH = "memory", "step", "epoch"


@dataclass(frozen=True)
class Series:
    """A line of a panel: the figure ``key`` of a measurement, named "part: figure"; ``memory`` has its own axis.

    With ``above`` the value at the smallest size, which the library alone takes, is not part of the power law.
    """

    key: str
    label: str
    unit: str
    memory: bool = False
    above: bool = False

    def value(self, point: Point) -> float:
        """Return the figure of a point, memory in GB."""
        part, _, name = self.key.partition(": ")
        return float(point.parts[part][name]) / (1024 if name.endswith("resident") else 1)


@dataclass(frozen=True)
class Panel:
    """What varies, at which ``sizes``, and which measurements and series a panel has.

    Laws are fitted to sizes from ``least`` on, and extrapolated to those of ``beyond``.
    """

    across: str
    time: str
    sizes: tuple[int, ...]
    parts: tuple[str, ...]
    series: tuple[Series, ...]
    beyond: tuple[int, ...] = ()
    least: int = 0


@dataclass(frozen=True)
class Point:
    """The measurements at a size: figures by part."""

    size: int
    parts: Mapping[str, Mapping[str, Any]]


Points = dict[str, list[Point]]  # by panel
_TRAIN = Series("train: per token", "training", "CPU s per token")
_SAMPLE = Series("sample: per evaluation", "sampling", "CPU s per text and evaluation")
_PEAK = Series("train: peak", f"{PEAK}, training", "GB", memory=True, above=True)
_SAMPLE_PEAK = Series("sample: peak", f"{PEAK}, sampling", "GB", memory=True, above=True)
_SECONDS, _CALL = "CPU seconds", "s per text, start-up included"
PANELS = {
    "length": Panel(
        "tokens of a text", _SECONDS, (32, 64, 128, 256, 512, 1024), ("train", "sample"), (_TRAIN, _SAMPLE, _PEAK, _SAMPLE_PEAK)
    ),
    "vocabulary": Panel(
        "words of the vocabulary", _SECONDS, (1000, 4000, 16_000, 50_000, 128_000), ("train", "sample"),
        (_TRAIN, _SAMPLE, _PEAK, _SAMPLE_PEAK),
    ),
    "parameters": Panel(
        "parameters", "tokens per CPU second", (1_000_000, 5_000_000, 20_000_000, 87_000_000, 350_000_000), ("train",),
        (Series("train: per second", "training", "tokens per CPU s"), _PEAK),
    ),
    "corpus": Panel(
        "lines of the corpus", _SECONDS, (10**3, 10**4, 10**5, 10**6, 3 * 10**6, 10**7), ("start",),
        (
            Series("start: first cpu", "first start", "CPU s to the first step", above=True),
            Series("start: second cpu", "second start", "CPU s to the first step", above=True),
            Series("start: first resident", f"{PEAK}, first start", "GB", memory=True, above=True),
            Series("start: second resident", f"{PEAK}, second start", "GB", memory=True, above=True),
        ),
        (10**8, 10**9), 10**6,  # a smaller corpus is not cached: its second start is as slow as its first
    ),
    "processes": Panel(
        "processes", "seconds", (1, 2), ("generate",),
        (Series("generate: per text", "wall-clock time", _CALL), Series("generate: cpu per text", "CPU time", _CALL)),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class PowerLaw:
    """floor + factor size^exponent, with the standard error of the exponent (None for two points).

    ``centre`` is the mean logarithm of the fitted sizes.
    """

    factor: float
    exponent: float
    error: float | None
    floor: float = 0.0
    centre: float = 0.0

    def at(self, size: float) -> float:
        """Return the value at ``size``."""
        return self.floor + self.factor * size**self.exponent

    def reaches(self, limit: float) -> float | None:
        """Return the size at which the value is ``limit``; None where it does not grow, or is above it at every size."""
        if self.exponent <= 0 or limit <= self.floor:
            return None
        return math.exp((math.log(limit - self.floor) - math.log(self.factor)) / self.exponent)

    def turned(self, change: float) -> PowerLaw:
        """Return the law with another exponent and the same value at the centre of the fitted sizes."""
        return replace(self, exponent=self.exponent + change, factor=self.factor * math.exp(-change * self.centre))


def power_law(points: Sequence[tuple[float, float]], above: bool = False, least: float = 0) -> PowerLaw | None:
    """Fit a power law to the upper half of ``points`` (size, value), three of them or more, by least squares of logarithms.

    With ``above`` it is fitted to what exceeds the value at the smallest size. Sizes below ``least`` are left out. None for
    fewer than two points.
    """
    ordered = sorted(points)
    floor = ordered[0][1] if above and ordered else 0.0
    ordered = [(n, y - floor) for n, y in ordered[int(above) :] if y > floor and n >= least]
    upper = ordered[-max(3, math.ceil(len(ordered) / 2)) :]
    if len(upper) < 2:
        return None
    x, y = (numpy.log(numpy.array(each, dtype=float)) for each in zip(*upper, strict=True))
    centred = x - x.mean()
    spread = float((centred**2).sum())
    exponent = float((centred * y).sum()) / spread
    constant = float(y.mean() - exponent * x.mean())
    left = float(((y - constant - exponent * x) ** 2).sum())
    error = math.sqrt(left / (len(upper) - 2) / spread) if len(upper) > 2 else None
    return PowerLaw(math.exp(constant), exponent, error, floor, float(x.mean()))


@dataclass(frozen=True)
class Wall:
    """Where a quantity passes its limit: the size, and whether a measurement is beyond it; no ``size`` where it does not.

    ``kind`` is ``memory``, ``step`` or ``epoch``; ``whose`` says of what. ``error`` are the sizes for an exponent that is one
    standard error larger and smaller, None where the quantity does not grow then.
    """

    kind: str
    whose: str
    limit: float
    size: float | None = None
    measured: bool = False
    error: tuple[float | None, float | None] | None = None


def wall(kind: str, whose: str, points: Sequence[tuple[float, float]], limit: float, law: PowerLaw | None) -> Wall:
    """Return where ``points`` pass ``limit``: between two of them by log-linear interpolation, else by the ``law``."""
    ordered = sorted(points)
    for place, (size, value) in enumerate(ordered):
        if value <= limit:
            continue
        if place == 0:
            return Wall(kind, whose, limit, size, True)
        below, low = ordered[place - 1]
        share = math.log(limit / low) / math.log(value / low)
        return Wall(kind, whose, limit, below * (size / below) ** share, True)
    reached = law.reaches(limit) if law else None
    if law is None or reached is None or reached > FARTHEST * ordered[-1][0]:
        return Wall(kind, whose, limit)
    error = law.error and (law.turned(law.error).reaches(limit), law.turned(-law.error).reaches(limit))
    return Wall(kind, whose, limit, reached, error=error or None)


@dataclass(frozen=True)
class Limits:
    """Where a user's patience or machine ends: GB of memory, seconds of a step, seconds of an epoch."""

    memory: float
    step: float = 1.0
    epoch: float = DAY
    tokens_per_line: float = field(default=LINE)


def limits() -> Limits:
    """Return the limits on this machine."""
    return Limits(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def line_of(panel: str, series: Series, points: Points) -> list[tuple[float, float]]:
    """Return the points of a series; the parameters' are at the number that the model has, not at the nominal one."""
    return [(abscissa(panel, point), series.value(point)) for point in points[panel]]


def law_of(panel: str, series: Series, points: Points) -> PowerLaw | None:
    """Return the power law of a series."""
    return power_law(line_of(panel, series, points), series.above, PANELS[panel].least)


def abscissa(panel: str, point: Point) -> float:
    """Return the place of a point on the x axis."""
    return float(point.parts["train"]["parameters"]) if panel == "parameters" else float(point.size)


def walls(panel: str, points: Points, limits: Limits) -> list[Wall]:
    """Return the walls along a panel's size."""
    found = []
    for series in PANELS[panel].series:
        if series.memory:
            line = line_of(panel, series, points)
            found.append(wall(MEMORY, series.label, line, limits.memory, law_of(panel, series, points)))
    if "train" in PANELS[panel].parts:
        line = line_of(panel, Series("train: step", "step", "s"), points)
        found.append(wall(STEP, "a training step", line, limits.step, power_law(line)))
    if panel == "corpus":
        for point in points.get("parameters", []):
            lines = limits.epoch / (float(point.parts["train"]["per token"]) * limits.tokens_per_line)
            whose = f"an epoch with {short(abscissa('parameters', point))} parameters"
            found.append(Wall(EPOCH, whose, limits.epoch, lines))
    return found


def report_of(points: Points, limits: Limits) -> dict[str, Any]:
    """Return the figures, laws and walls of all panels as plain data; extrapolated values are marked so."""
    report: dict[str, Any] = {"limits": vars(limits), "panels": {}}
    for panel, each in points.items():
        series = {}
        for one in PANELS[panel].series:
            line = line_of(panel, one, points)
            law = law_of(panel, one, points)
            beyond = [] if law is None else [{"size": n, "value": law.at(n)} for n in extrapolated(panel, points)]
            series[one.label] = {
                "unit": one.unit, "points": line, "law": law and vars(law), "extrapolated": beyond
            }  # fmt: skip
        found = [vars(one) for one in walls(panel, points, limits)]
        measured = [{"size": point.size, **point.parts} for point in each]
        report["panels"][panel] = {"across": PANELS[panel].across, "series": series, "walls": found, "measurements": measured}
    return report


def extrapolated(panel: str, points: Points) -> list[int]:
    """Return the sizes that a panel is extrapolated to: none unless its largest size was measured."""
    known = PANELS[panel]
    return [n for n in known.beyond if points[panel][-1].size == known.sizes[-1]]


def sentences(report: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each panel, which names the first wall and those after it."""
    found = []
    for panel, each in report["panels"].items():
        known = [Wall(**one) for one in each["walls"]]
        reached = sorted((one for one in known if one.size is not None), key=lambda one: one.size or 0.0)
        if reached:
            first, *others = (described(one) for one in reached)
            later = f" Then: {'; '.join(others)}." if others else ""
            found.append(f"{panel}: the first wall is {first}.{later}")
        elif known:
            kinds = ", ".join(f"{one.whose} {LIMITS[one.kind].format(one.limit)}" for one in known)
            found.append(f"{panel}: no wall within {FARTHEST} times the largest measured size: {kinds}.")
    return found


LIMITS = {MEMORY: "above {:.3g} GB", STEP: "longer than {:g} s", EPOCH: "longer than a day"}


def described(one: Wall) -> str:
    """Return a wall in words."""
    assert one.size is not None
    how = "computed from the measured speed" if one.kind == EPOCH else "measured" if one.measured else "extrapolated"
    if one.error:
        low, high = (None if each is None else short(each) for each in one.error)
        how += f", {low or 'none'} to {high or 'none'} within one standard error of the exponent"
    return f"{one.whose} {LIMITS[one.kind].format(one.limit)}, from {short(one.size)} on ({how})"


def short(number: float) -> str:
    """Return a number with three digits and k, M or G for thousands, millions or thousand millions; up to 10,000 as it is."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= max(size, 10_000):
            return f"{number / size:.3g}{sign}"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def table(points: Points) -> str:
    """Return a table for each panel: a row for each series, a column for each size, and the exponent."""
    parts = []
    for panel, each in points.items():
        beyond, rows = extrapolated(panel, points), []
        for series in PANELS[panel].series:
            line = line_of(panel, series, points)
            law = law_of(panel, series, points)
            cells = [f"{value:.3g}" for _, value in line] + [f"{law.at(n):.3g}" if law else "-" for n in beyond]
            rows.append([f"{series.label}, {series.unit}", *cells, exponent_of(law)])
        sizes = [short(abscissa(panel, point)) for point in each]
        header = [PANELS[panel].across, *sizes, *(f"{short(n)} (extrapolated)" for n in beyond), "exponent"]
        parts.append(tabulate(rows, header, tablefmt="github", disable_numparse=True))
    return "\n\n".join(parts) + "\n"


def exponent_of(law: PowerLaw | None) -> str:
    """Return a law's exponent with its standard error."""
    if law is None:
        return "-"
    return f"{law.exponent:.2f}" + (f" ± {law.error:.2f}" if law.error is not None else "")


def draw(points: Points) -> Figure:
    """Draw a panel for each size that grows: times above, peaks of memory below, power laws dotted, all axes logarithmic."""
    from matplotlib.figure import Figure

    columns = min(3, len(points))
    rows = math.ceil(len(points) / columns)
    figure = Figure((5.2 * columns, 5.6 * rows), layout="constrained")
    parts = figure.subfigures(rows, columns, squeeze=False).flat
    for part, panel in zip(parts, points, strict=False):
        memory = any(series.memory for series in PANELS[panel].series)
        axes = part.subplots(1 + memory, 1, sharex=True, squeeze=False, height_ratios=[3, 2][: 1 + memory])[:, 0]
        for each, is_memory in zip(axes, (False, True), strict=False):
            _draw_series(each, panel, points, is_memory)
            each.set_ylabel("peak memory (GB)" if is_memory else PANELS[panel].time, fontsize=8)
        hollow = " (hollow: extrapolated)" if extrapolated(panel, points) else ""
        axes[-1].set_xlabel(PANELS[panel].across + hollow, fontsize=9)
    return figure


def _draw_series(axes: Axes, panel: str, points: Points, memory: bool) -> None:
    from matplotlib.ticker import LogLocator

    for number, series in enumerate(one for one in PANELS[panel].series if one.memory == memory):
        line, beyond = line_of(panel, series, points), extrapolated(panel, points)
        law, marker, colour = law_of(panel, series, points), "os"[number], f"C{number}"
        label = series.label.removeprefix(f"{PEAK}, ") if memory else f"{series.label}, {series.unit}"
        label += f", exponent {exponent_of(law)}" if law else ""
        axes.plot(*zip(*line, strict=True), "-", marker=marker, color=colour, markersize=5, label=label)
        if law:
            sizes = [n for n, _ in line][-3:] + [float(n) for n in beyond]
            xs = numpy.geomspace(sizes[0], sizes[-1], 50)
            axes.plot(xs, [law.at(x) for x in xs], ":", color=colour, linewidth=1)
            axes.plot(beyond, [law.at(n) for n in beyond], marker, color=colour, fillstyle="none")
    axes.set_xscale("log")
    shown = plots.apart([abscissa(panel, point) for point in points[panel]] + [float(n) for n in extrapolated(panel, points)])
    axes.set_xticks(shown, [short(n) for n in shown])
    axes.minorticks_off()
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 20 * low:  # few powers of ten: numbers between them are labelled as well
        axes.yaxis.set_minor_locator(LogLocator(subs=[2, 3, 5]))
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="minor", labelsize=7)
    if min(low, 1 / high) > 1e-3:
        axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)  # no data is under it
