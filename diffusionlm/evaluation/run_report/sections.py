"""The sections of a run's report: each is made where the run has its data, and is else a sentence that says what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from diffusionlm.config import UserError, plain_name
from diffusionlm.evaluation.run_report import figures
from diffusionlm.evaluation.run_report.noise_levels import losses_by_level
from diffusionlm.evaluation.run_report.page import facts, figure, hidden, paragraph, picture, preformatted, table, texts_by_step
from diffusionlm.evaluation.run_report.run import Row, Run
from diffusionlm.files import read_text
from diffusionlm.models.diffusion import DiffusionLM

SHOWN = 3  # samples of each step before a click
UNITS = {  # of the validation loss, by objective
    "cross-entropy": "diffusion term of the bound, nats per token",
    "masked": "nats per masked word",
    "causal": "nats per token",
    "seq2seq": "nats per token",
}


def summary(run: Run) -> str:
    """Return what the run has trained, and how far it is."""
    config, last = run.config, run.training[-1] if run.training else {}
    steps = f"{run.log[-1]['step'] if run.log else 0:,} of {config.training.steps:,}"
    rows: dict[str, object] = {"model": config.model.name, "objective": plain_name(type(config.objective))}
    try:
        rows["parameters"] = f"{run.model.num_parameters():,}"
    except UserError as error:
        rows["parameters"] = f"not known: {error}"
    rows |= {"steps": f"{steps} ({'finished' if run.finished else 'unfinished'})"}
    if "training_texts" in run.data:
        rows["training texts"] = f"{run.data['training_texts']:,}"
    if "tokens" in last:
        rows["training tokens"] = f"{last['tokens']:,} (padding is not counted)"
    if run.lowest is not None:
        rows["lowest validation loss"] = f"{run.lowest['eval_loss']:.4f} at step {run.lowest['step']}"
    rows["saved weights"] = "not known: there is no checkpoint" if run.kept_step is None else f"those of step {run.kept_step}"
    return facts(rows)


def curves(run: Run) -> str:
    """Return the losses, the learning rate and the speed over the steps."""
    if not run.log:
        return paragraph("The run has no log yet, so there are no curves.")
    unit = UNITS.get(plain_name(type(run.config.objective)), "")
    panels = {
        "training loss": {"sum of the terms": points(run.training, "loss"), **_terms(run.training)},
        f"validation loss{f' ({unit})' * bool(unit)}": {"validation loss": points(run.validation, "eval_loss")},
        "learning rate": {"learning rate": points(run.training, "learning_rate")},
        "tokens per second": {"tokens per second": points(run.training, "tokens_per_second")},
    }
    shown = {label: {name: line for name, line in lines.items() if line} for label, lines in panels.items()}
    shown = {label: lines for label, lines in shown.items() if lines}
    lowest = None if run.lowest is None else (run.lowest["step"], run.lowest["eval_loss"])
    html = ""
    if shown:
        html = figure(partial(figures.curves, shown, run.kept_step, lowest), "Losses, learning rate and speed over the steps.")
    if missing := [label for label in panels if label not in shown]:
        html += paragraph(f"The log has no values of: {', '.join(missing)}.")
    if run.validation:
        html += hidden("All evaluations on the validation set", table([_evaluation(row) for row in run.validation]))
    return html


def points(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    """Return (step, value) of each row that has the value."""
    return [(row["step"], float(row[name])) for row in rows if row.get(name) is not None]


def _terms(rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """Return the terms of the training loss where there are several: what the log has beside its own columns."""
    own = {"step", "loss", "grad_norm", "learning_rate", "epoch", "tokens", "tokens_per_second", "seconds", "processor_seconds"}
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in own]
    found = {name: points(rows, name) for name in names if not name.startswith("stream")}
    return found if len(found) > 1 else {}


def _evaluation(row: Row) -> dict[str, str]:
    terms = {name.removeprefix("eval_"): f"{value:.4f}" for name, value in row.items() if name.startswith("eval_")}
    return {"step": str(row["step"]), "validation loss": terms.pop("loss"), **terms}


def noise_schedule(run: Run) -> str:
    """Return gamma, alpha and sigma of the saved model over the time."""
    model = run.model
    if not isinstance(model, DiffusionLM):
        raise UserError(f"a {run.config.model.name} model has none")
    schedule = model.process.schedule
    settings = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in vars(schedule).items()}
    times = torch.linspace(0, 1, 201, dtype=torch.float64)
    gamma = schedule.gamma(times)
    levels = (gamma, *model.process.alpha_sigma(gamma))
    drawn = partial(figures.schedule, times.tolist(), *(level.tolist() for level in levels))
    rows = [
        {"t": f"{t:.2f}", "gamma": f"{g:.3f}", "alpha": f"{a:.4f}", "sigma": f"{s:.4f}"}
        for t, g, a, s in zip(*(each[::25].tolist() for each in (times, *levels)), strict=True)
    ]
    return (
        facts({"process": plain_name(type(model.process)), "schedule": plain_name(type(schedule))} | settings)
        + figure(drawn, "gamma, alpha and sigma over the time.")
        + hidden("Values", table(rows))
    )


def loss_by_noise(run: Run) -> str:
    """Return the loss of the saved model at single noise levels, computed now."""
    found = losses_by_level(run)
    said = f"Measured on {found.texts} validation texts with the saved model, one noise level for all words of a text."
    if not run.finished:
        said += " The run is unfinished."
    rows = [{found.across: f"{level:.3f}", found.up: f"{loss:.4f}"} for level, loss in found.points]
    drawn = partial(figures.by_level, found.points, found.across, found.up)
    return paragraph(said) + figure(drawn, "Loss by noise level.") + hidden("Values", table(rows))


def training_figures(run: Run) -> str:
    """Return the figures that the objective has drawn during training."""
    found = sorted((run.folder / "figures").glob("*.png"))
    return "".join(picture(path, f"figures/{path.name}") for path in found) or paragraph("The run has drawn no figures.")


def samples(run: Run) -> str:
    """Return the samples that were saved during training: a few of each step, and all behind a click."""
    if not run.samples:
        return paragraph("The run has saved no samples.")
    first = texts_by_step((step, texts[:SHOWN]) for step, texts in run.samples)
    if all(len(texts) <= SHOWN for _, texts in run.samples):
        return first
    return paragraph(f"The first {SHOWN} of each step.") + first + hidden("All samples", texts_by_step(run.samples))


def environment(run: Run) -> str:
    """Return the seconds of the training and what is known of the machine."""
    last: dict[str, Any] = next((dict(row) for row in reversed(run.training) if "seconds" in row), {})
    rows: dict[str, object] = {}
    if last:
        rows |= {"seconds of training": f"{last['seconds']:,}", "seconds of CPU time": f"{last['processor_seconds']:,}"}
    training = run.config.training
    rows |= {"precision": training.precision, "threads": training.threads or "PyTorch's default", "seed": training.seed}
    try:
        version = getattr(run.model.config, "transformers_version", None)
        rows |= {"transformers (of the saved model)": version} if version else {}
    except UserError:
        pass  # the summary says it
    return facts(rows) + paragraph(
        "A run folder does not record the machine of its training. An evaluation records its own: see there."
    )


def configuration(run: Run) -> str:
    """Return ``config.yaml``."""
    return hidden("All settings (config.yaml)", preformatted(read_text(run.folder / "config.yaml")))


def made(run: Run, sections: Mapping[str, Callable[[Run], str]]) -> Iterator[tuple[str, str]]:
    """Yield the heading and the HTML of each section, which is a sentence where it cannot be made."""
    for heading, make in sections.items():
        try:
            yield heading, make(run)
        except UserError as error:
            yield heading, paragraph(f"Missing: {error}.")
