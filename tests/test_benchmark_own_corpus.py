"""benchmarks/own_corpus.py: rows by hand and the automatic one are trained, measured by one loss, and compared."""

import json
from pathlib import Path

import own_corpus
import pytest
from tiny_runs import restaurant_texts

from diffusionlm.config import to_plain
from diffusionlm.training.run import read_config


def test_rows_are_trained_once_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(restaurant_texts(120)))
    small = own_corpus._by_hand(300, 1, 32, 0.1, 256)
    monkeypatch.setattr(
        own_corpus, "ROWS", {"one": small, "other": {**small, "data.tokenizer": "{name: bpe, vocab_size: 200}"}}
    )
    monkeypatch.setattr(own_corpus, "in_processes", here)
    command = [str(tmp_path / "texts.txt"), "--steps", "3", f"--runs={tmp_path}/runs", f"--results={tmp_path}/results"]
    assert own_corpus.main(command) == 0
    rows = json.loads((tmp_path / "results" / "own-corpus" / "texts-3-steps.json").read_text())["rows"]
    logged = [json.loads(line) for line in (tmp_path / "runs" / "one" / "log.jsonl").read_text().splitlines()]
    lowest = min(row["eval_bound"] for row in logged if "eval_bound" in row)
    assert rows["one"]["bound per token"] == pytest.approx(lowest, rel=1e-4)  # of the kept weights, over the same texts
    assert rows["other"]["tokens"] < rows["one"]["tokens"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].split()[2] == "1.000"
    assert own_corpus.main(command) == 0  # nothing is trained again
    assert capsys.readouterr().out.splitlines()[-2:] == printed[-2:]


def here(commands: dict[str, list[str]], jobs: int, logs: Path) -> list[str]:
    """Run the workers in this process; return those that failed."""
    return [name for name, (_, _, *arguments) in commands.items() if own_corpus.main(arguments) != 0]


def test_the_rows_by_hand_are_configs() -> None:
    assert len(own_corpus.ROWS) == 10
    plain = {json.dumps(to_plain(read_config([], [*changes.items()]))) for changes in own_corpus.ROWS.values()}
    assert len(plain) == 9  # the automatic row starts as the library's defaults, and chooses
