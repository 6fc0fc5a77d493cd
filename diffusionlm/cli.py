"""The command line: ``diffusionlm quickstart | train | generate | score | evaluate | show``.

Results go to stdout, everything else to stderr. A mistake of the user's is one sentence and exit status 2, Ctrl-C is 130.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, NoReturn

from diffusionlm.config import UserError, build, nearest, override, to_plain

if TYPE_CHECKING:
    from diffusionlm.controls import Control
    from diffusionlm.core.sampler import State
    from diffusionlm.pipelines.base import SamplingConfig
    from diffusionlm.pipelines.diffusion import Pipeline

FAMILIES = {  # what ``show`` lists, and where it lives
    "models": "diffusionlm.models.spec:ModelSpec",
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status: 0, 1 (a defect of ours raises), 2 (the user's mistake), 130 (Ctrl-C)."""
    # Threads that spin while they wait make training many times slower on a busy machine; PyTorch reads this when it
    # is first imported, which is why nothing above imports it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # A user's own components are found in the folder the command is given in, as python -m would find them.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        words, overrides = _split(sys.argv[1:] if arguments is None else arguments)
        options, unknown = _parser().parse_known_args(words)
        if unknown:
            raise UserError(f"{unknown[0]}: there is no such argument{nearest(unknown[0], options.known)}")
        if overrides and not options.takes_overrides:
            raise UserError(f"--{overrides[0][0]}: this command takes no settings; see --help")
        options.overrides = overrides
        _quiet_libraries()
        return int(options.run(options))
    except UserError as error:
        print(f"diffusionlm: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"diffusionlm: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("diffusionlm: interrupted; what was written is whole", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="diffusionlm",
        description="Text diffusion on word vectors: train on your own texts, then write sentences.",
        epilog="Start with: diffusionlm quickstart",
    )
    verbs = parser.add_subparsers(metavar="command", required=True)

    def verb(name: str, run: Callable[[argparse.Namespace], int], help: str, *, overrides: bool = False, **more: Any) -> Any:
        command = verbs.add_parser(
            name, help=help, description=help, formatter_class=argparse.RawDescriptionHelpFormatter, **more
        )
        command.set_defaults(run=run, takes_overrides=overrides, known=command._option_string_actions)
        return command

    command = verb(
        "quickstart", _quickstart, "Train on the embedded corpus for a few minutes, write texts, say how good they are."
    )
    command.add_argument("--out", default="runs/quickstart", metavar="FOLDER", help="the run's folder (%(default)s)")
    command.add_argument("--minutes", type=float, default=4.2, help="time for training on this machine (%(default)s)")
    command.add_argument("--steps", type=int, help="train exactly so many steps, whatever the time")
    command.add_argument("--texts", type=int, default=500, help="texts to write and judge (%(default)s)")

    command = verb(
        "train", _train, "Train a model, or go on with a run that was stopped (the same command again).", overrides=True,
        epilog=_OVERRIDES.format(example="train --config configs/e2e-small.yaml --training.steps 500 --data.corpus.folder e2e"),
    )  # fmt: skip
    command.add_argument("--config", action="append", default=[], metavar="FILE", help="YAML with settings; may be repeated")
    command.add_argument("--out", required=True, metavar="FOLDER", help="the run's folder: model, log, samples, checkpoints")
    command.add_argument("--init-from", metavar="MODEL", help="fine-tune this model folder on the corpus")

    command = verb(
        "generate", _generate, "Write texts with a trained model: JSON lines on stdout, each text as soon as it is known.",
        overrides=True, epilog=_OVERRIDES.format(example="generate runs/quickstart --sampler.name ddim --sampler.eta 0.5"),
    )  # fmt: skip
    command.add_argument("model", help="a model folder, or a run's")
    command.add_argument("--count", "-n", type=int, default=10, help="texts to write (%(default)s)")
    command.add_argument("--seed", type=int, help="the same seed gives the same texts (0)")
    command.add_argument("--steps", type=int, help="from noise to text: more is better and slower (the model's default)")
    command.add_argument("--passes", type=int, help="network evaluations in each step (the model's default)")
    command.add_argument("--sampler", help="see: diffusionlm show samplers")
    command.add_argument("--temperature", type=float, help="below 1 is more fluent and less diverse (1)")
    command.add_argument("--step-temperature", type=float, help="of the words each step moves toward (the temperature)")
    command.add_argument("--sweeps", type=int, help="sweeps that ask again for each word of the finished text")
    command.add_argument("--length", type=int, help="tokens a text; otherwise drawn as in the training texts")
    command.add_argument("--candidates", type=int, help="of which the one most like the others is kept (1)")
    command.add_argument("--control", action="append", default=[], metavar="EXPRESSION", dest="controls",
                         help="what is asked: food=Japanese, 'Length(20) & ~Words(\"cheap\")'; may be repeated")  # fmt: skip
    command.add_argument("--targets", metavar="FILE",
                         help=".jsonl or .yaml of texts to ask for, each with its controls; --count of each")  # fmt: skip
    command.add_argument("--annotator", metavar="SPEC",
                         help="what reads tags and parses of finished texts, to check them: grammar, the embedded corpus's "
                              "own (default), words, or '{name: tagger, folder: F}'; see: show annotators")  # fmt: skip
    command.add_argument("--strength", type=float, help="of controls that steer by gradients; 0 does not steer (1)")
    command.add_argument("--particles", type=int, help="copies of a text that compete where a control can only score")
    command.add_argument("--ensure", type=int, default=1, metavar="TRIES",
                         help="write up to so many texts for each until one passes every check (%(default)s)")  # fmt: skip
    command.add_argument("--clamp", action="store_const", const=True, help="move each vector to its nearest word on the way")
    command.add_argument("--batch-size", type=int, help="texts at a time (128)")
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps ... (%(default)s)")
    command.add_argument("--dtype", default="fp32", help="fp32 or bf16 (%(default)s)")
    command.add_argument("--watch", action="store_true", help="show noise become words in the terminal, on stderr")

    command = verb(
        "score", _score, "Say how likely a model finds texts (a bound, or exactly): JSON lines on stdout, a summary on stderr.",
        epilog="Tokens are the words and one end a text. A text longer than the model reads is refused with its line; a word\n"
        "that the model does not know costs what [UNK] costs, and is counted.",
    )  # fmt: skip
    command.add_argument("model", help="a model folder, or a run's")
    command.add_argument(
        "file", help="texts: .txt (one a line), .jsonl, .csv, .parquet, each but the last also .gz; - is stdin"
    )
    command.add_argument("--column", default="text", help="of the file, with the texts (%(default)s)")
    command.add_argument("--strata", type=int, default=128, help="noise levels a text: more is more precise (%(default)s)")
    command.add_argument("--orders", type=int, default=0, metavar="N",
                         help="let words leave the noise in turn, in N random orders; 0 is together (%(default)s)")  # fmt: skip
    command.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    command.add_argument("--batch-size", type=int, default=64, help="noisy copies of a text at a time (%(default)s)")
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps ... (%(default)s)")
    command.add_argument("--dtype", default="fp32", help="fp32 or bf16 (%(default)s)")

    command = verb(
        "evaluate", _evaluate, "Judge models or any system's texts beside real text: fluency, diversity, likelihood.",
        overrides=True,
        epilog=_OVERRIDES.format(example="evaluate runs/e2e --judge runs/judge --steps 32 128 --sampling.sampler ddim"),
    )  # fmt: skip
    command.add_argument("models", nargs="*", metavar="MODEL", help="model folders, or runs'; the first is compared with")
    command.add_argument("--judge", required=True, metavar="FOLDER", help="a causal language model, or its run's folder")
    command.add_argument("--texts", action="append", default=[], metavar="FILE",
                         help="texts of another system (.txt, .jsonl, .csv); may be repeated")  # fmt: skip
    command.add_argument("--temperatures", type=float, nargs="+", metavar="T", help="of the sampling (0.7 0.8 0.9 1.0)")
    command.add_argument("--steps", type=int, nargs="+", metavar="N", help="of a diffusion model (its default)")
    command.add_argument("--count", "-n", type=int, help="texts a row, and real texts beside them (500)")
    command.add_argument("--seed", type=int, help="of the texts, and of the choice of real ones (0)")
    command.add_argument("--strata", type=int, help="noise levels a text in the likelihood's bound (128)")
    command.add_argument("--orders", type=int, help="in which words leave the noise in turn, for a second bound; 0: none (8)")
    command.add_argument("--controls", action="append", default=[], metavar="FILE",
                         help="measure control: a task of configs/control, or .jsonl of targets; may be repeated")  # fmt: skip
    command.add_argument("--targets-count", type=int, metavar="M", help="of each task, the first M targets (the task's)")
    command.add_argument("--samples", type=int, metavar="N", help="texts a target (the task's; 10 for .jsonl)")
    command.add_argument("--strengths", type=float, nargs="+", metavar="W", help="of the guidance: a row for each")
    command.add_argument("--split", help="the real texts' split of the corpus (validation)")
    command.add_argument("--bound-texts", type=int, metavar="N", help="real texts whose likelihood is bounded (200)")
    command.add_argument("--no-bound", dest="bound_texts", action="store_const", const=0, help="leave the likelihood out")
    command.add_argument("--config", action="append", default=[], metavar="FILE",
                         help="YAML that names the corpus, where no model is a run's folder; may be repeated")  # fmt: skip
    command.add_argument("--out", metavar="FOLDER", help="report, figures, texts; continued if there (a run's evaluation/)")
    command.add_argument("--json", action="store_true", help="print JSON, not a table")
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps ... (%(default)s)")
    command.add_argument("--dtype", default="fp32", help="of the models: fp32 or bf16 (%(default)s)")

    command = verb(
        "show", _show, "Show every setting with its value, or the members of a family of components.", overrides=True,
        epilog="Families: " + ", ".join(FAMILIES),
    )  # fmt: skip
    command.add_argument("what", nargs="?", default="config", metavar="config|FAMILY", help="(%(default)s)")
    command.add_argument("--config", action="append", default=[], metavar="FILE", help="YAML with settings; may be repeated")
    return parser


_OVERRIDES = """Any setting can be given as --its.dotted.name value; `diffusionlm show` lists them all.
Example: diffusionlm {example}"""


def _split(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Part dotted overrides, ``--a.b value`` or ``--a.b=value``, from the words that argparse knows."""
    words, overrides, rest = [], [], list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word[2:].partition("=")
        if not (word.startswith("--") and "." in name):
            words.append(word)
            continue
        if not equals:
            if not rest:
                raise UserError(f"--{name}: a value is expected after it")
            value = rest.pop(0)
        overrides.append((name, value))
    return words, overrides


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one sentence, as everywhere else."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def _quiet_libraries() -> None:
    """Silence the libraries' own progress bars and notices: loading a file of a few megabytes is no news."""
    import datasets  # type: ignore[import-untyped]
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _quickstart(options: argparse.Namespace) -> int:
    from diffusionlm.restaurants.quickstart import quickstart

    for name in ("steps", "texts"):
        if (count := getattr(options, name)) is not None and count < 1:
            raise UserError(f"--{name}: expected at least 1, got {count}")
    quickstart(options.out, options.steps, options.minutes, options.texts)
    return 0


def _train(options: argparse.Namespace) -> int:
    from diffusionlm.training.run import read_config, train

    overrides = list(options.overrides)
    if options.init_from:
        overrides.append(("init_from", options.init_from))
    return 0 if train(read_config(options.config, overrides), options.out) else 130


def _generate(options: argparse.Namespace) -> int:
    from diffusionlm.controls import read_controls, target_rows
    from diffusionlm.data.annotators import Annotator
    from diffusionlm.pipelines.auto import open_pipeline
    from diffusionlm.pipelines.base import SamplingConfig, saved_sampling
    from diffusionlm.pipelines.diffusion import Pipeline

    if options.count < 1:
        raise UserError(f"--count: expected at least 1, got {options.count}")
    if options.ensure < 1:
        raise UserError(f"--ensure: expected at least 1 try a text, got {options.ensure}")
    plain = to_plain(saved_sampling(options.model))
    flags = {f.name: f.name for f in fields(SamplingConfig)}
    flags |= {"strength": "guidance.strength", "particles": "particles.count"}
    given = [(name, str(value)) for flag, name in flags.items() if (value := getattr(options, flag, None)) is not None]
    sampling = build(SamplingConfig, override(override(plain, given), options.overrides), "sampling")
    pipeline = open_pipeline(options.model, options.device, options.dtype)
    if options.annotator is not None and isinstance(pipeline, Pipeline):
        annotator = override({"annotator": None}, [("annotator", options.annotator)])["annotator"]
        annotator = build(Annotator, annotator, "--annotator")
        pipeline.binding = replace(pipeline.binding, annotator=annotator)
    watch = _watcher() if options.watch else None
    always = read_controls(options.controls)
    targets = [("", always)]
    if options.targets is not None:
        targets = [(place, (*always, *controls)) for place, _, controls in target_rows(options.targets)]
        if isinstance(pipeline, Pipeline):
            check_targets(pipeline, targets, sampling)
    for number, (_, asked) in enumerate(targets):
        told = {} if options.targets is None else {"target": number}
        for row in pipeline.stream(options.count, sampling, watch, asked, options.ensure):
            print(json.dumps({**told, **asdict(row)}, ensure_ascii=False), flush=True)
    return 0


def check_targets(pipeline: Pipeline, targets: Sequence[tuple[str, tuple[Control, ...]]], sampling: SamplingConfig) -> None:
    """Check that each target can be asked, before any is. Raises UserError with its place."""
    for place, asked in targets:
        try:
            pipeline.steering(asked, sampling)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None


def _score(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from diffusionlm.data.corpora import read_texts
    from diffusionlm.evaluation.scoring import ScoringConfig, score, summary

    settings = ScoringConfig(**{f.name: getattr(options, f.name) for f in fields(ScoringConfig)})
    places, texts = zip(*read_texts(options.file, options.column), strict=True)
    bounds = []
    scored = score(options.model, texts, settings, places=places)
    for index, (text, bound) in enumerate(tqdm(scored, total=len(texts), desc="scoring", unit="text", disable=None)):
        figures = {"length_nats" if name == "length" else name: value for name, value in asdict(bound).items()}
        print(json.dumps({"text": text, "index": index, "nats": bound.nats, **figures}, ensure_ascii=False), flush=True)
        bounds.append(bound)
    print(summary(bounds), file=sys.stderr)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from diffusionlm.evaluation.benchmark import EvaluationConfig, evaluate
    from diffusionlm.evaluation.report import table

    if options.controls:
        return _evaluate_control(options)
    if not (options.models or options.texts):
        raise UserError("evaluate: expected a model's folder, or --texts FILE")
    for name in ("targets_count", "samples", "strengths"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: this is of control; say also --controls FILE")
    given = {f.name: value for f in fields(EvaluationConfig) if (value := getattr(options, f.name, None)) is not None}
    report = evaluate(options.judge, options.models, options.texts, build(EvaluationConfig, given), **_evaluated(options))
    print(json.dumps(report.plain(), indent=2, ensure_ascii=False) if options.json else table(report), end="\n" * options.json)
    return 0


def _evaluate_control(options: argparse.Namespace) -> int:
    from diffusionlm.evaluation.control.evaluation import ControlConfig, evaluate_control
    from diffusionlm.evaluation.control.report import control_table
    from diffusionlm.evaluation.control.tasks import read_tasks

    if not options.models:
        raise UserError("evaluate: expected the folder of a model to be asked")
    for name in ("texts", "temperatures", "steps", "count", "split", "bound_texts", "strata", "orders"):
        if getattr(options, name):
            raise UserError(
                f"--{name.replace('_', '-')}: does not go with --controls; see --samples, --sampling.steps and alike"
            )
    given = {f.name: value for f in fields(ControlConfig) if (value := getattr(options, f.name)) is not None}
    changes = [(key, value) for key, value in options.overrides if key.startswith(("annotator.", "task."))]
    options.overrides = [change for change in options.overrides if change not in changes]
    tasks = [task for path in options.controls for task in read_tasks(path, changes)]
    report = evaluate_control(options.judge, options.models, tasks, build(ControlConfig, given), **_evaluated(options))
    shown = json.dumps(report.plain(), indent=2, ensure_ascii=False) if options.json else control_table(report)
    print(shown, end="\n" * options.json)
    return 0


def _evaluated(options: argparse.Namespace) -> dict[str, Any]:
    """Return what both kinds of evaluation are given: corpus, folder, settings of the sampling, device."""
    from diffusionlm.evaluation.provenance import config_of
    from diffusionlm.training.run import read_config

    sampling = [(key.removeprefix("sampling."), value) for key, value in options.overrides if key.startswith("sampling.")]
    rest = [(key, value) for key, value in options.overrides if not key.startswith("sampling.")]
    corpus = None
    for key, _ in rest:
        if not key.startswith("data.corpus"):
            raise UserError(f"--{key}: expected sampling.NAME or data.corpus.NAME: an evaluation has no other settings")
    if options.config or rest:
        paths = options.config or list(filter(None, [config_of([*options.models, options.judge])]))
        corpus = read_config(paths, rest).data.corpus
    out = options.out or _evaluation_folder(options.models, "control" if options.controls else "evaluation")
    return {"corpus": corpus, "out": out, "sampling": sampling, "device": options.device, "dtype": options.dtype}


def _evaluation_folder(models: Sequence[str], name: str) -> str | None:
    """Return where an evaluation goes without --out: into the run's folder; other systems' texts need none."""
    if not models:
        return None
    if len(models) > 1 or not os.path.isfile(os.path.join(models[0], "config.yaml")):
        raise UserError("--out: expected a folder for what is found (it has a default for a single run's folder only)")
    return os.path.join(models[0], name)


def _watcher() -> Callable[[State, list[str]], None]:
    """Return a callback that redraws the first texts of a batch in place, step by step."""
    drawn = 0

    def draw(state: State, texts: list[str]) -> None:
        nonlocal drawn
        width = os.get_terminal_size(sys.stderr.fileno()).columns if sys.stderr.isatty() else 120
        lines = [f"t = {state.t:.2f}", *(text[: width - 3] for text in texts[:8])]
        up = f"\x1b[{drawn}A" if drawn and sys.stderr.isatty() else ""
        sys.stderr.write(up + "".join(f"\x1b[2K  {line}\n" if sys.stderr.isatty() else f"  {line}\n" for line in lines))
        sys.stderr.flush()
        drawn = len(lines)

    return draw


def _show(options: argparse.Namespace) -> int:
    import yaml

    from diffusionlm.training.run import read_config

    if options.what == "config":
        plain = to_plain(read_config(options.config, options.overrides))
        print(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), end="")
        return 0
    if options.what not in FAMILIES:
        raise UserError(f"show: nothing is called {options.what!r}{nearest(options.what, ['config', *FAMILIES])}")
    module, _, name = FAMILIES[options.what].partition(":")
    family = getattr(__import__(module, fromlist=[name]), name)
    for member, kind in family.kinds().items():
        print(f"{member}: {(kind.__doc__ or '').splitlines()[0]}")
        for field in fields(kind):
            print(f"    {field.name}: {field.type}" + ("" if repr(field.default).startswith("<") else f" = {field.default}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
