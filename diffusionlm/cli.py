"""The command line: ``diffusionlm quickstart | train | convert | generate | score | evaluate | show``.

Results go to stdout, everything else to stderr. A user's mistake is one sentence and exit status 2, Ctrl-C is 130.
Each command is a function with its options above it. Any setting can be given by its dotted name (``--training.steps 500``).
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, NoReturn

from diffusionlm.arguments import Messages, command, flag, import_modules, mute, option, parser, several, split
from diffusionlm.config import UserError, build, nearest, nearest_setting, override, read_value, to_plain
from diffusionlm.processes import check_processes

if TYPE_CHECKING:
    from diffusionlm.pipelines.base import SamplingConfig

FAMILIES = {  # the families that ``show`` lists, with the import paths of their base classes
    "models": "diffusionlm.models.spec:ModelSpec",
    "adapters": "diffusionlm.models.adapters:Adapter",
    "processes": "diffusionlm.core.process:Process",
    "conditions": "diffusionlm.models.conditions:Condition",
    "schedules": "diffusionlm.core.schedule:NoiseSchedule",
    "samplers": "diffusionlm.core.sampler:Sampler",
    "backbones": "diffusionlm.models.backbones:Backbone",
    "objectives": "diffusionlm.core.objective:ObjectiveConfig",
    "optimizers": "diffusionlm.training.optimizers:OptimizerConfig",
    "controls": "diffusionlm.controls:Control",
    "guidance": "diffusionlm.core.guidance:Guidance",
    "annotators": "diffusionlm.data.annotators:Annotator",
    "tasks": "diffusionlm.evaluation.control.tasks:Task",
    "corpora": "diffusionlm.data.corpora:Corpus",
    "tokenizers": "diffusionlm.data.tokenizers:TokenizerRecipe",
}
CONFIG = several("--config", "YAML file with settings")
MODEL = option("model", "model folder or run folder", "MODEL")
LOADING = (
    option("--adapter", "adapter (LoRA) trained on this model, merged into it: its folder or run folder", "FOLDER"),
    option("--device", "cpu, cuda or cuda:1 (default cpu)", "NAME", default="cpu"),
    option("--dtype", "fp32 or bf16 (default fp32)", "NAME", default="fp32"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 2 (the user's mistake) or 130 (Ctrl-C); a bug raises."""
    # Threads that spin while they wait make training many times slower on a busy machine; PyTorch reads this when it
    # is first imported, which is why nothing above imports it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # User-defined components are imported from the working directory, as with python -m.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        words, overrides = split(sys.argv[1:] if arguments is None else arguments)
        options, unknown = parser().parse_known_args(words)
        if unknown:
            hint = nearest_setting(unknown[0], options.known, listed=options.example is None)
            dotted = f"; a setting has a dotted name, a component such as {unknown[0]}.name; see: diffusionlm show"
            raise UserError(f"{unknown[0]}: there is no such argument{hint or dotted}")
        if overrides and options.example is None:
            raise UserError(f"--{overrides[0][0]}: this command takes no settings; see --help")
        options.overrides = overrides
        check_processes(several_allowed=options.run is _train)
        mute()
        import_modules(options.imports)
        return int(options.run(options))
    except UserError as error:
        print(f"diffusionlm: {error}", file=sys.stderr)
        return 2
    except NotImplementedError as error:
        frame = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
        kind = type(frame.f_locals.get("self", frame.f_locals.get("cls")))
        print(f"diffusionlm: {kind.__module__}:{kind.__name__} does not define {frame.f_code.co_name}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        print(f"diffusionlm: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("diffusionlm: interrupted; the files written so far are complete", file=sys.stderr)
        return 130


def entry() -> NoReturn:
    """Run the command line of this process: its streams are UTF-8 in any locale, and a closed standard error stops no work."""
    for stream, errors in ((sys.stdin, "strict"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)
    sys.stderr = Messages(sys.stderr)
    sys.exit(main())


def _expect_positive(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        if (count := getattr(options, name)) is not None and count < 1:
            raise UserError(f"--{name}: expected at least 1, got {count}")


def _given(options: argparse.Namespace, kind: Any) -> dict[str, Any]:
    """Return the given options that are fields of the dataclass ``kind``."""
    return {f.name: value for f in fields(kind) if (value := getattr(options, f.name, None)) is not None}


@command(
    option("--out", "run folder (default %(default)s)", "FOLDER", default="runs/quickstart"),
    option("--minutes", "training time on this machine (default 4.2)", "X"),
    option("--steps", "training steps; replaces --minutes"),
    option("--texts", "texts to generate and evaluate (default %(default)s)", default=500),
)
def _quickstart(options: argparse.Namespace) -> int:
    """Train on the restaurants corpus for a few minutes, generate texts and evaluate them."""
    from diffusionlm.restaurants.quickstart import quickstart

    _expect_positive(options, "steps", "texts")
    if options.steps is not None and options.minutes is not None:
        raise UserError("--minutes: --steps replaces it, so it has no effect; give one of the two")
    quickstart(options.out, options.steps, 4.2 if options.minutes is None else options.minutes, options.texts)
    return 0


@command(
    CONFIG,
    option("--out", "run folder: model, log, samples, checkpoints", "FOLDER", required=True),
    option("--init-from", "fine-tune this model folder on the corpus", "MODEL"),
    option("--adapter", "train and save a part of the weights, such as lora; see: diffusionlm show adapters", "NAME"),
    example="train --config configs/e2e-small.yaml --training.steps 500 --data.corpus.folder e2e",
)
def _train(options: argparse.Namespace) -> int:
    """Train a model; after an interruption, the same command resumes the run."""
    from diffusionlm.training.run import read_config, train

    given = [(name, value) for name in ("init_from", "adapter") if (value := getattr(options, name))]
    return 0 if train(read_config(options.config, options.overrides + given), options.out) else 130


@command(
    option("checkpoint", "checkpoint (.pt) of Diffusion-LM's or DiffuSeq's own code, or its folder", "CHECKPOINT"),
    option("--out", "model folder to write", "FOLDER", required=True),
    option("--tokenizer", "where the tokens are BERT's: the tokenizer's folder, or its vocab.txt", "FOLDER"),
    option("--heads", "attention heads, where the BERT of the checkpoint is none of the usual sizes"),
)
def _convert(options: argparse.Namespace) -> int:
    """Convert a checkpoint of the original code to a model folder, with training_args.json and vocab.json beside it."""
    from diffusionlm.training.convert import convert

    convert(options.checkpoint, options.out, options.tokenizer, options.heads)
    return 0


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

    _expect_positive(options, "count", "ensure")
    sampling, given = _sampling(options)
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


def _sampling(options: argparse.Namespace) -> tuple[SamplingConfig, dict[str, Any]]:
    """Return the model's saved sampling settings, changed by the flags and the dotted overrides, and what these give."""
    from diffusionlm.pipelines.base import SamplingConfig, saved_sampling
    from diffusionlm.pipelines.effect import given_names

    flags = _given(options, SamplingConfig)
    flags |= {"guidance.strength": options.strength, "particles.count": flags.pop("particles", None)}
    changes = [(name, str(value)) for name, value in flags.items() if value is not None]
    changes += [(name.removeprefix("sampling."), value) for name, value in options.overrides]
    plain = override(to_plain(saved_sampling(options.adapter or options.model)), changes, SamplingConfig)
    sampling = build(SamplingConfig, plain, "sampling")
    arguments = {"tries": options.ensure, "condition": options.condition, "annotator": options.annotator}
    given = {name: value for name, value in arguments.items() if value is not None}
    return sampling, given_names((name for name, _ in changes), sampling) | given


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

    given = _given(options, ScoringConfig)
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


@command(
    option("models", "model folders or run folders; differences are to the first", "MODEL", nargs="*"),
    option("--judge", "judge: a causal language model, or its run folder (all but --references need it)", "FOLDER"),
    several("--texts", "texts of another system (.txt, .jsonl, .csv)"),
    option("--references", "score --texts against these sources and references (.csv, .jsonl)", "FILE"),
    flag("--no-ter", "leave TER out, which takes minutes for thousands of references"),
    option("--temperatures", "sampling temperatures (default 0.7 0.8 0.9 1.0)", "X", nargs="+"),
    option("--steps", "sampling steps of diffusion models (default: the model's)", nargs="+"),
    option("--count -n", "texts per row, and reference texts (default 500)"),
    option("--seed", "random seed of the samples and of the choice of reference texts (default 0)"),
    option("--strata", "noise levels per text in the likelihood bound (default 128)"),
    option("--orders", "random orders of the any-order bound; 0 leaves it out (default 8)"),
    several("--controls", "evaluate control: a task of configs/control, or a .jsonl file of targets"),
    option("--targets-count", "use the first N targets of each task (default: the task's)"),
    option("--samples", "texts per target (default: the task's; 10 for .jsonl)"),
    option("--strengths", "guidance strengths, one row each", "X", nargs="+"),
    option("--split", "corpus split of the reference texts (default validation)", "NAME"),
    option("--bound-texts", "reference texts whose likelihood is bounded (default 200)"),
    flag("--no-bound", "leave the likelihood out", 0, dest="bound_texts"),
    several("--config", "YAML file that names the corpus, where no model is a run folder"),
    option("--out", "report, figures and texts; resumed if present (default: in the run folder)", "FOLDER"),
    flag("--json", "print JSON instead of a table"),
    *LOADING,
    example="evaluate runs/e2e --judge runs/judge --steps 32 128 --sampling.sampler ddim",
)
def _evaluate(options: argparse.Namespace) -> int:
    """Compare models, or texts of other systems, with reference texts: fluency, diversity, likelihood, control."""
    from diffusionlm.evaluation.benchmark import EvaluationConfig, evaluate
    from diffusionlm.evaluation.report import table

    if options.references is not None:
        return _evaluate_references(options)
    _refuse(options, "no_ter", "needs --references FILE")
    if options.judge is None:
        raise UserError("evaluate: expected --judge FOLDER, or --references FILE, which needs no judge")
    if options.controls:
        return _evaluate_control(options)
    if not (options.models or options.texts):
        raise UserError("evaluate: expected a model folder, or --texts FILE")
    _refuse(options, "targets_count samples strengths", "needs --controls FILE")
    given = _given(options, EvaluationConfig)
    settings, shared = build(EvaluationConfig, given), _evaluated(options)
    _print_report(options, evaluate(options.judge, options.models, options.texts, settings, given=given, **shared), table)
    return 0


def _evaluate_references(options: argparse.Namespace) -> int:
    from diffusionlm.evaluation.reference_report import evaluate_references, json_rows, reference_table

    if options.models or not options.texts:
        raise UserError("--references: expected the outputs of a system in --texts FILE, and no model")
    unused = "judge temperatures steps count strata orders controls targets_count samples strengths split bound_texts"
    _refuse(options, unused, "does not go with --references")
    corpus = _evaluated(options)["corpus"]
    if sampling := [name for name, _ in options.overrides if name.startswith("sampling.")]:
        raise UserError(f"--{sampling[0]}: does not go with --references, which samples nothing")
    report = evaluate_references(options.references, options.texts, corpus, options.out, options.seed or 0, not options.no_ter)
    table_to = sys.stdout if options.json or sys.stdout.isatty() else sys.stderr
    if table_to is sys.stderr:
        print(json_rows(report), end="")
    _print_report(options, report, reference_table, table_to)
    return 0


def _evaluate_control(options: argparse.Namespace) -> int:
    from diffusionlm.evaluation.control.evaluation import ControlConfig, evaluate_control
    from diffusionlm.evaluation.control.report import control_table
    from diffusionlm.evaluation.control.tasks import read_tasks

    if not options.models:
        raise UserError("evaluate: expected a model folder")
    unused = "texts temperatures steps count split bound_texts strata orders"
    _refuse(options, unused, "does not go with --controls; see --samples and --sampling.steps")
    changes = [(key, value) for key, value in options.overrides if key.startswith(("annotator.", "task."))]
    options.overrides = [change for change in options.overrides if change not in changes]
    tasks = [task for path in options.controls for task in read_tasks(path, changes)]
    settings = build(ControlConfig, _given(options, ControlConfig))
    report = evaluate_control(options.judge, options.models, tasks, settings, **_evaluated(options))
    _print_report(options, report, control_table)
    return 0


def _refuse(options: argparse.Namespace, names: str, reason: str) -> None:
    for name in names.split():
        if getattr(options, name) not in (None, []):
            raise UserError(f"--{name.replace('_', '-')}: {reason}")


def _print_report(options: argparse.Namespace, report: Any, table: Callable[[Any], str], file: Any = None) -> None:
    shown = json.dumps(report.plain(), indent=2, ensure_ascii=False) + "\n" if options.json else table(report)
    print(shown, end="", file=file)


def _evaluated(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that both kinds of evaluation share: corpus, folder, sampling settings, device."""
    from diffusionlm.evaluation.provenance import config_of
    from diffusionlm.training.run import read_config

    sampling = [(key.removeprefix("sampling."), value) for key, value in options.overrides if key.startswith("sampling.")]
    rest = [(key, value) for key, value in options.overrides if not key.startswith("sampling.")]
    for name, better in {"steps": "--steps", "temperature": "--temperatures", "seed": "--seed"}.items():
        if name in dict(sampling) and not (options.controls and name != "seed"):
            raise UserError(f"--sampling.{name}: an evaluation sets it itself; use {better}")
    if options.strengths and "guidance.strength" in dict(sampling):
        raise UserError("--sampling.guidance.strength: an evaluation sets it itself; use --strengths")
    for key, _ in rest:
        if not key.startswith("data.corpus"):
            raise UserError(f"--{key}: expected sampling.NAME or data.corpus.NAME: an evaluation has no other settings")
    models = [options.adapter] if options.adapter else options.models  # of a report: an adapter's run is its model's
    paths = options.config or list(filter(None, [config_of([*models, *filter(None, [options.judge])])]))
    corpus = read_config(paths, rest).data.corpus if options.config or rest else None
    out = options.out or _evaluation_folder(models, "control" if options.controls else "evaluation")
    loading = {name: getattr(options, name) for name in ("device", "dtype", "adapter")}
    return {"corpus": corpus, "out": out, "sampling": sampling, **loading}


def _evaluation_folder(models: Sequence[str], name: str) -> str | None:
    """Return the default of --out: a folder in the run folder of a single model, None where there is no model."""
    if not models:
        return None
    if len(models) > 1 or not os.path.isfile(os.path.join(models[0], "config.yaml")):
        raise UserError("--out: expected a folder for the report (only a single run folder has a default)")
    return os.path.join(models[0], name)


@command(
    option("what", "config, or a family: " + ", ".join(FAMILIES), "config|FAMILY", nargs="?", default="config"),
    CONFIG,
    example="show --training.steps 500",
)
def _show(options: argparse.Namespace) -> int:
    """Show all settings with their values, or the members of a family of components."""
    import yaml

    from diffusionlm.training.run import read_config

    if options.what == "config":
        plain = to_plain(read_config(options.config, options.overrides))
        print(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), end="")
        return 0
    if options.what not in FAMILIES:
        raise UserError(f"show: there is no {options.what!r}{nearest(options.what, ['config', *FAMILIES])}")
    if options.config or options.overrides:
        raise UserError(f"show: {options.what} have no settings of yours to show; leave out --config and --NAME VALUE")
    module, _, name = FAMILIES[options.what].partition(":")
    members = getattr(importlib.import_module(module), name).kinds()
    if not members:
        print(f"no {options.what} come with the library: name one of your own, my.module:Thing ({FAMILIES[options.what]})")
    for member, kind in members.items():
        print(f"{member}: {(kind.__doc__ or '').splitlines()[0]}")
        for field in fields(kind):
            print(f"    {field.name}: {field.type}" + ("" if repr(field.default).startswith("<") else f" = {field.default}"))
    return 0


if __name__ == "__main__":
    entry()
