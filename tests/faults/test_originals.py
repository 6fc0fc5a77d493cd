"""A checkpoint from elsewhere that is damaged, hostile or contradicts itself is refused in a sentence, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from originals import HEADS, checkpoint, diffuseq_checkpoint
from torch import Tensor

from diffusionlm.cli import main

WORDS, UP = "word_embedding.weight", "input_up_proj.0.weight"


def refused(checkpoint: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Convert ``checkpoint``, which must fail with one sentence and write nothing; return the sentence."""
    out = checkpoint.parent / "model"
    capsys.readouterr()
    assert main(["convert", str(checkpoint), "--out", str(out), *(more or ("--heads", str(HEADS)))]) == 2
    printed, said = capsys.readouterr()
    assert printed == "" and said.startswith("diffusionlm: ") and said.count("\n") == 1, said
    assert not out.exists() and not out.with_name("model.new").exists()
    return said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"noise_schedule": "pw_lin"}, "noise_schedule: expected 'sqrt', 'cosine' or 'linear', got 'pw_lin'"),
        ({"model_arch": "conv-unet"}, "model_arch: expected 'transformer', got 'conv-unet'"),
        ({"training_mode": "emb"}, "training_mode: expected 'e2e' or 'e2e-simple', got 'emb'"),
        ({"experiment_mode": "conditional_gen"}, "experiment_mode: expected 'lm', got 'conditional_gen'"),
        ({"logits_mode": 2}, "logits_mode: expected 1, got 2"),
        ({"learn_sigma": True}, "learn_sigma: expected False, got True"),
        ({"class_cond": True}, "class_cond: expected False, got True"),
        ({"modality": "synth"}, "modality: expected 'e2e-tgt', 'roc', "),
        ({"timestep_respacing": "ddim200"}, "timestep_respacing: expected '', got 'ddim200'"),
        ({"rescale_timesteps": False}, "rescale_timesteps: expected true"),
        ({"emb_scale_factor": 2.0}, "emb_scale_factor: expected 1, got 2.0"),
        ({"config_name": "roberta-base"}, "config_name: expected the name of a BERT, such as 'bert-base-uncased', got 'roberta-base'"),
        ({"diffusion_steps": 1}, "diffusion_steps: expected 2 to 1000000, got 1"),
        ({"dropout": 1.5}, "dropout: expected a share from 0 to below 1, got 1.5"),
        ({"image_size": 0}, "image_size: expected 2 to 100, got 0"),
        ({"in_channel": "LEFT OUT"}, "in_channel: this setting is needed and has no default"),
        ({"model_arch": "LEFT OUT"}, "expected arguments of Diffusion-LM (model_arch) or of DiffuSeq (hidden_t_dim), got neither"),
        ({"in_channel": 32}, "in_channel: expected the size of the weights, got 32; word_embedding.weight in ema_0.9999_200000.pt has the shape (22, 6)"),
        ({"out_channel": 12}, "out_channel: expected the size of the weights, got 12; output_down_proj.2.weight in"),
        ({"num_channels": 128}, "num_channels: expected the size of the weights, got 128; time_embed.0.weight in"),
        ({"vocab_size": 821}, "vocab_size: expected the size of the weights, got 821; word_embedding.weight in"),
        ({"image_size": 30}, "position_embeddings.weight: expected the shape (900, 16), got (512, 16)"),
    ],
)  # fmt: skip
def test_arguments_that_this_library_has_no_model_for_are_named(
    arguments: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(checkpoint(tmp_path / "original", **arguments), capsys)
    assert sentence in said and str(tmp_path / "original") in said


def changed(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """Write a checkpoint whose state dict is ``change`` of the intact one."""
    path = checkpoint(folder / "original")
    torch.save(change(torch.load(path, weights_only=True)), path)
    return path


CHANGES: list[tuple[Callable[[dict[str, Tensor]], Any], str]] = [
    (lambda w: {k: v for k, v in w.items() if k != UP}, "expected a tensor input_up_proj.0.weight, got none"),
    (lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"}, "expected a tensor lm_head.weight, got none"),
    (lambda w: {k: v for k, v in w.items() if "layer.1.output.dense.bias" not in k}, "layer.1.output.dense.bias, got none"),
    (lambda w: {k: v for k, v in w.items() if ".layer." not in k}, "layer.0.intermediate.dense.weight, got none"),
    (lambda w: {**w, UP: w[UP].T}, "input_up_proj.0.weight: expected the shape (16, 6), got (6, 16)"),
    (lambda w: {**w, "lm_head.weight": w[WORDS][:5]}, "lm_head.weight: expected the shape of word_embedding.weight, (22, 6), got (5, 6)"),
    (lambda w: {**w, "label_emb.weight": w[UP]}, "label_emb.weight: the network that training_args.json describes has no such tensor"),
    (lambda w: {**w, "input_transformers.layer.9.x": w[UP]}, "expected a tensor input_transformers.layer.2.attention.self.query.weight, got none"),
    (lambda w: {**w, UP: w[UP] * float("nan")}, "expected finite weights, but input_up_proj.0.weight holds NaN or infinity"),
    (lambda w: {**w, UP: w[UP].double()}, "input_up_proj.0.weight: expected a dense tensor of float32 or float16 or bfloat16, got float64"),
    (lambda w: {**w, UP: torch.zeros(1, 1).expand(10**6, 10**6)}, "expected a number for each place of (1000000, 1000000)"),
    (lambda w: {**w, UP: w[UP].to_sparse()}, "got float32 (sparse_coo, cpu)"),
    (lambda w: {**w, UP: w[UP].to("meta")}, "got float32 (strided, meta)"),
    (lambda w: {**w, "position_ids": w["position_ids"].flip(1)}, "position_ids: expected 0, 1, 2, ..., got another order"),
    (lambda w: {**w, "step": 200}, "expected tensors by name, got int for 'step'"),
    (lambda w: {"model": w}, "expected tensors by name, got dict for 'model'"),
    (lambda w: [*w.values()], "expected a state dict, tensors by name, got list"),
    (lambda w: {}, "expected a state dict, tensors by name, got dict"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), CHANGES, ids=[sentence for _, sentence in CHANGES])
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[dict[str, Tensor]], Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(tmp_path, change)
    said = refused(path, capsys)
    assert sentence in said and str(path) in said


def test_word_vectors_of_the_networks_width_need_projections(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        wide = {WORDS: torch.zeros(22, 16), "lm_head.weight": torch.zeros(22, 16)}
        return {**{name: tensor for name, tensor in weights.items() if "up_proj" not in name}, **wide}

    path = changed(tmp_path, change)
    arguments = json.loads((path.parent / "training_args.json").read_text())
    (path.parent / "training_args.json").write_text(json.dumps({**arguments, "in_channel": 16, "out_channel": 6}))
    assert "expected projections of the word vectors, but they have the network's width, 16" in refused(path, capsys)


class Evil:
    """An object that runs a command as it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("new_form", [True, False])
def test_code_in_a_checkpoint_is_named_and_never_run(
    new_form: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint(tmp_path / "original")
    weights = {**torch.load(path, weights_only=True), "x": Evil(tmp_path / "ran")}
    torch.save(weights, path, _use_new_zipfile_serialization=new_form)
    assert f"{path}: expected tensors alone, but the file names posix.system, Python code, which is never run" in refused(
        path, capsys
    )
    assert not (tmp_path / "ran").exists()


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut in half": halve,
    "empty": lambda path: path.write_bytes(b""),
    "a pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "zeros": lambda path: path.write_bytes(bytes(1000)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(tmp_path / "original")
    DAMAGES[damage](path)
    assert f"{path}: expected a file of torch.save, but it is damaged, or holds more than tensors" in refused(path, capsys)


@pytest.mark.parametrize("name", ["training_args.json", "vocab.json"])
def test_files_beside_the_checkpoint_are_missing_or_damaged(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint(tmp_path / "original")
    halve(path.parent / name)
    assert f"{path.parent / name}: expected JSON, but the file is damaged" in refused(path, capsys)
    (path.parent / name).unlink()
    assert str(path.parent / name) in refused(path, capsys)


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(tmp_path / "original")
    words = json.loads((path.parent / "vocab.json").read_text())
    (path.parent / "vocab.json").write_text(json.dumps({**words, "more": len(words)}))
    assert f"training_args.json: vocab_size is 22, but {path.parent / 'vocab.json'} has 23 tokens" in refused(path, capsys)


def test_attention_heads_are_never_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(tmp_path / "original")
    assert main(["convert", str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "config_name: the weights have 2 layers of width 16 and 24, which 'bert-base-uncased' does not say" in said
    assert "give its attention heads with --heads" in said
    assert f"{path}: heads: expected a divisor of the width 16, got 5" in refused(path, capsys, "--heads", "5")
    assert f"{path}: heads: expected 1 to 1000, got 0" in refused(path, capsys, "--heads", "0")


def test_the_tokenizer_is_asked_for_where_it_is_needed_and_only_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = ("--heads", str(HEADS))
    path = checkpoint(tmp_path / "words")
    assert "--tokenizer: expected none, since this checkpoint has the words of" in refused(
        path, capsys, *heads, "--tokenizer", "x"
    )
    path = checkpoint(tmp_path / "pieces", use_bert_tokenizer="yes")
    assert (
        "--tokenizer: expected the tokenizer's folder or its vocab.txt: the tokens of this checkpoint are those of bert-base"
        in refused(path, capsys)
    )
    said = refused(path, capsys, *heads, "--tokenizer", "bert-base-uncased")
    assert "--tokenizer: expected the tokenizer's folder or its vocab.txt on this machine, but there is no bert-base" in said


@pytest.mark.parametrize(
    ("pieces", "sentence"),
    [
        ("[PAD] [CLS] [SEP] [MASK] the", "the tokenizer fails at characters it does not know"),
        ("[PAD] [UNK] [CLS] [SEP] [MASK]", "the tokenizer has no tokens but the special ones"),
        ("[PAD] [UNK] [CLS] [SEP] [MASK] the the pub", "expected the ids 0 to 6, each of one token, but 5 is of none"),
        ("[PAD] [UNK] [CLS] [SEP] [MASK] \xff", "this is no vocabulary of BERT"),
        ("[PAD] [UNK] [CLS] [SEP] [MASK] the", "vocab_size is 22, but "),
    ],
)
def test_a_vocabulary_of_word_pieces_with_a_fault_is_refused(
    pieces: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint(tmp_path / "original", use_bert_tokenizer="yes")
    (tmp_path / "vocab.txt").write_bytes(pieces.replace(" ", "\n").encode("latin-1"))
    said = refused(path, capsys, "--heads", str(HEADS), "--tokenizer", str(tmp_path / "vocab.txt"))
    assert sentence in said and str(tmp_path / "vocab.txt") in said


def test_a_folder_without_or_with_several_checkpoints_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(tmp_path / "original")
    shutil.copy(path, path.with_name("ema_0.999_200000.pt"))
    said = refused(path.parent, capsys)
    assert "expected one average of step 200000, got ema_0.9999_200000.pt, ema_0.999_200000.pt; name the file" in said
    (tmp_path / "empty").mkdir()
    assert "expected ema_RATE_STEP.pt or modelSTEP.pt, but there is no such file" in refused(tmp_path / "empty", capsys)
    assert "expected a checkpoint (.pt) or its folder, but there is none" in refused(tmp_path / "nowhere", capsys)


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(tmp_path / "original")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    for out in (tmp_path / "mine", tmp_path / "mine" / "thesis.tex"):
        assert main(["convert", str(path), "--out", str(out), "--heads", str(HEADS)]) == 2
        assert f"--out: expected a new or empty folder, but there is already something in {out}" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_the_working_directory_may_be_the_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path / "original")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["convert", str(path), "--out", ".", "--heads", str(HEADS)]) == 0
    assert (tmp_path / "empty" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"vocab": "vocab.txt"}, "vocab: expected 'bert', got 'vocab.txt'"),
        ({"learned_mean_embed": True}, "learned_mean_embed: expected False, got True"),
        ({"hidden_t_dim": 128}, "hidden_t_dim: expected the size of the weights, got 128"),
        ({"seq_len": 6}, "seq_len: expected 7 to 100000, got 6"),
        ({"seq_len": 600}, "position_embeddings.weight: expected the shape (600, 16), got (512, 16)"),
        ({"use_plm_init": "bert", "hidden_dim": 768}, "hidden_dim: expected the size of the weights, got 768"),
    ],
)
def test_checkpoints_of_diffuseq_that_this_library_has_no_model_for_are_named(
    arguments: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "pub"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    path = diffuseq_checkpoint(tmp_path / "original", len(words), **arguments)
    assert sentence in refused(path, capsys, "--heads", str(HEADS), "--tokenizer", str(tmp_path / "vocab.txt"))
