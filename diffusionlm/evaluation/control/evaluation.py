"""How well a model does what it is asked: texts written target by target, measured, one table over tasks and strengths.

Writing and measuring are apart. What is written goes into a file of texts at once, a line a target, and a call that was
stopped goes on at the next target; more targets add to it. The measures of all of a file's texts are a row of the report.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffusionlm import plots
from diffusionlm.config import Settings, UserError, to_plain
from diffusionlm.data.corpora import Corpus
from diffusionlm.evaluation.benchmark import described, system_name
from diffusionlm.evaluation.control.metrics import Estimate, metric_order, over_targets, perplexity_over_targets, target_metrics
from diffusionlm.evaluation.control.report import (
    ACCEPTED,
    LEFT_ONLY,
    REAL,
    STEERED,
    UNGUIDED,
    ControlReport,
    ControlRow,
    Work,
    control_table,
    draw_control,
)
from diffusionlm.evaluation.control.tasks import Target, TaskConfig
from diffusionlm.evaluation.control.texts import CallCounter, ControlJob, TargetSamples, TextFile, corpus_splits
from diffusionlm.evaluation.judge import Judge
from diffusionlm.evaluation.provenance import corpus_of, fingerprint
from diffusionlm.evaluation.report import write
from diffusionlm.evaluation.text_metrics import TrainingTexts, diversity
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.restaurants.corpus import Restaurants
from diffusionlm.restaurants.grammar import accepts


@dataclass(frozen=True)
class ControlConfig(Settings):
    """What is asked of every task; what is empty is the task's own.

    Args:
        targets_count: the first so many targets.
        samples: texts for each target.
        seed: of the targets and of the texts.
        strengths: of the guidance, one row for each.
    """

    targets_count: int | None = None
    samples: int | None = None
    seed: int | None = None
    strengths: tuple[float, ...] = ()

    def of(self, task: TaskConfig) -> TaskConfig:
        """Return the task as it is asked. Raises UserError for an impossible number."""
        given: dict[str, Any] = {"targets": self.targets_count, "samples": self.samples, "seed": self.seed}
        return replace(task, **{name: value for name, value in given.items() if value is not None})


def evaluate_control(
    judge: str | Path,
    models: Sequence[str | Path],
    tasks: Sequence[TaskConfig],
    config: ControlConfig | None = None,
    *,
    corpus: Corpus | None = None,
    out: str | Path | None = None,
    sampling: Sequence[tuple[str, str]] = (),
    device: str = "cpu",
    dtype: str = "fp32",
    quiet: bool = False,
) -> ControlReport:
    """Ask ``models`` for the targets of ``tasks`` and judge what they write; go on where an earlier call stopped.

    Args:
        judge: the folder of a causal language model.
        models: diffusion models' folders, or runs'.
        tasks: rows of the table; see ``tasks.read_tasks``.
        config: what is the same for all of them.
        corpus: of the targets and the training texts, in place of the tasks' and the model's own.
        out: a folder for ``control.json``, ``table.txt``, ``control.png`` and the texts.
        sampling: settings of the sampling to change, dotted, such as ("steps", "32").
        device: for the models and the judge.
        dtype: of the models' arithmetic, fp32 or bf16; the judge's is fp32.
        quiet: whether to show no progress.

    Raises:
        UserError: a folder, a task or a setting is wrong; a target of the user's own cannot be asked, with its line.
    """
    config = config or ControlConfig()
    tasks = [config.of(task) for task in tasks]
    if twice := {task.title for task in tasks if [other.title for other in tasks].count(task.title) > 1}:
        raise UserError(f"controls: two tasks are called {min(twice)!r}; give one another title")
    about = {"judge": str(judge), "judge_fingerprint": fingerprint(judge)}
    folder = None if out is None else Path(out)
    report = ControlReport.open(folder, about)
    pipelines = {path: open_pipeline(path, device, dtype) for path in models}
    work = Evaluation(Judge.load(judge, device, "fp32"), config, report, folder, dtype, quiet)
    asked = []
    for path, pipeline in pipelines.items():
        if not isinstance(pipeline, Pipeline):
            raise UserError(f"{path}: a {pipeline.model.config.model_type} model cannot be steered; only diffusion models can")
        system = system_name(path, sampling, report.systems)
        own = None if all(task.corpus or corpus for task in tasks) else corpus_of([path, judge])
        asked += [
            ControlJob.of(system, pipeline, replace(task, corpus=corpus or task.corpus or own), sampling, config.strengths)
            for task in tasks
        ]
        report.enter(system, described(path, pipeline.model))
    report.save(folder)  # so that a call that is stopped before its first row is known again
    for each in asked:
        work.fill(each)
    work.finish()
    return report


@cache
def training_texts(corpus: Corpus) -> TrainingTexts:
    """Return what is known of a corpus's training texts, read once."""
    return TrainingTexts(corpus_splits(corpus)["train"]["text"][:])


