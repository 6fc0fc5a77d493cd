"""``generate``, ``edit`` and ``score``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from diffusionlm.arguments import command, flag, option, several
from diffusionlm.config import UserError, build, read_value, to_plain
from diffusionlm.processes import part_done
from diffusionlm.verbs.rows import OUT, Rows, call_of, rows_of
from diffusionlm.verbs.shared import LOADING, MODEL, expect_positive, given_options, sampling_settings

if TYPE_CHECKING:
    from diffusionlm.evaluation.likelihood import Bound
    from diffusionlm.pipelines.base import BasePipeline, SamplingConfig
    from diffusionlm.pipelines.cost import Cost


SAMPLING = (
    option("--seed", "random seed; the same seed gives the same texts (default 0)"),
    option("--evaluations", "network evaluations per candidate, in place of steps, passes and sweeps", "N"),
    option("--steps", "sampling steps (default: the model's)"),
    option("--passes", "self-conditioning passes, network evaluations per step (default: the model's)"),
    option("--sampler", "see: diffusionlm show samplers (default: the model's)", "NAME"),
    option("--temperature", "softmax temperature; lower is more fluent and less diverse (default 1)", "X"),
    option("--step-temperature", "temperature of the prediction that a step moves to (default: --temperature)", "X"),
    option("--sweeps", "refinement sweeps over the finished text (default: the model's)"),
    option("--candidates", "candidates per sample, of which the best is kept (default 1)"),
    option("--ranking", "how the best is chosen; see: diffusionlm show rankings (default mbr, minimum Bayes risk)", "NAME"),
    several("--condition", "the model's condition, such as a class label; of several conditions NAME=VALUE", "VALUE"),
    option("--cfg", "scale of classifier-free guidance on the condition; 1 is none (default 1)", "X"),
    option("--self-cfg", "likewise on the estimate for self-conditioning (default 1)", "X"),
    option("--cfg-floor", "share of the largest probability from which --cfg above 1 raises a token (default .1; 0: any)", "X"),
    several("--control", "food=Japanese, 'Length(20) & ~Words(\"cheap\")'", "EXPRESSION", dest="controls"),
    option("--annotator", "tags and parses texts to check controls: a name or '{name: tagger, folder: F}' "
            "(default: the corpus's); see: diffusionlm show annotators", "SPEC"),
    option("--strength", "strength of gradient guidance; 0 turns it off (default 1)", "X"),
    option("--particles", "particles per text, for controls without a gradient"),
    option("--ensure", "most texts to try per sample until all controls hold (default %(default)s)", default=1),
    flag("--clamp", "move each predicted vector to the nearest word vector"),
    option("--batch-size", "texts per batch (default 128)"),
    *LOADING,
    flag("--watch", "show the texts after every step in the terminal (on stderr)"),
)  # fmt: skip
PACKED = "each sample is a packed row of several texts, of which the first and the last may be cut off (data.packing)"
LABELS = {"guidance.strength": "--strength", "particles.count": "--particles", "tries": "--ensure"}


@command(
    MODEL,
    option("--count -n", "number of texts (default 10), of each source (default 1)"),
    option("--length", "tokens per text (default: drawn from the lengths of the training texts)"),
    option("--source", "sources to generate from: .txt (one per line), .jsonl, .csv; - is stdin", "FILE"),
    option("--continue", "text to continue, with a model that was trained with data.context", "TEXT", dest="begun"),
    option("--targets", ".jsonl or .yaml file of targets with their controls; --count texts for each", "FILE"),
    OUT,
    *SAMPLING,
    example="generate runs/quickstart --sampler.name ddim --sampler.eta 0.5",
)
def _generate(options: argparse.Namespace) -> int:
    """Generate texts with a trained model: JSON lines on stdout, each as soon as it is finished."""
    from diffusionlm.controls import read_controls, target_rows
    from diffusionlm.data.references import read_sources
    from diffusionlm.models.pieces import is_packed
    from diffusionlm.pipelines.cost import metered

    expect_positive(options, "count", "ensure")
    pipeline, sampling, given = opened(options)
    common = read_controls(options.controls)
    targets = [("", common)]
    if options.targets is not None:
        targets = [(place, (*common, *controls)) for place, _, controls in target_rows(options.targets)]
        for place, controls in targets:
            try:
                pipeline.check_controls(controls, sampling)
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
    pipeline.check_given(given, sampling, [controls for _, controls in targets], LABELS)
    if is_packed(pipeline.model) and not pipeline.exact_likelihood:
        print(PACKED, file=sys.stderr)
    stream = pipeline.stream if options.begun is None else continued(options, pipeline)
    request = {"condition": pipeline.read_condition(options.condition), "tries": options.ensure}
    items = None if options.source is None else read_sources(options.source)
    say_unconditional(pipeline, request["condition"], sampling, items is not None)
    count = options.count or (10 if items is None else 1)
    sources = None if items is None else [item.source for item in items]
    texts, each = 0, count * (1 if sources is None else len(sources))
    with rows_of(options.out, _call(options, sampling)) as rows:
        with metered(pipeline) as meter:
            for number, (_, controls) in enumerate(targets):
                target: dict[str, Any] = {} if options.targets is None else {"target": number}
                first = min(each, max(0, len(rows.stored) - number * each))
                asked = {"controls": controls, "source": sources, "first": first, **request}
                for row in stream(count, sampling, watcher_of(options), **asked):
                    references = items[row.index // count].references if items is not None else ()
                    rows.add({**target, **row.row(), **({"references": references} if references else {})})
                    texts += 1
        part_done()
    if texts:
        say_evaluations(meter.cost(texts, sampling.candidates), sampling)
    return 0


def continued(options: argparse.Namespace, pipeline: BasePipeline[Any]) -> Any:
    """Return the function that samples continuations of a text, with the arguments of ``stream``.

    Raises:
        UserError: the model continues no texts; an option that does not go with it.
    """
    from diffusionlm.pipelines.diffusion import Pipeline

    others = {"controls": "--control", "targets": "--targets", "source": "--source", "condition": "--condition"}
    if name := next((flag for name, flag in others.items() if getattr(options, name)), None):
        raise UserError(f"{name}: a text is continued (--continue) without it; leave one of them out")
    if not isinstance(pipeline, Pipeline):
        raise UserError(f"--continue: a {pipeline.model.config.model_type} model continues no texts; diffusion models do")
    model = pipeline
    return lambda count, sampling, watch, first, **_: model.extend(options.begun, count, sampling, watch, first)


def _call(options: argparse.Namespace, settings: Any) -> dict[str, Any]:
    """Return what determines the rows of a call with ``--out``: its options, settings and files, and the model."""
    from diffusionlm.models.io import fingerprint

    if options.out is None:
        return {}
    models = [fingerprint(folder) for folder in (options.model, options.adapter) if folder is not None]
    return call_of(options, settings=to_plain(settings), fingerprints=models)


@command(
    MODEL,
    several("--text", "text to edit", "TEXT", dest="texts"),
    option("--file", "texts to edit: .txt (one per line), .jsonl, .csv; - is stdin", "FILE"),
    option("--level", "share of the noise: 0 leaves the text, 1 is a new one (default %(default)s)", "X", default=0.5),
    option("--count -n", "edits of each text (default %(default)s)", default=1),
    *SAMPLING,
    example="edit runs/quickstart --text 'It is a cheap pub.' --sampling.guidance.strength 2",
)
def _edit(options: argparse.Namespace) -> int:
    """Edit texts: noise them to a level and denoise them with controls on; JSON lines on stdout, as ``generate``."""
    from diffusionlm.controls import read_controls
    from diffusionlm.data.corpora import read_texts
    from diffusionlm.pipelines.cost import metered
    from diffusionlm.pipelines.diffusion import Pipeline
    from diffusionlm.pipelines.request import from_level

    expect_positive(options, "count", "ensure")
    texts = options.texts + ([] if options.file is None else [text for _, text in read_texts(options.file)])
    if not texts:
        raise UserError("edit: expected --text TEXT, or --file FILE")
    pipeline, sampling, given = opened(options)
    if not isinstance(pipeline, Pipeline):
        raise UserError(f"{options.model}: a {pipeline.model.config.model_type} model edits no texts; diffusion models do")
    controls = read_controls(options.controls)
    left = from_level(sampling, options.level) if 0 < options.level < 1 else sampling
    pipeline.check_given(given, left, [controls], LABELS)
    condition = pipeline.read_condition(options.condition)
    say_unconditional(pipeline, condition, sampling)
    watch, edits = watcher_of(options), 0
    with metered(pipeline) as meter:
        for row in pipeline.edit(texts, options.level, controls, options.count, sampling, watch, options.ensure, condition):
            Rows().add(row.row())
            edits += 1
    part_done()
    say_evaluations(meter.cost(edits, sampling.candidates), sampling)
    return 0


def opened(options: argparse.Namespace) -> tuple[BasePipeline[Any], SamplingConfig, dict[str, Any]]:
    """Return the pipeline of the options, its sampling settings, and the settings that the user gives."""
    from diffusionlm.data.annotators import Annotator
    from diffusionlm.pipelines.auto import open_pipeline

    sampling, given = sampling_settings(options)
    pipeline = open_pipeline(options.model, options.device, options.dtype, options.adapter)
    if options.annotator is not None:
        pipeline.set_annotator(build(Annotator, read_value("--annotator", options.annotator), "--annotator"))
    if options.evaluations is not None:
        sampling = pipeline.with_evaluations(sampling, options.evaluations, given)
    return pipeline, sampling, given


def say_unconditional(
    pipeline: BasePipeline[Any], condition: Any, sampling: SamplingConfig, with_sources: bool = False
) -> None:
    """Say on stderr which values of a model's condition are not given; guidance without any is refused later."""
    if not pipeline.conditional:
        return
    keys = pipeline.model.settings.condition.keys
    named = [*(condition if isinstance(condition, dict) else ()), *["source"] * with_sources]
    given = {*keys} & {*named}
    if given and (missing := [key for key in keys if key not in given]):
        if len({*named}) < len(named):
            return  # the source is given twice, which is refused later
        print(f"no value is given for {', '.join(missing)}: samples with the null condition there", file=sys.stderr)
    elif condition is None and not with_sources and sampling.cfg == 1:
        unseen = "" if pipeline.model.settings.condition.drop else ", and it was never trained without one (drop: 0)"
        print(f"no condition is given: samples of the model without a condition{unseen}", file=sys.stderr)


