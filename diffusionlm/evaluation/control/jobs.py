"""The jobs of a control evaluation: each samples the targets of a task at one guidance strength, and measures the samples.

The samples are kept in one file per task and strength, one target per line, so that an interrupted evaluation continues at
the next target and further targets are appended.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy
import torch

from diffusionlm.config import UserError, build, merge, nearest, override, to_plain
from diffusionlm.controls import Binding
from diffusionlm.data.annotators import Reader
from diffusionlm.data.corpora import Corpus, TextMetric
from diffusionlm.evaluation.control.metrics import Estimate, metric_order, over_targets, perplexity_over_targets, target_metrics
from diffusionlm.evaluation.control.report import LEFT_ONLY, STEERED, UNGUIDED, ControlRow, Work
from diffusionlm.evaluation.control.tasks import FileTargets, Target, TaskConfig
from diffusionlm.evaluation.jobs import REFERENCE, SampleFile
from diffusionlm.evaluation.judge import Judge
from diffusionlm.evaluation.provenance import fingerprint
from diffusionlm.evaluation.text_metrics import TrainingTexts, diversity
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.diffusion import Pipeline

Progress = Callable[[int], object]
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


class CallCounter:
    """Counts the rows that a denoiser and its classifiers process."""

    def __init__(self) -> None:
        self.evaluations = self.backwards = self.classifications = 0

    @contextmanager
    def counting(self, pipeline: Pipeline) -> Iterator[None]:
        """Count the calls of a pipeline's networks."""
        networks = [(pipeline.model.network, self._denoiser), *((c, self._classifier) for c in pipeline.binding.networks)]
        with ExitStack() as stack:
            for network, count in networks:
                hook = torch.nn.Module.register_forward_pre_hook(network, count, with_kwargs=True)
                stack.callback(hook.remove)
            yield

    def _denoiser(self, network: torch.nn.Module, arguments: Any, named: Any) -> None:
        self.evaluations += len(arguments[0])
        self.backwards += len(arguments[0]) * (torch.is_grad_enabled() and arguments[0].requires_grad)

    def _classifier(self, network: torch.nn.Module, arguments: Any, named: Any) -> None:
        self.classifications += len(next(iter([*arguments, *named.values()])))


@dataclass(frozen=True)
class ModelTask:
    """A task for one model: its targets, and for those that the model cannot satisfy the reason.

    ``samplings`` are the sampling settings by guidance strength, None where no gradient guides.
    """

    system: str
    fingerprint: str
    pipeline: Pipeline
    dtype: str
    task: TaskConfig
    corpus: Corpus
    targets: tuple[Target, ...]
    refused: tuple[str | None, ...]
    binding: Binding
    samplings: tuple[tuple[float | None, SamplingConfig], ...]
    unguided: list[TargetSamples] = field(default_factory=list, compare=False)  # shared by all strengths

    @classmethod
    def of(
        cls, system: str, pipeline: Pipeline, dtype: str, task: TaskConfig, corpus: Corpus,
        changes: Sequence[tuple[str, str]], strengths: Sequence[float],
    ) -> ModelTask:  # fmt: skip
        """Draw the targets and compile the controls of each.

        Raises:
            UserError: a wrong setting or split; a target from a file that the model cannot satisfy; none that it can.
        """
        plain = override(merge(to_plain(pipeline.sampling), task.sampling), changes)
        sampling = replace(build(SamplingConfig, plain, f"{task.title}: sampling"), seed=task.seed)
        pipeline.check(sampling)
        annotator = task.annotator or corpus.annotator()
        binding = pipeline.binding = Binding(pipeline.model, pipeline.tokenizer, pipeline.folder, annotator)
        rows = None if isinstance(task.task, FileTargets) else held_out(corpus, task.split)
        targets = tuple(task.task.targets(rows, Reader(pipeline.tokenizer, annotator), task.seed, task.targets))
        refused, guided = compile_targets(pipeline, targets, sampling)
        if all(refused):
            raise UserError(f"{task.title}: this model cannot satisfy any of the targets: {refused[0]}")
        samplings: list[tuple[float | None, SamplingConfig]] = [(None, sampling)]
        if guided:
            changed = [(w, [("guidance.strength", str(w))]) for w in strengths or [sampling.guidance.strength]]
            samplings = [(w, build(SamplingConfig, override(to_plain(sampling), each), "strengths")) for w, each in changed]
        digest = fingerprint(pipeline.folder) if pipeline.folder else ""
        return cls(system, digest, pipeline, dtype, task, corpus, targets, refused, binding, tuple(samplings))

    def seed(self, number: int) -> int:
        """Return the seed of a target's samples, so that no two targets share their noise."""
        return int(numpy.random.SeedSequence([self.task.seed, number]).generate_state(1)[0])

    def file(
        self, sampling: SamplingConfig, strength: float | None, guided: bool, out: Path | None
    ) -> SampleFile[TargetSamples]:
        """Return the file of the samples, with the records that still belong to the task's targets."""
        plain = SamplingConfig()
        sampling = sampling if guided else replace(sampling, guidance=plain.guidance, particles=plain.particles)
        classifiers = {name: fingerprint(path) for name, path in self.binding.folders.items()} if guided else {}
        settings = {"sampling": to_plain(sampling), "dtype": self.dtype, "samples": self.task.samples}
        header = {"fingerprint": self.fingerprint, "classifiers": classifiers, **settings}
        name = f"{self.system}-{self.task.title if guided else 'unguided'}"
        file = SampleFile.open(TargetSamples, out, name + strength_mark(strength, "-strength-"), header)
        for number, record in enumerate(file.records[: len(self.targets)]):
            empty = self.empty(number, guided)  # with other controls the task's file was edited, with another seed its seed
            if record.seed != empty.seed or (
                guided and (record.controls, record.reference) != (empty.controls, empty.reference)
            ):
                del file.records[number:]
                break
        return file

    def empty(self, number: int, guided: bool) -> TargetSamples:
        """Return the record of a target without samples; unguided samples depend on no target."""
        target = self.targets[number]
        if not guided:
            return TargetSamples(number, self.seed(number), (), None)
        return TargetSamples(number, self.seed(number), tuple(map(str, target.controls)), target.reference)

    def sample(self, sampling: SamplingConfig, number: int, guided: bool) -> TargetSamples:
        """Generate the samples of one target, and count their cost."""
        record, counter, begun = self.empty(number, guided), CallCounter(), time.perf_counter()
        self.pipeline.binding = self.binding
        controls = self.targets[number].controls if guided else ()
        with counter.counting(self.pipeline):
            rows = self.pipeline.stream(self.task.samples, replace(sampling, seed=record.seed), None, controls)
            texts = tuple(row.text for row in rows)
        return replace(record, texts=texts, seconds=round(time.perf_counter() - begun, 3), **vars(counter))


