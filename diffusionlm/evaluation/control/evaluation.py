"""Evaluate control: sample the targets of tasks, and measure success, fluency, diversity and cost in one table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusionlm.config import Settings, UserError
from diffusionlm.data.corpora import Corpus
from diffusionlm.evaluation.control.jobs import ModelTask
from diffusionlm.evaluation.control.report import ControlReport, control_table, draw_control
from diffusionlm.evaluation.control.tasks import TaskConfig
from diffusionlm.evaluation.effect import check_sampling
from diffusionlm.evaluation.jobs import claimed
from diffusionlm.evaluation.judge import Judge
from diffusionlm.evaluation.provenance import corpus_of
from diffusionlm.evaluation.scoring import check_unconditional
from diffusionlm.models.io import fingerprint
from diffusionlm.pipelines.auto import open_models
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.pipelines.effect import Unused, check_given
from diffusionlm.processes import part_done


@dataclass(frozen=True)
class ControlConfig(Settings):
    """Settings that replace those of every task; None leaves the task's own. Each of ``strengths`` gives one row.

    ``evaluations`` of the network per candidate decide steps, passes and sweeps, see ``pipelines.budget``.
    """

    targets_count: int | None = None
    samples: int | None = None
    seed: int | None = None
    evaluations: int | None = None
    strengths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self.expect("at least 1", "targets_count", "samples", "evaluations")
        self.expect("0 or more", "seed", "strengths")

    def of(self, task: TaskConfig) -> TaskConfig:
        """Return the task with these settings. Raises UserError for an impossible number."""
        given: dict[str, Any] = {"targets": self.targets_count, "samples": self.samples, "seed": self.seed}
        return replace(task, **{name: value for name, value in given.items() if value is not None})


def evaluate_control(
    judge: str | Path, models: Sequence[str | Path], tasks: Sequence[TaskConfig], config: ControlConfig | None = None,
    *, corpus: Corpus | None = None, out: str | Path | None = None, sampling: Sequence[tuple[str, str]] = (),
    device: str = "cpu", dtype: str = "fp32", quiet: bool = False, adapter: str | Path | None = None,
) -> ControlReport:  # fmt: skip
    """Sample the targets of ``tasks`` with ``models`` and measure the samples; continue the evaluation in ``out``.

    The other arguments are those of ``benchmark.evaluate``.

    Args:
        judge: the folder of a causal language model.
        models: diffusion models' folders, or runs'.
        tasks: rows of the table; see ``tasks.read_tasks``.
        config: settings shared by all tasks.
        corpus: of the targets and the training texts, in place of the tasks' and the model's own.
        out: a folder for ``control.json``, ``table.txt``, ``control.png`` and the texts.

    Raises:
        UserError: a folder, a task or a setting is wrong; a target from a file cannot be satisfied, with its line.
    """
    config = config or ControlConfig()
    tasks = [config.of(task) for task in tasks]
    if twice := {task.title for task in tasks if [other.title for other in tasks].count(task.title) > 1}:
        raise UserError(f"controls: two tasks are called {min(twice)!r}; give one another title")
    folder = None if out is None else Path(out)
    with claimed(folder):
        report = ControlReport.open(folder, {"judge": str(judge), "judge_fingerprint": fingerprint(judge)})
        pipelines = dict(open_models(models, device, dtype, adapter))
        judge_model, model_tasks = Judge.load(judge, device), []
        given = [] if config.evaluations is None else [("evaluations", str(config.evaluations))]
        for path, pipeline in pipelines.items():
            if not isinstance(pipeline, Pipeline):
                raise UserError(f"{path}: a {pipeline.model.config.model_type} model takes no controls")
            check_unconditional(pipeline, str(path))
            system = report.enter_model(path, [*sampling, *given], pipeline.model)
            for task in tasks:
                chosen = corpus or task.corpus or corpus_of([path, judge])
                model_tasks.append(
                    ModelTask.of(system, pipeline, dtype, task, chosen, sampling, config.strengths, config.evaluations)
                )
        check_sampling([name.removesuffix(".name") for name, _ in sampling], _uses(model_tasks))
        check_given(
            {"guidance.strength": None} if config.strengths else {}, _uses(model_tasks), {"guidance.strength": "strengths"}
        )
        jobs = [job for model_task in model_tasks for job in model_task.jobs(judge_model, folder)]
        report.save(folder)  # an evaluation that stops before its first row can then be continued
        report.run(jobs, folder, quiet)
        part_done()
        report.finish(folder, control_table(report), lambda folder: draw_control(report, folder))
        return report


def _uses(model_tasks: Sequence[ModelTask]) -> Iterator[Unused]:
    """Yield what has no effect for each target of the tasks."""
    for model_task in model_tasks:
        yield from model_task.unused()
