"""Adapt a model of general sentences to film reviews with all weights and by LoRA, in equally many steps.

    NLTK_DATA=nltk_data python benchmarks/lora.py --stories stories.txt [--ranks 2 8 32] [--steps 1000]

NLTK_DATA contains NLTK's corpora/sentence_polarity, as for film_reviews.py, and corpora/brown; ``--stories`` is a text file
with a story or another text on each line. The base (configs/film-reviews.yaml) learns the sentences of Brown and the stories,
in lower case with blanks around punctuation as the reviews are, so that its pieces of words fit these. From it, one run trains
all weights on the reviews, and one for each rank trains an adapter. The judge LM (configs/film-reviews-judge.yaml) has read
all of them. All are trained on one thread, only if they are missing.

For each model, the first lines show the share of the weights that is trained; the table shows the judge's perplexity of samples
beside their diversity and the share of copies of training reviews. Reference texts are reviews of the test split.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from film_reviews import prepare, train_if_missing
from measure import RESULTS, exit_status
from nltk.corpus import brown
from safetensors.torch import load_file

from diffusionlm.config import build
from diffusionlm.data.corpora import Files
from diffusionlm.data.reading import read_text
from diffusionlm.evaluation.benchmark import EvaluationConfig, evaluate
from diffusionlm.evaluation.report import table
from diffusionlm.files import write_text
from diffusionlm.models.lora import WEIGHTS


def spaced(line: str) -> str:
    """Return a line in lower case, its words and punctuation marks apart."""
    return " ".join(re.findall(r"\w+(?:['’]\w+)*|[^\w\s]", line.lower()))


def sentences(stories: Path) -> list[str]:
    """Return the sentences of Brown and of a text file."""
    told = (part for line in read_text(stories).splitlines() for part in re.split(r"(?<=[.!?])\s+", line))
    found = [spaced(text) for text in (*(" ".join(words) for words in brown.sents()), *told)]
    return [text for text in found if len(text.split()) > 2]


def lines(texts: Iterable[str]) -> str:
    """Return texts as JSON lines."""
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


def prepare_base(folder: Path, stories: Path, reviews: dict[str, str]) -> dict[str, dict[str, str]]:
    """Write the base's texts, and these with the training ``reviews`` for the judge; return their paths by split."""
    found: dict[str, dict[str, str]] = {"general": {}, "joint": {}}
    general: list[str] = []
    for split in ("validation", "train"):
        for name, paths in found.items():
            paths[split] = str(folder / f"{name}-{split}.jsonl")
        if all(Path(paths[split]).exists() for paths in found.values()):
            continue
        if not general:
            general = sentences(stories)
            random.Random(0).shuffle(general)
        part = general[:1000] if split == "validation" else general[1000:]
        own = [json.loads(line)["text"] for line in Path(reviews[split]).read_text().splitlines()]
        write_text(Path(found["general"][split]), lines(part))
        write_text(Path(found["joint"][split]), lines([*part, *own]))
    return found


def trained_share(run: Path, base: Path) -> float:
    """Return the share of trained weights in a run that started from ``base``."""
    file = run / "model" / WEIGHTS
    if not file.exists():
        return 1.0
    added, fixed = (sum(weight.numel() for weight in load_file(path).values()) for path in (file, base / "model.safetensors"))
    return added / (added + fixed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the missing models, evaluate them, and print the shares and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=Path, required=True, help="text file, a text on each line")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8], help="ranks of the adapters (%(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="steps of each fine-tuning run (%(default)s)")
    parser.add_argument("--base-steps", type=int, help="steps of the base and the judge (default: those in the configs)")
    parser.add_argument("--texts", type=int, default=500, help="samples per model (%(default)s)")
    parser.add_argument("--temperature", type=float, default=1.15, help="sampling temperature (%(default)s)")
    parser.add_argument("--runs", default="runs/lora", help="folder of the data and the models (%(default)s)")
    parser.add_argument("--results", default=str(RESULTS), help="folder of the results (%(default)s)")
    options = parser.parse_args(arguments)
    folder = Path(options.runs)

    def run() -> None:
        reviews = prepare(folder)
        texts = prepare_base(folder, options.stories, reviews)
        first = [("training.steps", str(options.base_steps))] if options.base_steps else []
        judge, base = folder / "judge", folder / "general"
        for name, settings, own in (("joint", "film-reviews-judge", judge), ("general", "film-reviews", base)):
            train_if_missing(
                settings, own, [("data.corpus", json.dumps({"name": "files", **texts[name], "test": None})), *first]
            )
        tuning = {
            "data.corpus": json.dumps({"name": "files", **reviews}),
            "data.tokenizer": json.dumps({"name": "pretrained", "path": str(base / "model")}),
            "init_from": str(base),
            "training.steps": str(options.steps),
        }
        adapters = {"all-weights": {"adapter": "full"}}
        adapters |= {f"lora-rank-{rank}": {"adapter": "lora", "adapter.rank": str(rank)} for rank in options.ranks}
        runs = {f"{name}-{options.steps}-steps": adapter for name, adapter in adapters.items()}
        for name, adapter in runs.items():
            train_if_missing("film-reviews", folder / name, [*tuning.items(), *adapter.items()])
        for name in runs:
            print(f"{name}: {trained_share(folder / name, base / 'model'):.2%} of the weights are trained", flush=True)
        config = EvaluationConfig(temperatures=(options.temperature,), count=options.texts, bound_texts=0, split="test")
        models = [base, *(folder / name for name in runs)]
        report = evaluate(judge, models, config=config, corpus=build(Files, reviews), out=Path(options.results) / "lora")
        print(table(report), end="")

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
