"""Training speed in real tokens per second, paired in one run: ours, the published arrangement, and what the machine can do.

    python benchmarks/speed.py --folder E2E [--rounds 4] [--threads 1]

*Published* is Diffusion-LM's arrangement, built here from public parts: the BERT encoder of transformers (12 layers, 768 wide,
87 M parameters), 64 positions padded, batches of 64 texts, fp32, AdamW, regression of x_0 and rounding (Li et al. 2022,
appendix B). The rows *ours* train the recipe of configs/e2e-small.yaml (batches by tokens and length, bf16 where the machine
has it): with that network, on as many texts per update and with AdamW too, and with its own. *Bare* is forward, backward and
optimizer on the same batches without the training loop, *matrix product* is what the network's multiplications alone would take
at the speed of a large one (6 operations per parameter and token; *ours* denoises 90 % of its texts twice, which adds 2).

Rounds alternate between the rows, so that other jobs of the machine slow all of them; ratios are medians over rounds. Without
``--folder`` the texts are those of the restaurants corpus, whose texts are longer and padded less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, ROOT, exit_status
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from diffusionlm.config import UserError
from diffusionlm.data.batches import TokenBudgetBatches
from diffusionlm.evaluation.provenance import machine
from diffusionlm.files import write_text
from diffusionlm.models.backbones import Bert
from diffusionlm.models.diffusion import ModelConfig
from diffusionlm.models.spec import Rows
from diffusionlm.training.optimizers import AdamW, has_bf16
from diffusionlm.training.run import RunConfig, prepare, read_config
from diffusionlm.training.trainer import DiffusionTrainer

POSITIONS, TEXTS, DIMENSION, T = 64, 64, 16, 2000
SKIPPED = 2  # steps at the start of each measurement


class Published(nn.Module):
    """Diffusion-LM's denoiser and its loss for ids (B, 64), padding modelled as a word."""

    def __init__(self, words: int, layers: int = 12, width: int = 768) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, DIMENSION)
        self.up = nn.Sequential(nn.Linear(DIMENSION, width), nn.Tanh(), nn.Linear(width, width))
        self.down = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, DIMENSION))
        self.position, self.time = nn.Embedding(512, width), nn.Embedding(T + 1, width)
        heads = max(1, width // 64)
        config = BertConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width)
        config._attn_implementation = "sdpa"
        self.encoder = BertEncoder(config)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the loss: regression of x_0 at one random step per text, and rounding."""
        x0 = self.embedding(ids)
        t = torch.randint(1, T + 1, (len(ids),))
        share = (1 - (t / T + 1e-4).sqrt()).clamp(min=0)[:, None, None]  # the sqrt schedule
        xt = share.sqrt() * x0 + (1 - share).sqrt() * torch.randn_like(x0)
        hidden = self.up(xt) + self.position.weight[: ids.shape[1]] + self.time(t)[:, None]
        predicted = self.down(self.encoder(hidden).last_hidden_state)
        logits = x0 @ self.embedding.weight.T
        return F.mse_loss(predicted, x0) + F.cross_entropy(logits.flatten(0, 1), ids.flatten())


def published(rows: Rows, words: int, layers: int, width: int) -> Iterator[int]:
    """Train the published arrangement; yield the real tokens of each step."""
    model = Published(words, layers, width)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    draw = torch.Generator().manual_seed(0)
    while True:
        batch = [rows[i] for i in torch.randint(len(rows), (TEXTS,), generator=draw).tolist()]
        ids = torch.tensor([[*row[:POSITIONS], *[0] * (POSITIONS - len(row))] for row in batch])
        loss = model(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield sum(min(len(row), POSITIONS) for row in batch)


def bare(config: RunConfig, model: Any, rows: Rows) -> Iterator[int]:
    """Compute the objective, its gradient and the update on the batches of a run; yield the real tokens of each step."""
    objective = config.objective.build(model)
    objective.train()
    optimizer = config.training.optimizer.build(objective)
    batches = TokenBudgetBatches([len(row) for row in rows], config.training.batch_tokens, 10**6, 0)
    for batch in batches:
        inputs = objective.collate([rows[i] for i in batch])
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
            loss = torch.stack(list(objective(inputs).values())).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), config.training.clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        yield sum(len(rows[i]) for i in batch)


def timed(steps: Iterator[int], count: int) -> float:
    """Return the real tokens per second of ``count`` steps."""
    begun = time.perf_counter()
    return sum(next(steps) for _ in range(count)) / (time.perf_counter() - begun)


def trained(config: RunConfig, model: Any, rows: Rows, count: int) -> float:
    """Return the real tokens per second of ``count`` steps of the training loop, after a few others."""
    every = max(1, count // 2)
    training = replace(
        config.training, steps=SKIPPED * every + count, log_every=every, evaluate_every=10**9, sample_every=10**9,
        save_every=10**9, warmup=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        if not DiffusionTrainer(config.objective.build(model), training, Path(folder), rows, [], quiet=True).run():
            raise KeyboardInterrupt
        logged = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    rows_of_loss = [row for row in logged if "tokens" in row]
    first, last = rows_of_loss[SKIPPED - 1], rows_of_loss[-1]
    return float((last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"]))


def matrix_product(parameters: int, passes: float) -> float:
    """Return the tokens per second of a network's multiplications at the speed of a large matrix product."""
    dtype, size = torch.bfloat16 if has_bf16() else torch.float32, 1024
    one, other = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    _ = one @ other
    begun = time.perf_counter()
    for _ in range(10):
        _ = one @ other
    operations = 10 * 2 * size**3 / (time.perf_counter() - begun)
    return operations / (2 * passes * parameters)


