"""The command line: ``diffusionlm quickstart | train | generate | show``.

Results go to stdout, everything else to stderr. A mistake of the user's is one sentence and exit status 2, Ctrl-C is 130.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, NoReturn

from diffusionlm.config import UserError, build, nearest, override, to_plain

if TYPE_CHECKING:
    from diffusionlm.sampling import State

FAMILIES = {  # what ``show`` lists, and where it lives
    "models": "diffusionlm.spec:ModelSpec",
    "schedules": "diffusionlm.schedule:NoiseSchedule",
    "samplers": "diffusionlm.sampling:Sampler",
    "backbones": "diffusionlm.backbone:Backbone",
    "objectives": "diffusionlm.objective:ObjectiveConfig",
    "optimizers": "diffusionlm.optimizer:OptimizerConfig",
    "corpora": "diffusionlm.data:Corpus",
    "tokenizers": "diffusionlm.tokenizer:TokenizerRecipe",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status: 0, 1 (a defect of ours raises), 2 (the user's mistake), 130 (Ctrl-C)."""
    # Threads that spin while they wait make training many times slower on a busy machine; PyTorch reads this when it
    # is first imported, which is why nothing above imports it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
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
    command.add_argument("--minutes", type=float, default=3.8, help="time for training on this machine (%(default)s)")
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
    command.add_argument(
        "--steps", type=int, help="network evaluations a text: more is better and slower (the model's default)"
    )
    command.add_argument("--sampler", help="see: diffusionlm show samplers")
    command.add_argument("--temperature", type=float, help="below 1 is more fluent and less diverse (1)")
    command.add_argument("--length", type=int, help="tokens a text; otherwise drawn as in the training texts")
    command.add_argument("--candidates", type=int, help="of which the one most like the others is kept (1)")
    command.add_argument("--clamp", action="store_const", const=True, help="move each vector to its nearest word on the way")
    command.add_argument("--batch-size", type=int, help="texts at a time (128)")
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps ... (%(default)s)")
    command.add_argument("--dtype", default="fp32", help="fp32 or bf16 (%(default)s)")
    command.add_argument("--watch", action="store_true", help="show noise become words in the terminal, on stderr")

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
    from diffusionlm.quickstart import quickstart

    for name in ("steps", "texts"):
        if (count := getattr(options, name)) is not None and count < 1:
            raise UserError(f"--{name}: expected at least 1, got {count}")
    quickstart(options.out, options.steps, options.minutes, options.texts)
    return 0


def _train(options: argparse.Namespace) -> int:
    from diffusionlm.run import read_config, train

    overrides = list(options.overrides)
    if options.init_from:
        overrides.append(("init_from", options.init_from))
    return 0 if train(read_config(options.config, overrides), options.out) else 130


def _generate(options: argparse.Namespace) -> int:
    from diffusionlm.kinds import open_pipeline
    from diffusionlm.pipeline import SamplingConfig, saved_sampling

    if options.count < 1:
        raise UserError(f"--count: expected at least 1, got {options.count}")
    plain = to_plain(saved_sampling(options.model))
    flags = [f.name for f in fields(SamplingConfig) if getattr(options, f.name, None) is not None]
    plain = override(plain, [(name, str(getattr(options, name))) for name in flags])
    sampling = build(SamplingConfig, override(plain, options.overrides), "sampling")
    pipeline = open_pipeline(options.model, options.device, options.dtype)
    watch = _watcher() if options.watch else None
    for row in pipeline.stream(options.count, sampling, watch):
        print(json.dumps(asdict(row), ensure_ascii=False), flush=True)
    return 0


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

    from diffusionlm.run import read_config

    if options.what == "config":
        plain = to_plain(read_config(options.config, options.overrides))
        print(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), end="")
        return 0
    if options.what not in FAMILIES:
        raise UserError(f"show: nothing is called {options.what!r}{nearest(options.what, ['config', *FAMILIES])}")
    module, _, name = FAMILIES[options.what].partition(":")
    family = getattr(__import__(module, fromlist=[name]), name)
    for member, kind in family.members.items():
        print(f"{member}: {(kind.__doc__ or '').splitlines()[0]}")
        for field in fields(kind):
            print(f"    {field.name}: {field.type}" + ("" if repr(field.default).startswith("<") else f" = {field.default}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
