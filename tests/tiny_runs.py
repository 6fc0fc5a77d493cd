"""A tiny corpus and a tiny run, shared by the tests of training and of the command line."""

import gzip
import json
from pathlib import Path

from diffusionlm.config import build, merge
from diffusionlm.training.run import RunConfig

ROOT = Path(__file__).parent.parent

TINY = {
    "data": {"max_length": 48},
    "model": {
        "dimension": 8,
        "backbone": {"name": "transformer", "layers": 1, "width": 16, "heads": 2, "expansion": 2},
    },
    "training": {
        "steps": 8,
        "batch_tokens": 256,
        "threads": 1,
        "precision": "fp32",
        "log_every": 1,
        "evaluate_every": 8,
        "evaluation_texts": 10,
        "sample_every": 8,
        "save_every": 2,
    },
    "sampling": {"steps": 4, "passes": 1, "sweeps": 0},
}


def restaurant_texts(count: int, split: str = "validation") -> list[str]:
    with gzip.open(ROOT / "data" / "restaurants" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(next(lines))["text"] for _ in range(count)]


def tiny_plain(folder: Path, **changes: object) -> dict[str, object]:
    """Return a plain config whose corpus is a text file in ``folder``; ``changes`` are merged into it."""
    corpus = folder / "texts.txt"
    if not corpus.exists():
        corpus.write_text("\n".join(restaurant_texts(200)))
    return merge(merge(TINY, {"data": {"corpus": str(corpus)}}), changes)


def tiny_config(folder: Path, **changes: object) -> RunConfig:
    return build(RunConfig, tiny_plain(folder, **changes))
