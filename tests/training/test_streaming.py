"""Training on a streamed corpus: a run that stops continues exactly, and what needs the whole corpus is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_runs import restaurant_texts, tiny_plain

from diffusionlm.cli import main
from diffusionlm.config import UserError, build, merge
from diffusionlm.data.large import is_held_out
from diffusionlm.training.checkpoints import MARKER, STREAM
from diffusionlm.training.run import RunConfig, train

TRAINING = {"steps": 8, "accumulation": 2, "save_every": 1, "keep": 40, "evaluate_every": 4, "sample_every": 8}
CORPUS = {"streaming": True, "first_texts": 80, "shuffle_buffer": 32}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for number in range(3):
        part = restaurant_texts(200)[40 * number : 40 * (number + 1)]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    return folder


def config_of(shards: Path, **changes: object) -> RunConfig:
    corpus = {"name": "files", "train": str(shards), **CORPUS}
    plain = tiny_plain(shards.parent, training=TRAINING) | {"data": {"max_length": 48, "corpus": corpus}}
    return build(RunConfig, merge(plain, changes))


@pytest.fixture(scope="module")
def unbroken(shards: Path) -> Path:
    run = shards.parent / f"{shards.name}-run"
    assert train(config_of(shards), run, quiet=True)
    return run


def result(run: Path) -> dict[str, Any]:
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    timeless = [{name: value for name, value in row.items() if "second" not in name} for row in logged]
    weights = {name: value.tolist() for name, value in load_file(run / "model" / "model.safetensors").items()}
    return {"log": timeless, "weights": weights, "samples": (run / "samples" / "step-8.txt").read_text()}


def test_a_stopped_run_continues_with_the_same_batches(unbroken: Path, shards: Path, tmp_path: Path) -> None:
    expected = result(unbroken)
    read = [row["texts"] for row in expected["log"] if "texts" in row]
    assert len(read) == 8 and read[0] == 32 and read[-1] > 120  # a second pass has begun
    assert expected["log"][0]["cut"] == 0 and expected["log"][-1]["step"] == 8
    for step in (1, 5):
        run = shutil.copytree(unbroken, tmp_path / f"run-{step}")
        (run / "model" / "finished").unlink()
        for later in range(step + 1, 9):
            shutil.rmtree(run / "checkpoints" / f"checkpoint-{later}")
        assert train(config_of(shards), run, quiet=True)
        assert result(run) == expected


def test_a_damaged_position_and_other_files_are_refused(unbroken: Path, shards: Path, tmp_path: Path) -> None:
    run = shutil.copytree(unbroken, tmp_path / "run")
    (run / "model" / "finished").unlink()
    shutil.rmtree(run / "checkpoints" / "checkpoint-8")
    saved = run / "checkpoints" / "checkpoint-7" / STREAM
    position = json.loads(saved.read_text())
    for damage in ("", "{}"):
        saved.write_text(damage)
        with pytest.raises(UserError, match=rf"checkpoint-7.*{STREAM}.* damaged|checkpoint-7.* damaged.*\({STREAM}\)"):
            train(config_of(shards), run, quiet=True)
    saved.write_text(json.dumps({**position, "version": "other"}))
    with pytest.raises(UserError, match="its files differ from those that this run has read"):
        train(config_of(shards), run, quiet=True)
    assert (run / "checkpoints" / "checkpoint-7" / MARKER).exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"training": {"batch_tokens": 40}}, "training.batch_tokens: expected data.max_length, 48, or more"),
        ({"data": {"typical": 2}}, "data.typical: the texts of a source are not together in a streamed corpus"),
        ({"model": {"condition": {"name": "label", "field": "food"}}}, "data.corpus.streaming: only texts are streamed"),
        ({"data": {"corpus": {"train": "none.txt"}}}, "none.txt: there is no such file"),
    ],
    ids=str,
)
def test_what_a_stream_does_not_have_is_refused(
    changes: dict[str, object], sentence: str, shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        train(config_of(shards, **changes), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_folder_is_streamed_by_the_command_line(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        "--training.batch_tokens",
        "128",
        "--training.threads",
        "1",
        "--model.backbone.layers",
        "1",
        "--model.backbone.width",
        "16",
    ]
    small += ["--model.backbone.heads", "2", "--sampling.steps", "2", "--sampling.passes", "1", "--data.max_length", "48"]
    stream = ["--data.corpus", str(shards), "--data.corpus.streaming", "true", "--data.corpus.first_texts", "50"]
    command = ["train", *stream, *small, "--training.precision", "fp32", "--out", str(tmp_path / "run")]
    assert main([*command, "--minutes", "1"]) == 2
    assert "--minutes: the number of tokens of a streamed corpus is not known; give --training.steps" in capsys.readouterr().err
    assert main([*command, "--steps", "2"]) == 0
    said = capsys.readouterr().err
    assert "data.corpus.streaming: the number of texts is not known, so no settings are chosen to fit them" in said
    assert f"{shards}: streamed; tokenizer, word vectors, lengths and held-out texts are taken from the first 50 texts" in said
    trained = sum(not is_held_out(text, 0.05) for text in restaurant_texts(120))
    assert f"train: {trained} texts were read, 0 of them longer than 48 tokens and cut, 0 without a token; " in said
