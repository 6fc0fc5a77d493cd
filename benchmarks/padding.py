"""What packing could save: the padding of bucketed batches, and text tokens per CPU second of these and of packed rows.

    python benchmarks/padding.py [FILE ...] [--speed]

The corpora are the restaurants, one of log-normal lengths (median 60, 5 to 500 tokens), and files of texts, one per line.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from diffusionlm.config import build
from diffusionlm.data.batches import TokenBudgetBatches
from diffusionlm.data.copies import tokenize
from diffusionlm.data.reading import read_text
from diffusionlm.restaurants.corpus import Restaurants
from diffusionlm.training.run import RunConfig, prepare

BATCHES = 400
SPEED = (("none", 512), ("wrap", 128), ("wrap", 512))  # data.packing and data.max_length


def lengths_of(texts: list[str]) -> npt.NDArray[np.int64]:
    """Return the number of tokens of each text, BOS and EOS counted."""
    return np.array([len(tokenize(text)) + 2 for text in texts if text.strip()])


def log_normal(count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Draw text lengths of a log-normal distribution."""
    drawn = np.exp(np.random.default_rng(seed).normal(np.log(60), 1.0, count))
    return np.clip(drawn, 5, 500).astype(np.int64)


def padding(lengths: npt.NDArray[np.int64], tokens: int) -> float:
    """Return the share of padding in the positions of bucketed batches of at most ``tokens``."""
    found = [lengths[rows] for rows in TokenBudgetBatches(lengths, tokens, BATCHES, seed=0)]
    return 1 - sum(int(each.sum()) for each in found) / sum(int(each.max()) * len(each) for each in found)


def speed(backbone: str, packing: str, longest: int, tokens: int, folder: Path) -> float:
    """Return the text tokens per CPU second of training on the log-normal corpus."""
    draw, path = np.random.default_rng(0), folder / "texts.txt"
    path.write_text("\n".join(" ".join(f"w{i}" for i in draw.integers(0, 300, n)) for n in log_normal(3000)))
    network = {"name": backbone, "width": 64, "heads": 4, "layers": 2}
    data = {"corpus": str(path), "max_length": longest, "packing": packing}
    plain = {"data": data, "model": {"cooccurrence": 0, "dimension": 32, "backbone": network}}
    config = build(RunConfig, plain)
    model, _, rows, _ = prepare(config)
    objective, seconds, seen = config.objective.build(model), 0.0, 0
    for number, batch in enumerate(TokenBudgetBatches([*map(len, rows)], tokens, 12 if tokens < 8192 else 4, seed=0)):
        inputs, start = objective.collate([rows[i] for i in batch]), time.process_time()
        torch.stack(list(objective(inputs).values())).sum().backward()
        if number:  # the first one allocates memory
            seconds, seen = seconds + time.process_time() - start, seen + int(inputs.mask.sum())
    return seen / seconds


def main() -> None:
    """Print the tables."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("files", nargs="*", metavar="FILE")
    options.add_argument("--speed", action="store_true", help="measure training too, in some minutes")
    given = options.parse_args()
    corpora = {"restaurants": lengths_of(Restaurants().load()["train"]["text"][:]), "log-normal": log_normal(100_000) + 2}
    corpora |= {Path(name).name: lengths_of(read_text(Path(name)).splitlines()) for name in given.files}
    print("| corpus | mean length | padding at 1,024 | at 8,192 |\n|---|---|---|---|")
    for name, lengths in corpora.items():
        print(f"| {name} | {lengths.mean():.0f} | {padding(lengths, 1024):.1%} | {padding(lengths, 8192):.1%} |")
    if given.speed:
        torch.set_num_threads(1)
        print("\n| backbone | batch_tokens | packing | max_length | text tokens per CPU second |\n|---|---|---|---|---|")
        with tempfile.TemporaryDirectory() as folder:
            for backbone in ("transformer", "leave-one-out"):
                for tokens in (1024, 8192):
                    for packing, longest in SPEED:
                        rate = speed(backbone, packing, longest, tokens, Path(folder))
                        print(f"| {backbone} | {tokens:,} | {packing} | {longest} | {rate:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
