"""Checkpoints of the original code become model folders that the other commands read; what a user has to know is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from originals import HEADS, checkpoint, diffuseq_checkpoint, vocabulary

from diffusionlm.cli import main
from diffusionlm.config import to_plain
from diffusionlm.models.originals import Original, read_original
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.training.convert import convert, original_tokenizer, remarks
from diffusionlm.training.run import read_config, train

HEADS_OPTION = ["--heads", str(HEADS)]


def said(folder: Path, capsys: pytest.CaptureFixture[str], **arguments: Any) -> list[str]:
    """Convert a checkpoint by the command line; return the lines on stderr."""
    checkpoint(folder / "original", **arguments)
    assert main(["convert", str(folder / "original"), "--out", str(folder / "model"), *HEADS_OPTION]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    return [line for line in err.splitlines() if line.startswith(str(folder))]


def test_the_other_commands_read_a_converted_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = said(tmp_path, capsys)
    assert line.endswith(".pt: 22 tokens, 16 positions, 2 layers, width 16, 4 heads, sqrt schedule of 2000 steps")
    model = str(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "config.json", "model.safetensors", "sampling.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert main(["generate", model, "-n", "2", "--steps", "3"]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert len(rows) == 2 and all(0 <= row["length"] <= 16 for row in rows)
    (tmp_path / "texts.txt").write_text("The Vaults isn't cheap.\nThe Vaults is n't cheap .\n")
    assert main(["score", model, str(tmp_path / "texts.txt"), "--strata", "4"]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [(row["tokens"], row["unknown"]) for row in rows] == [(8, 0), (8, 0)]  # with the line end and END
    (tmp_path / "texts.txt").write_text(" ".join(["cheap"] * 14))
    assert main(["score", model, str(tmp_path / "texts.txt")]) == 2
    assert "15 tokens, more than this model's maximum of 14" in capsys.readouterr().err


def test_a_sample_that_is_scored_again_has_the_tokens_that_were_sampled(tmp_path: Path) -> None:
    convert(checkpoint(tmp_path / "original"), tmp_path / "model", heads=HEADS, quiet=True)
    pipe = Pipeline.from_pretrained(tmp_path / "model")
    ids = [4, 5, 6, 14, 15, 7, 19, 21]  # The Vaults pub do n't is . and a line end
    text = "The Vaults pub do n't is ."
    assert pipe.tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    assert pipe.tokenizer.backend_tokenizer.decoder.decode(pipe.tokenizer.convert_ids_to_tokens(ids)) == text


def test_a_converted_model_of_diffuseq_samples_from_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "pub", "cheap", "is", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    file = diffuseq_checkpoint(tmp_path / "original", len(pieces))
    model, out = str(tmp_path / "model"), ["--out", str(tmp_path / "model"), *HEADS_OPTION]
    assert main(["convert", str(file), *out, "--tokenizer", str(tmp_path / "vocab.txt")]) == 0
    said = capsys.readouterr().err
    assert "source and text share the 16 positions; a source has at most 10 tokens (the original cuts longer ones)" in said
    (tmp_path / "sources.jsonl").write_text('{"src": "the pub", "trg": "a pub"}\n{"src": "Cheap", "trg": "it is"}\n')
    assert main(["generate", model, "--source", str(tmp_path / "sources.jsonl"), "-n", "2", "--steps", "3"]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [row["source"] for row in rows] == ["the pub", "the pub", "Cheap", "Cheap"]
    assert all(0 <= row["length"] <= 16 - 5 for row in rows) and rows[0]["references"] == ["a pub"]
    assert main(["generate", model, "-n", "1", "--steps", "3"]) == 0
    assert "it was never trained without one (drop: 0)" in capsys.readouterr().err
    score = ["score", model, str(tmp_path / "sources.jsonl"), "--column", "trg", "--strata", "4"]
    assert main(score) == 0
    assert [json.loads(row)["tokens"] for row in capsys.readouterr().out.splitlines()] == [3, 3]
    (tmp_path / "sources.jsonl").write_text(json.dumps({"src": "the pub", "trg": "cheap " * 10}))
    assert main(score) == 2  # [CLS] the pub [SEP] [SEP] leave 11 of 16 positions
    assert "10 tokens, more than this model's maximum of 9" in capsys.readouterr().err


def test_a_converted_model_is_fine_tuned_with_its_own_tokenizer(tmp_path: Path) -> None:
    convert(checkpoint(tmp_path / "original", diffusion_steps=50), tmp_path / "model", heads=HEADS, quiet=True)
    (tmp_path / "texts.txt").write_text("\n".join(["The Vaults is cheap.", "The pub is a cheap place."] * 20))
    settings = json.loads((tmp_path / "model" / "config.json").read_text())["settings"]
    (tmp_path / "model.yaml").write_text(json.dumps({"model": settings}))
    changes = {
        "init_from": str(tmp_path / "model"), "data.corpus": str(tmp_path / "texts.txt"), "data.max_length": "16",
        "data.tokenizer": json.dumps({"name": "pretrained", "path": str(tmp_path / "model")}), "objective": "regression",
        "training.steps": "2", "training.batch_tokens": "64", "training.threads": "1", "training.optimizer": "adamw",
        "sampling.steps": "2", "sampling.passes": "1", "sampling.sweeps": "0",
    }  # fmt: skip
    assert train(read_config([tmp_path / "model.yaml"], list(changes.items())), tmp_path / "run", quiet=True)
    before, after = (Pipeline.from_pretrained(tmp_path / name) for name in ("model", "run"))
    assert before.tokenizer.get_vocab() == after.tokenizer.get_vocab()
    assert to_plain(before.model.settings) == to_plain(after.model.settings)
    gap = (before.model.embedding.weight - after.model.embedding.weight).detach().abs().max()
    assert 0 < float(gap) < 0.1


def test_windows_of_running_text_and_other_dropout_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(tmp_path, capsys, padding_mode="block", dropout=0.0)
    assert len(lines) == 3
    assert "training_args.json: padding_mode is 'block': the model was trained on windows of running text" in lines[1]
    assert lines[2].endswith("fine-tuning drops attention at 0.0, the original at 0.1")


def noted(path: Path) -> str:
    original: Original = read_original(path)
    tokenizer = original_tokenizer(original, None)
    return "\n".join(remarks(original, original.settings(HEADS), tokenizer)[1:])


def test_the_copy_of_the_word_vectors_that_is_left_out_is_said(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    assert noted(path) == ""
    weights = torch.load(path, weights_only=True)
    torch.save({**weights, "word_embedding.weight": weights["word_embedding.weight"] + 0.5}, path)
    assert "word_embedding.weight and lm_head.weight differ by up to 0.5: the original averages only the first" in noted(path)


def test_words_of_white_space_are_said(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    words = {
        ("  " if word == "cheap" else word): number
        for word, number in json.loads((tmp_path / "vocab.json").read_text()).items()
    }
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    assert noted(path).endswith("vocab.json: no text is read as '  ', of white space")


@pytest.mark.parametrize(("modality", "ends"), [("e2e-tgt", True), ("roc", False)])
def test_only_texts_of_e2e_end_with_the_token_of_a_line_end(modality: str, ends: bool, tmp_path: Path) -> None:
    tokenizer = original_tokenizer(read_original(checkpoint(tmp_path, modality=modality)), None)
    assert (tokenizer("cheap", add_special_tokens=False)["input_ids"][-1] == vocabulary([])["PAD"] + 18) == ends