@dataclass
class Evaluation:
    """An evaluation of control at work."""

    judge: Judge
    config: ControlConfig
    report: ControlReport
    out: Path | None
    dtype: str
    quiet: bool

    def fill(self, asked: ControlJob) -> None:
        """Write and measure a task, one strength after the other, each row saved at once."""
        unguided = self.write(asked, asked.samplings[0][1], None)
        for strength, sampling in asked.samplings:
            steered = self.write(asked, sampling, strength, guided=True)
            row = self.measure(asked, strength, sampling, steered, unguided)
            if row is not None:
                self.report.add(row, self.out)

    def write(
        self, asked: ControlJob, sampling: SamplingConfig, strength: float | None, guided: bool = False
    ) -> list[TargetSamples]:
        """Return the texts of all targets, written as far as they are not known; unguided ones depend on no target."""
        about, task = self.report.systems[asked.system], asked.task
        header = asked.header(sampling, guided, about, self.dtype)
        name = f"{asked.system}-{task.title if guided else 'unguided'}"
        name += f"-strength-{strength:g}" if strength is not None else ""
        file = TextFile.open(self.out, name, header)
        self._check(file, asked, guided)
        missing = range(len(file.lines), len(asked.targets))
        title = f"{task.title if guided else 'unguided'}" + (f", strength {strength:g}" if strength is not None else "")
        with tqdm(total=len(missing) * task.samples, desc=title, unit="text", disable=self.quiet or not missing) as bar:
            for number in missing:
                target = asked.targets[number]
                controls = tuple(map(str, target.controls)) if guided else ()
                line = TargetSamples(number, asked.seed(number), controls, target.reference if guided else None)
                if guided and (reason := asked.refused[number]):
                    file.add(replace(line, refused=reason))
                    continue
                file.add(self.ask(asked, sampling, target, line, guided))
                bar.update(task.samples)
        return file.lines[: len(asked.targets)]

    def ask(
        self, asked: ControlJob, sampling: SamplingConfig, target: Target, line: TargetSamples, guided: bool
    ) -> TargetSamples:
        """Write the texts of one target, and count what it takes."""
        meter, begun = CallCounter(), time.perf_counter()
        asked.pipeline.binding = asked.binding
        controls = target.controls if guided else ()
        with meter.reading(asked.pipeline):
            rows = asked.pipeline.stream(asked.task.samples, replace(sampling, seed=line.seed), None, controls)
            texts = tuple(row.text for row in rows)
        return replace(line, texts=texts, seconds=round(time.perf_counter() - begun, 3), **vars(meter))

    @staticmethod
    def _check(file: TextFile, asked: ControlJob, guided: bool) -> None:
        """Drop the lines that are of other targets, from the first on: a task's file was edited."""
        for line, (number, target) in zip(file.lines, enumerate(asked.targets), strict=False):
            wanted = tuple(map(str, target.controls)), target.reference
            if line.seed != asked.seed(number) or (guided and (line.controls, line.reference) != wanted):
                file.lines = file.lines[:number]
                if file.path is not None:
                    write(file.path, "".join(file.path.read_text().splitlines(True)[: number + 1]))
                return

    def measure(
        self,
        asked: ControlJob,
        strength: float | None,
        sampling: SamplingConfig,
        steered: Sequence[TargetSamples],
        unguided: Sequence[TargetSamples],
    ) -> ControlRow | None:
        """Judge and count a task's texts; None where the report holds just this."""
        task, targets = asked.task, asked.targets
        settings = {
            "sampling": to_plain(sampling), "dtype": self.dtype, "annotator": to_plain(asked.binding.annotator),
            **{name: to_plain(getattr(task, name)) for name in ("task", "corpus", "split", "seed")},
        }  # fmt: skip
        texts = [list(line.texts) for line in steered]
        # Unguided texts are compared over the same targets: of those that cannot be asked, neither side has texts.
        free = [
            gap_filled(target, line.texts) if each else [] for target, line, each in zip(targets, unguided, texts, strict=True)
        ]
        digest = hashlib.sha256(json.dumps([texts, free, settings], sort_keys=True).encode()).hexdigest()[:16]
        known = next((row for row in self.report.rows if row.key == (asked.system, task.title, strength)), None)
        if known is not None and known.digest == digest:
            return None
        sources = {STEERED: texts, UNGUIDED: free, **self.peers(asked)}
        assert task.corpus is not None
        return ControlRow(
            asked.system, task.title, strength, len(targets),
            tuple(line.refused for line in steered if line.refused), task.samples,
            self.metrics(asked, sources),
            {source: perplexity_over_targets(self.judge, written) for source, written in sources.items()},
            over_targets([[len(set(each)) / len(each)] for each in texts if each]).mean,
            diversity([text for each in texts for text in each], training_texts(task.corpus), task.seed),
            work_of(steered), work_of(unguided), self.report.systems[asked.system]["fingerprint"], settings, digest,
        )  # fmt: skip

    def metrics(self, asked: ControlJob, sources: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, dict[str, Estimate]]:
        """Return all metrics of the texts of all targets, by who wrote them."""
        metrics: dict[str, dict[str, Estimate]] = {}
        embedded = isinstance(asked.task.corpus, Restaurants)
        for source, written in sources.items():
            found = [target_metrics(target, each, asked.binding) for target, each in zip(asked.targets, written, strict=True)]
            for name in metric_order(name for scores in found for name, values in scores.items() if values):
                metrics.setdefault(name, {})[source] = over_targets([scores[name] for scores in found if name in scores])
            if embedded:
                accepted = [[float(accepts(text)) for text in each] for each in written if each]
                metrics.setdefault(ACCEPTED, {})[source] = over_targets(accepted)
        return metrics

    def peers(self, asked: ControlJob) -> dict[str, list[list[str]]]:
        """Return real texts, where the targets come from such, and where there are gaps what the judge fills them with."""
        found: dict[str, list[list[str]]] = {}
        if all(target.reference for target in asked.targets):
            found[REAL] = [[target.reference or ""] for target in asked.targets]
        if all(target.gap for target in asked.targets):
            found[LEFT_ONLY] = [
                self.from_the_left(target, asked.task.samples, asked.seed(number))
                for number, target in enumerate(asked.targets)
            ]
        return found

    def from_the_left(self, target: Target, count: int, seed: int) -> list[str]:
        """Fill a gap with the judge, which knows the left side and how many words to write, but nothing of the right."""
        assert target.gap is not None
        begun = self.judge.complete(target.gap.left, count, seed, max_tokens=4 * len(target.gap.hidden.split()))
        return gap_filled(target, begun)

    def finish(self) -> None:
        """Write the report, the table and the figure."""
        if self.out is None:
            return
        self.report.save(self.out)
        write(self.out / "table.txt", control_table(self.report))
        if plots.available():
            draw_control(self.report, self.out)
        else:
            print("no figure: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)


def gap_filled(target: Target, texts: Sequence[str]) -> list[str]:
    """Return the texts; where the target has a gap, what they have in its place, between the given words."""
    if target.gap is None:
        return list(texts)
    first = len(target.gap.left.split())
    words = slice(first, first + len(target.gap.hidden.split()))
    return [target.gap.filled(" ".join(text.split()[words])) for text in texts]


def work_of(lines: Sequence[TargetSamples]) -> Work:
    """Return what a text took, on average."""
    texts = sum(len(line.texts) for line in lines)
    names = ("evaluations", "backwards", "classifications", "seconds")
    return Work(*(sum(getattr(line, name) for line in lines) / texts for name in names))
