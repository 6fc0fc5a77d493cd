"""What an evaluation of control writes: texts for each target, in files that go on where they stopped, and what they take."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy
import torch

from diffusionlm.config import UserError, build, merge, nearest, override, to_plain
from diffusionlm.controls import Binding
from diffusionlm.data.annotators import Plain, Reader
from diffusionlm.data.corpora import Corpus
from diffusionlm.evaluation.control.tasks import FileTargets, Target, TaskConfig
from diffusionlm.evaluation.provenance import fingerprint
from diffusionlm.evaluation.report import write
from diffusionlm.files import disk_errors
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.diffusion import Pipeline


@dataclass(frozen=True)
class TargetSamples:
    """The texts of one target, a line of a file of texts; ``refused`` says why it cannot be asked of the model."""

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


@dataclass
class TextFile:
    """A file of texts: what gives the same again in its first line, then a line a target; only in memory without a path."""

    path: Path | None
    lines: list[TargetSamples] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path | None, name: str, header: Mapping[str, Any]) -> TextFile:
        """Go on with the file, whose name tells its header, or begin; a line that was cut short is left out."""
        plain = json.dumps(to_plain(header), sort_keys=True, ensure_ascii=False)
        if folder is None:
            return cls(None)
        digest = hashlib.sha256(plain.encode()).hexdigest()[:8]
        path = folder / "texts" / f"{name.replace('/', '-').replace(' ', '-')}-{digest}.jsonl"
        whole = [line for line in (path.read_text().splitlines(True) if path.exists() else [])[1:] if line.endswith("\n")]
        file = cls(path, [build(TargetSamples, json.loads(line), str(path)) for line in whole])
        write(path, plain + "\n" + "".join(whole))
        return file

    def add(self, line: TargetSamples) -> None:
        """Take the next target's texts."""
        self.lines.append(line)
        if self.path is not None:
            with disk_errors(self.path), self.path.open("a") as file:
                file.write(json.dumps(asdict(line), ensure_ascii=False) + "\n")


class CallCounter:
    """Counts the texts that a model and its classifiers are asked about."""

    def __init__(self) -> None:
        """Start at 0."""
        self.evaluations = self.backwards = self.classifications = 0

    @contextmanager
    def reading(self, pipeline: Pipeline) -> Iterator[None]:
        """Count what a pipeline does."""
        with ExitStack() as stack:
            for network, count in [
                (pipeline.model.network, self._denoises),
                *((c, self._reads) for c in pipeline.binding.networks),
            ]:
                hook = torch.nn.Module.register_forward_pre_hook(network, count, with_kwargs=True)
                stack.callback(hook.remove)
            yield

    def _denoises(self, network: torch.nn.Module, arguments: Any, named: Any) -> None:
        self.evaluations += len(arguments[0])
        self.backwards += len(arguments[0]) * (torch.is_grad_enabled() and arguments[0].requires_grad)

    def _reads(self, network: torch.nn.Module, arguments: Any, named: Any) -> None:
        self.classifications += len(next(iter([*arguments, *named.values()])))


@dataclass(frozen=True)
class ControlJob:
    """A task as one model is asked it: its targets, and of those that the model cannot be asked why."""

    system: str
    pipeline: Pipeline
    task: TaskConfig
    targets: tuple[Target, ...]
    refused: tuple[str | None, ...]
    binding: Binding
    samplings: tuple[tuple[float | None, SamplingConfig], ...]  # by strength

    @classmethod
    def of(
        cls,
        system: str,
        pipeline: Pipeline,
        task: TaskConfig,
        changes: Sequence[tuple[str, str]],
        strengths: Sequence[float],
    ) -> ControlJob:
        """Draw the targets and bind each of them.

        Raises:
            UserError: a wrong setting or split; a target of the user's own that cannot be asked; none that can.
        """
        plain = override(merge(to_plain(pipeline.sampling), task.sampling), changes)
        sampling = replace(build(SamplingConfig, plain, f"{task.title}: sampling"), seed=task.seed)
        pipeline.check(sampling)
        annotator = task.annotator or (task.corpus.annotator() if task.corpus else Plain())
        binding = Binding(pipeline.model, pipeline.tokenizer, pipeline.folder, annotator)
        rows = None if isinstance(task.task, FileTargets) else held_out(task)
        targets = task.task.targets(rows, Reader(pipeline.tokenizer, annotator), task.seed, task.targets)
        pipeline.binding = binding
        refused: list[str | None] = []
        steered = False
        for target in targets:
            try:
                compiled = pipeline.steering(target.controls, sampling).compiled
                steered = steered or bool(compiled.energies)
                refused.append(None)
            except UserError as error:
                if target.place:  # the user's own words
                    raise UserError(f"{target.place}: {error}") from None
                refused.append(str(error))
        if all(refused):
            raise UserError(f"{task.title}: this model cannot be asked any of the targets: {refused[0]}")
        samplings: list[tuple[float | None, SamplingConfig]] = []
        for strength in (strengths or [sampling.guidance.strength]) if steered else [None]:
            changed = [] if strength is None else [("guidance.strength", str(strength))]
            samplings.append((strength, build(SamplingConfig, override(to_plain(sampling), changed), "strengths")))
        return cls(system, pipeline, task, tuple(targets), tuple(refused), binding, tuple(samplings))

    def seed(self, number: int) -> int:
        """Return the seed of a target's texts, so that no two targets share their noise."""
        return int(numpy.random.SeedSequence([self.task.seed, number]).generate_state(1)[0])

    def header(self, sampling: SamplingConfig, guided: bool, about: Mapping[str, Any], dtype: str) -> dict[str, Any]:
        """Return what settles the texts: the model, the sampling and, where texts are guided, the classifiers."""
        plain = SamplingConfig()
        sampling = sampling if guided else replace(sampling, guidance=plain.guidance, particles=plain.particles)
        classifiers = {name: fingerprint(path) for name, path in self.binding.folders.items()} if guided else {}
        settings = {"sampling": to_plain(sampling), "dtype": dtype, "samples": self.task.samples}
        return {"fingerprint": about["fingerprint"], "classifiers": classifiers, **settings}


def held_out(task: TaskConfig) -> datasets.Dataset:
    """Return the texts that the targets come from. Raises UserError where the corpus has no such split."""
    assert task.corpus is not None
    splits = corpus_splits(task.corpus)
    if task.split not in splits:
        raise UserError(f"split: this corpus has no split {task.split!r}{nearest(task.split, splits)}")
    return splits[task.split]


@cache
def corpus_splits(corpus: Corpus) -> dict[str, datasets.Dataset]:
    """Return a corpus's splits, read once."""
    return corpus.load()
