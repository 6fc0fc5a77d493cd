"""Runs the commands and the Python of a Markdown page, each with settings small enough for a test."""

import gzip
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from originals import HEADS, checkpoint, diffuseq_checkpoint
from tiny_runs import ROOT, TINY, restaurant_texts
from transformers import BertConfig, BertForSequenceClassification

from diffusionlm.cli import main
from diffusionlm.config import merge
from diffusionlm.data.tokenizers import BytePairs
from diffusionlm.models.source import linearised
from diffusionlm.training.run import RunConfig, claim

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Return the arguments of every ``diffusionlm`` command of a page, in order."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(piece, comments=True) for line in lines for piece in line.split("&&")]
    return [each[1:] for each in words if each[:1] in (["diffusionlm"], [".venv/bin/diffusionlm"])]


def prepare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``folder`` the working directory, with what the pages' commands read: texts, configs, and trained runs."""
    monkeypatch.chdir(folder)
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "my_texts.txt").write_text("\n".join(restaurant_texts(120)))
    texts = restaurant_texts(6)
    rows = [{"source": f"source {number // 2}", "target": text} for number, text in enumerate(texts)]
    (folder / "my_references.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "my_outputs.txt").write_text("\n".join(texts[::2]))
    pairs(folder)
    (folder / "held_out.txt").write_text("\n".join(restaurant_texts(3, "test")))
    model = folder / "runs" / "quickstart" / "model"
    claim(RunConfig(), model.parent)
    shutil.copytree(
        ROOT / "tests" / "golden" / "format-1", model, ignore=shutil.ignore_patterns("tags")
    )  # a page trains that classifier
    sampling = json.loads((model / "sampling.json").read_text())
    (model / "sampling.json").write_text(json.dumps({**sampling, "steps": 4, "corrections": 1}))
    _sentiment_model(folder / "my-sentiment-model")
    (folder / "diffusion_models").mkdir()
    checkpoint(folder / "diffusion_models" / "diff_e2e-tgt")
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz[],",
        *map("##{}".format, "abcdefghijklmnopqrstuvwxyz"),
    ]
    (folder / "bert").mkdir()
    (folder / "bert" / "vocab.txt").write_text("\n".join(pieces))
    diffuseq_checkpoint(folder / "diffusion_models" / "diffuseq_qqp", len(pieces), seq_len=64)


def pairs(folder: Path) -> None:
    """Write sources with descriptions: ``pairs.jsonl``, the sources of ``sources.txt``, and ``test.jsonl`` with references."""
    with gzip.open(ROOT / "data" / "restaurants" / "validation.jsonl.gz", "rt", encoding="utf-8") as lines:
        found = [json.loads(next(lines)) for _ in range(120)]
    rows = [{"src": linearised(row["attributes"]), "trg": row["text"]} for row in found if row["attributes"]]
    rows += [{"src": "food[Japanese], food[Italian], price[low]", "trg": "The Golden Fox is a cheap pub."}] * 2
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    (folder / "sources.txt").write_text("food[Japanese], price[low]\nfood[Italian]\n")


def _sentiment_model(folder: Path) -> None:
    """Save a sequence classifier with random weights and a tokenizer of its own."""
    tokenizer = BytePairs(120).make(restaurant_texts(50))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=256, label2id={"negative": 0, "positive": 1}, id2label={0: "negative", 1: "positive"},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _flags(plain: dict[str, object], prefix: str = "") -> list[str]:
    flags = []
    for key, value in plain.items():
        flags += _flags(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"--{prefix}{key}={value}"]
    return flags


def _training_flags(arguments: list[str]) -> list[str]:
    small = merge(TINY, {"training": {"steps": 2}})
    small["training"].pop("batch_tokens")
    if "--init-from" in arguments:
        longest = {"data": small["data"]} if "runs/pairs" in arguments else {}  # that run is as small
        return _flags({"training": small["training"], **longest})
    if any("judge" in word for word in arguments):
        return _flags({"training": small["training"], "model": {"layers": 1, "width": 16}})
    if any("classifiers" in word for word in arguments):
        return _flags({"training": small["training"], "model": {"features": 8}, "objective": {"report_texts": 5}})
    return _flags(small)


def _briefly(arguments: list[str]) -> list[str]:
    """Return a training command with few steps, also where the page gives minutes."""
    if "--minutes" not in arguments:
        return [*arguments, *_training_flags(arguments)]
    place = arguments.index("--minutes") + 1
    flags = [flag for flag in _training_flags(arguments) if not flag.startswith("--training.steps=")]
    return [*arguments[:place], "0.01", *arguments[place + 1 :], *flags]


def small(arguments: list[str]) -> list[str] | None:
    """Return a command with small settings, or None where its corpus is not in the project (tests/test_configs.py has those)."""
    match arguments[0]:
        case "quickstart":
            return [*arguments, "--steps", "1", "--texts", "3"]
        case "train":
            return None if any("e2e" in word for word in arguments) else _briefly(arguments)
        case "distill":
            return [*arguments, *_training_flags(["--init-from"])]
        case "convert":
            return [*arguments, "--heads", str(HEADS)]
        case "generate":
            return [*arguments, "--count", "2", *(["--steps", "3"] if "--steps" in arguments else [])]
        case "demo":
            return None  # a server, which tests_extra/test_demo.py starts
        case "completion":
            return arguments[:2]  # the rest is a shell's redirection
        case "score":
            end = arguments.index(">") if ">" in arguments else None  # the rest is a shell's redirection
            return [*arguments[:end], *([] if "--flow" in arguments else ["--strata", "8"])]
        case "evaluate" if "--references" in arguments:
            return arguments
        case "evaluate" if "--controls" in arguments:
            return [*arguments, "--targets-count", "2", "--samples", "2"]
        case "evaluate":
            pace = "--evaluations" if "--evaluations" in arguments else "--steps"
            steps = [pace, "2"] if any("quickstart" in word for word in arguments) else []
            bound = ["--bound-texts", "2", "--strata", "8"] if not arguments[1].startswith("--") else []  # a model comes first
            return [*arguments, "--count", "3", *bound, "--temperatures", "0.8", *steps]
    return arguments


def run(arguments: list[str], page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command of ``page`` with small settings."""
    if (changed := small(arguments)) is not None:
        assert main(changed) == 0, (page.name, arguments, capsys.readouterr().err)


def run_commands(page: Path, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Run every command of ``page``; return the verbs that it has."""
    found = commands(page)
    for arguments in found:
        run(arguments, page, capsys)
    return {arguments[0] for arguments in found}


def run_python(page: Path) -> None:
    """Run every Python block of ``page``."""
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), {"__name__": "page"})
