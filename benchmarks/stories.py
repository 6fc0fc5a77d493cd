"""Open-domain text: five-sentence stories by ours, masked diffusion, an autoregressive model and the published recipe.

    NLTK_DATA=nltk_data python benchmarks/stories.py --stories stories.txt [--minutes 20] [--jobs 2]

``--stories`` has a story on each line (ROCStories, Mostafazadeh et al. 2016): the last 500 are held out, the others are the
training texts. NLTK_DATA contains NLTK's corpora/brown and corpora/treebank. Each model is trained for ``--minutes`` of CPU
time of one thread; ours is what ``train --data.corpus train.txt --minutes 20`` chooses (own_corpus.py). The first judge
(configs/stories-judge.yaml) is an autoregressive model of the training stories, Brown and the treebank; a word 5-gram model of
the same texts is the second. A third, a trigram model of the held-out stories, Brown and the treebank, has not read the
training stories: samples that repeat these score well with the first two, and not with it.

Then each model fills the middle sentence of ``--gaps`` held-out stories between the four others (middle_sentences.py).

The tables go to stdout; these, the report and the samples are in ``benchmarks/results/stories-20-minutes``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import own_corpus
from measure import RESULTS, ROOT, exit_status, expect_positive, in_processes, train_or_resume
from middle_sentences import infilling
from nltk.corpus import brown, treebank
from nltk.tokenize.treebank import TreebankWordDetokenizer

from diffusionlm.data.corpora import Files
from diffusionlm.data.reading import read_text
from diffusionlm.evaluation.benchmark import EvaluationConfig, evaluate
from diffusionlm.evaluation.judge import Judge, perplexity
from diffusionlm.evaluation.ngrams import NGrams
from diffusionlm.evaluation.report import table
from diffusionlm.evaluation.text_metrics import unigram_entropy
from diffusionlm.files import write_text
from diffusionlm.training.run import RunConfig, read_config, train

HELD_OUT, FILLINGS = 500, 4
EVALUATIONS = 20  # of the validation loss in a run: the autoregressive model overfits after a third of its steps
NETWORK = {"model.backbone": "{name: transformer, layers: 5, width: 192, heads: 6, dropout: 0.2}"}
OURS = "ours"
ROWS: dict[str, tuple[str, dict[str, str]]] = {
    OURS: ("", {}),  # which chooses its settings itself
    "masked": ("e2e-masked", NETWORK),
    "autoregressive": ("e2e-judge", {"model.layers": "5", "model.width": "192", "model.heads": "6"}),
    "paper": (  # as in e2e.py: the published learning rate and EMA are for 200,000 steps
        "e2e-paper",
        {
            **NETWORK, "training.optimizer.learning_rate": "1.0e-3", "training.warmup": "200", "training.ema_warmup": "true",
            "sampling.steps": "200",
        },
    ),
}  # fmt: skip

TEMPERATURES = {  # of each row, so that their entropies overlap
    OURS: (1.5, 1.7), "masked": (0.9, 1.1), "autoregressive": (0.5, 0.6, 0.8), "paper": (1.0,),
}  # fmt: skip
SAMPLING = {OURS: (("steps", "7"), ("sweeps", "48"))}  # 62 evaluations, as many as by default, of which 6 are sweeps


def prepare(stories: str, folder: Path) -> dict[str, Path]:
    """Write the training and held-out stories, general English, and the judge's texts; return their paths."""
    paths = {name: folder / f"{name}.txt" for name in ("train", "test", "general", "judge")}
    if not all(path.exists() for path in paths.values()):
        lines = [line.replace("\ufffd", "'") for line in read_text(stories).splitlines() if line.strip()]
        tagged = ([word for word, tag in sentence if tag != "-NONE-"] for sentence in treebank.tagged_sents())
        general = [written(words) for words in (*brown.sents(), *tagged)]
        told = lines[:-HELD_OUT]
        for name, texts in {"train": told, "test": lines[-HELD_OUT:], "general": general, "judge": told + general}.items():
            write_text(paths[name], "".join(f"{text}\n" for text in texts))
    return paths


def written(words: Sequence[str]) -> str:
    """Return a tokenised sentence as it is written."""
    quoted = [re.sub("``|''", '"', word) for word in words]
    return " ".join(TreebankWordDetokenizer().detokenize(quoted).split())


def corpus_of(paths: dict[str, Path]) -> str:
    """Return the corpus of all rows, as a command line has it."""
    return json.dumps({"name": "files", "train": str(paths["train"]), "test": str(paths["test"])})


def config_of(row: str, paths: dict[str, Path]) -> RunConfig:
    """Return the training config of another row than ours; the number of steps is set later."""
    name, changes = ROWS[row]
    data = [
        ("data.corpus", corpus_of(paths)), ("data.tokenizer", "{name: bpe, vocab_size: 4000}"), ("data.max_length", "96")
    ]  # fmt: skip
    return read_config([ROOT / "configs" / f"{name}.yaml"], [*data, *changes.items()])


def other_judges(texts: dict[str, list[str]]) -> dict[str, NGrams]:
    """Return the n-gram models of the prepared ``texts``."""
    return {"5-gram": NGrams(texts["judge"], 5), "independent": NGrams(texts["test"] * 4 + texts["general"], 3)}


