"""Models of the hub: which names are sought there, what is downloaded, and what is said where that fails."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_server import Hub, connected, files_of
from huggingface_hub import constants
from tiny_runs import ROOT

from diffusionlm import Pipeline
from diffusionlm.cli import main
from diffusionlm.config import UserError
from diffusionlm.models.hub import Repository, downloaded, repository
from diffusionlm.models.io import model_folder
from diffusionlm.models.named import named_folder

MODEL = ROOT / "tests" / "golden" / "format-1"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with connected(tmp_path, monkeypatch) as found:
        yield found


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("user/model", Repository("user/model")),
        ("user/my.model_2@v1.0", Repository("user/my.model_2", "v1.0")),
        ("user/model@refs/pr/1", Repository("user/model", "refs/pr/1")),
        ("runs/quickstart", None),  # runs is a folder
        *(
            (name, None)
            for name in ("model", "a/b/c", "./user/model", "/user/model", "~/model", "../model", "user/", "", "a/b@")
        ),
        *((name, None) for name in ("user/a--b", "user/a..b", "us er/model", "user/model.git", f"u/{'m' * 300}")),
        (Path("user/model"), None),
    ],
)
def test_which_names_are_sought_on_the_hub(
    name: str | Path, found: Repository | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    assert repository(name) == found


def test_a_model_is_loaded_by_its_name_from_safe_files_alone(
    hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = b"raise SystemExit('the code of a repository has run')"
    others = {name: code for name in ("pytorch_model.bin", "model.py", "weights.pt", "data.pkl", "classifiers/tags/x.py")}
    first = hub.put("user/model", {**files_of(MODEL), **others})
    expected = [row.text for row in Pipeline.from_pretrained(MODEL)(2, steps=2)]
    assert [row.text for row in Pipeline.from_pretrained("user/model")(2, steps=2)] == expected
    folder = model_folder("user/model")
    assert {*files_of(folder)} == {*files_of(MODEL)} and folder.name == first
    asked = sum(hub.requests.values())
    assert named_folder("user/model") == folder and sum(hub.requests.values()) == asked  # once in a process
    hub.put("user/model", {"config.json": b"{}", "model.safetensors": b""})
    downloaded.cache_clear()
    assert model_folder(f"user/model@{first}") == folder and model_folder("user/model").name != first
    assert f"user/model: revision {first[:12]} from the Hugging Face hub" in capfd.readouterr().err


def test_code_that_a_repository_names_is_not_run(hub: Hub) -> None:
    config = json.loads((MODEL / "config.json").read_text()) | {"auto_map": {"AutoModel": "model.Model"}}
    files = {"config.json": json.dumps(config).encode(), "model.py": b"raise SystemExit('it has run')"}
    hub.put("user/model", {**files_of(MODEL), **files})
    with pytest.raises(UserError, match="auto_map"):
        Pipeline.from_pretrained("user/model")


def test_what_was_downloaded_is_used_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("user/model", files_of(MODEL))
    folder = model_folder("user/model")
    downloaded.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert model_folder("user/model") == folder
    sentence = r"^user/other: there is no such folder here, and the Hugging Face hub \(http.*\) cannot be reached \(are you offline\?\), nor was"
    with pytest.raises(UserError, match=sentence):
        model_folder("user/other")


def test_a_hub_that_cannot_be_reached_is_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    with pytest.raises(UserError, match="^user/model: there is no such folder here, .* cannot be reached"):
        model_folder("user/model")


def test_what_is_missing_on_the_hub_is_said(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "user/model"]) == 2
    said = (
        f"diffusionlm: user/model: there is no such folder here, and the Hugging Face hub ({hub.url}) has no model user/model"
    )
    assert capsys.readouterr().err == f"{said}, or a private one, for which you log in: hf auth login\n"
    hub.put("user/model", files_of(MODEL))
    assert main(["score", "user/model@v2", "texts.txt"]) == 2
    assert capsys.readouterr().err.endswith("has no revision 'v2' of user/model\n")
    hub.put("user/pickled", {"config.json": b"{}", "pytorch_model.bin": b""})
    hub.put("user/data", {"README.md": b""})
    for name, missing in {"user/pickled": r"\*.safetensors", "user/data": "config.json"}.items():
        with pytest.raises(UserError, match=f"{name}: this repository of the Hugging Face hub holds no {missing}"):
            model_folder(name)


def test_a_mistyped_path_is_not_sought_on_the_hub(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").mkdir()
    assert main(["generate", "runs/quickstrat"]) == 2
    said = "runs/quickstrat: expected a model folder, but there is none (runs is here, so that the Hugging Face hub is not searched)"
    assert capsys.readouterr().err.startswith(f"diffusionlm: {said}")
    for name in ("quickstart", "./user/model", "a/b/c"):
        assert main(["generate", name]) == 2
        assert capsys.readouterr().err.startswith(f"diffusionlm: {Path(name)}: expected a model folder, but there is none")
    assert not hub.requests


def test_a_file_that_two_calls_need_is_downloaded_once(hub: Hub) -> None:
    hub.put("user/model", files_of(MODEL))
    with ThreadPoolExecutor(2) as both:  # each with file locks of its own, as two processes have
        folders = [*both.map(downloaded.__wrapped__, [Repository("user/model")] * 2)]
    assert folders[0] == folders[1] and files_of(folders[0]) == files_of(MODEL)
    assert {count for request, count in hub.requests.items() if request.startswith("GET") and "/resolve/" in request} == {1}
