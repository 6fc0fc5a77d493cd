"""The report of ``evaluate --references``: a column of figures for each system, the human references first."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from diffusionlm import plots
from diffusionlm.config import UserError
from diffusionlm.data.corpora import Corpus
from diffusionlm.data.references import Item, read_items, read_outputs
from diffusionlm.evaluation.effect import changed_sampling, check_sampling
from diffusionlm.evaluation.frontiers import LISTED, draw_frontiers, frontiers
from diffusionlm.evaluation.jobs import (
    REFERENCE,
    Job,
    Progress,
    ResumableReport,
    Row,
    bracketed,
    claimed,
    file_name,
    plain_corpus,
    plain_sampling,
)
from diffusionlm.evaluation.provenance import LoadedCorpus
from diffusionlm.evaluation.references import Figure, left_out, score_outputs
from diffusionlm.evaluation.text_metrics import TrainingTexts
from diffusionlm.files import write_text
from diffusionlm.pipelines.auto import open_models
from diffusionlm.pipelines.base import BasePipeline, SamplingConfig
from diffusionlm.pipelines.conditioning import requested
from diffusionlm.pipelines.cost import Cost, metered
from diffusionlm.processes import leads, part_done

Outputs = Sequence[Sequence[str]]
Sampled = tuple[Sequence[Item], Outputs, Cost | None]


@dataclass(frozen=True)
class ReferenceRow(Row):
    """Figures of one system's outputs; see ``references.Scores``. ``fingerprint`` and ``settings`` determine the outputs.

    ``cost`` is that of a model's outputs, None of a file's and in reports of versions that did not measure it.
    """

    system: str
    fingerprint: str
    settings: dict[str, Any]
    sources: int
    outputs: int
    figures: dict[str, Figure]
    signatures: dict[str, str]
    slots: dict[str, dict[str, float]]
    cost: Cost | None = None

    def replaces(self, other: Self) -> bool:
        """Return whether ``other`` is a row of the same system with other settings."""
        return self.system == other.system


@dataclass
class ReferenceReport(ResumableReport):
    """``references.json``: systems' outputs against one set of references."""

    FILE: ClassVar[str] = "references.json"
    ROWS: ClassVar[dict[str, type[Row]]] = {"rows": ReferenceRow}

    rows: list[ReferenceRow] = field(default_factory=list)