def compile_targets(
    pipeline: Pipeline, targets: Sequence[Target], sampling: SamplingConfig
) -> tuple[tuple[str | None, ...], bool]:
    """Return why each target cannot be satisfied, None where it can, and whether any of them guides by gradients.

    Raises:
        UserError: a target from a file cannot be satisfied, with its line.
    """
    refused: list[str | None] = []
    guided = False
    for target in targets:
        try:
            guided |= bool(pipeline.steering(target.controls, sampling).compiled.energies)
            refused.append(None)
        except UserError as error:
            if target.place:
                raise UserError(f"{target.place}: {error}") from None
            refused.append(str(error))
    return tuple(refused), guided


@dataclass(frozen=True)
class ControlJob:
    """Makes a ``ControlRow``: samples a task at one strength, and measures the samples beside unguided and reference texts."""

    judge: Judge
    task: ModelTask
    strength: float | None
    sampling: SamplingConfig
    out: Path | None

    @property
    def title(self) -> str:
        """The task and its strength."""
        return self.task.task.title + strength_mark(self.strength, ", strength ")

    @property
    def texts(self) -> int:
        """The number of steered and unguided texts."""
        return 2 * len(self.task.targets) * self.task.task.samples

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the figures, beside the samples."""
        names = ("task", "split", "seed")
        return {
            "sampling": to_plain(self.sampling), "dtype": self.task.dtype, "annotator": to_plain(self.task.binding.annotator),
            "corpus": to_plain(self.task.corpus), **{name: to_plain(getattr(self.task.task, name)) for name in names},
        }  # fmt: skip

    def matches(self, row: Any) -> bool:
        """Return whether ``row`` was measured on the samples that are in the files, with the same settings."""
        if not isinstance(row, ControlRow) or row.key != (self.task.system, self.task.task.title, self.strength):
            return False
        found = [self._file(guided).records[: len(self.task.targets)] for guided in (True, False)]
        return min(map(len, found)) == len(self.task.targets) and row.digest == self._digest(*self._paired(*found))

    def make(self, progress: Progress) -> ControlRow:
        """Sample what is missing in the files, and measure the samples."""
        task = self.task
        task.unguided[:] = unguided = task.unguided or self._samples(False, progress)
        steered = self._samples(True, progress)
        texts, free = self._paired(steered, unguided)
        sources = {STEERED: texts, UNGUIDED: free, **peers(task, self.judge)}
        return ControlRow(
            system=task.system,
            task=task.task.title,
            strength=self.strength,
            targets=len(task.targets),
            refused=tuple(record.refused for record in steered if record.refused),
            samples=task.task.samples,
            metrics=control_figures(task, sources),
            corpus_metrics=corpus_figures(task.corpus, sources),
            perplexity={source: perplexity_over_targets(self.judge, each) for source, each in sources.items()},
            distinct=over_targets([[len(set(each)) / len(each)] for each in texts if each]).mean,
            diversity=diversity([text for each in texts for text in each], corpus_texts(task.corpus), task.task.seed),
            work=mean_work(steered),
            unguided_work=mean_work(unguided),
            fingerprint=task.fingerprint,
            settings=self.settings,
            digest=self._digest(texts, free),
        )

    def _file(self, guided: bool) -> SampleFile[TargetSamples]:
        sampling, strength = (self.sampling, self.strength) if guided else (self.task.samplings[0][1], None)
        return self.task.file(sampling, strength, guided, self.out)

    def _samples(self, guided: bool, progress: Progress) -> list[TargetSamples]:
        """Return the samples of all targets, those in the file and the missing ones, which are added to it."""
        file = self._file(guided)
        file.keep(len(file.records))
        count, per_target = len(self.task.targets), self.task.task.samples
        progress(per_target * min(count, len(file.records)))
        sampling = self.sampling if guided else self.task.samplings[0][1]
        for number in range(len(file.records), count):
            reason = self.task.refused[number] if guided else None
            if reason:
                file.add(replace(self.task.empty(number, guided), refused=reason))
            else:
                file.add(self.task.sample(sampling, number, guided))
            progress(per_target)
        return file.records[:count]

    def _paired(self, steered: Sequence[TargetSamples], unguided: Sequence[TargetSamples]) -> tuple[Texts, Texts]:
        """Return steered and unguided texts of the same targets: of a refused target neither has texts."""
        texts = [list(record.texts) for record in steered]
        targets = zip(self.task.targets, unguided, texts, strict=True)
        return texts, [gap_filled(target, record.texts) if each else [] for target, record, each in targets]

    def _digest(self, texts: Texts, free: Texts) -> str:
        return hashlib.sha256(json.dumps([texts, free, self.settings], sort_keys=True).encode()).hexdigest()[:16]


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
        for name, metric in corpus_metrics(corpus).items()
    }
    return {name: {source: each for source, each in by.items() if each} for name, by in found.items()}


def estimate_over(columns: Sequence[Sequence[float | None]], keep_empty: bool = False) -> Estimate | None:
    """Return the mean over targets, without the texts that have None and the targets that have nothing else.

    ``keep_empty`` counts a target without texts, which the model cannot satisfy, as 0.
    """
    kept = [([value for value in column if value is not None], column) for column in columns]
    present = [values for values, column in kept if values or (keep_empty and not column)]
    return over_targets(present) if present else None


def peers(task: ModelTask, judge: Judge) -> dict[str, Texts]:
    """Return the targets' reference texts if all have one, and if all have a gap the judge's fillings of it."""
    found: dict[str, Texts] = {}
    if all(target.reference for target in task.targets):
        found[REFERENCE] = [[target.reference or ""] for target in task.targets]
    if all(target.gap for target in task.targets):
        found[LEFT_ONLY] = [
            judge_filled(judge, target, task.task.samples, task.seed(number)) for number, target in enumerate(task.targets)
        ]
    return found


def judge_filled(judge: Judge, target: Target, count: int, seed: int) -> list[str]:
    """Return ``count`` fillings of a gap by the judge, conditioned on the left side and the number of hidden words only."""
    assert target.gap is not None
    return gap_filled(target, judge.complete(target.gap.left, count, seed, max_tokens=4 * len(target.gap.hidden.split())))


def gap_filled(target: Target, texts: Sequence[str]) -> list[str]:
    """Return ``texts``; for a target with a gap, their words at its place between the given words."""
    if target.gap is None:
        return list(texts)
    first = len(target.gap.left.split())
    words = slice(first, first + len(target.gap.hidden.split()))
    return [target.gap.filled(" ".join(text.split()[words])) for text in texts]


def mean_work(records: Sequence[TargetSamples]) -> Work:
    """Return the mean cost of a text."""
    texts = sum(len(record.texts) for record in records)
    names = ("evaluations", "backwards", "classifications", "seconds")
    return Work(*(sum(getattr(record, name) for record in records) / texts for name in names))


def strength_mark(strength: float | None, label: str) -> str:
    """Return ``label`` with the strength, nothing without one."""
    return "" if strength is None else f"{label}{strength:g}"


def held_out(corpus: Corpus, split: str) -> datasets.Dataset:
    """Return the split that targets are drawn from. Raises UserError where the corpus has no such split."""
    splits = corpus_splits(corpus)
    if split not in splits:
        raise UserError(f"split: this corpus has no split {split!r}{nearest(split, splits)}")
    return splits[split]


@cache
def corpus_splits(corpus: Corpus) -> dict[str, datasets.Dataset]:
    """Return a corpus's splits, loaded once."""
    return corpus.load()


@cache
def corpus_texts(corpus: Corpus) -> TrainingTexts:
    """Return a corpus's training texts, tokenized once."""
    return TrainingTexts(corpus_splits(corpus)["train"]["text"][:])


@cache
def corpus_metrics(corpus: Corpus) -> dict[str, TextMetric]:
    """Return a corpus's own metrics, built once."""
    return corpus.metrics(corpus_splits(corpus)["train"]["text"][:])
