"""One HTML page about a training run, from what its folder holds; the same folder gives the same page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffusionlm.config import UserError
from diffusionlm.evaluation.run_report import page, sections
from diffusionlm.evaluation.run_report.evaluations import KINDS, evaluations
from diffusionlm.evaluation.run_report.run import Run
from diffusionlm.files import write_text

NAME = "report.html"  # in the run folder
SECTIONS = {
    "Summary": sections.summary,
    "Curves": sections.curves,
    "Noise schedule": sections.noise_schedule,
    "Loss by noise level": sections.loss_by_noise,
    "Figures drawn during training": sections.training_figures,
    "Samples during training": sections.samples,
    "Evaluations": evaluations,
    "Environment": sections.environment,
    "Configuration": sections.configuration,
}


def write_report(folder: str | Path, out: str | Path | None = None, evaluated: Sequence[str | Path] = ()) -> Path:
    """Write the report of the run in ``folder`` to ``out``, by default into the run folder; return its place.

    ``evaluated`` are folders of evaluations elsewhere.

    Raises:
        UserError: the folder is none of a run, or its config cannot be read; a folder holds no evaluation; ``out`` is
            another file, or cannot be written.
    """
    run = Run(Path(folder), [_evaluation(Path(path)) for path in evaluated])
    place = run.folder / NAME if out is None else Path(out)
    _check_place(place)
    title = f"Training run {run.name} ({run.config.model.name})"
    html = page.page(title, dict(sections.made(run, SECTIONS)))
    write_text(place, html)
    return place


def _evaluation(folder: Path) -> Path:
    """Return the folder of an evaluation. Raises UserError where it holds none."""
    names = [kind.FILE for kind in KINDS]
    if not any((folder / name).is_file() for name in names):
        raise UserError(f"--evaluation: expected a folder with {', '.join(names[:-1])} or {names[-1]}, got {folder}")
    return folder


def _check_place(place: Path) -> None:
    """Raise UserError where the page would replace something else than a page."""
    if place.is_dir():
        raise UserError(f"--out: expected a file, got the folder {place}")
    if place.exists() and not place.read_bytes().startswith(b"<!DOCTYPE html>"):
        raise UserError(f"--out: {place} holds something else than a report; choose another file")
