"""Models under one judge: what they write over temperatures and steps, beside real text and the judge's own samples.

Fluency alone is no figure, a collapsed model is the most fluent: every row has the judge's perplexity and, of the same
texts, entropy, distinct-n, self-BLEU, copies and lengths, all of equally many texts; the first row is real text.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm
from transformers import PreTrainedModel

from diffusionlm import plots
from diffusionlm.config import Settings, UserError, build, nearest, override, to_plain
from diffusionlm.data.batches import encode
from diffusionlm.data.corpora import Corpus, Files
from diffusionlm.evaluation.judge import Judge, perplexity
from diffusionlm.evaluation.likelihood import check_draws, has_any_order_bound
from diffusionlm.evaluation.provenance import corpus_of, fingerprint, training_of
from diffusionlm.evaluation.report import JUDGE, REAL, EvaluationRow, Likelihood, Report, draw, table, write
from diffusionlm.evaluation.scoring import TERMS, ScoringConfig, score
from diffusionlm.evaluation.text_metrics import (
    SELF_BLEU_TEXTS,
    TrainingTexts,
    diversity,
    grammar_report,
    mean_error,
    word_counts,
)
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import BasePipeline, SamplingConfig
from diffusionlm.restaurants.corpus import Restaurants


@dataclass(frozen=True)
class EvaluationConfig(Settings):
    """What is asked of every model.

    Args:
        temperatures: of the sampling; a model that has none is asked at 1 only. The judge writes at 1, too.
        steps: of a diffusion model's sampling; empty for each model's own.
        count: texts a row, and real texts beside them.
        seed: of the texts and of the choice of real ones.
        split: of the corpus, whose texts are the real ones.
        bound_texts: the most real texts whose likelihood is bounded; 0 leaves the bound out.
        strata: noise levels a text in that bound.
        orders: in which its words leave the noise in turn, for a second bound; 0 leaves it out.
    """

    temperatures: tuple[float, ...] = (0.7, 0.8, 0.9, 1.0)
    steps: tuple[int, ...] = ()
    count: int = 500
    seed: int = 0
    split: str = "validation"
    bound_texts: int = 200
    strata: int = 128
    orders: int = 8

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_draws(self.strata, self.orders)
        for name, least in (("count", 2), ("seed", 0), ("bound_texts", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.bound_texts == 1:
            raise UserError("bound_texts: expected at least 2 (a standard error needs them), or 0, got 1")
        if not self.temperatures:
            raise UserError("temperatures: expected at least one")


@dataclass(frozen=True)
class EvaluationJob:
    """A row to come: who writes, at which setting, and how."""

    system: str
    kind: Literal["real", "judge", "model", "texts"]
    write: Callable[[], Iterable[str]]
    fingerprint: str = ""
    steps: int | None = None
    temperature: float | None = None
    settings: tuple[tuple[str, Any], ...] = ()

    def is_of(self, row: EvaluationRow) -> bool:
        """Tell whether ``row`` is what this cell would give."""
        mine = (self.system, self.fingerprint, self.steps, self.temperature, dict(self.settings))
        return mine == (row.system, row.fingerprint, row.steps, row.temperature, row.settings)


def evaluate(
    judge: str | Path,
    models: Sequence[str | Path] = (),
    texts: Sequence[str | Path] = (),
    config: EvaluationConfig | None = None,
    *,
    corpus: Corpus | None = None,
    out: str | Path | None = None,
    sampling: Sequence[tuple[str, str]] = (),
    device: str = "cpu",
    dtype: str = "fp32",
    quiet: bool = False,
) -> Report:
    """Judge what ``models`` write and the ``texts`` of other systems; go on where an earlier call in ``out`` stopped.

    Args:
        judge: the folder of a causal language model, trained on the same corpus or any other.
        models: model folders, or runs'; diffusion and autoregressive ones alike.
        texts: files of other systems' texts (.txt, .jsonl with a column ``text``, ...).
        config: what is asked.
        corpus: the real texts and training texts; by default those of the first model's run, or of the judge's.
        out: a folder for ``evaluation.json``, ``table.txt``, the figures and the texts.
        sampling: settings of the models' sampling to change, dotted, such as ("sampler", "ddim").
        device: for the models and the judge.
        dtype: of the models' arithmetic, fp32 or bf16; the judge's is fp32.
        quiet: whether to show no progress.

    Raises:
        UserError: a folder, file or setting is wrong, or ``out`` holds something else.
    """
    config = config or EvaluationConfig()
    judge, models = Path(judge), [Path(folder) for folder in models]  # "run/" and "run" are one
    corpus = corpus or corpus_of([*models[:1], judge])
    judging = BenchmarkRunner.prepare(judge, corpus, config, None if out is None else Path(out), device, quiet)
    cells = [*judging.reference_cells(), *(judging.file_cell(Path(path)) for path in texts)]
    pipelines_by_name = {}
    for folder in models:
        pipeline = open_pipeline(folder, device, dtype)
        changes = [*sampling, ("dtype", dtype)] if dtype != "fp32" else sampling
        pipelines_by_name[judging.enter(folder, changes, pipeline)] = pipeline
    for system, pipeline in pipelines_by_name.items():
        cells += judging.model_cells(system, pipeline, sampling, dtype)
    judging.fill(cells)
    for system, pipeline in pipelines_by_name.items():
        judging.likelihood(system, pipeline)
    judging.finish()
    return judging.report


@dataclass
class BenchmarkRunner:
    """One evaluation at work: the judge, the texts that all rows share, and what is known so far."""

    judge: Judge
    config: EvaluationConfig
    real: list[str]
    bounded: list[str]
    training: TrainingTexts
    grammar: tuple[list[str], list[str]] | None
    report: Report
    out: Path | None
    quiet: bool

    @classmethod
    def prepare(
        cls, judge: str | Path, corpus: Corpus, config: EvaluationConfig, out: Path | None, device: str, quiet: bool
    ) -> BenchmarkRunner:
        """Read the corpus and the judge, and the report in ``out`` if there is one; nothing is written yet."""
        splits = corpus.load()
        if config.split not in splits:
            raise UserError(f"split: this corpus has no split {config.split!r}{nearest(config.split, splits)}")
        held, training = splits[config.split]["text"][:], splits["train"]["text"][:]
        if len(held) < config.count:
            wanted = f"expected at most {len(held)}, as many as there are real texts in {config.split} to compare with"
            raise UserError(f"count: {wanted}, got {config.count}")
        about = {
            "judge": str(judge),
            "judge_fingerprint": fingerprint(judge),
            "corpus": to_plain(corpus),
            "split": config.split,
            "count": config.count,
            "seed": config.seed,
            "self_bleu_texts": min(SELF_BLEU_TEXTS, config.count),
        }
        report = Report.open(out, about)
        loaded = Judge.load(judge, device, "fp32")
        report.enter(JUDGE, described(judge, loaded.model))
        real = random.Random(config.seed).sample(held, config.count)
        return cls(
            loaded, config, real,
            random.Random(config.seed).sample(held, min(config.bound_texts, len(held))), TrainingTexts(training),
            (training, real) if isinstance(corpus, Restaurants) else None, report, out, quiet,
        )  # fmt: skip

    def enter(self, folder: str | Path, changes: Sequence[tuple[str, str]], pipeline: BasePipeline[Any]) -> str:
        """Describe a model in the report, and return what it is called there, with the ``changes`` of how it writes."""
        label = system_name(folder, changes, self.report.systems)
        self.report.enter(label, described(folder, pipeline.model))
        return label

    def reference_cells(self) -> Iterator[EvaluationJob]:
        """Yield the cells of real text and of the judge's own samples."""
        yield EvaluationJob(REAL, "real", lambda: self.real)
        for temperature in sorted({*self.config.temperatures, 1.0}):
            yield EvaluationJob(
                JUDGE, "judge", lambda t=temperature: self.judge.write(self.config.count, self.config.seed, t),  # type: ignore[misc]
                self.report.systems[JUDGE]["fingerprint"], temperature=temperature,
            )  # fmt: skip

    def file_cell(self, path: Path) -> EvaluationJob:
        """Return the cell of another system's texts, the first ``count`` of a file."""
        texts = Files(train=str(path), validation_share=0).load()["train"]["text"][:]
        if len(texts) < self.config.count:
            raise UserError(f"{path}: expected {self.config.count} texts or more, got {len(texts)}; say --count {len(texts)}")
        digest = hashlib.sha256(path.expanduser().read_bytes()).hexdigest()[:16]
        label = unless_taken(path.name, path, self.report.systems)
        self.report.enter(label, {"folder": str(path), "fingerprint": digest, "family": "texts"})
        return EvaluationJob(label, "texts", lambda: texts[: self.config.count], digest)

    def model_cells(
        self, system: str, pipeline: BasePipeline[Any], changes: Sequence[tuple[str, str]], dtype: str
    ) -> list[EvaluationJob]:
        """Return a model's cells, each checked: over steps and temperatures as far as it has them."""
        settings = pipeline.model.settings if isinstance(pipeline.model, DiffusionLM) else None
        base = build(SamplingConfig, override(to_plain(pipeline.sampling), changes), "sampling")
        steps = [None] if pipeline.model.can_generate() else self.config.steps or [base.steps]  # can_generate: word by word
        temperatures = [1.0] if settings and settings.prediction != "logits" else self.config.temperatures
        if tuple(temperatures) != tuple(self.config.temperatures):
            print(f"{system}: has no temperature (it predicts no logits): asked at 1 only", file=sys.stderr)
        cells = []
        for n in dict.fromkeys(steps):
            for temperature in dict.fromkeys(temperatures):
                asked = replace(base, steps=base.steps if n is None else n, temperature=temperature, seed=self.config.seed)
                pipeline.check(asked)
                cells.append(EvaluationJob(
                    system, "model",
                    lambda asked=asked: (row.text for row in pipeline.stream(self.config.count, asked)),  # type: ignore[misc]
                    self.report.systems[system]["fingerprint"], n, temperature,
                    (("sampling", to_plain(asked)), ("dtype", dtype)),
                ))  # fmt: skip
        return cells

    def fill(self, cells: Sequence[EvaluationJob]) -> None:
        """Write and judge what the report does not hold yet, one row after the other, each saved at once."""
        missing = [cell for cell in cells if not any(cell.is_of(row) for row in self.report.rows)]
        if (known := len(cells) - len(missing)) and not self.quiet:
            print(f"{known} of {len(cells)} rows are known already", file=sys.stderr)
        with tqdm(total=len(missing) * self.config.count, unit="text", disable=self.quiet or not missing) as bar:
            for cell in missing:
                marks = [f"{cell.steps} steps" * bool(cell.steps), f"t {cell.temperature}" * (cell.temperature is not None)]
                bar.set_description(", ".join(filter(None, [cell.system, *marks])))
                begun = time.perf_counter()
                texts = []
                for text in cell.write():
                    texts.append(text)
                    bar.update()
                self.report.add(self.measure(cell, texts, time.perf_counter() - begun), self.save_texts(cell, texts))

    def measure(self, cell: EvaluationJob, texts: Sequence[str], seconds: float) -> EvaluationRow:
        """Judge texts and count."""
        scored = self.judge.score(texts)
        grammar = None if self.grammar is None else grammar_report(texts, *self.grammar)
        judged = perplexity(scored)
        error = judged * mean_error([one.nats for one in scored], [one.tokens for one in scored])
        return EvaluationRow(
            cell.system, cell.kind, cell.steps, cell.temperature, judged, error,
            diversity(texts, self.training, self.config.seed),
            None if grammar is None else grammar.accepted, None if grammar is None else grammar.new,
            round(seconds, 3), dict(sorted(word_counts(texts).items())), cell.fingerprint, dict(cell.settings),
        )  # fmt: skip

    def save_texts(self, cell: EvaluationJob, texts: Sequence[str]) -> Path | None:
        """Keep the texts of a row beside the report, and return its folder."""
        if self.out is not None:
            marks = [f"{cell.steps}-steps" * bool(cell.steps), f"temperature-{cell.temperature}" * bool(cell.temperature)]
            name = "-".join(filter(None, [cell.system.replace("/", "-").replace(" ", "-"), *marks]))
            lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
            write(self.out / "texts" / f"{name}.jsonl", "".join(lines))
        return self.out

    def likelihood(self, system: str, pipeline: BasePipeline[Any]) -> None:
        """Score real texts: diffusion and masked models bound their likelihood, autoregressive ones say it exactly.

        Bounded twice: with words that leave the noise together, and in turn.
        """
        self._likelihood(system, pipeline, 0)
        if self.config.orders and has_any_order_bound(pipeline.model):
            self._likelihood(system, pipeline, self.config.orders)

    def _likelihood(self, system: str, pipeline: BasePipeline[Any], orders: int) -> None:
        described, exact = self.report.systems[system], pipeline.model.can_generate()
        settings = {
            "texts": self.config.bound_texts,
            "strata": None if exact else self.config.strata,
            "dtype": str(pipeline.dtype),
        }
        known = [(r.system, r.orders, r.settings) for r in self.report.likelihoods]
        if not self.bounded or (system, orders, settings) in known:
            return
        encoded = encode(self.bounded, pipeline.tokenizer, pipeline.model.config.max_position_embeddings, "drop")
        texts = [self.bounded[i] for i in encoded.texts]
        found = score(pipeline, texts, ScoringConfig(strata=self.config.strata, orders=orders, seed=self.config.seed))
        name = f"{system}, likelihood" + ", words in turn" * (orders > 0)
        bar = tqdm(found, name, len(texts), unit="text", disable=self.quiet)
        bounds = [one for _, one in bar]
        own, tokens = [one.nats for one in bounds], [one.tokens for one in bounds]
        terms = {name: sum(getattr(one, name) for one in bounds) / sum(tokens) for name in TERMS}
        estimate_error = math.hypot(*(one.deviation for one in bounds)) / sum(tokens)
        judged = [one.nats for one in self.judge.score(texts)]
        characters = sum(map(len, texts)) * math.log(2)
        self.report.add(Likelihood(
            system, described["fingerprint"], settings, exact, len(texts), sum(tokens),
            sum(own) / sum(tokens), mean_error(own, tokens), estimate_error, sum(own) / characters, {} if exact else terms,
            sum(judged) / sum(tokens), sum(judged) / characters,
            mean_error([mine - other for mine, other in zip(own, judged, strict=True)], tokens), orders,
        ), self.out)  # fmt: skip

    def finish(self) -> None:
        """Write the report, the table and the figures."""
        if self.out is None:
            return
        self.report.save(self.out)
        write(self.out / "table.txt", table(self.report))
        if plots.available():
            draw(self.report, dict(self.training.lengths), self.out)
        else:
            print("no figures: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)


def system_name(folder: str | Path, changes: Sequence[tuple[str, str]], known: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what a model is called in a report: its run's name with what was changed; its folder where that is taken."""
    path = Path(folder).resolve()
    name = path.parent.name if path.name == "model" else path.name
    changed = ", ".join(f"{key} {value}" for key, value in changes)
    label = f"{name} ({changed})" if changed else name
    return unless_taken(label, folder, known)


def unless_taken(label: str, path: str | Path, known: Mapping[str, Mapping[str, Any]]) -> str:
    """Return ``label``; the ``path`` itself where a report calls something else so."""
    taken = label in (REAL, JUDGE) or (label in known and known[label]["folder"] != str(path))
    return str(path) if taken else label


def described(folder: str | Path, model: PreTrainedModel) -> dict[str, Any]:
    """Return what a report says of a model: where it is, its kind and size, how it was trained."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "folder": str(folder),
        "fingerprint": fingerprint(folder),
        "family": model.config.model_type,
        "parameters": parameters,
        **training_of(folder),
    }
