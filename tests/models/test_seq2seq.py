"""Encoder-decoders: the exact likelihood, the null condition, folders that transformers reads too, and damaged ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM

from diffusionlm.config import UserError, build
from diffusionlm.data.batches import encode
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.models.seq2seq import Seq2SeqConfig, SourceToText, SourceToTextObjective, encode_sources
from diffusionlm.models.source import Source
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.training.run import RunConfig, save_model

CORPUS = datasets.Dataset.from_list(
    [
        {"text": "the food is good", "source": "good food"},
        {"text": "the bill is high", "source": "bill : high !"},
        {"text": "it is a pub", "source": "pub"},
    ]
)
SPEC = Seq2SeqConfig(layers=2, width=16, heads=2, dropout=0.0, condition=Source(max_length=8, layers=1, dropout=0.0))


def made(spec: Seq2SeqConfig = SPEC, **changes: Any) -> tuple[SourceToTextObjective, list[Any], Any]:
    """Return the objective of a small model with random weights, its training rows, and the tokenizer."""
    splits = {"train": CORPUS}
    spec = spec.fitted(splits)
    tokenizer = WordTokenizer().make(spec.tokenizer_texts(CORPUS))
    rows = list(spec.rows({"train": encode(CORPUS["text"][:], tokenizer)}, splits, tokenizer)["train"])
    torch.manual_seed(0)
    objective = SourceToText(**changes).build(spec.make(tokenizer, rows, 8))
    return objective, rows, tokenizer


def loss(objective: SourceToTextObjective, rows: list[Any]) -> Tensor:
    with torch.no_grad():
        return objective(objective.collate(rows))["cross_entropy"]


def test_the_loss_is_that_of_transformers() -> None:
    """Source by source, without padding: the mean of its own losses, weighted by the tokens of the texts."""
    objective, rows, _ = made()
    model, total = objective.eval().model, 0.0
    for row in rows:
        source = torch.tensor([[model.config.bos_token_id, *row.condition]])
        with torch.no_grad():
            total += float(model(input_ids=source, labels=torch.tensor([row[1:]])).loss) * (len(row) - 1)
    assert float(loss(objective, rows)) == pytest.approx(total / sum(len(row) - 1 for row in rows), rel=1e-5)


def test_the_loss_depends_on_the_source_and_not_on_the_rows_beside_it() -> None:
    objective, rows, _ = made()
    objective.eval()
    alone = [float(loss(objective, [row])) * (len(row) - 1) for row in rows]
    assert float(loss(objective, rows)) * sum(len(row) - 1 for row in rows) == pytest.approx(sum(alone), rel=1e-5)
    first = float(loss(objective, rows[:1]))
    rows[0].condition = rows[1].condition
    assert float(loss(objective, rows[:1])) != first


def test_a_source_that_is_dropped_is_the_null_condition() -> None:
    spec = replace(SPEC, condition=replace(SPEC.source, drop=0.999))
    objective, rows, _ = made(spec)
    objective.train()
    torch.manual_seed(0)
    dropped = float(loss(objective, rows))
    for row in rows:
        row.condition = None
    assert float(loss(objective.eval(), rows)) == pytest.approx(dropped, rel=1e-5)
    null = encode_sources(objective.model, torch.tensor([[4, 5], [6, 7]]), torch.tensor([0, 0]))
    assert null["attention_mask"].tolist() == [[1, 0, 0]] * 2
    torch.testing.assert_close(*null["encoder_outputs"][0][:, 0])


def test_words_are_dropped_from_the_context_in_training_alone() -> None:
    (dropping, rows, _), (plain, _, _) = made(dropped_share=0.99), made()
    assert loss(dropping.eval(), rows) == loss(plain.eval(), rows) != loss(dropping.train(), rows)


def test_each_part_has_its_own_layers_and_dropout(tmp_path: Path) -> None:
    spec = replace(SPEC, dropout=0.3, condition=replace(SPEC.source, dropout=0.2, layers=3))
    objective, _, tokenizer = made(spec)
    save_model(objective.model, tokenizer, SamplingConfig(), tmp_path / "model")
    for model in (objective.model, spec.load(tmp_path / "model")):
        assert (len(model.encoder.block), len(model.decoder.block)) == (3, 2)
        for part, share in ((model.encoder, 0.2), (model.decoder, 0.3)):
            modules = [module for module in part.modules() if isinstance(module, nn.Dropout)]
            attention = [module.dropout for module in part.modules() if type(module).__name__ == "T5Attention"]
            assert {module.p for module in modules} == {*attention} == {share}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seq2seq") / "model"
    objective, _, tokenizer = made()
    save_model(objective.model, tokenizer, SamplingConfig(), folder)
    return folder


def test_a_folder_is_read_here_and_by_transformers(saved: Path) -> None:
    objective, rows, _ = made()
    own, theirs = SPEC.load(saved), AutoModelForSeq2SeqLM.from_pretrained(str(saved)).eval()
    assert own.settings == SPEC and SPEC.describes(own)
    assert not replace(SPEC, heads=4).describes(own) and not replace(SPEC, condition=Source(max_length=9)).describes(own)
    asked = {"input_ids": torch.tensor([[2, 5, 6]]), "labels": torch.tensor([rows[0][1:]])}
    with torch.no_grad():
        found = [model(**asked).logits for model in (objective.eval().model, own, theirs)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def edited(saved: Path, folder: Path, **changes: Any) -> Path:
    """Copy the folder, with changes of its config, None for a key that is removed."""
    shutil.copytree(saved, folder)
    plain = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({name: value for name, value in plain.items() if value is not None}))
    return folder


def test_settings_of_an_earlier_version_lack_fields_that_have_their_defaults(saved: Path, tmp_path: Path) -> None:
    settings = json.loads((saved / "config.json").read_text())["settings"]
    del settings["condition"]["tokenizer"], settings["expansion"]
    assert SPEC.load(edited(saved, tmp_path / "model", settings=settings)).settings == SPEC


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"settings": None}, "expected a model that this library trained, with its settings, got a T5 from elsewhere"),
        ({"settings": []}, "settings: expected a valid dictionary, got []"),
        ({"settings": {"name": "seq2seq", "layer": 2}}, "layer"),
        ({"settings": {"condition": {"name": "os:system"}}}, "os:system"),
        ({"format_version": 9}, "format 9 is newer than this library reads (2)"),
        ({"special_ids": {"pad": 0, "start": 2}}, "special_ids: expected ids of pad, start and end, got pad, start"),
        ({"special_ids": {"pad": 0, "unk": 1, "start": 3, "end": 3}}, "start and end are one token"),
        ({"special_ids": {"pad": 0, "unk": 1, "start": 3, "end": 2}}, "bos_token_id: expected 3, as its settings say, got 2"),
        ({"pad_token_id": 5}, "pad_token_id: expected 0, as its settings say, got 5"),
        ({"eos_token_id": 5}, "eos_token_id: expected 3, as its settings say, got 5"),
        ({"decoder_start_token_id": 0}, "decoder_start_token_id: expected 2, as its settings say, got 0"),
        ({"max_position_embeddings": 2}, "max_position_embeddings: expected 3 to 1000000, got 2"),
        ({"max_position_embeddings": "8"}, "max_position_embeddings: expected a valid integer, got '8'"),
        ({"max_position_embeddings": None}, "max_position_embeddings"),
        ({"num_heads": 4}, "num_heads: expected 2, as its settings say, got 4"),
        (
            {"feed_forward_proj": "gated-relu"},
            "feed_forward_proj: expected 'gated-gelu', as its settings say, got 'gated-relu'",
        ),
        ({"relative_attention_num_buckets": 16}, "relative_attention_num_buckets: expected 32, as its settings say, got 16"),
        ({"num_layers": 10**9}, "num_layers: expected at most 10000, got 1000000000"),
        ({"vocab_size": 4000}, "the weights have other shapes than those that the config describes"),
        ({"is_decoder": True}, "is_decoder: expected False, as its settings say, got True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: expected none, since it loads code from elsewhere"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused(saved: Path, changes: Any, sentence: str, tmp_path: Path) -> None:
    folder = edited(saved, tmp_path / "model", **changes)
    with pytest.raises(UserError) as caught:
        open_pipeline(folder)
    assert sentence in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"condition": None}, "condition: expected 'source', the text that the encoder reads, got none; the model 'causal'"),
        ({"condition": "partial-noising"}, "condition: expected 'source', the text that the encoder reads, got 'partial-nois"),
        ({"width": 10, "heads": 3}, "heads: expected the width 10 to be a multiple of the heads, got 3"),
        ({"expansion": 0.001}, "expansion: expected at least 0.0078125, got 0.001"),
        ({"dropout": 1}, "dropout: expected a share from 0 to below 1, got 1"),
        ({"layers": 0}, "layers: expected 1 to 1000, got 0"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        build(RunConfig, {"model": {"name": "seq2seq", **settings}, "objective": "seq2seq"})
    assert sentence in str(caught.value)


def test_the_objective_and_the_model_are_of_one_family() -> None:
    wrong: dict[Callable[[], RunConfig], str] = {
        lambda: build(RunConfig, {"model": "seq2seq"}): "'cross-entropy' trains a 'diffusion' model, and model is 'seq2seq'",
        lambda: build(RunConfig, {"model": "seq2seq", "objective": "causal"}): "'causal' trains a 'causal' model",
        lambda: build(RunConfig, {"model": "causal", "objective": "seq2seq"}): "'seq2seq' trains a 'seq2seq' model",
    }
    for make, sentence in wrong.items():
        with pytest.raises(UserError, match=sentence):
            make().check()


def test_a_corpus_without_the_source_is_refused() -> None:
    spec = replace(SPEC, condition=Source(column="sauce"))
    with pytest.raises(UserError, match=r"^model.condition: the corpus has no column 'sauce'; did you mean 'source'\?"):
        spec.fitted({"train": CORPUS})
