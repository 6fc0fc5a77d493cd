"""``generate``, ``edit`` and ``score``."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from diffusionlm.arguments import command, flag, option, several
from diffusionlm.config import UserError, build, read_value
from diffusionlm.verbs.shared import LOADING, MODEL, expect_positive, given_options, sampling_settings


@command(
    MODEL,
    option("--count -n", "number of texts (default %(default)s)", default=10),
    option("--seed", "random seed; the same seed gives the same texts (default 0)"),
    option("--steps", "sampling steps (default: the model's)"),
    option("--passes", "self-conditioning passes, network evaluations per step (default: the model's)"),
    option("--sampler", "see: diffusionlm show samplers (default: the model's)", "NAME"),
    option("--temperature", "softmax temperature; lower is more fluent and less diverse (default 1)", "X"),
    option("--step-temperature", "temperature of the prediction that a step moves to (default: --temperature)", "X"),
    option("--sweeps", "refinement sweeps over the finished text (default: the model's)"),
    option("--length", "tokens per text (default: drawn from the lengths of the training texts)"),
    option("--candidates", "candidates per sample for minimum-Bayes-risk selection (default 1)"),
    several("--control", "food=Japanese, 'Length(20) & ~Words(\"cheap\")'", "EXPRESSION", dest="controls"),
    option("--targets", ".jsonl or .yaml file of targets with their controls; --count texts for each", "FILE"),
    option("--condition", "value of the model's condition, such as a class label", "VALUE"),
    option("--annotator", "tags and parses texts to check controls: a name or '{name: tagger, folder: F}' "
            "(default: the corpus's); see: diffusionlm show annotators", "SPEC"),
    option("--strength", "strength of gradient guidance; 0 turns it off (default 1)", "X"),
    option("--particles", "particles per text, for controls without a gradient"),
    option("--ensure", "most texts to try per sample until all controls hold (default %(default)s)", default=1),
    flag("--clamp", "move each predicted vector to the nearest word vector"),
    option("--batch-size", "texts per batch (default 128)"),
    *LOADING,
    flag("--watch", "show the texts after every step in the terminal (on stderr)"),
    example="generate runs/quickstart --sampler.name ddim --sampler.eta 0.5",
)  # fmt: skip
def _generate(options: argparse.Namespace) -> int:
    """Generate texts with a trained model: JSON lines on stdout, each as soon as it is finished."""
    from diffusionlm.controls import read_controls, target_rows
    from diffusionlm.data.annotators import Annotator
    from diffusionlm.pipelines.auto import open_pipeline
    from diffusionlm.progress import watcher

    expect_positive(options, "count", "ensure")
    sampling, given = sampling_settings(options)
    pipeline = open_pipeline(options.model, options.device, options.dtype, options.adapter)
    if options.annotator is not None:
        pipeline.set_annotator(build(Annotator, read_value("--annotator", options.annotator), "--annotator"))
    watch = watcher() if options.watch else None
    condition = None if options.condition is None else pipeline.read_condition(options.condition)
    if pipeline.conditional and condition is None:
        print("no --condition: the samples are those of the model without a condition", file=sys.stderr)
    common = read_controls(options.controls)
    targets = [("", common)]
    if options.targets is not None:
        targets = [(place, (*common, *controls)) for place, _, controls in target_rows(options.targets)]
        for place, controls in targets:
            try:
                pipeline.check_controls(controls, sampling)
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
    labels = {"guidance.strength": "--strength", "particles.count": "--particles", "tries": "--ensure"}
    pipeline.check_given(given, sampling, [controls for _, controls in targets], labels)
    for number, (_, controls) in enumerate(targets):
        target = {} if options.targets is None else {"target": number}
        for row in pipeline.stream(options.count, sampling, watch, controls, options.ensure, condition):
            print(json.dumps({**target, **row.row()}, ensure_ascii=False), flush=True)
    return 0


@command(
    MODEL,
    option("file", "texts: .txt (one per line), .jsonl, .csv, each also .gz, or .parquet; - is stdin", "FILE"),
    option("--column", "column of the texts (default %(default)s)", "NAME", default="text"),
    option("--strata", "noise levels per text; more is more precise (default 128)"),
    option("--orders", "random orders of the any-order bound; 0 computes the joint bound (default 0)"),
    option("--seed", "random seed of the noise (default 0)"),
    option("--batch-size", "noisy copies of a text per batch (default 64)"),
    *LOADING,
)
def _score(options: argparse.Namespace) -> int:
    """Compute the negative log-likelihood of texts, or a bound: JSON lines on stdout, a summary on stderr.

    The tokens of a text are its words and one end token. Texts longer than the model's maximum length are refused;
    unknown words are scored as [UNK] and counted.
    """
    from tqdm import tqdm

    from diffusionlm.data.corpora import read_texts
    from diffusionlm.evaluation.scoring import ScoringConfig, score, summary
    from diffusionlm.pipelines.auto import open_pipeline
    from diffusionlm.progress import intervals

    given = given_options(options, ScoringConfig)
    settings = ScoringConfig(**given)
    places, texts = zip(*read_texts(options.file, options.column), strict=True)
    bounds = []
    pipeline = open_pipeline(options.model, options.device, options.dtype, options.adapter)
    scored = score(pipeline, texts, settings, places=places, given=given)
    for index, (text, bound) in enumerate(tqdm(scored, total=len(texts), desc="scoring", unit="text", **intervals())):
        figures = {"length_nats" if name == "length" else name: value for name, value in asdict(bound).items()}
        print(json.dumps({"text": text, "index": index, "nats": bound.nats, **figures}, ensure_ascii=False), flush=True)
        bounds.append(bound)
    print(summary(bounds), file=sys.stderr)
    return 0
