"""The jobs of a control evaluation: each samples the targets of a task at one guidance strength, and measures the samples.

The samples are kept in one file per task and strength, one target per line, so that an interrupted evaluation continues at
the next target and further targets are appended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy

from diffusionlm.config import UserError, build, merge, override, to_plain
from diffusionlm.controls import Binding
from diffusionlm.data.annotators import Reader
from diffusionlm.data.corpora import Corpus
from diffusionlm.evaluation.control.metrics import (
    Estimate,
    metric_order,
    over_targets,
    perplexity_over_targets,
    target_metrics,
    unchecked_controls,
)
from diffusionlm.evaluation.control.report import LEFT_ONLY, STEERED, UNGUIDED, ControlRow, Work, strength_mark
from diffusionlm.evaluation.control.tasks import FileTargets, Target, TaskConfig
from diffusionlm.evaluation.jobs import REFERENCE, Job, Progress, file_name, plain_corpus, plain_sampling
from diffusionlm.evaluation.judge import Judge
from diffusionlm.evaluation.provenance import LoadedCorpus
from diffusionlm.evaluation.text_metrics import diversity, mean_present
from diffusionlm.files import disk_errors, write_text
from diffusionlm.models.io import fingerprint
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.conditioning import Requested
from diffusionlm.pipelines.cost import metered
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.pipelines.effect import Unused
from diffusionlm.processes import agreed, leads, shared

Texts = Sequence[Sequence[str]]  # by target


@dataclass(frozen=True)
class TargetSamples:
    """The samples of one target with their cost; ``refused`` is why the model cannot satisfy the target's controls."""

    target: int
    seed: int
    controls: tuple[str, ...]
    reference: str | None
    texts: tuple[str, ...] = ()
    evaluations: int = 0
    backwards: int = 0
    classifications: int = 0
    seconds: float = 0.0
    refused: str | None = None

    @classmethod
    def restored(cls, plain: dict[str, Any]) -> TargetSamples:
        """Return a record from the JSON values of its fields."""
        return build(cls, plain, "samples")


Both = tuple[list[TargetSamples], list[TargetSamples]]  # unguided, steered


@dataclass(frozen=True)
class ModelTask:
    """A task for one model: its targets, and for those that the model cannot satisfy the reason.

    ``samplings`` are the sampling settings by guidance strength, None where no gradient guides.
    """

    system: str
    fingerprint: str
    pipeline: Pipeline
    dtype: str
    config: TaskConfig
    corpus: Corpus
    targets: tuple[Target, ...]
    refused: tuple[str | None, ...]
    binding: Binding
    samplings: tuple[tuple[float | None, SamplingConfig], ...]

    @classmethod
    def of(
        cls, system: str, pipeline: Pipeline, dtype: str, config: TaskConfig, corpus: Corpus,
        changes: Sequence[tuple[str, str]], strengths: Sequence[float], evaluations: int | None = None,
    ) -> ModelTask:  # fmt: skip
        """Draw the targets and compile the controls of each; ``evaluations`` replace the steps, passes and sweeps.

        Raises:
            UserError: a wrong setting or split; a target from a file that the model cannot satisfy; none that it can.
        """
        plain = override(merge(to_plain(pipeline.sampling), config.sampling), changes, SamplingConfig)
        sampling = replace(build(SamplingConfig, plain, f"{config.title}: sampling"), seed=config.seed)
        if evaluations is not None:
            sampling = pipeline.with_evaluations(sampling, evaluations, [name for name, _ in changes])
        pipeline.check(sampling)
        pipeline.check_requested(sampling, [Requested()])
        annotator = config.annotator or corpus.annotator()
        binding = pipeline.binding = Binding(pipeline.model, pipeline.tokenizer, pipeline.folder, annotator)
        rows = None if isinstance(config.task, FileTargets) else loaded(corpus).split(config.split)
        targets = tuple(config.task.targets(rows, Reader(pipeline.tokenizer, annotator), config.seed, config.targets))
        refused, guided = zip(*(compile_target(pipeline, target, sampling) for target in targets), strict=True)
        if all(refused):
            raise UserError(f"{config.title}: this model cannot satisfy any of the targets: {refused[0]}")
        samplings: list[tuple[float | None, SamplingConfig]] = [(None, sampling)]
        if any(guided):
            changed = [(w, [("guidance.strength", str(w))]) for w in strengths or [sampling.guidance.strength]]
            samplings = [(w, build(SamplingConfig, override(to_plain(sampling), each), "strengths")) for w, each in changed]
        digest = fingerprint(pipeline.folder) if pipeline.folder else ""
        return cls(system, digest, pipeline, dtype, config, corpus, targets, refused, binding, tuple(samplings))

    def jobs(self, judge: Judge, out: Path | None) -> list[Job]:
        """Return a job for each guidance strength; all have the same unguided samples."""
        plain = SamplingConfig()
        free = replace(self.samplings[0][1], guidance=plain.guidance, particles=plain.particles)
        unguided = Samples(self, free, None, False, out)
        return [control_job(judge, Samples(self, each, w, True, out), unguided) for w, each in self.samplings]

    def unused(self) -> Iterator[Unused]:
        """Yield the sampling settings without effect for each target that the model can satisfy."""
        for target, refused in zip(self.targets, self.refused, strict=True):
            if refused is None:
                self.pipeline.binding = self.binding
                yield self.pipeline.unused(self.samplings[0][1], target.controls)

    def seed(self, number: int) -> int:
        """Return the seed of a target's samples, so that no two targets share their noise."""
        return int(numpy.random.SeedSequence([self.config.seed, number]).generate_state(1)[0])


