"""Whatever the files of a model folder hold, loading succeeds or says in one sentence what is wrong and where."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import ROOT

from diffusionlm.cli import main
from diffusionlm.config import UserError
from diffusionlm.controls import Reward, read_controls
from diffusionlm.data.tokenizers import load_tokenizer
from diffusionlm.evaluation.judge import Judge
from diffusionlm.evaluation.scoring import score
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.diffusion import Pipeline

STORED = ROOT / "tests" / "golden" / "format-1"
FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "sampling.json"]
FILES += [f"classifiers/attributes/{name}" for name in ("config.json", "model.safetensors")]


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut in half": halve,
    "null": lambda path: path.write_text("null"),
    "a list": lambda path: path.write_text("[]"),
    "text": lambda path: path.write_text('""'),
    "empty": lambda path: path.write_text(""),
    "too deep": lambda path: path.write_text("[" * 100_000),
    "random bytes": lambda path: path.write_bytes(random.Random(0).randbytes(500)),
    "in UTF-16": lambda path: path.write_bytes(path.read_bytes().decode("latin-1").encode("utf-16")),
    "a folder": replace_by_folder,
}


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained(STORED)


def stored(folder: Path) -> Path:
    return Path(shutil.copytree(STORED, folder))


def refusal(folder: Path) -> str:
    """Return the sentence with which a model or its classifier is refused, and check that it is one and says where."""
    with pytest.raises(UserError) as caught:
        open_pipeline(folder)(1, "food=Thai", steps=1, sweeps=0)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_refused_in_one_sentence(file: str, damage: str, tmp_path: Path) -> None:
    DAMAGES[damage](stored(tmp_path / "model") / file)
    refusal(tmp_path / "model")


@pytest.mark.parametrize("file", [file for file in FILES if file not in ("sampling.json", "tokenizer_config.json")])
def test_a_missing_file_is_refused(file: str, tmp_path: Path) -> None:
    (stored(tmp_path / "model") / file).unlink()
    with pytest.raises(UserError, match="no config.json|no file named|damaged or incomplete|missing or damaged|no classifier"):
        open_pipeline(tmp_path / "model")(1, "food=Thai", steps=1, sweeps=0)


def changed(folder: Path, file: str, place: str, value: Any) -> Path:
    """Set the value at the dotted ``place`` of a JSON file."""
    plain = json.loads((folder / file).read_text())
    *outer, last = place.split(".")
    group = plain
    for key in outer:
        group = group[key]
    group[last] = value
    (folder / file).write_text(json.dumps(plain))
    return folder


PLACES = {
    "config.json": "model_type format_version settings settings.backbone settings.schedule vocabulary max_tokens length_counts special_ids",
    "sampling.json": "steps sampler temperature guidance particles length seed batch_size",
    "tokenizer.json": "model model.vocab added_tokens normalizer decoder",
    "tokenizer_config.json": "bos_token pad_token unk_token model_max_length",
    "classifiers/attributes/config.json": "settings schedule dimension vocabulary labels span_places",
}


@pytest.mark.parametrize(("file", "place"), [(file, place) for file, places in PLACES.items() for place in places.split()])
def test_a_value_of_a_wrong_type_is_refused(file: str, place: str, tmp_path: Path) -> None:
    for number, value in enumerate([-1, {"a": None}]):
        folder = stored(tmp_path / str(number))
        if (file, place, value) == ("sampling.json", "length", -1):
            continue  # it depends on the model, and is refused when it samples
        refusal(changed(folder, file, place, value))


@pytest.mark.parametrize(
    ("file", "place", "value", "sentence"),
    [
        ("config.json", "settings", None, "settings: expected a valid dictionary, got None"),
        ("config.json", "settings", {}, "settings: expected the settings that the model was trained with, got none"),
        ("config.json", "max_tokens", 10**9, "the weights have other shapes than those that the config describes"),
        ("config.json", "vocabulary", 10**9, "damaged or incomplete"),
        ("config.json", "format_version", True, "format_version: expected a whole number up to 2, got True"),
        ("config.json", "length_counts", [1] * 99, "expected texts of up to max_tokens 64, got a text of 98 tokens"),
        ("config.json", "settings.schedule.location", 1e9, "settings.schedule has no usable noise levels"),
        ("config.json", "settings.evidence", -1, "evidence: expected 0 or more, got -1"),
        ("config.json", "setings", {}, "setings: there is no such setting; did you mean 'settings'?"),
        ("sampling.json", "format_version", 9, "format_version: expected a whole number up to 2, got 9"),
        ("sampling.json", "guidance", {"name": "gradient", "inner_steps": 10**9}, "inner_steps: expected 1 to 10000"),
        ("tokenizer_config.json", "unk_token", "", "the special tokens are damaged"),
        ("tokenizer_config.json", "model_max_length", "text", "model_max_length"),
        ("classifiers/attributes/config.json", "schedule", {}, "schedule: expected the noise schedule"),
        ("classifiers/attributes/config.json", "labels", {}, "labels: expected fields of labels"),
        ("classifiers/attributes/config.json", "labels", {"food": ["a", "a"]}, "labels: expected several values of 'food', each once"),
        ("classifiers/attributes/config.json", "words", "another", "it was trained on other word vectors"),
    ],
)  # fmt: skip
def test_the_sentence_says_what_was_expected(file: str, place: str, value: Any, sentence: str, tmp_path: Path) -> None:
    folder = changed(stored(tmp_path / "model"), file, place, value)
    with pytest.raises(UserError) as caught:
        open_pipeline(folder)(1, "food=Thai", steps=1, sweeps=0)
    assert sentence in str(caught.value)


def test_the_command_line_shows_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed(stored(tmp_path / "model"), "config.json", "special_ids", [1])
    for arguments in (["generate", str(folder)], ["score", str(folder), "-"], ["generate", str(folder / "config.json")]):
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["", "x" * 5000, "../..", "\0", "no such folder"])
def test_a_name_that_no_folder_can_have_is_refused(name: str, pipe: Pipeline) -> None:
    with pytest.raises(UserError):
        pipe(1, f"Classifier({'good'!r}, {name!r})", steps=1)
    with pytest.raises(UserError, match="expected a model folder, but |expected a folder"):
        open_pipeline(name or "nowhere")
    with pytest.raises(UserError):
        load_tokenizer(Path(name or "nowhere"))


# Functions of the user


def test_a_function_that_is_no_reward_is_refused(pipe: Pipeline) -> None:
    (control,) = read_controls(['Reward("os:system")'])
    with pytest.raises(UserError, match=r'Reward\("os:system"\): the function fails for 8 texts: TypeError'):
        pipe(1, control, steps=2)
    for function, sentence in [("os:sep", "cannot be called"), ("os:nothing", "cannot import"), ("os", "cannot import")]:
        with pytest.raises(UserError, match=sentence):
            pipe(1, Reward(function), steps=2)
    with pytest.raises(UserError, match="cannot be called"):
        pipe(1, Reward(5), steps=2)  # type: ignore[arg-type]


RESULTS: list[Any] = [
    None, "0.5", [None, None], ["a", "b"], [1.0], [1.0, 2.0, 3.0], [[1.0, 2.0], [3.0, 4.0]], [float("nan"), 1.0],
    [float("inf"), 1.0], {"a": 1.0, "b": 2.0}, {1.0, 2.0}, 1.0, [[1.0], [2.0, 3.0]], object(),
]  # fmt: skip


@pytest.mark.parametrize("result", RESULTS, ids=[str(result)[:12] for result in RESULTS])
def test_scores_that_are_no_finite_number_for_each_text_are_refused(result: Any, pipe: Pipeline) -> None:
    def reward(texts: Sequence[str]) -> Any:
        return result

    with pytest.raises(UserError, match=r'Reward\("reward"\): expected a finite score for each of 2 texts, got '):
        Reward(reward).score(["a", "b"], pipe.binding)


@pytest.mark.parametrize("result", [[0.25, 1], (0, 1), torch.tensor([[0.25], [1.0]]), torch.ones(1, 2), [True, False]])
def test_scores_may_be_any_numbers(result: Any, pipe: Pipeline) -> None:
    assert len(Reward(lambda texts: result).score(["a", "b"], pipe.binding)) == 2


def test_one_text_in_place_of_a_list_is_refused(pipe: Pipeline) -> None:
    judge: Any = Judge.__new__(Judge)
    for scored in (lambda text: score(pipe, text), judge.score):
        with pytest.raises(UserError, match=r"texts: expected a list of texts, got one text; write \['The pub is cheap.'\]"):
            scored("The pub is cheap.")