def network_parameters(model: Any) -> int:
    """Return the number of weights in matrices that every token is multiplied by."""
    return sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name)


def measured(config: RunConfig, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the tokens per second of each row and round."""
    with redirect_stderr(StringIO()):
        built = {"own network": (config, *_built(config))}
        rows, words = built["own network"][2], built["own network"][1].config.vocabulary
        large = _large(config, options, rows)
        built = {"published network": (large, *_built(large)), **built}
    other = published(rows, words, options.layers, options.width)
    loops = {name: bare(each, model, rows) for name, (each, model, _) in built.items()}
    next(other), [next(loop) for loop in loops.values()]
    few, many = options.steps, 4 * options.steps
    found: dict[str, list[float]] = {}

    def add(row: str, value: float) -> None:
        found.setdefault(row, []).append(value)
        print(f"{row}: {value:,.0f} tokens/s", file=sys.stderr)

    for _ in range(options.rounds):
        add("published", timed(other, few))
        for name, (each, model, _) in built.items():
            count = few * 3 if name == "published network" else many
            add(f"ours, {name}", trained(each, model, rows, count))
            add(f"bare, {name}", timed(loops[name], count))
            add(f"matrix product, {name}", matrix_product(network_parameters(model), 3 + 0.9))
    return found


def _large(config: RunConfig, options: argparse.Namespace, rows: Rows) -> RunConfig:
    """Return the config with the published network and optimizer, on as many texts of the mean length per update."""
    assert isinstance(config.model, ModelConfig)
    heads = max(1, options.width // 64)
    network = Bert(layers=options.layers, width=options.width, heads=heads, feedforward=4 * options.width)
    tokens = TEXTS * round(statistics.fmean(map(len, rows)))
    training = replace(config.training, batch_tokens=tokens, optimizer=AdamW(learning_rate=1e-4))
    return replace(config, model=replace(config.model, backbone=network), training=training)


def _built(config: RunConfig) -> tuple[Any, Rows]:
    model, _, rows, _ = prepare(config)
    return model, rows


def ratios(found: dict[str, list[float]]) -> dict[str, float]:
    """Return the medians over rounds of the ratios that are of interest."""
    pairs: dict[str, tuple[str, str]] = {
        "ours / published, published network": ("ours, published network", "published"),
        "ours / published, own network": ("ours, own network", "published"),
        "loop / bare, published network": ("ours, published network", "bare, published network"),
        "loop / bare, own network": ("ours, own network", "bare, own network"),
        "bare / matrix product, published network": ("bare, published network", "matrix product, published network"),
        "bare / matrix product, own network": ("bare, own network", "matrix product, own network"),
    }
    median: Callable[[Iterator[float]], float] = statistics.median
    return {name: median(a / b for a, b in zip(found[one], found[other], strict=True)) for name, (one, other) in pairs.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and save it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="folder with E2E's CSV files (default: the restaurants corpus)")
    parser.add_argument("--rounds", type=int, default=4, help="measurements of each row (%(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="steps of a measurement of the published network (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    parser.add_argument("--layers", type=int, default=12, help="layers of the published network (%(default)s)")
    parser.add_argument("--width", type=int, default=768, help="width of the published network (%(default)s)")
    parser.add_argument("--results", default=str(RESULTS), help="folder of the results (%(default)s)")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.steps, options.threads, options.layers, options.width) < 1:
        raise UserError("--rounds, --steps, --threads, --layers, --width: expected 1 or more")
    torch.set_num_threads(options.threads)
    corpus = {"name": "e2e", "folder": options.folder} if options.folder else "restaurants"
    tokenizer = '{"name": "words", "min_count": 11}' if options.folder else '{"name": "words"}'
    changes = [("data.corpus", json.dumps(corpus)), ("data.tokenizer", tokenizer), ("training.threads", str(options.threads))]
    found = measured(read_config([ROOT / "configs" / "e2e-small.yaml"], changes), options)
    result = {"tokens_per_second": found, "ratios": ratios(found), "threads": options.threads, "machine": machine()}
    write_text(Path(options.results) / "speed" / "speed.json", json.dumps(result, indent=2) + "\n")
    for name, values in found.items():
        print(f"{name:<36}{statistics.median(values):>12,.0f} tokens/s  ({min(values):,.0f} to {max(values):,.0f})")
    for name, value in ratios(found).items():
        print(f"{name:<44}{value:>8.2f}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