def compile_target(pipeline: Pipeline, target: Target, sampling: SamplingConfig) -> tuple[str | None, bool]:
    """Return why a target cannot be satisfied, None where it can, and whether gradients guide to it.

    Raises UserError for a target from a file that cannot be satisfied, with its line.
    """
    try:
        return None, bool(pipeline.steering(target.controls, sampling).compiled.energies)
    except UserError as error:
        if target.place:
            raise UserError(f"{target.place}: {error}") from None
        return str(error), False


@dataclass(frozen=True)
class Samples:
    """The samples of a task at one guidance strength, or without controls where not ``guided``, in a file below ``out``."""

    task: ModelTask
    sampling: SamplingConfig
    strength: float | None
    guided: bool
    out: Path | None
    collected: list[list[TargetSamples]] = field(default_factory=list, compare=False)  # once they are

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine a row's figures, beside the samples."""
        task = self.task
        return {
            "sampling": plain_sampling(self.sampling), "dtype": task.dtype, "annotator": to_plain(task.binding.annotator),
            "corpus": plain_corpus(task.corpus),
            **{key: to_plain(getattr(task.config, key)) for key in ("task", "split", "seed")},
        }  # fmt: skip

    @cached_property
    def header(self) -> str:
        """The first line of the file: the settings that produce the samples."""
        folders = self.task.binding.folders if self.guided else {}
        settings = {
            "fingerprint": self.task.fingerprint, "classifiers": {name: fingerprint(path) for name, path in folders.items()},
            "sampling": plain_sampling(self.sampling), "dtype": self.task.dtype, "samples": self.task.config.samples,
        }  # fmt: skip
        return json.dumps(settings, sort_keys=True, ensure_ascii=False)

    @property
    def path(self) -> Path | None:
        """The file, whose name has a hash of the settings; None where the samples are kept in memory."""
        name = f"{self.task.system}-{self.task.config.title if self.guided else 'unguided'}"
        name = file_name(name + strength_mark(self.strength, "-strength-"))
        digest = hashlib.sha256(self.header.encode()).hexdigest()[:8]
        return None if self.out is None else self.out / "texts" / f"{name}-{digest}.jsonl"

    def read(self) -> list[TargetSamples]:
        """Return the records of the file's complete lines that still belong to the task's targets; nothing is written."""
        # Split at newlines alone, which other separators in a text are not; what follows the last one was cut short.
        lines = self.path.read_text(encoding="utf-8").split("\n")[1:-1] if self.path and self.path.exists() else []
        records = [build(TargetSamples, json.loads(line), str(self.path)) for line in lines]
        for number, record in enumerate(records[: len(self.task.targets)]):
            new = self.empty(number)
            if (record.seed, record.controls, record.reference) != (new.seed, new.controls, new.reference):
                return records[:number]  # the task's file was edited, or its seed
        return records

    def collect(self, progress: Progress) -> list[TargetSamples]:
        """Return the samples of all targets, those in the file and the missing ones, which are added to it."""
        if self.collected:
            return self.collected[0]
        records, count, per_target = self.read(), len(self.task.targets), self.task.config.samples
        there = agreed(len(records))  # before the first of several processes changes the file
        if self.path and leads():
            write_text(self.path, "\n".join([self.header, *map(json_line, records), ""]))
        progress(per_target * min(count, len(records)))
        for record in shared(range(there, count), self.sample, TargetSamples.restored):
            records.append(record)
            if self.path:
                with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
                    file.write(json_line(records[-1]) + "\n")
            progress(per_target)
        self.collected.append(records[:count])
        return self.collected[0]

    def empty(self, number: int) -> TargetSamples:
        """Return the record of a target without samples; unguided samples depend on no target."""
        target, seed = self.task.targets[number], self.task.seed(number)
        if not self.guided:
            return TargetSamples(number, seed, (), None)
        return TargetSamples(number, seed, tuple(map(str, target.controls)), target.reference)

    def sample(self, number: int) -> TargetSamples:
        """Generate the samples of one target, unless the model cannot satisfy it, and count their cost."""
        task, record = self.task, self.empty(number)
        if self.guided and task.refused[number]:
            return replace(record, refused=task.refused[number])
        task.pipeline.binding = task.binding
        controls = task.targets[number].controls if self.guided else ()
        with metered(task.pipeline, task.binding.networks) as meter:
            rows = task.pipeline.stream(task.config.samples, replace(self.sampling, seed=record.seed), None, controls)
            texts = tuple(row.text for row in rows)
        counts = {name: getattr(meter, name) for name in ("evaluations", "backwards", "classifications")}
        return replace(record, texts=texts, seconds=round(meter.seconds, 3), **counts)


