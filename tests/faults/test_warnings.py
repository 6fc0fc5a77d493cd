"""A run warns of unsuitable texts and of a rising loss in time, and does not warn of ordinary ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import restaurant_texts, tiny_config
from transformers import TrainerControl, TrainerState

from diffusionlm.data.batches import DataConfig, encode
from diffusionlm.data.corpora import to_dataset
from diffusionlm.data.tokenizers import BytePairs
from diffusionlm.progress import intervals
from diffusionlm.training.callbacks import Overfitting
from diffusionlm.training.run import train
from diffusionlm.training.texts import encode_splits, unknown_words

UNSPACED = [f"今天天气很好我们去{chr(0x5000 + i)}公园散步吧" for i in range(40)]


def sentences(train: list[str], validation: list[str], data: DataConfig) -> list[str]:
    tokenizer = data.tokenizer.make(train, data.max_length)
    return unknown_words({"train": encode(train, tokenizer), "validation": encode(validation, tokenizer)}, tokenizer, data)


def test_unspaced_lines_name_the_tokenizer_that_splits_them() -> None:
    unknown, once = sentences(UNSPACED[:30], UNSPACED[30:], DataConfig())
    assert unknown.startswith("validation: 100% of the tokens are not in the vocabulary ([UNK]); data.tokenizer: bpe splits")
    assert once.startswith("train: 100% of the tokens occur once in all texts, ")
    pieces = DataConfig(tokenizer=BytePairs(vocab_size=30))
    assert [line for line in sentences(UNSPACED[:30], UNSPACED[:5], pieces) if "data.tokenizer: bpe" in line] == []


def test_ordinary_texts_get_no_warning() -> None:
    texts = restaurant_texts(200)
    assert sentences(texts[:190], texts[190:], DataConfig()) == []
    assert sentences(texts[:190], texts[190:], DataConfig(tokenizer=BytePairs(vocab_size=300))) == []


def test_cut_texts_are_counted_once_for_all_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = DataConfig(max_length=5)
    texts = ["a b c d", "a b c", "a b"]
    splits = {"train": to_dataset([{"text": text} for text in texts])}
    tokenizer = data.tokenizer.make(texts, 5)
    for rank, printed in (("0", "train: 1 of 3 texts are longer than 5 tokens and were cut\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        encode_splits(splits, tokenizer, data)
        assert capsys.readouterr().err == printed


def evaluated(losses: list[float]) -> tuple[Overfitting, TrainerState]:
    """Return the callback after evaluations every 10 steps, as the trainer keeps their lowest loss."""
    warnings, state = Overfitting(lambda: 0), TrainerState()
    for number, loss in enumerate(losses, start=1):
        state.global_step = 10 * number
        arguments: Any = None
        warnings.on_evaluate(arguments, state, TrainerControl(), {"eval_loss": loss})
        if state.best_metric is None or loss < state.best_metric:
            state.best_metric, state.best_global_step = loss, state.global_step
    warnings.on_train_end(arguments, state, TrainerControl())
    return warnings, state


def test_a_rising_validation_loss_is_told_at_once_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    evaluated([3.1, 2.78, 2.95, 3.38])
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("at step 30 the validation loss has risen to 2.950; it was lowest, 2.780, at step 20; ")
    assert "training.patience" in first
    assert last.startswith("the validation loss ended at 3.380; it was lowest, 2.780, at step 20; ")


@pytest.mark.parametrize("losses", [[3.0, 2.0], [2.0, 2.03, 1.9], [-1.0, -0.99], []])
def test_a_falling_or_wavering_validation_loss_is_not(losses: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    if losses:
        evaluated(losses)
    assert capsys.readouterr().err == ""


def test_a_run_warns_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rising = {"steps": 6, "evaluate_every": 2, "warmup": 0, "ema": 0.0, "optimizer": {"name": "adamw", "learning_rate": 2.0}}
    assert train(tiny_config(tmp_path, training={**rising, "sample_every": 6, "save_every": 6}), tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
    assert losses[6] > 1.02 * min(losses.values()) and list(losses) == [2, 4, 6]
    assert f"the validation loss ended at {losses[6]:.3f}; it was lowest, " in capsys.readouterr().err


def test_a_file_gets_a_line_of_progress_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_MININTERVAL", raising=False)
    assert intervals() == {"mininterval": 10.0}  # pytest's standard error is no terminal
    monkeypatch.setenv("TQDM_MININTERVAL", "1")
    assert intervals() == {}
