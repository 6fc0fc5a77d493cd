"""Control branches from the base's training to samples: learned on a tiny corpus, resumed, found again, guided, and edited."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_conditioning import ANIMALS, PLANTS, corpus

from diffusionlm.cli import main
from diffusionlm.config import UserError, build, merge
from diffusionlm.data.corpora import to_dataset
from diffusionlm.models.attributes import Label
from diffusionlm.models.control_branch import ControlBranch
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.training.run import RunConfig, train

LABEL = {"name": "control-branch", "condition": {"name": "label", "field": "kind", "drop": 0.3}}
TAGS = {"name": "control-branch", "condition": {"name": "tags"}, "layers": 1}


def tagged(folder: Path) -> Path:
    """Write texts of animals, then of plants, or the other way round, with a tag of each word: its half."""
    draw, rows = random.Random(0), []
    for _ in range(800):
        parts = draw.sample([("A", ANIMALS), ("P", PLANTS)], k=2)
        words = [(tag, draw.choice(known)) for tag, known in parts for _ in range(draw.randint(1, 3))]
        rows.append({"text": " ".join(word for _, word in words), "tags": [tag for tag, _ in words]})
    path = folder / "tagged.jsonl"
    to_dataset(rows).to_json(path)
    return path


BACKBONES: dict[str, Any] = {
    "transformer": {"layers": 2, "width": 32, "heads": 4},
    "leave-one-out": {"layers": 1, "query_layers": 1, "width": 32, "heads": 4},
}


def run(folder: Path, out: str, data: Path, backbone: str = "transformer", **changes: Any) -> Path:
    """Train in ``folder``; return the run's folder."""
    plain: dict[str, Any] = {
        "data": {"corpus": str(data), "max_length": 10},
        "model": {"dimension": 16, "backbone": {"name": backbone, **BACKBONES[backbone]}},
        "training": {"steps": 120, "batch_tokens": 384, "warmup": 20, "threads": 1, "precision": "fp32", "save_every": 60},
        "sampling": {"steps": 8, "passes": 1, "sweeps": 0},
    }
    train(build(RunConfig, merge(plain, changes)), folder / out, write_samples=False)
    return folder / out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("branches")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return run(folder, "base", corpus(folder))


@pytest.fixture(scope="module")
def labelled(folder: Path, base: Path) -> Path:
    return run(folder, "labelled", folder / "pairs.jsonl", init_from=str(base), adapter=LABEL)


@pytest.fixture(scope="module")
def tagging(folder: Path) -> Path:
    base = run(folder, "left-out", tagged(folder), "leave-one-out")
    return run(folder, "tagging", folder / "tagged.jsonl", "leave-one-out", init_from=str(base), adapter=TAGS)


def animals(rows: Any) -> float:
    """Return the share of animals among the words."""
    words = [word for row in rows for word in row.text.split()]
    return sum(word in ANIMALS for word in words) / len(words)


def test_a_branch_learns_labels_that_its_base_does_not_know(base: Path, labelled: Path) -> None:
    pipe = open_pipeline(labelled)
    assert pipe.model.settings.condition == Label("kind", ("animal", "plant"), 0.3) and pipe.conditional
    assert animals(pipe(24, condition="animal")) > 0.85 and animals(pipe(24, condition="plant")) < 0.2
    assert animals(pipe(24, condition={"kind": "plant"}, cfg=2)) < 0.1
    null = pipe(24)
    assert 0.05 < animals(null) < 0.95 and pipe(24, condition="animal", cfg=0) == null
    with pytest.raises(UserError, match="this model was trained without a condition"):
        open_pipeline(base)(1, condition="animal")


def test_the_base_is_left_as_it_is_and_only_the_branch_is_saved(base: Path, labelled: Path) -> None:
    saved = labelled / "model"
    assert (saved / ControlBranch.file).exists() and not (saved / "model.safetensors").exists()
    assert json.loads((saved / "config.json").read_text())["settings"]["condition"] is None
    plain = json.loads((saved / "adapter.json").read_text())
    assert plain["base"] == str(base) and plain["adapter"]["condition"]["labels"] == ["animal", "plant"]
    weights, trained = load_file(base / "model" / "model.safetensors"), open_pipeline(labelled).model.state_dict()
    assert all(torch.equal(weight, trained[name]) for name, weight in weights.items())
    averaged = load_file(labelled / "checkpoints" / "checkpoint-120" / "ema.safetensors")
    for name, weight in load_file(saved / ControlBranch.file).items():
        assert torch.equal(weight, averaged[f"module.model.{name}"])


