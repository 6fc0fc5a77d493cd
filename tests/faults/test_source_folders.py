"""The tokenizer of a model's sources is there, intact, and that of this model; one sentence says what is wrong with it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from test_damage import DAMAGES
from test_lora_folders import refused
from tiny_adapters import edit
from tiny_sources import OWN, PLAIN, config, trained
from transformers import AutoModelForSeq2SeqLM

from diffusionlm.cli import main
from diffusionlm.data.tokenizers import SOURCES, WordTokenizer, load_tokenizer
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.training.run import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for name in ("source", "seq2seq", "several"):
        trained(folder, name)
    train(config(folder, PLAIN), folder / "plain", write_samples=False, quiet=True)
    adapter = {"name": "control-branch", "condition": OWN}
    changes = {"init_from": str(folder / "plain"), "adapter": adapter}
    train(config(folder, PLAIN, **changes), folder / "branch", write_samples=False, quiet=True)
    return folder


def copied(folder: Path, name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / name / "model", tmp_path / "model"))


def refusal(model: Path) -> str:
    """Return the sentence with which a model is refused, and check that it says where."""
    sentence = refused(lambda: open_pipeline(model))
    assert str(model) in sentence
    return sentence


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_refused_in_one_sentence(file: str, damage: str, folder: Path, tmp_path: Path) -> None:
    model = copied(folder, "source", tmp_path)
    DAMAGES[damage](model / SOURCES / file)
    assert str(model / SOURCES) in refusal(model)


@pytest.mark.parametrize("name", ["source", "seq2seq", "several", "branch"])
def test_a_missing_tokenizer_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    """The texts' tokenizer is not taken in its place."""
    model = copied(folder, name, tmp_path)
    shutil.rmtree(model / SOURCES)
    expected = f"{model / SOURCES}: expected the tokenizer of this model's sources, but there is no such folder"
    assert refusal(model) == expected
    (model / SOURCES).write_text("")
    assert refusal(model) == expected
    (model / SOURCES).unlink()
    (model / SOURCES).mkdir()
    assert "the tokenizer is missing or damaged" in refusal(model)


@pytest.mark.parametrize("name", ["source", "seq2seq", "several", "branch"])
def test_the_tokenizer_of_another_model_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    model = copied(folder, name, tmp_path)
    WordTokenizer().make(["1 2 3 4 5"]).save_pretrained(model / SOURCES)
    assert refusal(model) == f"{model / SOURCES}: the tokenizer has 9 tokens, the model's encoder of sources 8"


def _sparse(vocabulary: dict[str, int]) -> None:
    vocabulary["▁4"] = 9


def _doubled(vocabulary: dict[str, int]) -> None:
    vocabulary["▁4"] = vocabulary["▁3"]


@pytest.mark.parametrize("change", [_sparse, _doubled])
def test_ids_with_holes_are_refused(change: Callable[[dict[str, int]], None], folder: Path, tmp_path: Path) -> None:
    model = copied(folder, "source", tmp_path)
    path = model / SOURCES / "tokenizer.json"
    plain = json.loads(path.read_text())
    change(plain["model"]["vocab"])
    path.write_text(json.dumps(plain))
    assert refusal(model).startswith(f"{model / SOURCES}: ")


def test_a_tokenizer_of_sources_that_nothing_names_is_refused(folder: Path, tmp_path: Path) -> None:
    model = copied(folder, "plain", tmp_path)
    shutil.copytree(folder / "source" / "model" / SOURCES, model / SOURCES)
    assert refusal(model) == f"{model / SOURCES}: expected no tokenizer of sources, since this model's settings name none"
    shutil.rmtree(model / SOURCES)
    edit(model / "config.json", source_vocabulary=8)
    assert "since this model's settings name none" in refusal(model)