def say_evaluations(cost: Cost, sampling: SamplingConfig) -> None:
    """Say on stderr how often the network was evaluated for a text, where the sampler decides it and not the settings alone."""
    from diffusionlm.config import plain_name
    from diffusionlm.core.sampler import Sampler

    sampler = type(sampling.sampler)
    if cost.evaluations and sampler.step is not Sampler.step:
        print(f"{plain_name(sampler)}: {cost.evaluations:,.6g} network evaluations per text", file=sys.stderr)


def watcher_of(options: argparse.Namespace) -> Any:
    """Return what shows the texts after every step, None where the user does not ask for it."""
    from diffusionlm.progress import watcher

    return watcher() if options.watch else None


@command(
    MODEL,
    option("file", "texts: .txt (one per line), .jsonl, .csv, each also .gz or .zst, or .parquet; - is stdin", "FILE"),
    option("--column", "column of the texts (default %(default)s)", "NAME", default="text"),
    option("--source", "source of each text, in their order (default: the file's column source, mr or src)", "FILE"),
    several("--condition", "the model's condition, for all texts; of several conditions NAME=VALUE", "VALUE"),
    option("--strata", "noise levels per text; more is more precise (default 128)"),
    option("--orders", "random orders of the any-order bound; 0 computes the joint bound (default 0)"),
    option("--flow", "draws of the probability flow's likelihood, another model's; 0 computes the joint bound (default 0)"),
    option("--seed", "random seed of the noise (default 0)"),
    option("--batch-size", "noisy copies of a text per batch (default 64)"),
    OUT,
    *LOADING,
)
def _score(options: argparse.Namespace) -> int:
    """Compute the negative log-likelihood of texts, or a bound: JSON lines on stdout, a summary on stderr.

    The tokens of a text are its words and one end token. Texts longer than the model's maximum length are refused, unless
    it was trained with data.context. Unknown words are scored as [UNK] and counted. With a condition, it is that of each text
    given the condition.
    """
    from tqdm import tqdm

    from diffusionlm.evaluation.scoring import ScoringConfig, score, summary
    from diffusionlm.pipelines.auto import open_pipeline
    from diffusionlm.progress import intervals

    given = {name: value for name, value in given_options(options, ScoringConfig).items() if name not in ("device", "dtype")}
    settings = ScoringConfig(**given)
    pipeline = open_pipeline(options.model, options.device, options.dtype, options.adapter)
    condition = pipeline.read_condition(options.condition)
    places, texts, sources = texts_to_score(options, pipeline, condition)
    with rows_of(options.out, _call(options, settings)) as rows:
        bounds, first = [bound_of(row) for row in rows.stored], len(rows.stored)
        asked = {"places": places, "given": given, "condition": condition, "source": sources, "first": first}
        scored = score(pipeline, texts, settings, **asked)
        bar = tqdm(scored, total=len(texts), initial=first, desc="scoring", unit="text", **intervals())
        for index, (text, bound) in enumerate(bar, start=first):
            figures = {"length_nats" if name == "length" else name: value for name, value in asdict(bound).items()}
            if not options.flow:
                del figures["evaluations"]
            rows.add({"text": text, "index": index, "nats": bound.nats, **figures})
            bounds.append(bound)
        part_done()
    print(summary(bounds), file=sys.stderr)
    return 0