def other_perplexities(models: dict[str, NGrams], texts: dict[str, list[str]], out: Path) -> str:
    """Return a table of the saved samples under the n-gram models, beside stories of both splits."""
    groups = {
        "training stories": texts["train"][:HELD_OUT],
        "held-out stories (which the independent one has read)": texts["test"],
    }
    for path in sorted((out / "texts").glob("*.jsonl")):
        groups[path.stem] = [json.loads(line)["text"] for line in read_text(path).splitlines()]
    lines = [f"{'':<60}{'entropy':>10}" + "".join(f"{name:>14}" for name in models)]
    for name, group in groups.items():
        figures = "".join(f"{perplexity(model.score(group)):>14.1f}" for model in models.values())
        lines.append(f"{name[-58:]:<60}{unigram_entropy(group):>10.3f}{figures}")
    return "\n".join(lines)


def judge_of(options: argparse.Namespace, paths: dict[str, Path], folder: Path) -> str:
    """Return the judge's run, trained here unless it is given or finished."""
    if options.judge:
        return str(options.judge)
    changes = [("data.corpus.train", str(paths["judge"])), ("training.threads", "1")]
    changes += [("training.steps", str(options.steps))] if options.steps else []
    if not train(read_config([ROOT / "configs" / "stories-judge.yaml"], changes), folder / "judge"):
        raise KeyboardInterrupt
    return str(folder / "judge")


def benchmark(options: argparse.Namespace, paths: dict[str, Path], folder: Path) -> list[str]:
    """Train what is missing, evaluate, and print the tables; return the rows that failed."""
    flags = [f"--{name}={value}" for name in ("stories", "minutes", "steps", "runs") if (value := getattr(options, name))]
    runs = {row: folder / row for row in options.rows}
    missing = [row for row, run in runs.items() if not (run / "model" / "finished").exists()]
    commands = {row: [sys.executable, __file__, "--worker", *flags, row] for row in missing}
    failed = in_processes(commands, options.jobs, folder)
    judge = judge_of(options, paths, folder)
    finished = {row: run for row, run in runs.items() if row not in failed}
    out = Path(options.results) / f"stories-{options.steps or options.minutes:g}-{'steps' if options.steps else 'minutes'}"
    corpus = Files(train=str(paths["train"]), test=str(paths["test"]))
    for row, run in finished.items():  # one after another into one report
        config = EvaluationConfig(
            temperatures=TEMPERATURES[row], count=options.texts, bound_texts=options.bound_texts, split="test"
        )
        report = evaluate(judge, [run], config=config, corpus=corpus, out=out, sampling=SAMPLING.get(row, ()))
    if finished:
        print(table(report))
    texts = {name: read_text(path).splitlines() for name, path in paths.items()}
    others = other_judges(texts)
    print(other_perplexities(others, texts, out), flush=True)
    if options.gaps and finished:
        found = infilling(
            finished, texts, Judge.load(judge), others, options.gaps, options.fillings or FILLINGS, out / "infilling"
        )
        print(found, end="", flush=True)
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, or train one row in this process (``--worker``)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"rows to measure (default: all): {'; '.join(ROWS)}")
    parser.add_argument("--stories", required=True, help="text file with a story on each line")
    parser.add_argument("--judge", help="judge LM (default: configs/stories-judge.yaml is trained first, about 35 minutes)")
    parser.add_argument("--minutes", type=float, default=20, help="CPU time of each training run (%(default)s)")
    parser.add_argument("--steps", type=int, help="training steps of every run, the judge's too, instead (for a quick run)")
    parser.add_argument("--texts", type=int, default=300, help="samples per setting (%(default)s)")
    parser.add_argument("--bound-texts", type=int, default=60, help="held-out texts for the likelihood bounds (%(default)s)")
    parser.add_argument("--gaps", type=int, default=100, help="held-out stories to infill; 0 leaves that out (%(default)s)")
    parser.add_argument("--fillings", type=int, help=f"fillings of each ({FILLINGS})")
    parser.add_argument("--jobs", type=int, default=2, help="parallel training runs (%(default)s)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--runs", default="runs/benchmarks/stories", help="folder of texts and models (%(default)s)")
    parser.add_argument("--results", default=str(RESULTS), help="folder of the results (%(default)s)")
    options = parser.parse_args(arguments)
    if unknown := [row for row in options.rows if row not in ROWS]:
        parser.error(f"unknown row {unknown[0]!r}; choose from {', '.join(ROWS)}")
    expect_positive(parser, options, "fillings")
    if options.gaps < 0:
        parser.error(f"--gaps: expected 0 or more, got {options.gaps}")
    if options.fillings and not options.gaps:
        parser.error("--fillings: nothing is infilled with --gaps 0, so this option has no effect; leave it out")
    options.rows, options.device, options.time_only = options.rows or list(ROWS), "cpu", False
    folder = Path(options.runs)

    def run() -> list[str]:
        paths = prepare(options.stories, folder)
        if not options.worker:
            return benchmark(options, paths, folder)
        (row,) = options.rows
        if row == OURS:
            own_corpus.trained(own_corpus.AUTOMATIC, corpus_of(paths), folder / row, options.minutes, options.steps)
        else:
            train_or_resume(config_of(row, paths), folder / row, options, EVALUATIONS)
        return []

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
