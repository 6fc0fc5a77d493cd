"""Classifiers and tokenizers from elsewhere are complete and consistent, or one sentence says what is wrong with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import ROOT
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from diffusionlm.config import UserError
from diffusionlm.controls import Binding, Classifier
from diffusionlm.controls.third_party import SequenceClassifier
from diffusionlm.data.tokenizers import Pretrained, load_tokenizer
from diffusionlm.evaluation.judge import Judge
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.diffusion import Pipeline

STORED = ROOT / "tests" / "golden" / "format-1"
TEXTS = ["The pub is cheap.", "The restaurant near the river is an expensive place for families."]


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained(STORED)


def classifier(folder: Path, pipe: Pipeline, kind: str = "bert", positions: int = 66, **changes: Any) -> Path:
    """Save a sequence classifier with random weights, which has the tokens of ``pipe``."""
    size: dict[str, Any] = {"vocab_size": len(pipe.tokenizer), **changes}
    bert: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(0)
    model: Any
    if kind == "gpt2":
        config = GPT2Config(n_positions=positions, n_embd=8, n_layer=1, n_head=2, **size)
        model = GPT2ForSequenceClassification(config)
    elif kind == "roberta":
        model = RobertaForSequenceClassification(
            RobertaConfig(max_position_embeddings=positions, pad_token_id=0, **bert, **size)
        )
    else:
        model = BertForSequenceClassification(BertConfig(max_position_embeddings=positions, **bert, **size))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(30 if weight.ndim == 2 else 1)
    model.save_pretrained(folder)
    pipe.tokenizer.save_pretrained(folder)
    return folder


def edit(path: Path, **changes: Any) -> None:
    plain = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in plain.items() if value != "LEFT OUT"}))


def loaded(folder: Path, pipe: Pipeline) -> SequenceClassifier:
    found = Binding(pipe.model, pipe.tokenizer).sequence_classifier(str(folder))
    assert found is not None
    return found


def refusal(folder: Path, pipe: Pipeline) -> str:
    with pytest.raises(UserError) as caught:
        loaded(folder, pipe)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


# Classifiers


def test_weights_of_the_head_that_are_missing_are_not_drawn_at_random(pipe: Pipeline, tmp_path: Path) -> None:
    path = classifier(tmp_path / "model", pipe) / "model.safetensors"
    weights = {name: weight for name, weight in load_file(path).items() if not name.startswith("classifier")}
    save_file(weights, path, {"format": "pt"})
    assert "the weights do not fit the config: classifier.bias" in refusal(path.parent, pipe)


def test_a_folder_without_tokenizer_is_refused(pipe: Pipeline, tmp_path: Path) -> None:
    folder = classifier(tmp_path / "model", pipe)
    (folder / "tokenizer.json").unlink()
    assert "the tokenizer is missing or damaged: expected tokenizer.json, or" in refusal(folder, pipe)
    (folder / "tokenizer_config.json").unlink()
    assert "the tokenizer is missing or damaged" in refusal(folder, pipe)


def test_one_weight_that_is_too_much_is_the_only_one_named(pipe: Pipeline, tmp_path: Path) -> None:
    path = classifier(tmp_path / "model", pipe) / "model.safetensors"
    save_file(load_file(path) | {"extra.weight": torch.zeros(1)}, path, {"format": "pt"})
    assert refusal(path.parent, pipe).endswith("the weights do not fit the config: extra.weight differs")


def test_a_name_that_transformers_does_not_know_is_said_to_be_unknown(pipe: Pipeline, tmp_path: Path) -> None:
    folder = classifier(tmp_path / "model", pipe)
    edit(folder / "config.json", hidden_act="swish-like")
    assert refusal(folder, pipe).endswith("nothing is called 'swish-like'")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 1, "b": 0}}, "contradicts id2label"),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}, "contradicts id2label"),
        ({"id2label": {"0": "a", "1": "b"}, "num_labels": 3}, "num_labels: expected 2, as many as id2label names, got 3"),
        ({"id2label": {"0": "a", "1": "a"}}, "id2label: expected labels numbered from 0 on, each name once"),
        ({"id2label": {"1": "a", "2": "b"}}, "id2label: expected labels numbered from 0 on, each name once"),
        ({"id2label": {"0": "a", "1": None}}, "id2label: expected the name of each label by its number"),
        ({"id2label": ["a", "b"]}, "id2label: expected the name of each label by its number"),
        ({"label2id": {"a": 0, "b": 1}}, "id2label: expected the name of each label by its number, got None"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "the weights have other shapes"),
        ({"num_labels": 3}, "the weights have other shapes"),
    ],
)
def test_labels_that_contradict_each_other_are_refused(
    changes: dict[str, Any], sentence: str, pipe: Pipeline, tmp_path: Path
) -> None:
    folder = classifier(tmp_path / "model", pipe)
    edit(folder / "config.json", **{"id2label": "LEFT OUT", "label2id": "LEFT OUT", **changes})
    assert sentence in refusal(folder, pipe)


@pytest.mark.parametrize("by_name", ["LEFT OUT", {"bad": 0, "good": 1}])
def test_the_numbers_of_labels_are_enough(by_name: Any, pipe: Pipeline, tmp_path: Path) -> None:
    folder = classifier(tmp_path / "model", pipe)
    edit(folder / "config.json", id2label={"0": "bad", "1": "good"}, label2id=by_name)
    assert loaded(folder, pipe).index("good", "here") == 1
    with pytest.raises(UserError, match="has no label 'god'; did you mean 'good'"):
        loaded(folder, pipe).index("god", "here")


def test_a_token_beyond_the_vocabulary_is_refused(pipe: Pipeline, tmp_path: Path) -> None:
    folder = classifier(tmp_path / "model", pipe, vocab_size=100)
    assert "expected token ids below its vocabulary of 100, but its tokenizer has 540" in refusal(folder, pipe)


@pytest.mark.parametrize(("kind", "positions", "longest"), [("bert", 20, 20), ("roberta", 20, 19), ("gpt2", 20, 20)])
def test_longer_texts_are_cut_where_the_positions_end_and_this_is_said_once(
    kind: str, positions: int, longest: int, pipe: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = loaded(classifier(tmp_path / "model", pipe, kind, positions), pipe)
    text = " ".join(["cheap"] * 30)
    capsys.readouterr()
    first = found.log_probabilities([text, TEXTS[0]])
    assert found.longest == longest and bool(first.isfinite().all())
    assert capsys.readouterr().err == (
        f"classifier: {tmp_path / 'model'} reads {longest} tokens; of longer texts, such as one of 32, only the beginning counts\n"
    )
    found.log_probabilities([text])
    assert capsys.readouterr().err == ""
    assert found.aligned is None  # token posteriors of our longest texts do not fit


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
@pytest.mark.parametrize("pad", ["[PAD]", None])
def test_a_text_is_classified_alike_alone_and_beside_a_longer_one(
    kind: str, pad: str | None, pipe: Pipeline, tmp_path: Path
) -> None:
    folder = classifier(tmp_path / "model", pipe, kind)
    edit(folder / "tokenizer_config.json", pad_token=pad or "LEFT OUT")
    found = loaded(folder, pipe)
    alone = torch.cat([found.log_probabilities([text]) for text in TEXTS])
    torch.testing.assert_close(found.log_probabilities(TEXTS), alone)
    control = Classifier("LABEL_1", str(folder)).compile(pipe.binding)
    assert bool(control.energies) == (kind != "gpt2" and pad is not None)  # GPT-2 would classify the padding


def test_an_encoder_with_a_decoder_takes_no_vectors_and_scores_texts(pipe: Pipeline, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"d_model": 8, "vocab_size": len(pipe.tokenizer), "max_position_embeddings": 66}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 8}
    ends: dict[str, Any] = {
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "decoder_start_token_id": 3,
        "forced_eos_token_id": 3,
    }
    BartForSequenceClassification(BartConfig(**sizes, **ends)).save_pretrained(tmp_path)
    pipe.tokenizer.save_pretrained(tmp_path)
    found = loaded(tmp_path, pipe)
    assert found.aligned is None
    assert found.log_probabilities(TEXTS).shape == (2, 3)


# Tokenizers


def saved(folder: Path, model: models.Model, **special: str) -> Path:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return folder


def test_files_of_a_vocabulary_serve_without_a_tokenizer_file_and_all_of_them_are_needed(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "pub", "##s"]))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert load_tokenizer(tmp_path)("the pubs")["input_ids"] == [2, 5, 6, 7, 3]
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"expected tokenizer\.json, or vocab\.txt"):
        load_tokenizer(tmp_path)


LETTERS = {letter: i for i, letter in enumerate("[] abcdefgh")}


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (models.WordLevel({"a": 0, "b": 1}, unk_token="[UNK]"), "the tokenizer fails at characters it does not know"),
        (models.BPE(LETTERS, []), "the tokenizer drops characters that it does not know"),
        (models.Unigram([("a", -1.0), ("b", -1.0)]), "the tokenizer fails at characters it does not know"),
        (models.WordPiece({"a": 0, "b": 1}, unk_token="[UNK]"), "the tokenizer fails at characters it does not know"),
    ],
    ids=["WordLevel", "BPE", "Unigram", "WordPiece"],
)
def test_a_tokenizer_without_its_unknown_token_is_refused(model: models.Model, sentence: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "tokenizer", model)
    for read in (load_tokenizer, lambda folder: Pretrained(str(folder)).make([])):
        with pytest.raises(UserError, match=sentence):
            read(folder)


def test_a_judge_with_such_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "judge", models.BPE(LETTERS, []))
    GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2)).save_pretrained(folder)
    with pytest.raises(UserError, match="drops characters that it does not know"):
        Judge.load(folder)


@pytest.mark.parametrize("ids", [{"[UNK]": 0, "a": 1, "b": 3}, {"[UNK]": 1, "a": 2, "b": 3}, {"[UNK]": 0, "a": 1, "b": 1}])
def test_ids_with_a_hole_or_a_double_are_refused(ids: dict[str, int], tmp_path: Path) -> None:
    whole = {"[UNK]": 0, "a": 1, "b": 2}
    folder = saved(tmp_path / "tokenizer", models.WordLevel(whole, unk_token="[UNK]"), unk_token="[UNK]")
    plain = json.loads((folder / "tokenizer.json").read_text())
    plain["model"]["vocab"] = ids
    plain["added_tokens"] = []
    (folder / "tokenizer.json").write_text(json.dumps(plain))
    with pytest.raises(UserError, match=r"expected the ids 0 to 2, each of one token, but \d is of none or several"):
        Pretrained(str(folder)).make([])


def test_a_token_of_a_judge_beyond_its_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "judge", models.WordLevel({"[UNK]": 0, "a": 30}, unk_token="[UNK]"), unk_token="[UNK]")
    GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2)).save_pretrained(folder)
    with pytest.raises(UserError, match="the tokenizer has a token 30, the model 20 tokens"):
        Judge.load(folder)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(STORED, tmp_path / "model")
    plain = json.loads((folder / "tokenizer.json").read_text())
    plain["model"]["vocab"].popitem()
    (folder / "tokenizer.json").write_text(json.dumps(plain))
    with pytest.raises(UserError, match="the tokenizer has 540 tokens, the model 541"):
        open_pipeline(folder)


@pytest.mark.parametrize("path", ["./tokenizre", "/tokenizre", "runs/mine/tokenizre", "../tokenizre"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(path: str) -> None:
    with pytest.raises(UserError, match=r"^tokenizer\.path: there is no folder "):
        Pretrained(path).make([])