def control_job(judge: Judge, steered: Samples, unguided: Samples) -> Job:
    """Return the job of a ``ControlRow``; a stored row that is not of the samples in the files is made again."""
    task, count = steered.task, len(steered.task.targets)
    kept = [samples.read()[:count] for samples in (steered, unguided)]
    identity = {
        "system": task.system,
        "task": task.config.title,
        "strength": steered.strength,
        "digest": digest_of(paired(task, *kept), steered.settings) if min(map(len, kept)) == count else "",
    }
    title, texts = task.config.title + strength_mark(steered.strength, ", strength "), 2 * count * task.config.samples

    def collect(progress: Progress) -> Both:
        return unguided.collect(progress), steered.collect(progress)

    return Job(identity, title, texts, collect, partial(measured, judge, steered))


def measured(judge: Judge, steered: Samples, both: Both, progress: Progress) -> ControlRow:
    """Measure the samples of a task beside unguided and reference texts; ``both`` are unguided and steered samples."""
    task, (unguided_records, records) = steered.task, both
    texts, free = paired(task, records, unguided_records)
    sources = {STEERED: texts, UNGUIDED: free, **peers(task, judge)}
    return ControlRow(
        system=task.system,
        task=task.config.title,
        strength=steered.strength,
        targets=len(task.targets),
        refused=tuple(record.refused for record in records if record.refused),
        samples=task.config.samples,
        metrics=control_figures(task, sources),
        corpus_metrics=corpus_figures(task.corpus, sources),
        perplexity={source: perplexity_over_targets(judge, each) for source, each in sources.items()},
        distinct=over_targets([[len(set(each)) / len(each)] for each in texts if each]).mean,
        diversity=diversity([text for each in texts for text in each], loaded(task.corpus).training, task.config.seed),
        work=mean_work(records),
        unguided_work=mean_work(unguided_records),
        fingerprint=task.fingerprint,
        settings=steered.settings,
        digest=digest_of((texts, free), steered.settings),
        unchecked=tuple(f"{each[0]}" for target in task.targets if (each := unchecked_controls(target, task.binding))),
    )