def bound_of(row: dict[str, Any]) -> Bound:
    """Return the likelihood of a row that was written."""
    from diffusionlm.evaluation.likelihood import Bound

    figures = {"length" if name == "length_nats" else name: value for name, value in row.items()}
    return Bound(**{each.name: figures[each.name] for each in fields(Bound) if each.name in figures})


def texts_to_score(
    options: argparse.Namespace, pipeline: BasePipeline[Any], condition: Any
) -> tuple[Sequence[str], Sequence[str], list[str] | None]:
    """Return the places of the texts, the texts, and the source of each, None where the model takes none."""
    from diffusionlm.data.corpora import read_texts
    from diffusionlm.data.references import read_pairs, read_source_of_each

    keys = pipeline.model.settings.condition.keys if pipeline.conditional else ()
    given = condition is not None and (len(keys) == 1 or (isinstance(condition, dict) and "source" in condition))
    if "source" in keys and options.source is None and not given:
        if options.file == "-":
            raise UserError("--source: expected a file with the source of each text, since standard input has texts alone")
        return read_pairs(options.file, options.column)
    if options.source is not None and options.source == options.file:
        raise UserError("--source: expected another file than that of the texts; without --source its own column is read")
    places, texts = zip(*read_texts(options.file, options.column, "--column"), strict=True)
    return places, texts, None if options.source is None else read_source_of_each(options.source)
