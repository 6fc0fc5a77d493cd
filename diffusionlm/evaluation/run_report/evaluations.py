"""The evaluations of a run: their figures and tables, from the reports that ``evaluate`` has written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from diffusionlm.config import UserError
from diffusionlm.evaluation.control.report import ControlReport, control_figure, control_table
from diffusionlm.evaluation.control.report import format_row as control_row
from diffusionlm.evaluation.frontiers import frontier_figure as reference_figure
from diffusionlm.evaluation.frontiers import frontiers as reference_frontiers
from diffusionlm.evaluation.jobs import ResumableReport
from diffusionlm.evaluation.reference_report import ReferenceReport, reference_table
from diffusionlm.evaluation.report import Report, format_row, frontier_figure
from diffusionlm.evaluation.report import table as complete_table
from diffusionlm.evaluation.run_report.page import facts, figure, heading, hidden, paragraph, preformatted, table
from diffusionlm.evaluation.run_report.run import Run
from diffusionlm.files import read_json
from diffusionlm.plots import available


def evaluations(run: Run) -> str:
    """Return all evaluations of the run."""
    found = [_one(kind, path, run) for kind in KINDS for path in run.evaluated(kind.FILE)]
    return "".join(found) or paragraph("The run folder holds no evaluation; give that of another folder with --evaluation.")


def _one(kind: type[ResumableReport], path: Path, run: Run) -> str:
    """Return the title, figure and tables of a report, and the machine that made it."""
    inside = path.is_relative_to(run.folder)
    title = heading(str(path.relative_to(run.folder)) if inside else f"{path.parent.name}/{path.name}")
    try:
        report = kind.read(path)
    except UserError as error:  # the other evaluations are shown
        return title + paragraph(f"Missing: {error}.")
    if not getattr(report, "rows", None):
        return title + paragraph("This evaluation has no rows yet.")
    machine = read_json(path).get("machine")
    shown = facts(machine) if isinstance(machine, Mapping) else ""
    return title + KINDS[kind](report) + (hidden("Machine of this evaluation", shown) if shown else "")


def _fluency(report: Report) -> str:
    rows = [*report.reference, *(row for rows in report.frontiers().values() for row in rows)]
    drawn = figure(partial(frontier_figure, report), "Judge perplexity against the entropy of the words.")
    return drawn + table([format_row(row) for row in rows]) + _complete(complete_table(report))


def _control(report: ControlReport) -> str:
    names = list(dict.fromkeys(name for row in report.rows for name in row.corpus_metrics))
    drawn = figure(partial(control_figure, report), "Judge perplexity against control success.")
    return (
        drawn
        + table([{"system": row.system, **control_row(row, names)} for row in report.rows])
        + _complete(control_table(report))
    )


def _references(report: ReferenceReport) -> str:
    drawn = reference_figure(report) if reference_frontiers(report) and available() else None
    shown = figure(lambda: drawn, "BLEU against variety.") if drawn is not None else ""
    return shown + preformatted(reference_table(report))


def _complete(text: str) -> str:
    return hidden("Complete table, with explanations", preformatted(text))


KINDS: dict[type[ResumableReport], Callable[[Any], str]] = {
    Report: _fluency,
    ControlReport: _control,
    ReferenceReport: _references,
}
