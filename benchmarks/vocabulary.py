"""Time and memory over the size of the vocabulary: compiling controls, a training step, controlled sampling.

    python benchmarks/vocabulary.py [--sizes 1000 11000 50000 128000] [--parts compile train generate]

The vocabularies are made-up words (pieces of words for byte pairs) and the models have random weights: a default backbone of
width 64 on word vectors of dimension 32, texts of 128 tokens. Each measurement runs in a process of its own, on one thread;
seconds are those of the CPU, and
its peak is that of the process, libraries included. Tables go to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import models
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import build
from diffusionlm.constraints.dfa import DFA
from diffusionlm.constraints.spelling import proper_texts
from diffusionlm.controls import Binding, Control, read_controls
from diffusionlm.core.objective import ObjectiveConfig
from diffusionlm.data.tokenizers import BLANK, SPECIAL_TOKENS, UNKNOWN, _untrained, finish
from diffusionlm.models.diffusion import DiffusionLM, ModelConfig
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.diffusion import Pipeline

SIZES = [1000, 11_000, 50_000, 128_000]
LONGEST, BATCH, TRAINED = 128, 32, 768  # tokens of a text, samples, tokens of a training batch
SIGNS = [*".,;:!?'\"()-", "'s", "n't"]
MODEL = {"dimension": 32, "backbone": {"name": "leave-one-out", "width": 64, "heads": 4}}


def made_up(count: int) -> list[str]:
    """Return different words of one to four syllables."""
    draw, found = random.Random(0), dict[str, None]()
    while len(found) < count:
        syllables = draw.choices((1, 2, 3, 4), (1, 2, 2, 1))[0]
        parts = ("bcdfghjklmnpqrstvwxz", "aeiouy", ["", "", "n", "r", "s"])
        found["".join(draw.choice(part) for _ in range(syllables) for part in parts)] = None
    return list(found)


def tokenizer_of(kind: str, size: int, longest: int = LONGEST) -> PreTrainedTokenizerFast:
    """Return a tokenizer of ``size`` tokens: ``words``, or ``pieces`` of words, which byte-pair encoding has."""
    words = made_up(size)
    letters = [*map(chr, range(ord("a"), ord("z") + 1)), BLANK, *"0123456789"] if kind == "pieces" else []
    pieces = [word if kind == "pieces" and number % 3 == 0 else BLANK + word for number, word in enumerate(words)]
    tokens = list(dict.fromkeys([*SPECIAL_TOKENS, *SIGNS, *letters, *pieces]))[:size]
    ids = {token: number for number, token in enumerate(tokens)}
    model = models.BPE(ids, [], unk_token=UNKNOWN) if kind == "pieces" else models.WordLevel(ids, unk_token=UNKNOWN)
    return finish(_untrained(model), longest, *SPECIAL_TOKENS)


def controls_of(kind: str) -> list[str]:
    """Return the expressions that are compiled."""
    a, b, c = made_up(3)
    found = [
        "Length(40)", f'Words("{a}")', f'Pattern(".* {a} .{{0,4}} {b} .*")', f'Infill("{a} {{}} {b} {{2-5}} {c} .")',
        f'Length(40) & Words("{a}")', f'~Words("{a}") & Length(10, 40)', f'Words("{a}") | Words("{b}")',
    ]  # fmt: skip
    return found


def new_model(
    tokenizer: PreTrainedTokenizerFast, longest: int = LONGEST, settings: Mapping[str, Any] | None = None
) -> DiffusionLM:
    """Return a model with random weights for texts of ``longest`` tokens; ``settings`` are those of ``ModelConfig``."""
    torch.manual_seed(0)
    rows = [torch.randint(4, len(tokenizer), (longest,)).tolist() for _ in range(50)]
    model = build(ModelConfig, MODEL if settings is None else settings).make(tokenizer, rows, longest)
    model.config.length_counts = [*[0] * longest, 1]
    return model


def seconds(action: Callable[[], Any]) -> float:
    """Return the seconds of CPU time that ``action`` takes."""
    start = time.process_time()
    action()
    return time.process_time() - start


def measure_compile(size: int, kind: str) -> dict[str, float]:
    """Time the facts that are computed once for a tokenizer, and each control after that."""
    tokenizer = tokenizer_of(kind, size)
    binding = Binding(build_model_stub(tokenizer), tokenizer)
    times = {"once for a tokenizer": seconds(lambda: proper_texts(tokenizer))}
    for expression in controls_of(kind):
        (control,) = read_controls(expression)
        times[expression] = seconds(partial(compiled, control, binding))
    return times


def compiled(control: Control, binding: Binding) -> DFA:
    """Return the automaton of a control and of all proper texts, as sampling compiles it."""
    automaton = control.compile(binding).automaton
    assert automaton is not None
    return automaton & proper_texts(binding.tokenizer)


def build_model_stub(tokenizer: PreTrainedTokenizerFast) -> DiffusionLM:
    """Return the smallest model, of which controls read the longest text."""
    settings = {"dimension": 1, "backbone": {"name": "transformer", "layers": 1, "width": 2, "heads": 1}, "cooccurrence": 0.0}
    return build(ModelConfig, settings).make(tokenizer, [[4, 4, 4]], LONGEST)


def measure_train(size: int, kind: str) -> dict[str, float]:
    """Time a training step (forward, backward, update) of ``TRAINED`` tokens, the median of several."""
    model = new_model(tokenizer_of(kind, size))
    objective = build(ObjectiveConfig, "cross-entropy").build(model)
    optimizer = torch.optim.AdamW(objective.parameters())
    rows = [[2, *torch.randint(4, size, (LONGEST - 2,)).tolist(), 3] for _ in range(TRAINED // LONGEST)]
    batch, times = objective.collate(rows), []

    def step() -> None:
        optimizer.zero_grad()
        torch.stack([*objective(batch).values()]).sum().backward()
        optimizer.step()

    for _number in tqdm(range(5), f"{size} tokens, training", leave=False):
        times.append(seconds(step))
    return {"seconds": sorted(times)[2]}


def measure_generate(size: int, kind: str) -> dict[str, float]:
    """Time ``BATCH`` samples with a constraint, in few steps."""
    tokenizer = tokenizer_of(kind, size)
    pipe = Pipeline(new_model(tokenizer).train(False), tokenizer, SamplingConfig(steps=2, passes=1, sweeps=1, batch_size=BATCH))
    word = made_up(1)[0]
    found: list[Any] = []
    taken = seconds(lambda: found.extend(pipe(BATCH, f'Words("{word}") & Length(120, 126)')))
    if not all(outcome.passed for row in found for outcome in row.controls):
        raise RuntimeError("a sample does not satisfy the constraint")
    return {"seconds": taken, "per sample and evaluation": taken / BATCH / 3}


PARTS: dict[str, Callable[[int, str], dict[str, float]]] = {
    "compile": measure_compile, "train": measure_train, "generate": measure_generate,
}  # fmt: skip


def measured(part: str, size: int, kind: str) -> dict[str, float]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--one", part, str(size), kind]
    child = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if child.returncode:
        sys.exit(f"vocabulary: {part} of {size} tokens failed: {child.stderr.strip()[-1000:]}")
    return dict(json.loads(child.stdout.strip().splitlines()[-1]))


def table(title: str, sizes: list[int], rows: dict[str, list[str]]) -> str:
    """Return a table with a column for each size."""
    head = [f"| {title} | {' | '.join(f'{size:,}' for size in sizes)} |", f"|---|{'---:|' * len(sizes)}"]
    return "\n".join([*head, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())])


def main() -> None:
    """Measure each part at each size and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        part, size, kind = arguments.one
        times = PARTS[part](int(size), kind)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of kilobytes
        print(json.dumps({**times, "peak": peak}))
        return
    sizes = arguments.sizes
    for kind in ("words", "pieces") if "compile" in arguments.parts else ():
        found = [measured("compile", size, kind) for size in tqdm(sizes, f"compile, {kind}")]
        rows = {name.replace("|", r"\|"): [f"{each[name]:.2f}" for each in found] for name in found[0] if name != "peak"}
        print(table(f"seconds to compile, {kind}", sizes, rows), end="\n\n", flush=True)
    rows = {}
    for part in (part for part in arguments.parts if part != "compile"):
        found = [measured(part, size, "words") for size in tqdm(sizes, part)]
        for name in found[0]:
            unit = "peak, GB" if name == "peak" else "s" if name == "seconds" else f"s {name}"
            rows[f"{part}, {unit}"] = [f"{each[name]:.2f}" for each in found]
    if rows:
        print(table("one thread", sizes, rows))


if __name__ == "__main__":
    main()
