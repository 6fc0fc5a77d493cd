"""Evaluate models with one judge LM: perplexity, diversity and likelihood over temperatures and steps.

A low perplexity alone is no evidence of quality, since repetitive texts have one too: every row also has entropy, distinct-n,
self-BLEU, copies and lengths of the same texts, all of equally many texts. The first row is the reference texts. A model with a
condition samples given those of the reference texts, each once, and its likelihoods are given the texts' own conditions.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]

from diffusionlm.config import Settings, UserError
from diffusionlm.data.batches import encode
from diffusionlm.data.corpora import Corpus, Files
from diffusionlm.evaluation.effect import at_each_pace, check_evaluation
from diffusionlm.evaluation.jobs import JUDGE, REFERENCE, Job, Progress, claimed, file_name, plain_corpus, plain_sampling
from diffusionlm.evaluation.judge import Judge, perplexity
from diffusionlm.evaluation.likelihood import Bound, check_draws
from diffusionlm.evaluation.provenance import LoadedCorpus, corpus_of, described
from diffusionlm.evaluation.report import NO_PACE, EvaluationRow, Likelihood, Pace, Report, draw, table
from diffusionlm.evaluation.scoring import TERMS, ScoringConfig, longest_text, score, summary
from diffusionlm.evaluation.text_metrics import SELF_BLEU_TEXTS, diversity, mean_error, mean_present, word_counts
from diffusionlm.files import write_text
from diffusionlm.models.io import fingerprint
from diffusionlm.models.pieces import context_of
from diffusionlm.pipelines.auto import open_models
from diffusionlm.pipelines.base import BasePipeline, SamplingConfig
from diffusionlm.pipelines.conditioning import Requested, at_length, conditions_of
from diffusionlm.pipelines.cost import Meter, metered
from diffusionlm.processes import part_done


@dataclass(frozen=True)
class EvaluationConfig(Settings):
    """Settings of an evaluation.

    Args:
        temperatures: of the sampling; a model without logits is sampled at 1 only. The judge LM is sampled at 1 as well.
        steps: numbers of sampling steps of a diffusion model; by default each model's own.
        evaluations: numbers of network evaluations per candidate, in place of steps; see ``pipelines.budget``.
        count: texts per row, and as many reference texts.
        seed: of the samples and of the choice of reference texts.
        split: the corpus's split of the reference texts.
        bound_texts: the most held-out texts whose likelihood is computed; 0 leaves the likelihood out.
        strata: noise levels per text for the joint bound.
        orders: random orders per text for the any-order bound; 0 leaves it out.
    """

    temperatures: tuple[float, ...] = (0.7, 0.8, 0.9, 1.0)
    steps: tuple[int, ...] = ()
    evaluations: tuple[int, ...] = ()
    count: int = 500
    seed: int = 0
    split: str = "validation"
    bound_texts: int = 200
    strata: int = 128
    orders: int = 8

    def __post_init__(self) -> None:
        check_draws(self.strata, self.orders)
        self.expect("0 or more", "seed", "bound_texts")
        self.expect("a positive number", "temperatures")
        self.expect("at least 1", "steps", "evaluations")
        if self.steps and self.evaluations:
            raise UserError("evaluations: they decide the steps; leave steps out, or leave evaluations out")
        if self.count < 2:
            raise UserError(f"count: expected at least 2, got {self.count}")
        if self.bound_texts == 1:
            raise UserError("bound_texts: expected at least 2 (a standard error needs them), or 0, got 1")
        if not self.temperatures:
            raise UserError("temperatures: expected at least one")


def evaluate(
    judge: str | Path, models: Sequence[str | Path] = (), texts: Sequence[str | Path] = (),
    config: EvaluationConfig | None = None, *, corpus: Corpus | None = None, out: str | Path | None = None,
    sampling: Sequence[tuple[str, str]] = (), device: str = "cpu", dtype: str = "fp32", quiet: bool = False,
    given: Collection[str] | None = None, adapter: str | Path | None = None,
) -> Report:  # fmt: skip
    """Evaluate the samples of ``models`` and the ``texts`` of other systems; continue the evaluation in ``out``.

    Args:
        judge: the folder of a causal language model, trained on the same corpus or any other.
        models: model folders, or runs', of any family.
        texts: files of other systems' texts (.txt, .jsonl with a column ``text``, ...).
        config: the settings.
        corpus: of the reference and training texts; by default that of the first model's run, or of the judge's.
        out: a folder for ``evaluation.json``, ``table.txt``, the figures and the texts.
        sampling: changes of the models' sampling settings, dotted, such as ("sampler", "ddim").
        device: of the models and the judge.
        dtype: of the models' arithmetic, fp32 or bf16; the judge's is fp32.
        quiet: whether to show no progress.
        given: the settings of ``config`` that must have an effect for a model; by default those that differ from the defaults.
        adapter: the folder of an adapter, which is evaluated with the single model as its base.

    Raises:
        UserError: a folder, file or setting is wrong, a setting has no effect, or ``out`` holds something else.
    """
    judge, models = Path(judge), [Path(folder) for folder in models]  # "run/" and "run" are the same
    corpus = corpus or corpus_of([*([adapter] if adapter else models[:1]), judge])
    folder = None if out is None else Path(out)
    config = config or EvaluationConfig()
    with claimed(folder):
        opened = {str(path): pipeline for path, pipeline in open_models(models, device, dtype, adapter)}
        check_evaluation(config, given, sampling, dtype, opened)
        runner = BenchmarkRunner.prepare(judge, corpus, config, folder, device, quiet)
        jobs = [*runner.reference_jobs(), *(runner.file_job(Path(path)) for path in texts)]
        changes = [*sampling, ("dtype", dtype)] if dtype != "fp32" else sampling
        pipelines = {}
        for path, pipeline in opened.items():
            pipelines[runner.enter(path, changes, pipeline)] = pipeline
        for system, pipeline in pipelines.items():
            jobs += runner.model_jobs(system, pipeline, sampling, dtype)
        bounds = [job for system, pipeline in pipelines.items() for job in runner.likelihood_jobs(system, pipeline)]
        runner.run(jobs)
        runner.run(bounds)
        part_done()
        lengths = runner.corpus.training.lengths
        runner.report.finish(folder, table(runner.report), lambda out: draw(runner.report, lengths, out))
        return runner.report


@dataclass
class BenchmarkRunner:
    """The judge LM, the texts that all rows are compared with, and the report; makes the jobs of an evaluation.

    ``real`` are the corpus rows of the reference texts, ``bounded`` those of the texts whose likelihood is computed.
    """

    judge: Judge
    config: EvaluationConfig
    corpus: LoadedCorpus
    real: datasets.Dataset
    bounded: datasets.Dataset
    report: Report
    out: Path | None
    quiet: bool

    @classmethod
    def prepare(
        cls, judge: str | Path, corpus: Corpus, config: EvaluationConfig, out: Path | None, device: str, quiet: bool
    ) -> BenchmarkRunner:
        """Load the corpus, the judge and the report in ``out`` if there is one; nothing is written yet."""
        loaded = LoadedCorpus(corpus)
        held = loaded.split(config.split)
        if len(held) < 2:
            raise UserError(f"split: expected 2 texts or more in {config.split}, got {len(held)}; choose another --split")
        if len(held) < config.count:
            raise UserError(f"count: expected at most {len(held)}, the number of texts in {config.split}, got {config.count}")
        about = {
            "judge": str(judge), "judge_fingerprint": fingerprint(judge), "corpus": plain_corpus(corpus), "split": config.split,
            "count": config.count, "seed": config.seed, "self_bleu_texts": min(SELF_BLEU_TEXTS, config.count),
        }  # fmt: skip
        report = Report.open(out, about)
        model = Judge.load(judge, device)
        report.enter(JUDGE, described(judge, model.model))
        real, bounded = (
            held.select(random.Random(config.seed).sample(range(len(held)), count))
            for count in (config.count, min(config.bound_texts, len(held)))
        )
        return cls(model, config, loaded, real, bounded, report, out, quiet)

    def enter(self, path: str | Path, changes: Sequence[tuple[str, str]], pipeline: BasePipeline[Any]) -> str:
        """Describe a model, with the names of its condition's values if it has one; return its label."""
        system = self.report.enter_model(path, changes, pipeline.model)
        if pipeline.conditional:
            self.report.systems[system]["condition"] = list(pipeline.model.settings.condition.keys)
        return system

    def conditions(self, system: str, pipeline: BasePipeline[Any], rows: datasets.Dataset) -> list[Requested] | None:
        """Return the conditions of ``rows``. Raises UserError where the corpus does not have the model's condition."""
        where = f"{system}: conditions of {len(rows)} texts of {self.config.split}"
        return conditions_of(pipeline.model, pipeline.tokenizer, rows, where)

    def run(self, jobs: Sequence[Job]) -> None:
        """Make the rows that the report lacks."""
        self.report.run(jobs, self.out, self.quiet)

    def reference_jobs(self) -> Iterator[Job]:
        """Yield the jobs of the reference texts and of the judge's own samples."""
        yield self.sample_job(REFERENCE, "real", lambda: self.real["text"][:])
        for temperature in sorted({*self.config.temperatures, 1.0}):
            generate = partial(self.judge.sample, self.config.count, self.config.seed, temperature)
            yield self.sample_job(JUDGE, "judge", generate, temperature=temperature)

    def file_job(self, path: Path) -> Job:
        """Return the job of another system's texts, the first ``count`` of a file."""
        texts = Files(train=str(path), validation_share=0).load()["train"]["text"][:]
        if len(texts) < self.config.count:
            fewer = f"; say --count {len(texts)}" if len(texts) > 1 else ", too few for any evaluation"
            raise UserError(f"{path}: expected {self.config.count} texts or more, got {len(texts)}{fewer}")
        digest = hashlib.sha256(path.expanduser().read_bytes()).hexdigest()[:16]
        label = self.report.unique(path.name, path)
        self.report.enter(label, {"folder": str(path), "fingerprint": digest, "family": "texts"})
        return self.sample_job(label, "texts", lambda: texts[: self.config.count])

    def model_jobs(self, system: str, pipeline: BasePipeline[Any], changes: Sequence[tuple[str, str]], dtype: str) -> list[Job]:
        """Return a model's jobs over steps or evaluations and temperatures, as far as it has them, checked."""
        temperatures = self.config.temperatures if pipeline.has_logits else (1.0,)
        if temperatures != self.config.temperatures:
            print(f"{system}: has no temperature (it predicts no logits): sampled at 1 only", file=sys.stderr)
        jobs, given = [], self.conditions(system, pipeline, self.real)
        paces = at_each_pace(pipeline, self.config, changes)
        for (pace, base), temperature in itertools.product(paces, dict.fromkeys(temperatures)):
            sampling = replace(base, temperature=temperature, seed=self.config.seed)
            pipeline.check(sampling)
            pipeline.check_requested(sampling, given or [Requested()])
            if given is not None:
                at_length(sampling, pipeline.model, given)
            settings = {"sampling": plain_sampling(sampling), "dtype": dtype}
            generate = partial(self._sampled, pipeline, sampling, given)
            jobs.append(
                self.sample_job(system, "model", generate, pace, temperature, settings, (pipeline, sampling.candidates))
            )
        return jobs

    def _sampled(self, pipeline: BasePipeline[Any], sampling: SamplingConfig, given: list[Requested] | None) -> Iterator[str]:
        """Yield ``count`` samples, of a model with a condition one for each that is ``given``."""
        rows = pipeline.stream(self.config.count if given is None else 1, sampling, condition=given)
        return (row.text for row in rows)

    def sample_job(
        self, system: str, kind: str, generate: Callable[[], Iterable[str]], pace: Pace = NO_PACE,
        temperature: float | None = None, settings: Mapping[str, Any] | None = None,
        model: tuple[BasePipeline[Any] | None, int] = (None, 1),
    ) -> Job:  # fmt: skip
        """Return the job that generates ``count`` texts of a system at one setting and measures them.

        ``model`` is the pipeline whose cost is measured, with its number of candidates for each text.
        """
        identity = {
            "system": system, "kind": kind, **asdict(pace), "temperature": temperature, "settings": settings or {},
            "fingerprint": self.report.systems.get(system, {}).get("fingerprint", ""),
        }  # fmt: skip
        label = [system, *filter(None, [str(pace)]), *[f"temperature {temperature}"] * bool(temperature)]

        def collect(progress: Progress) -> tuple[list[str], Meter]:
            texts = []
            with metered(model[0]) as meter:
                for text in generate():
                    texts.append(text)
                    progress(1)
            return texts, meter

        def measure(collected: tuple[list[str], Meter], progress: Progress) -> EvaluationRow:
            texts, meter = collected
            if self.out is not None:
                lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
                write_text(self.out / "texts" / f"{file_name(' '.join(label))}.jsonl", "".join(lines))
            scored = self.judge.score(texts)
            judged = perplexity(scored)
            return EvaluationRow(
                **identity,
                judge_perplexity=judged,
                judge_error=judged * mean_error([one.nats for one in scored], [one.tokens for one in scored]),
                diversity=diversity(texts, self.corpus.training, self.config.seed),
                metrics={name: mean_present(metric(texts)) for name, metric in self.corpus.metrics.items()},
                seconds=round(meter.seconds, 3),
                lengths=dict(sorted(word_counts(texts).items())),
                cost=None if model[0] is None else meter.cost(len(texts), model[1]),
            )

        return Job(identity, ", ".join(label), self.config.count, collect, measure)

    def likelihood_jobs(self, system: str, pipeline: BasePipeline[Any]) -> list[Job]:
        """Return the jobs of a model's likelihoods: the exact one or the joint bound, and the any-order bound."""
        config = self.config
        if not self.bounded:
            return []
        texts, conditions = self._fitting(pipeline, self.conditions(system, pipeline, self.bounded))
        strata = None if pipeline.exact_likelihood else config.strata
        settings = {"texts": config.bound_texts, "strata": strata, "dtype": str(pipeline.dtype)}
        known = {"system": system, "fingerprint": self.report.systems[system]["fingerprint"], "settings": settings}
        jobs = []
        for orders in [0, *[config.orders] * bool(config.orders and pipeline.any_order_bound)]:
            title, identity = f"{system}, likelihood" + ", any-order" * bool(orders), {**known, "orders": orders}
            collect = partial(self._bounds, pipeline, texts, conditions, orders)
            jobs.append(Job(identity, title, len(texts), collect, partial(self._likelihood, texts, identity)))
        return jobs

    def _fitting(self, pipeline: BasePipeline[Any], given: list[Requested] | None) -> tuple[list[str], list[Requested] | None]:
        """Return the held-out texts that are not longer than the model's maximum, with those of ``given`` conditions."""
        texts = self.bounded["text"][:]
        longest = sys.maxsize if context_of(pipeline.model) else pipeline.model.config.max_position_embeddings
        found = encode(texts, pipeline.tokenizer, longest, "drop")
        if given is None:
            return [texts[i] for i in found.texts], None
        sizes = zip(found.texts, found.ids, strict=True)
        kept = [i for i, ids in sizes if len(ids) <= longest_text(pipeline, given[i].value)]
        return [texts[i] for i in kept], [given[i] for i in kept]

    def _bounds(
        self, pipeline: BasePipeline[Any], texts: list[str], conditions: list[Requested] | None, orders: int, progress: Progress
    ) -> list[Bound]:
        """Compute the likelihoods of ``texts`` under a model, given their ``conditions``."""
        options = ScoringConfig(strata=self.config.strata, orders=orders, seed=self.config.seed)
        bounds = []
        for _, one in score(pipeline, texts, options, given=(), condition=conditions):
            bounds.append(one)
            progress(1)
        return bounds

    def _likelihood(self, texts: list[str], identity: Mapping[str, Any], bounds: list[Bound], progress: Progress) -> Likelihood:
        """Return the row of a model's likelihoods of ``texts``, with the judge's."""
        own, judged, tokens = summary(bounds), self.judge.score(texts), [one.tokens for one in bounds]
        differences = [one.nats - other.nats for one, other in zip(bounds, judged, strict=True)]
        return Likelihood(
            **identity,
            exact=own.exact,
            texts=own.texts,
            tokens=own.tokens,
            nats_per_token=own.nats_per_token,
            error=mean_error([one.nats for one in bounds], tokens),
            estimate_error=own.standard_error,
            bits_per_character=own.bits_per_character,
            terms={} if own.exact else {name: getattr(own, name) for name in TERMS},
            judge_nats_per_token=sum(one.nats for one in judged) / own.tokens,
            judge_bits_per_character=summary(judged).bits_per_character,
            difference_error=mean_error(differences, tokens),
        )