def paired(task: ModelTask, steered: Sequence[TargetSamples], unguided: Sequence[TargetSamples]) -> tuple[Texts, Texts]:
    """Return steered and unguided texts of the same targets: of a refused target neither has texts."""
    texts = [list(record.texts) for record in steered]
    free = [list(record.texts) if each else [] for record, each in zip(unguided, texts, strict=True)]
    return texts, [target.gap.put(each) if target.gap else each for target, each in zip(task.targets, free, strict=True)]


def digest_of(texts: tuple[Texts, Texts], settings: Mapping[str, Any]) -> str:
    """Return a hash of steered and unguided texts and the settings."""
    return hashlib.sha256(json.dumps([*texts, settings], sort_keys=True).encode()).hexdigest()[:16]


def control_figures(task: ModelTask, sources: Mapping[str, Texts]) -> dict[str, dict[str, Estimate]]:
    """Return every metric of the controls by the source of the texts; a metric that cannot be computed is left out."""
    metrics: dict[str, dict[str, Estimate]] = {}
    for source, texts in sources.items():
        found = [target_metrics(target, each, task.binding) for target, each in zip(task.targets, texts, strict=True)]
        for name in metric_order(name for scores in found for name, values in scores.items() if values):
            columns = [scores[name] for scores in found if name in scores]
            if estimate := estimate_over(columns, keep_empty=True):
                metrics.setdefault(name, {})[source] = estimate
    return metrics


def corpus_figures(corpus: Corpus, sources: Mapping[str, Texts]) -> dict[str, dict[str, Estimate]]:
    """Return every metric of the corpus by the source of the texts."""
    found = {
        name: {source: estimate_over([metric(each) for each in texts if each]) for source, texts in sources.items()}
        for name, metric in loaded(corpus).metrics.items()
    }
    return {name: {source: each for source, each in by.items() if each} for name, by in found.items()}


def estimate_over(columns: Sequence[Sequence[float | None]], keep_empty: bool = False) -> Estimate | None:
    """Return the mean over targets, without those of which no text has a score; None where no target is left.

    ``keep_empty`` counts a target without texts, which the model cannot satisfy, as 0.
    """
    present = [column for column in columns if mean_present(column) is not None or (keep_empty and not column)]
    return over_targets(present) if present else None


def peers(task: ModelTask, judge: Judge) -> dict[str, Texts]:
    """Return the targets' reference texts if all have one, and if all have a gap the judge's fillings of it.

    The judge is conditioned on the left side and the number of hidden words only.
    """
    found: dict[str, Texts] = {}
    if all(target.reference for target in task.targets):
        found[REFERENCE] = [[target.reference or ""] for target in task.targets]
    gaps = [target.gap for target in task.targets if target.gap]
    if len(gaps) == len(task.targets):
        found[LEFT_ONLY] = [
            gap.put(judge.complete(gap.left, task.config.samples, task.seed(number), 4 * len(gap.hidden.split())))
            for number, gap in enumerate(gaps)
        ]
    return found


def mean_work(records: Sequence[TargetSamples]) -> Work:
    """Return the mean cost of a text."""
    texts = sum(len(record.texts) for record in records)
    return Work(**{each.name: sum(getattr(record, each.name) for record in records) / texts for each in fields(Work)})


def json_line(record: TargetSamples) -> str:
    """Return a record as one line of JSON."""
    return json.dumps(asdict(record), ensure_ascii=False)


loaded = cache(LoadedCorpus)  # of each task's corpus
