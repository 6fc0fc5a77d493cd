"""Uploads of models to the hub: what is uploaded, what is refused, and the same samples after the way there and back."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hub_server import Hub, connected
from tiny_runs import ROOT

from diffusionlm import Pipeline
from diffusionlm.cli import main
from diffusionlm.config import UserError, to_plain
from diffusionlm.files import read_text
from diffusionlm.models.card import CARD, is_edited, write_card
from diffusionlm.models.io import model_folder
from diffusionlm.models.publishing import publish
from diffusionlm.training.run import RunConfig

GOLDEN = ROOT / "tests" / "golden" / "format-1"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with connected(tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return the model folder of a run, with files that are not the model's."""
    run = tmp_path / "run"
    shutil.copytree(GOLDEN, run / "model")
    tags = run / "model" / "classifiers" / "tags"
    tags.rename(run / "model" / "classifiers" / "run")  # as a run's folder
    shutil.copytree(run / "model" / "classifiers" / "run", tags / "model")
    shutil.rmtree(run / "model" / "classifiers" / "run")
    (tags / "checkpoints").mkdir()
    for name in (
        "model/finished",
        "model/pytorch_model.bin",
        "model/model.py",
        "model/classifiers/tags/checkpoints/optimizer.pt",
    ):
        (run / name).write_bytes(b"not to be uploaded")
    plain = to_plain(RunConfig()) | {"init_from": str(tmp_path / "base")}
    (run / "config.yaml").write_text(yaml.safe_dump(plain))
    write_card(run / "model")
    return run / "model"


def test_a_model_is_the_same_after_the_way_to_the_hub_and_back(
    hub: Hub, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", "run", "you/restaurants", "--private"]) == 0
    assert capsys.readouterr().out == f"{hub.url}/you/restaurants\n" and hub.private == {"you/restaurants": True}
    classifiers = {
        f"classifiers/{name}/{file}" for name in ("attributes", "tags") for file in ("config.json", "model.safetensors")
    }
    own = {"config.json", "model.safetensors", "sampling.json", "tokenizer.json", "tokenizer_config.json", "config.yaml", CARD}
    assert {*hub.files["you/restaurants"]} == own | classifiers
    here, there = Pipeline.from_pretrained(model), Pipeline.from_pretrained("you/restaurants")
    assert there(3, steps=2) == here(3, steps=2)
    control = ["food=Japanese"]  # by a classifier; the annotator of the run's corpus checks it
    assert there(1, controls=control, steps=2) == here(1, controls=control, steps=2)
    settings = yaml.safe_load((model_folder("you/restaurants") / "config.yaml").read_text())
    assert settings["data"]["corpus"]["name"] == "restaurants" and settings["init_from"] == "base"
    card = hub.files["you/restaurants"][CARD].decode()
    assert read_text(model / CARD) == card and 'Pipeline.from_pretrained("you/restaurants")' in card and "language: en" in card


def test_a_later_push_replaces_the_weights_and_removes_what_is_left_over(hub: Hub, model: Path) -> None:
    publish(model, "you/model")
    old = hub.files["you/model"]
    left = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "classifiers/food/config.json", "notes.txt")
    hub.put("you/model", old | {name: b"{}" for name in left})
    publish(model, "you/model")
    assert hub.files["you/model"] == old | {"notes.txt": b"{}"}


def test_a_card_that_was_edited_stays(hub: Hub, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(model, "you/model")
    hub.put("you/model", hub.files["you/model"] | {CARD: b"Edited on the hub.\n"})
    publish(model, "you/model")
    assert hub.files["you/model"][CARD] == b"Edited on the hub.\n"
    assert "you/model: the card in this repository was edited, so it stays" in capsys.readouterr().err
    (model / CARD).write_text("Edited here.\n")
    publish(model, "you/model")
    assert hub.files["you/model"][CARD] == read_text(model / CARD).encode() == b"Edited here.\n"


def test_what_is_no_model_is_not_pushed(hub: Hub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").mkdir()
    for arguments, said in {
        ("notes", "you/model"): "notes: expected a model folder, but it has no config.json",
        ("run", "model"): "model: expected the name of a repository of the Hugging Face hub, user/model",
        ("run", "you/model@main"): "you/model@main: expected the name of a repository",
        ("run", "you/model", "--base", "you/base"): "base: run/model holds a complete model, not an adapter of you/base",
    }.items():
        assert main(["push", *arguments]) == 2
        assert capsys.readouterr().err.startswith(f"diffusionlm: {said}")
    tokenizer = model / "tokenizer_config.json"
    tokenizer.write_text(json.dumps({**json.loads(tokenizer.read_text()), "auto_map": {"AutoTokenizer": ["x.X", None]}}))
    with pytest.raises(UserError, match="auto_map: expected none, since it names Python code"):
        publish(model, "you/model")
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match="it has no weights in safetensors"):
        publish(model, "you/model")
    with pytest.raises(UserError, match="push_to_hub: this model was loaded from no folder"):
        found = Pipeline.from_pretrained(GOLDEN)
        Pipeline(found.model, found.tokenizer).push_to_hub("you/model")
    assert hub.files == {}


def test_what_the_hub_refuses_is_one_sentence(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("you/public", {CARD: b""})
    with pytest.raises(
        UserError, match=f"^you/public: this repository is public; make it private at {hub.url}/you/public/settings"
    ):
        publish(model, "you/public", private=True)
    assert hub.files["you/public"] == {CARD: b""}
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="^you/model: the model was not uploaded: .* does not allow it; log in with a token"):
        publish(model, "you/model", token=False)  # type: ignore[arg-type]


def test_an_adapter_is_pushed_with_the_name_of_its_base(hub: Hub, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, tmp_path / name)
    plain = {"base": str(tmp_path / "base"), "base_sha256": "0", "adapter": {"name": "lora"}}
    (tmp_path / "adapter.json").write_text(json.dumps(plain))
    with pytest.raises(
        UserError, match=f"base: {tmp_path} holds an adapter of {tmp_path}/base, which is not on the hub; push that"
    ):
        publish(tmp_path, "you/adapter")
    publish(tmp_path, "you/adapter", base="you/base")
    files = hub.files["you/adapter"]
    assert (
        json.loads(files["adapter.json"]) == {**plain, "base": "you/base"}
        and json.loads(read_text(tmp_path / "adapter.json")) == plain
    )
    card = files[CARD].decode()
    assert "base_model: you/base\n" in card and 'from_pretrained("BASE", adapter="you/adapter")' in card and not is_edited(card)
