"""The figure of ``evaluate --references`` over scales of guidance or temperatures: quality against variety, and slot errors.

A *frontier* is the rows of one model whose sampling settings differ in the guidance scale or in the temperature alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffusionlm import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from diffusionlm.evaluation.reference_report import ReferenceReport, ReferenceRow

LISTED = {"cfg": "guidance scale (cfg)", "temperature": "temperature"}  # settings of sampling that an evaluation may list
SEVERAL, SINGLE = "distinct-2", "distinct outputs of all sources"  # figures of variety: of several outputs per source, of one
VARIETY = {SEVERAL: "distinct-2 of the outputs of a source (%)", SINGLE: "distinct outputs of all sources (%)"}
SLOTS = ("missing or wrong", "added")


@dataclass(frozen=True)
class Frontier:
    """Rows in the order of the setting ``across``, a name of ``LISTED``."""

    label: str
    across: str
    rows: Sequence[ReferenceRow]

    def points(self, name: str) -> list[tuple[float, float, float, str]]:
        """Return (``across``, figure ``name``, its standard error, "") of each row that has it."""
        found = [(value_of(row, self.across), row.figures.get(name)) for row in self.rows]
        return [(x, one.value, one.error or 0.0, "") for x, one in found if one is not None and one.value is not None]

    def trade_off(self, variety: str) -> list[tuple[float, float, float, str]]:
        """Return (the figure ``variety``, BLEU, its standard error, the value of ``across``) of each row that has both."""
        found = []
        for row in self.rows:
            x, y = row.figures.get(variety), row.figures["BLEU"]
            if x is not None and x.value is not None and y.value is not None:
                found.append((x.value, y.value, y.error or 0.0, f"{value_of(row, self.across):g}"))
        return found


def value_of(row: ReferenceRow, name: str) -> float:
    """Return a sampling setting of a model's row."""
    return float(row.settings["sampling"][name])


def frontiers(report: ReferenceReport) -> list[Frontier]:
    """Return the frontiers over guidance scales, where any model has several; else over temperatures.

    Each has two rows or more.
    """
    groups: dict[str, list[ReferenceRow]] = {}
    for row in report.rows:
        if "sampling" in row.settings:
            groups.setdefault(_shared(report, row), []).append(row)
    for across, other in (LISTED, [*LISTED][::-1]):
        found = [line for rows in groups.values() for line in _lines(report, rows, across, other)]
        if found:
            return found
    return []


def _shared(report: ReferenceReport, row: ReferenceRow) -> str:
    """Return the model and all settings of a row but those of ``LISTED``, as a key."""
    sampling = {name: value for name, value in row.settings["sampling"].items() if name not in LISTED}
    return json.dumps([row.fingerprint, _label(report, row), {**row.settings, "sampling": sampling}], sort_keys=True)


def _label(report: ReferenceReport, row: ReferenceRow) -> str:
    label: str = report.systems[row.system].get("frontier", row.system)
    return label


def _lines(report: ReferenceReport, rows: Sequence[ReferenceRow], across: str, other: str) -> list[Frontier]:
    """Return the lines of a group over ``across``, one for each value of ``other``."""
    found, others = [], sorted({value_of(row, other) for row in rows})
    for value in others:
        by = {value_of(row, across): row for row in rows if value_of(row, other) == value}
        mark = f", {other} {value:g}" * (len(others) > 1)
        if len(by) > 1:
            found.append(Frontier(_label(report, rows[0]) + mark, across, [by[each] for each in sorted(by)]))
    return found


def frontier_figure(report: ReferenceReport) -> Figure | None:
    """Draw the frontiers of a report; None where it has none."""
    lines = frontiers(report)
    if not lines:
        return None
    across = LISTED[lines[0].across]
    counts = sorted({int(line.rows[0].settings["count"]) for line in lines})
    variety = SEVERAL if counts[0] > 1 else SINGLE
    points = [plots.Line(line.label, line.trade_off(variety), ordered=True) for line in lines]
    errors = {kind: [line.points(f"slots {kind}") for line in lines] for kind in SLOTS}
    per = " or ".join(map(str, counts)) + (" output" if counts == [1] else " outputs") + " per source"
    title = f"{per}; labelled with the {across}; bars: standard error over sources"
    return plots.trade_off(points, title, f"{VARIETY[variety]}, more diverse to the right", across, errors)


def draw_frontiers(report: ReferenceReport, folder: Path) -> None:
    """Write ``frontier.svg`` where the report has frontiers. Raises UserError where it cannot be written."""
    if (figure := frontier_figure(report)) is not None:
        plots.save(figure, folder / "frontier.svg")