@pytest.mark.parametrize("name", ["source", "seq2seq"])
@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (None, "source_vocabulary: expected the number of tokens of the sources' own tokenizer, got none"),
        (9, "the weights have other shapes than those that the config describes"),
        (0, "source_vocabulary: expected 1 to 10000000, got 0"),
        (10**9, "source_vocabulary: expected 1 to 10000000, got 1000000000"),
        ("8", "source_vocabulary: expected a valid integer, got '8'"),
        (True, "source_vocabulary: expected a number, got true"),
    ],
)
def test_a_number_of_source_tokens_that_is_none(value: Any, sentence: str, name: str, folder: Path, tmp_path: Path) -> None:
    model = copied(folder, name, tmp_path)
    edit(model / "config.json", source_vocabulary=value)
    assert sentence in refusal(model)


def test_a_branch_of_another_number_of_source_tokens(folder: Path, tmp_path: Path) -> None:
    model = copied(folder, "branch", tmp_path)
    edit(model / "config.json", source_vocabulary=9)
    assert "condition.embedding.weight: expected the shape (9, 16), as adapter.json describes, got (8, 16)" in refusal(model)
    edit(model / "config.json", source_vocabulary=None)
    assert "source_vocabulary: expected the number of tokens of the sources' own tokenizer, got none" in refusal(model)


def test_settings_that_name_another_tokenizer_or_none(folder: Path, tmp_path: Path) -> None:
    model = copied(folder, "source", tmp_path)
    settings = json.loads((model / "config.json").read_text())["settings"]
    for tokenizer, sentence in {
        "none": "condition.tokenizer: no tokenizer is called 'none'",
        "os:system": "'os:system' is no tokenizer",
        "shutil_of_a_stranger:Thing": "is code from outside the library",
        None: "the weights have other shapes",
    }.items():
        condition = {**settings["condition"], "tokenizer": tokenizer}
        edit(model / "config.json", settings={**settings, "condition": condition}, vocabulary=8 if tokenizer else 9)
        assert sentence in refusal(model)


def test_an_encoder_without_its_vectors_is_refused(folder: Path, tmp_path: Path) -> None:
    """They are not replaced by those of the texts, as in a T5 of one vocabulary."""
    model = copied(folder, "seq2seq", tmp_path)
    weights = load_file(model / "model.safetensors")
    del weights["encoder.embed_tokens.weight"]
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    assert "the weights do not fit the config: encoder.embed_tokens.weight differs" in refusal(model)


def test_transformers_takes_it_for_no_t5_of_one_vocabulary(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForSeq2SeqLM.from_pretrained(str(folder / "seq2seq" / "model"))


def test_no_code_of_the_folder_is_run(folder: Path, tmp_path: Path) -> None:
    model = copied(folder, "source", tmp_path)
    (model / SOURCES / "tokenization_own.py").write_text("raise SystemExit('this code ran')")
    edit(model / SOURCES / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.Own", None]})
    assert len(load_tokenizer(model / SOURCES)) == 8  # as the library reads it
    edit(model / SOURCES / "tokenizer_config.json", tokenizer_class="Own", quantization_config={"bits": 4})
    assert "quantization_config: expected none, since it loads code from elsewhere" in refusal(model)


def test_random_changes_never_end_in_a_traceback(folder: Path, tmp_path: Path) -> None:
    draw, model = random.Random(1), copied(folder, "source", tmp_path)
    path = model / SOURCES / "tokenizer.json"
    intact = path.read_bytes()
    for _ in range(20):
        start = draw.randrange(len(intact))
        path.write_bytes(intact[:start] + draw.randbytes(4) + intact[start + 4 :])
        try:
            pipe = open_pipeline(model)
        except Exception as error:
            assert type(error).__name__ == "UserError" and "\n" not in str(error)
        else:
            pipe(1, source="3 1", steps=1)


def test_the_command_line_says_it_with_status_2(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = copied(folder, "source", tmp_path)
    shutil.rmtree(model / SOURCES)
    data, run = str(folder / "digits.jsonl"), str(tmp_path / "run")
    sampled, tuned = ["generate", str(model), "--source", data], ["train", "--init-from", str(model), "--out", run]
    capsys.readouterr()
    for arguments in (sampled, ["score", str(model), data], [*tuned, "--data.corpus", data, "--data.max_length", "8"]):
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.splitlines()[-1].startswith("diffusionlm: ") and "source_tokenizer: expected the tok" in err
    assert not (tmp_path / "run").exists()
