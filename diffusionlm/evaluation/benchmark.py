"""Evaluate models with one judge LM: perplexity, diversity and likelihood over temperatures and steps.

A low perplexity alone is no evidence of quality, since repetitive texts have one too: every row also has entropy, distinct-n,
self-BLEU, copies and lengths of the same texts, all of equally many texts. The first row is the reference texts.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from diffusionlm.config import Settings, UserError, build, nearest, override, to_plain
from diffusionlm.data.batches import encode
from diffusionlm.data.corpora import Corpus, Files, TextMetric
from diffusionlm.evaluation.jobs import JUDGE, REFERENCE, file_name
from diffusionlm.evaluation.judge import Judge, perplexity
from diffusionlm.evaluation.likelihood import check_draws
from diffusionlm.evaluation.provenance import corpus_of, described, fingerprint
from diffusionlm.evaluation.report import EvaluationRow, Likelihood, Report, draw, table
from diffusionlm.evaluation.scoring import TERMS, ScoringConfig, score
from diffusionlm.evaluation.text_metrics import (
    SELF_BLEU_TEXTS,
    TrainingTexts,
    diversity,
    mean_error,
    mean_present,
    word_counts,
)
from diffusionlm.files import write_text
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import BasePipeline, SamplingConfig


@dataclass(frozen=True)
class EvaluationConfig(Settings):
    """Settings of an evaluation.

    Args:
        temperatures: of the sampling; a model without logits is sampled at 1 only. The judge LM is sampled at 1 as well.
        steps: numbers of sampling steps of a diffusion model; by default each model's own.
        count: texts per row, and as many reference texts.
        seed: of the samples and of the choice of reference texts.
        split: the corpus's split of the reference texts.
        bound_texts: the most held-out texts whose likelihood is computed; 0 leaves the likelihood out.
        strata: noise levels per text for the joint bound.
        orders: random orders per text for the any-order bound; 0 leaves it out.
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
        check_draws(self.strata, self.orders)
        for name, least in (("count", 2), ("seed", 0), ("bound_texts", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.bound_texts == 1:
            raise UserError("bound_texts: expected at least 2 (a standard error needs them), or 0, got 1")
        if not self.temperatures:
            raise UserError("temperatures: expected at least one")


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
    """Evaluate the samples of ``models`` and the ``texts`` of other systems; continue the evaluation in ``out``.

    Args:
        judge: the folder of a causal language model, trained on the same corpus or any other.
        models: model folders, or runs'; diffusion, masked and autoregressive models.
        texts: files of other systems' texts (.txt, .jsonl with a column ``text``, ...).
        config: the settings.
        corpus: of the reference and training texts; by default that of the first model's run, or of the judge's.
        out: a folder for ``evaluation.json``, ``table.txt``, the figures and the texts.
        sampling: changes of the models' sampling settings, dotted, such as ("sampler", "ddim").
        device: of the models and the judge.
        dtype: of the models' arithmetic, fp32 or bf16; the judge's is fp32.
        quiet: whether to show no progress.

    Raises:
        UserError: a folder, file or setting is wrong, or ``out`` holds something else.
    """
    judge, models = Path(judge), [Path(folder) for folder in models]  # "run/" and "run" are the same
    corpus = corpus or corpus_of([*models[:1], judge])
    folder = None if out is None else Path(out)
    runner = BenchmarkRunner.prepare(judge, corpus, config or EvaluationConfig(), folder, device, quiet)
    jobs = [*runner.reference_jobs(), *(runner.file_job(Path(path)) for path in texts)]
    changes = [*sampling, ("dtype", dtype)] if dtype != "fp32" else sampling
    pipelines = {}
    for path in models:
        pipeline = open_pipeline(path, device, dtype)
        pipelines[runner.report.enter_model(path, changes, pipeline.model)] = pipeline
    for system, pipeline in pipelines.items():
        jobs += runner.model_jobs(system, pipeline, sampling, dtype)
    runner.run(jobs)
    runner.run([job for system, pipeline in pipelines.items() for job in runner.likelihood_jobs(system, pipeline)])
    lengths = dict(runner.training.lengths)
    runner.report.finish(folder, table(runner.report), lambda out: draw(runner.report, lengths, out))
    return runner.report


@dataclass
class BenchmarkRunner:
    """The judge LM, the texts that all rows are compared with, and the report; makes the jobs of an evaluation.

    ``real`` are the reference texts, ``bounded`` the held-out texts whose likelihood is computed, ``metrics`` the corpus's.
    """

    judge: Judge
    config: EvaluationConfig
    real: list[str]
    bounded: list[str]
    training: TrainingTexts
    metrics: Mapping[str, TextMetric]
    report: Report
    out: Path | None
    quiet: bool

    @classmethod
    def prepare(
        cls, judge: str | Path, corpus: Corpus, config: EvaluationConfig, out: Path | None, device: str, quiet: bool
    ) -> BenchmarkRunner:
        """Load the corpus, the judge and the report in ``out`` if there is one; nothing is written yet."""
        splits = corpus.load()
        if config.split not in splits:
            raise UserError(f"split: this corpus has no split {config.split!r}{nearest(config.split, splits)}")
        held, training = splits[config.split]["text"][:], splits["train"]["text"][:]
        if len(held) < config.count:
            raise UserError(f"count: expected at most {len(held)}, the number of texts in {config.split}, got {config.count}")
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
        bounded = random.Random(config.seed).sample(held, min(config.bound_texts, len(held)))
        metrics = corpus.metrics(training)
        return cls(loaded, config, real, bounded, TrainingTexts(training), metrics, report, out, quiet)

    def run(self, jobs: Sequence[SampleJob | LikelihoodJob]) -> None:
        """Make the rows that the report lacks."""
        self.report.run(jobs, self.out, self.quiet)

    def reference_jobs(self) -> Iterator[SampleJob]:
        """Yield the jobs of the reference texts and of the judge's own samples."""
        yield SampleJob(self, REFERENCE, "real", lambda: self.real)
        for temperature in sorted({*self.config.temperatures, 1.0}):
            yield SampleJob(
                self, JUDGE, "judge", lambda t=temperature: self.judge.sample(self.config.count, self.config.seed, t),  # type: ignore[misc]
                self.report.systems[JUDGE]["fingerprint"], temperature=temperature,
            )  # fmt: skip

    def file_job(self, path: Path) -> SampleJob:
        """Return the job of another system's texts, the first ``count`` of a file."""
        texts = Files(train=str(path), validation_share=0).load()["train"]["text"][:]
        if len(texts) < self.config.count:
            raise UserError(f"{path}: expected {self.config.count} texts or more, got {len(texts)}; say --count {len(texts)}")
        digest = hashlib.sha256(path.expanduser().read_bytes()).hexdigest()[:16]
        label = self.report.unique(path.name, path)
        self.report.enter(label, {"folder": str(path), "fingerprint": digest, "family": "texts"})
        return SampleJob(self, label, "texts", lambda: texts[: self.config.count], digest)

    def model_jobs(
        self, system: str, pipeline: BasePipeline[Any], changes: Sequence[tuple[str, str]], dtype: str
    ) -> list[SampleJob]:
        """Return a model's jobs over steps and temperatures, as far as it has them, with their settings checked."""
        base = build(SamplingConfig, override(to_plain(pipeline.sampling), changes), "sampling")
        steps = [None] if pipeline.exact_likelihood else self.config.steps or [base.steps]  # one token at a time: no steps
        temperatures = self.config.temperatures if pipeline.has_logits else (1.0,)
        if temperatures != self.config.temperatures:
            print(f"{system}: has no temperature (it predicts no logits): sampled at 1 only", file=sys.stderr)
        jobs = []
        for n in dict.fromkeys(steps):
            for temperature in dict.fromkeys(temperatures):
                sampling = replace(base, steps=base.steps if n is None else n, temperature=temperature, seed=self.config.seed)
                pipeline.check(sampling)
                jobs.append(SampleJob(
                    self, system, "model",
                    lambda sampling=sampling: (row.text for row in pipeline.stream(self.config.count, sampling)),  # type: ignore[misc]
                    self.report.systems[system]["fingerprint"], n, temperature,
                    {"sampling": to_plain(sampling), "dtype": dtype},
                ))  # fmt: skip
        return jobs

    def likelihood_jobs(self, system: str, pipeline: BasePipeline[Any]) -> list[LikelihoodJob]:
        """Return the jobs of a model's likelihoods: the exact one or the joint bound, and the any-order bound."""
        orders = [0, *([self.config.orders] if self.config.orders and pipeline.any_order_bound else [])]
        return [LikelihoodJob(self, system, pipeline, n) for n in orders] if self.bounded else []


@dataclass(frozen=True)
class SampleJob:
    """Makes an ``EvaluationRow``: generates the texts of a system at one setting, and measures them."""

    runner: BenchmarkRunner
    system: str
    kind: Literal["real", "judge", "model", "texts"]
    generate: Callable[[], Iterable[str]]
    fingerprint: str = ""
    steps: int | None = None
    temperature: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The system with its steps and temperature."""
        marks = [f"{self.steps} steps" * bool(self.steps), f"t {self.temperature}" * (self.temperature is not None)]
        return ", ".join(filter(None, [self.system, *marks]))

    @property
    def texts(self) -> int:
        """The number of texts."""
        return self.runner.config.count

    def matches(self, row: Any) -> bool:
        """Return whether ``row`` is of the same system, fingerprint and settings."""
        mine = (self.system, self.fingerprint, self.steps, self.temperature, dict(self.settings))
        names = ("system", "fingerprint", "steps", "temperature", "settings")
        return isinstance(row, EvaluationRow) and mine == tuple(getattr(row, name) for name in names)

    def make(self, progress: Callable[[int], object]) -> EvaluationRow:
        """Generate the texts, save them beside the report, and measure them."""
        begun, texts = time.perf_counter(), []
        for text in self.generate():
            texts.append(text)
            progress(1)
        seconds = time.perf_counter() - begun
        self._save(texts)
        scored = self.runner.judge.score(texts)
        judged = perplexity(scored)
        error = judged * mean_error([one.nats for one in scored], [one.tokens for one in scored])
        return EvaluationRow(
            self.system, self.kind, self.steps, self.temperature, judged, error,
            diversity(texts, self.runner.training, self.runner.config.seed),
            {name: mean_present(metric(texts)) for name, metric in self.runner.metrics.items()},
            round(seconds, 3), dict(sorted(word_counts(texts).items())), self.fingerprint, dict(self.settings),
        )  # fmt: skip

    def _save(self, texts: Sequence[str]) -> None:
        if self.runner.out is not None:
            marks = [f"{self.steps}-steps" * bool(self.steps), f"temperature-{self.temperature}" * bool(self.temperature)]
            name = "-".join(filter(None, [file_name(self.system), *marks]))
            lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
            write_text(self.runner.out / "texts" / f"{name}.jsonl", "".join(lines))


@dataclass(frozen=True)
class LikelihoodJob:
    """Makes a ``Likelihood``: the exact one, the joint bound, or with ``orders`` the any-order bound of held-out texts."""

    runner: BenchmarkRunner
    system: str
    pipeline: BasePipeline[Any]
    orders: int

    @property
    def title(self) -> str:
        """The system and the kind of bound."""
        return f"{self.system}, likelihood" + ", any-order" * (self.orders > 0)

    @property
    def texts(self) -> int:
        """The number of texts that fit the model's length."""
        return len(self._kept())

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the figures."""
        strata = None if self.pipeline.exact_likelihood else self.runner.config.strata
        return {"texts": self.runner.config.bound_texts, "strata": strata, "dtype": str(self.pipeline.dtype)}

    def matches(self, row: Any) -> bool:
        """Return whether ``row`` is of the same system, orders and settings."""
        mine = (self.system, self.orders, self.settings)
        return isinstance(row, Likelihood) and mine == (row.system, row.orders, row.settings)

    def make(self, progress: Callable[[int], object]) -> Likelihood:
        """Compute the likelihoods of the texts under the model and the judge."""
        texts, config, bounds = self._kept(), self.runner.config, []
        for _, one in score(self.pipeline, texts, ScoringConfig(strata=config.strata, orders=self.orders, seed=config.seed)):
            bounds.append(one)
            progress(1)
        own, tokens = [one.nats for one in bounds], [one.tokens for one in bounds]
        judged, bits = [one.nats for one in self.runner.judge.score(texts)], sum(map(len, texts)) * math.log(2)
        exact = self.pipeline.exact_likelihood
        return Likelihood(
            system=self.system,
            fingerprint=self.runner.report.systems[self.system]["fingerprint"],
            settings=self.settings,
            exact=exact,
            texts=len(texts),
            tokens=sum(tokens),
            nats_per_token=sum(own) / sum(tokens),
            error=mean_error(own, tokens),
            estimate_error=math.hypot(*(one.deviation for one in bounds)) / sum(tokens),
            bits_per_character=sum(own) / bits,
            terms={} if exact else {name: sum(getattr(one, name) for one in bounds) / sum(tokens) for name in TERMS},
            judge_nats_per_token=sum(judged) / sum(tokens),
            judge_bits_per_character=sum(judged) / bits,
            difference_error=mean_error([mine - other for mine, other in zip(own, judged, strict=True)], tokens),
            orders=self.orders,
        )

    def _kept(self) -> list[str]:
        limit = self.pipeline.model.config.max_position_embeddings
        encoded = encode(self.runner.bounded, self.pipeline.tokenizer, limit, "drop")
        return [self.runner.bounded[i] for i in encoded.texts]