def test_a_run_of_a_branch_resumes_to_the_bit_and_reports_the_trained_share(
    folder: Path, base: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(labelled / "model" / ControlBranch.file)
    shutil.copytree(labelled, folder / "resumed")
    shutil.rmtree(folder / "resumed" / "model")
    shutil.rmtree(folder / "resumed" / "checkpoints" / "checkpoint-120")
    resumed = run(folder, "resumed", folder / "pairs.jsonl", init_from=str(base), adapter=LABEL)
    again = load_file(resumed / "model" / ControlBranch.file)
    assert again.keys() == weights.keys() and all(torch.equal(again[name], weights[name]) for name in weights)
    trained = sum(weight.numel() for weight in weights.values())
    share = trained / (trained + sum(weight.numel() for weight in load_file(base / "model" / "model.safetensors").values()))
    assert f"adapter: {100 * share:.0f} % of the weights are trained" in capsys.readouterr().err


def test_tags_of_each_position_are_followed_and_fix_the_length(tagging: Path) -> None:
    pipe = open_pipeline(tagging)
    tags = ["A", "A", "P", "P", "P"]
    assert pipe.model.excludes_self and pipe.model.settings.condition.labels == ("A", "P")
    rows = pipe(12, condition=tags)
    right = [
        word in (ANIMALS if tag == "A" else PLANTS) for row in rows for word, tag in zip(row.text.split(), tags, strict=True)
    ]
    assert sum(right) / len(right) > 0.9
    assert pipe(2, condition="A A P P P") == rows[:2] == pipe(2, condition=tags, length=5)
    assert {row.length for row in pipe(2, condition=tags, cfg=1.5)} == {5}
    assert len({row.length for row in pipe(12)}) > 1  # without tags lengths are drawn


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"condition": ["A"] * 9}, "condition: expected values for 1 to 8 tokens, got one for 9"),
        ({"condition": ["A"] * 5, "length": 4}, "length: the condition is for 5 tokens, got 4; leave the length out"),
        ({"condition": ["A", "B"]}, "condition: tags: there is no tag 'B'; choose from A, P"),
    ],
)
def test_tags_that_do_not_fit_are_refused(request_: dict[str, Any], sentence: str, tagging: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_pipeline(tagging)(1, **request_)
    assert str(caught.value) == sentence


def test_edits_take_tags_of_their_own_length(tagging: Path) -> None:
    pipe = open_pipeline(tagging)
    assert isinstance(pipe, Pipeline)
    (row,) = pipe.edit("ant bee cat oak", 0.9, condition=["P", "P", "P", "P"])
    assert row.length == 4
    with pytest.raises(UserError, match="text: the condition is for 4 tokens, got 2: 'ant oak'"):
        list(pipe.edit(["ant bee cat oak", "ant oak"], condition=["P", "P", "P", "P"]))


def test_controls_and_tags_go_together_where_their_lengths_do(tagging: Path) -> None:
    pipe = open_pipeline(tagging)
    assert [row.length for row in pipe(2, "Length(4)", condition="A A A P")] == [4, 4]
    with pytest.raises(UserError, match="length|control"):
        pipe(1, "Length(3)", condition="A A A P")


def test_the_command_line_generates_on_a_branch_and_finds_a_base_that_moved(
    tagging: Path, labelled: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(labelled), "--condition", "animal", "--count", "3"]) == 0
    lines = capsys.readouterr().out
    moved, adapter = shutil.copytree(base / "model", tmp_path / "moved"), shutil.copytree(labelled, tmp_path / "branch")
    command = ["generate", str(moved), "--adapter", str(adapter), "--condition", "animal", "--count", "3"]
    assert main(command) == 0
    assert capsys.readouterr().out == lines and lines.count("\n") == 3
    assert main(["generate", str(tagging), "--condition", "tags=A P A", "--count", "2", "--cfg", "2"]) == 0
    assert [json.loads(line)["length"] for line in capsys.readouterr().out.splitlines()] == [3, 3]
    weights = load_file(moved / "model.safetensors")
    save_file({name: weight * 1.01 for name, weight in weights.items()}, moved / "model.safetensors", {"format": "pt"})
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "this adapter was trained on another base model than" in error and "Traceback" not in error
