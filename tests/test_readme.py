import json
import re
import shlex
from pathlib import Path

import pytest
from tiny_runs import ROOT, TINY, restaurant_texts
from transformers import BertConfig, BertForSequenceClassification

from diffusionlm.cli import main
from diffusionlm.config import merge
from diffusionlm.data.tokenizers import BytePairs

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    """Return the arguments of every ``diffusionlm`` command of the README, in order."""
    lines = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines()]
    pieces = [piece.strip() for line in lines for piece in line.split("&&")]
    return [
        shlex.split(p, comments=True)[1:]
        for p in pieces
        if shlex.split(p, comments=True)[:1] in (["diffusionlm"], [".venv/bin/diffusionlm"])
    ]


def sentiment_model(folder: Path) -> None:
    """Write a sequence classifier with random weights and a tokenizer of its own."""
    tokenizer = BytePairs(120).make(restaurant_texts(50))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=256, label2id={"negative": 0, "positive": 1}, id2label={0: "negative", 1: "positive"},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_flags(plain: dict[str, object], prefix: str = "") -> list[str]:
    flags = []
    for key, value in plain.items():
        flags += tiny_flags(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"--{prefix}{key}={value}"]
    return flags


def test_the_readmes_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = commands()
    assert {arguments[0] for arguments in found} == {"quickstart", "train", "generate", "score", "evaluate", "show"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "my_texts.txt").write_text("\n".join(restaurant_texts(120)))
    (tmp_path / "held_out.txt").write_text("\n".join(restaurant_texts(3, "test")))
    small = merge(TINY, {"training": {"steps": 2}})
    small["training"].pop("batch_tokens")
    judge = {"training": small["training"], "model": {"layers": 1, "width": 16}}
    classifier = {"training": small["training"], "model": {"features": 8}, "objective": {"report_texts": 5}}
    for arguments in found:
        if arguments[0] == "quickstart":
            arguments += ["--steps", "4", "--texts", "3"]
        elif arguments[0] == "train":
            if any("e2e" in word for word in arguments):
                continue  # its corpus is not in the project; test_configs.py takes a step with each config
            kinds = {"judge": judge, "classifiers": classifier}
            arguments += tiny_flags(next((kinds[kind] for kind in kinds if any(kind in word for word in arguments)), small))
        elif "--controls" in arguments:
            arguments += ["--targets-count", "2", "--samples", "2", "--sampling.steps", "2"]
        elif arguments[0] == "evaluate":
            arguments += ["--count", "3", "--bound-texts", "2", "--temperatures", "0.8", "--steps", "2"]
        elif arguments[0] == "generate":
            arguments += ["--count", "2"]
            if "runs/quickstart" in arguments:
                arguments += [*([] if "--steps" in arguments else ["--steps", "4"]), "--sweeps", "1"]
        elif arguments[0] == "score":
            del arguments[3:]  # a shell's redirection
        assert main(arguments) == 0, (arguments, capsys.readouterr().err)
    assert (tmp_path / "runs" / "quickstart" / "quickstart.json").exists()


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["quickstart", "--steps", "3", "--texts", "2"]) == 0
    judge = ["--config", str(ROOT / "configs" / "restaurants-judge.yaml"), "--out", "runs/judge", "--training.steps", "2"]
    assert main(["train", *judge, "--training.evaluation_texts", "10"]) == 0
    sentiment_model(tmp_path / "my-sentiment-model")
    sampling = tmp_path / "runs" / "quickstart" / "model" / "sampling.json"
    sampling.write_text(json.dumps({**json.loads(sampling.read_text()), "steps": 4, "sweeps": 0}))
    blocks = [block for language, block in BLOCKS if language == "python"]
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
