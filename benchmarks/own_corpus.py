"""Settings that fit a corpus by themselves against settings chosen by hand: the validation loss after equal training time.

    python benchmarks/own_corpus.py texts.txt [--minutes 20] [--jobs 2]

The row *automatic* is ``train --data.corpus texts.txt --minutes 20``; the others are what a user would try by hand. All train
on one thread for equal CPU time, and keep the weights of their best evaluation. The loss is the diffusion term of the bound at
fixed noise levels (see docs/training.md) over the same held-out texts of at most 60 words, in nats per character, since rows
differ in their tokens. A word that the tokenizer does not know would cost a row next to nothing: its letters are counted, under
a 5-gram model of the letters of the training texts' words. Interrupted runs resume.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, exit_status, file_name, in_processes, load_averaged, with_minutes, with_steps

from diffusionlm.data.batches import encode, encodings
from diffusionlm.data.tokenizers import split_words
from diffusionlm.evaluation.ngrams import NGrams
from diffusionlm.evaluation.provenance import machine
from diffusionlm.files import write_text
from diffusionlm.training.automatic import EVALUATIONS, automatic
from diffusionlm.training.checkpoints import BEST, EMA, newest_checkpoint
from diffusionlm.training.run import RunConfig, prepare, read_config, train
from diffusionlm.training.validation import evaluate_terms

AUTOMATIC = "automatic"
LONGEST = 60  # words of a text that is measured


def _by_hand(vocab_size: int, layers: int, width: int, dropout: float, tokens: int) -> dict[str, str]:
    network = (
        f"{{name: leave-one-out, layers: {layers}, query_layers: 2, width: {width}, heads: {width // 32}, dropout: {dropout}}}"
    )
    tokenizer = f"{{name: bpe, vocab_size: {vocab_size}}}" if vocab_size else "words"
    return {"data.tokenizer": tokenizer, "model.backbone": network, "training.batch_tokens": str(tokens)}


ROWS: dict[str, dict[str, str]] = {
    AUTOMATIC: {},
    "the library's defaults": {},
    "words, dropout 0.2": _by_hand(0, 3, 192, 0.2, 1024),
    "BPE 4000, no dropout": _by_hand(4000, 3, 192, 0.0, 1024),
    "BPE 4000, dropout 0.2": _by_hand(4000, 3, 192, 0.2, 1024),
    "BPE 4000, dropout 0.3": _by_hand(4000, 3, 192, 0.3, 1024),
    "BPE 2000, dropout 0.2": {**_by_hand(2000, 3, 192, 0.2, 1024), "data.max_length": "112"},
    "BPE 8000, dropout 0.3": _by_hand(8000, 3, 192, 0.3, 1024),
    "smaller, dropout 0.1": _by_hand(4000, 2, 128, 0.1, 768),
    "larger, dropout 0.3": _by_hand(4000, 4, 256, 0.3, 1536),
}


def config_of(row: str, corpus: str, minutes: float, steps: int | None = None) -> RunConfig:
    """Return a row's config, with ``steps``, or as many as one thread computes in ``minutes`` of CPU time."""
    given = {"data.corpus": corpus, "training.threads": "1"}
    if row == AUTOMATIC:
        config = automatic(read_config([], [*given.items()]), given, minutes)
    else:
        config = read_config([], [*given.items(), ("data.max_length", "96"), *ROWS[row].items()])
    config = with_steps(config, steps) if steps else with_minutes(config, minutes)
    every = max(1, config.training.steps // EVALUATIONS)
    warmup = min(config.training.warmup, max(1, config.training.steps // 10))
    return replace(config, training=replace(config.training, warmup=warmup, evaluate_every=every, save_every=every))


def trained(row: str, corpus: str, folder: Path, minutes: float, steps: int | None) -> None:
    """Train a row, or resume it. Raises KeyboardInterrupt where Ctrl-C stopped the training."""
    torch.set_num_threads(1)
    if (folder / "config.yaml").exists():
        config = read_config([folder / "config.yaml"])
    else:
        config = config_of(row, corpus, minutes, steps)
    if not train(config, folder, write_samples=False):
        raise KeyboardInterrupt


def measured(folder: Path) -> dict[str, Any]:
    """Return the loss of the weights that a finished run keeps, per token and character, and facts about the run."""
    config = read_config([folder / "config.yaml"])
    torch.manual_seed(0)
    splits = config.data.corpus.load()
    texts = [text for text in splits["validation"]["text"][:] if len(split_words(text)) <= LONGEST]
    model, tokenizer, rows, _ = prepare(config)
    objective = config.objective.build(model)
    newest = newest_checkpoint(folder)
    assert newest is not None
    load_averaged(objective, newest / BEST if (newest / BEST).exists() else newest / EMA)
    ids = encode(texts, tokenizer, config.data.max_length, "error").ids
    found = evaluate_terms(objective, ids, config.training.batch_tokens, torch.device("cpu"), bf16=False)
    tokens = sum(map(len, ids))
    words = [word for text in texts for word in split_words(text)]
    names, unk = sorted({*words}), tokenizer.unk_token_id
    known = {name: unk not in each.ids for name, each in zip(names, encodings(names, tokenizer), strict=True)}
    unknown = [word for word in words if not known[word]]
    spelled = sum(letters(splits["train"]["text"][:], unknown))
    return {
        "bound per token": found["bound"],
        "bound per character": (found["bound"] * tokens + spelled) / sum(map(len, texts)),
        "unknown": len(unknown) / len(words),
        "of unknown": spelled / sum(map(len, texts)),
        "steps": config.training.steps,
        "passes": config.training.steps * config.training.batch_tokens / sum(map(len, rows)),
        "parameters": sum(each.numel() for each in model.parameters()),
        "tokens": len(tokenizer),
    }


def letters(texts: Sequence[str], words: Sequence[str]) -> list[float]:
    """Return the nats of each of ``words`` under a 5-gram model of the letters of the words of ``texts``, each counted once."""
    model = NGrams([" ".join(word) for word in sorted({word for text in texts for word in split_words(text)})], 5)
    return [bound.nats for bound in model.score([" ".join(word) for word in words])]


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the rows, the lowest loss first, each with its ratio to the lowest one of those by hand."""
    best = min((row["bound per character"] for name, row in rows.items() if name != AUTOMATIC), default=None)
    header = (
        "nats/character", "to best by hand", "of unknown", "nats/token", "unknown", "tokens", "parameters", "steps", "passes"
    )  # fmt: skip
    lines = [f"{'':<28}" + "".join(f"{name:>16}" for name in header)]
    for name, row in sorted(rows.items(), key=lambda each: float(each[1]["bound per character"])):
        figures = (
            f"{row['bound per character']:.4f}", f"{row['bound per character'] / best:.3f}" if best else "-",
            f"{row['of unknown']:.4f}", f"{row['bound per token']:.3f}", f"{row['unknown']:.2%}", f"{row['tokens']:,}",
            f"{row['parameters']:,}", f"{row['steps']:,}", f"{row['passes']:.1f}",
        )  # fmt: skip
        lines.append(f"{name:<28}" + "".join(f"{figure:>16}" for figure in figures))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, or train one row in this process (``--worker``)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="texts, as for train --data.corpus")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"rows to measure (default: all): {'; '.join(ROWS)}")
    parser.add_argument("--minutes", type=float, default=20, help="CPU time of each training run (%(default)s)")
    parser.add_argument("--steps", type=int, help="training steps of every run instead (for a quick run)")
    parser.add_argument("--jobs", type=int, default=2, help="parallel training runs (%(default)s)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--runs", default="runs/benchmarks/own-corpus", help="folder of the runs (%(default)s)")
    parser.add_argument("--results", default=str(RESULTS), help="folder of the results (%(default)s)")
    options = parser.parse_args(arguments)
    if unknown := [row for row in options.rows if row not in ROWS]:
        parser.error(f"unknown row {unknown[0]!r}; choose from {', '.join(ROWS)}")
    names, folder = options.rows or list(ROWS), Path(options.runs)
    budget = f"{options.steps}-steps" if options.steps else f"{options.minutes:g}-minutes"
    path = Path(options.results) / "own-corpus" / f"{Path(options.corpus).stem}-{budget}.json"

    def run() -> list[str]:
        if options.worker:
            trained(names[0], options.corpus, folder / file_name(names[0]), options.minutes, options.steps)
            return []
        rows = json.loads(path.read_text())["rows"] if path.exists() else {}
        flags = ["--worker", f"--minutes={options.minutes}", f"--runs={folder}"]
        flags += [f"--steps={options.steps}"] if options.steps else []
        missing = [name for name in names if name not in rows]
        commands = {name: [sys.executable, __file__, options.corpus, name, *flags] for name in missing}
        failed = in_processes(commands, options.jobs, folder)
        rows |= {name: measured(folder / file_name(name)) for name in missing if name not in failed}
        write_text(path, json.dumps({"rows": rows, "machine": machine()}, indent=2) + "\n")
        print(table(rows), flush=True)
        return failed

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