@dataclass
class ReferenceRunner:
    """The items that all systems are compared on, and the report; makes the jobs of an evaluation."""

    items: list[Item]
    report: ReferenceReport
    training: TrainingTexts | None
    out: Path | None
    quiet: bool

    @classmethod
    def prepare(
        cls, references: str | Path, corpus: Corpus | None, out: Path | None, seed: int, ter: bool, quiet: bool
    ) -> ReferenceRunner:
        """Read the references and the report in ``out`` if there is one; nothing is written yet."""
        if seed < 0:
            raise UserError(f"seed: expected 0 or more, got {seed}")
        items = read_items(references)
        counts = [len(item.references) for item in items]
        about = {
            "references": str(references), "references_fingerprint": digest(references), "sources": len(items),
            "reference_texts": sum(counts), "fewest_references": min(counts), "most_references": max(counts),
            "seed": seed, "ter": ter, "corpus": None if corpus is None else plain_corpus(corpus),
        }  # fmt: skip
        report = ReferenceReport.open(out, about)
        return cls(items, report, None if corpus is None else LoadedCorpus(corpus).training, out, quiet)

    def human_job(self) -> list[Job]:
        """Return the job of one reference of each source against its others; none where no source has two."""
        items, outputs = left_out(self.items, self.report.about["seed"])
        if not items:
            return []
        return [self._job(REFERENCE, "", {}, len(items), lambda progress: (items, outputs, None))]

    def file_job(self, path: Path) -> Job:
        """Return the job of the outputs in a file, which is read and checked now."""
        outputs = read_outputs(path, self.items)
        label, fingerprint = self.report.unique(path.name, path), digest(path)
        self.report.enter(label, {"folder": str(path), "fingerprint": fingerprint, "family": "outputs"})
        return self.outputs_job(label, fingerprint, {}, sum(map(len, outputs)), lambda: outputs)

    def outputs_job(
        self, system: str, fingerprint: str, settings: Mapping[str, Any], count: int, generate: Callable[[], Outputs]
    ) -> Job:
        """Return the job that takes ``count`` outputs from ``generate()``, some for each item, and computes their figures."""
        return self._job(system, fingerprint, settings, count, lambda progress: (self.items, generate(), None))

    def model_job(
        self, path: str | Path, pipeline: BasePipeline[Any], sampling: SamplingConfig, count: int,
        changes: Sequence[tuple[str, str]] = (),
    ) -> Job:  # fmt: skip
        """Return the job of a conditional model: ``count`` outputs for each source. The source of each item is checked now."""
        sources = [item.source for item in self.items]
        check_source(pipeline, path)
        pipeline.check(sampling)
        pipeline.check_requested(sampling, requested(pipeline.model, pipeline.tokenizer, None, sources))
        system = self.report.enter_model(path, changes, pipeline.model)
        others = [(name, value) for name, value in changes if name not in LISTED]
        self.report.systems[system]["frontier"] = system.removesuffix(bracketed(changes)) + bracketed(others)
        settings = {"sampling": plain_sampling(sampling), "count": count, "dtype": str(pipeline.dtype)}

        def generate(progress: Progress) -> Sampled:
            texts = []
            with metered(pipeline) as meter:
                for row in pipeline.stream(count, sampling, source=sources):
                    texts.append(row.text)
                    progress(1)
            if not leads():
                return (), (), None
            if self.out is not None:
                rows = [{"source": sources[i // count], "text": text} for i, text in enumerate(texts)]
                lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                write_text(self.out / "texts" / f"{file_name(system)}.jsonl", lines)
            outputs = [texts[i : i + count] for i in range(0, len(texts), count)]
            return self.items, outputs, meter.cost(len(texts), sampling.candidates)

        total = count * len(sources)
        return self._job(system, self.report.systems[system]["fingerprint"], settings, total, generate, to_generate=total)

    def _job(
        self, system: str, fingerprint: str, settings: Mapping[str, Any], count: int,
        generate: Callable[[Progress], Sampled], to_generate: int = 0,
    ) -> Job:  # fmt: skip
        identity: dict[str, Any] = {"system": system, "fingerprint": fingerprint, "settings": dict(settings)}
        about = self.report.about

        def measure(sampled: Sampled, progress: Progress) -> ReferenceRow:
            items, outputs, cost = sampled
            scores = score_outputs(
                items, outputs, training=self.training, ter=about["ter"], seed=about["seed"], progress=progress
            )
            return ReferenceRow(
                **identity, sources=scores.sources, outputs=scores.outputs, figures=scores.figures,
                signatures=scores.signatures, slots=scores.slots, cost=cost,
            )  # fmt: skip

        return Job(identity, system, to_generate + count * (4 if about["ter"] else 3), generate, measure)

    def finish(self, jobs: Sequence[Job]) -> ReferenceReport:
        """Make the rows that the report lacks, and write it with its table and, where it has frontiers, their figure."""
        self.report.run(jobs, self.out, self.quiet)
        part_done()
        if self.out is not None:
            self.report.save(self.out)
            write_text(self.out / "table.txt", reference_table(self.report))
            if plots.available():
                draw_frontiers(self.report, self.out)
            elif frontiers(self.report):
                print("no figure: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        return self.report


def check_source(pipeline: BasePipeline[Any], path: str | Path) -> None:
    """Raise UserError for a model that is not conditioned on a source text."""
    keys = pipeline.model.settings.condition.keys if pipeline.conditional else ()
    if "source" not in keys:
        got = f"this one is conditioned on {', '.join(keys)}" if keys else "this one was trained without a condition"
        raise UserError(f"{path}: expected a model that is conditioned on a source text, but {got}")


def digest(path: str | Path) -> str:
    """Return a hash of a file."""
    return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()[:16]


def evaluate_references(
    references: str | Path, texts: Iterable[str | Path] = (), corpus: Corpus | None = None, out: str | Path | None = None,
    seed: int = 0, ter: bool = True, quiet: bool = False, *, models: Sequence[str | Path] = (), count: int = 1,
    sampling: Sequence[tuple[str, str]] = (), device: str = "cpu", dtype: str = "fp32", adapter: str | Path | None = None,
    cfg: Sequence[float] = (), temperatures: Sequence[float] = (),
) -> ReferenceReport:  # fmt: skip
    """Score the outputs of conditional ``models``, and files of other systems' outputs; continue the evaluation in ``out``.

    Args:
        references: a file of sources and references; see ``data.references.read_items``.
        texts: files of outputs; see ``data.references.read_outputs``.
        corpus: whose training texts are compared with the outputs.
        out: a folder for ``references.json``, ``table.txt``, the models' outputs and ``frontier.svg``.
        seed: of the samples, the bootstrap, and the human reference that is left out.
        ter: whether TER is computed.
        quiet: whether to show no progress.
        models: folders of models that are conditioned on a source.
        count: outputs of a model for each source.
        sampling: changes of each model's sampling settings, by dotted name.
        device: of the models.
        dtype: of the models' arithmetic, fp32 or bf16.
        adapter: the folder of an adapter, which is evaluated with the single model as its base.
        cfg: scales of classifier-free guidance; there is a row for each of them and each of ``temperatures``.
        temperatures: of the sampling.

    Raises:
        UserError: a file is wrong, or ``out`` holds something else.
    """
    folder = None if out is None else Path(out)
    with claimed(folder):
        runner = ReferenceRunner.prepare(references, corpus, folder, seed, ter, quiet)
        jobs = [runner.file_job(Path(path)) for path in texts]
        changes = [("dtype", dtype)] if dtype != "fp32" else []
        listed = combinations(sampling, {"cfg": cfg, "temperature": temperatures})
        opened = open_models(models, device, dtype, adapter)
        names = [name.removesuffix(".name") for name, _ in sampling]
        rows = ((each, [*sampling, *own]) for (_, each), own in itertools.product(opened, listed))
        check_sampling(names, (each.unused(changed_sampling(each, row)) for each, row in rows))
        for (path, pipeline), own in itertools.product(opened, listed):
            settings = replace(changed_sampling(pipeline, [*sampling, *own]), seed=seed)
            jobs.append(runner.model_job(path, pipeline, settings, count, [*sampling, *own, *changes]))
        return runner.finish([*runner.human_job(), *jobs])


def combinations(sampling: Sequence[tuple[str, str]], lists: Mapping[str, Sequence[float]]) -> list[list[tuple[str, str]]]:
    """Return the changes of the sampling settings that ``lists`` of their values stand for: each value with each of the others.

    Raises:
        UserError: ``sampling`` changes a setting that is listed.
    """
    if twice := [name for name, _ in sampling if lists.get(name)]:
        raise UserError(f"sampling.{twice[0]}: expected one value or a list of values, got both; leave one out")
    given = [
        [(name, repr(value).removesuffix(".0")) for value in dict.fromkeys(values)] for name, values in lists.items() if values
    ]
    return [list(each) for each in itertools.product(*given)]


def json_rows(report: ReferenceReport) -> str:
    """Return the rows as JSON lines."""
    return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in report.rows)


def shown(figure: Figure) -> str:
    """Return a figure with its standard error; a dash where there is none."""
    if figure.value is None:
        return "-"
    return f"{figure.value:.2f}" + ("" if figure.error is None else f" ± {figure.error:.2f}")


EXPLAINED = [
    "Figures ± standard error over sources (bootstrap). BLEU, chrF, TER: sacrebleu; NIST: up to 5-grams, words as BLEU, lower",
    "case; ROUGE: F1 of the best reference; ROUGE-L (E2E): as the E2E script. Lower is better for TER and slot errors. Figures",
    "but NIST are in percent (slot errors: of all slots; length ratio: words of the outputs / of the closest references).",
]
HUMAN = (
    "reference text: one reference of each source against its others; a system is compared with all of them, which is easier."
)


COST = [
    "Evaluations: of the network (of an autoregressive model the decoder), over steps, passes, sweeps and guidance; encoders",
    "of sources do not count. CPU seconds: of all threads; seconds: wall-clock time; both in sampling alone. -: outputs of a",
    "file, or a row of an old report.",
]


def costs_of(cost: Cost) -> dict[str, str]:
    """Return the cost of a model's outputs by row of the table."""
    return {
        "evaluations per candidate": f"{cost.per_candidate:,.6g}",
        "evaluations per output": f"{cost.evaluations:,.6g}",
        "CPU seconds per output": f"{cost.cpu_seconds:.4g}",
        "seconds per output": "-" if cost.seconds is None else f"{cost.seconds:.4g}",
        "threads": str(cost.threads),
    }


def reference_table(report: ReferenceReport) -> str:
    """Return the report as a table with explanations."""
    about, systems = report.about, [row.system for row in report.rows]
    per = f"{about['fewest_references']} to {about['most_references']} per source"
    title = f"references {about['references']}: {about['sources']} sources, {about['reference_texts']} references ({per})"
    names = list(dict.fromkeys(name for row in report.rows for name in row.figures))
    costs = {row.system: {} if row.cost is None else costs_of(row.cost) for row in report.rows}
    none = Figure(None)
    cells = [{"figure": name, **{r.system: shown(r.figures.get(name, none)) for r in report.rows}} for name in names]
    for label, values in (("sources", [r.sources for r in report.rows]), ("outputs", [r.outputs for r in report.rows])):
        cells.append({"figure": label, **{system: str(value) for system, value in zip(systems, values, strict=True)}})
    for label in dict.fromkeys(label for each in costs.values() for label in each):
        cells.append({"figure": label, **{system: each.get(label, "-") for system, each in costs.items()}})
    explained = [*EXPLAINED, *[HUMAN] * (REFERENCE in systems), *COST * any(costs.values())]
    return report.table(title, cells, explained, [*_reasons(report), *_signatures(report), *_slots(report)])


def _reasons(report: ReferenceReport) -> list[str]:
    found: dict[str, list[str]] = {}
    for row in report.rows:
        for name, figure in row.figures.items():
            if figure.reason and name not in found.setdefault(figure.reason, []):
                found[figure.reason].append(name)
    return ["", "Not computed", *(f"  {', '.join(names)}: {reason}" for reason, names in found.items())] if found else []


def _signatures(report: ReferenceReport) -> list[str]:
    pairs = {(name, signature) for row in report.rows for name, signature in row.signatures.items()}
    return ["", "Signatures", *(f"  {name}: {signature}" for name, signature in sorted(pairs))]


def _slots(report: ReferenceReport) -> list[str]:
    lines = []
    for row in report.rows:
        if errors := {slot: kinds for slot, kinds in row.slots.items() if any(kinds.values())}:
            lines += [f"  {row.system}: " + "; ".join(f"{slot} {_kinds(kinds)}" for slot, kinds in errors.items())]
    return ["", "Slot errors, percent of all slots", *lines] if lines else []


def _kinds(kinds: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {share:.2f}" for kind, share in kinds.items() if share)
