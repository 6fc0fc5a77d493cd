"""Fine-tune a model of film reviews with all weights and by LoRA, in equally many steps.

    NLTK_DATA=nltk_data python benchmarks/lora.py [--ranks 2 8 32] [--steps 1000]

NLTK_DATA contains NLTK's corpora/sentence_polarity, as for film_reviews.py. The base learns negative sentences only
(configs/film-reviews.yaml). From it, one run trains all weights on the positive sentences, and one for each rank trains an
adapter. The judge LM (configs/film-reviews-judge.yaml) has read both. All are trained on one thread, only if they are missing.

For each model, the first lines show the share of the weights that is trained; the table shows the judge's perplexity of samples
beside their diversity and the share of copies of positive training sentences, and as ``positive`` the share of samples that
naive Bayes takes for positive. Reference texts are positive sentences of the test split.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from film_reviews import features, naive_bayes, prepare, train_if_missing
from measure import RESULTS, exit_status
from safetensors.torch import load_file

from diffusionlm.config import build
from diffusionlm.data.corpora import Files, TextMetric
from diffusionlm.evaluation.benchmark import EvaluationConfig, evaluate
from diffusionlm.evaluation.report import table
from diffusionlm.files import write_text
from diffusionlm.models.lora import WEIGHTS


@dataclass(frozen=True)
class Positive(Files, name="positive-film-reviews"):
    """Positive sentences; naive Bayes trained on the file ``labelled`` measures which samples are positive."""

    labelled: str = ""

    def metrics(self, training: Collection[str]) -> dict[str, TextMetric]:
        """Return the share of positive texts."""
        classifier = naive_bayes(self.labelled)
        return {"positive": lambda texts: [float(classifier.classify(features(text)) == "positive") for text in texts]}


def of_label(paths: dict[str, str], label: str) -> dict[str, str]:
    """Write the sentences of one label to files beside ``paths``; return their paths by split."""
    found = {}
    for split, path in paths.items():
        rows = [line for line in Path(path).read_text().splitlines(keepends=True) if json.loads(line)["label"] == label]
        target = Path(path).with_name(f"{label}-{split}.jsonl")
        if not target.exists():
            write_text(target, "".join(rows))
        found[split] = str(target)
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
    parser.add_argument("--ranks", type=int, nargs="+", default=[8], help="ranks of the adapters (%(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="steps of each fine-tuning run (%(default)s)")
    parser.add_argument("--base-steps", type=int, help="steps of the base and the judge (default: those in the configs)")
    parser.add_argument("--texts", type=int, default=500, help="samples per model (%(default)s)")
    parser.add_argument("--temperature", type=float, default=1.15, help="sampling temperature (%(default)s)")
    parser.add_argument("--runs", default="runs/film-reviews", help="folder of the data and the models (%(default)s)")
    parser.add_argument("--results", default=str(RESULTS), help="folder of the results (%(default)s)")
    options = parser.parse_args(arguments)
    folder = Path(options.runs)

    def run() -> None:
        paths = prepare(folder)
        positive, negative = (of_label(paths, label) for label in ("positive", "negative"))
        first = [("training.steps", str(options.base_steps))] if options.base_steps else []
        judge, base = folder / "judge", folder / "negative"
        train_if_missing("film-reviews-judge", judge, [("data.corpus", json.dumps({"name": "files", **paths})), *first])
        train_if_missing("film-reviews", base, [("data.corpus", json.dumps({"name": "files", **negative})), *first])
        tuning = {
            "data.corpus": json.dumps({"name": "files", **positive}),
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
        corpus = build(Positive, {**positive, "labelled": paths["train"]})
        models = [base, *(folder / name for name in runs)]
        print(table(evaluate(judge, models, config=config, corpus=corpus, out=Path(options.results) / "lora")), end="")

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
