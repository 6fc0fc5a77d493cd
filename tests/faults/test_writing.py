"""What a run writes others can read, and what it reads again is checked: one sentence names the damaged file and the way out."""

from __future__ import annotations

import os
import pickle
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import ROOT, tiny_config
from torch import Tensor, nn

from diffusionlm import UserError
from diffusionlm.files import read_json, read_text, write_text
from diffusionlm.models.backbones import Backbone
from diffusionlm.training.run import train

CHANGES = {"training": {"steps": 4, "save_every": 2, "evaluate_every": 4, "sample_every": 4}}


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert train(tiny_config(folder, **CHANGES), folder / "run", quiet=True)
    return folder / "run"


@pytest.fixture
def stopped(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the run, as if it had been stopped after step 2."""
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-4")
    (tmp_path / "run" / "model" / "finished").unlink()
    return tmp_path / "run"


def test_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: None) -> None:
    assert train(tiny_config(tmp_path, **CHANGES), tmp_path / "run", quiet=True)
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock"]
    assert {"model.safetensors", "ema.safetensors", "config.json", "log.jsonl"} <= {path.name for path in written}
    assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in written} == {path.name: "0o640" for path in written}


@pytest.mark.parametrize("damage", ["half", "missing"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "ema.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
def test_a_damaged_file_of_a_checkpoint_is_named(trained: Path, stopped: Path, name: str, damage: str) -> None:
    file = stopped / "checkpoints" / "checkpoint-2" / name
    if damage == "half":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()
    with pytest.raises(
        UserError, match=rf"checkpoint-2: this checkpoint is damaged; delete it to resume from the one before \({name}\): "
    ):
        train(tiny_config(trained.parent, **CHANGES), stopped, quiet=True)


def test_an_optimizer_of_another_run_is_refused(trained: Path, stopped: Path) -> None:
    file = stopped / "checkpoints" / "checkpoint-2" / "optimizer.pt"
    torch.save({"parts": [torch.optim.SGD([nn.Parameter(torch.zeros(2))], 0.1).state_dict()]}, file)
    with pytest.raises(UserError, match=r"checkpoint-2: this checkpoint is damaged; .* \(optimizer.pt\): "):
        train(tiny_config(trained.parent, **CHANGES), stopped, quiet=True)


class Planted:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_code_in_a_checkpoint_is_not_run(trained: Path, stopped: Path, name: str) -> None:
    file, planted = stopped / "checkpoints" / "checkpoint-2" / name, stopped / "planted"
    for content in ("zip", "pickle"):
        torch.save(Planted(planted), file) if content == "zip" else file.write_bytes(pickle.dumps(Planted(planted)))
        with pytest.raises(UserError, match=rf"this checkpoint is damaged; .* \({name}\): "):
            train(tiny_config(trained.parent, **CHANGES), stopped, quiet=True)
        assert not planted.exists()


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("config.yaml", "training: {", "config.yaml: not valid YAML"),
        ("config.yaml", "\udcff", "config.yaml, line 1: expected UTF-8 text, got the byte 0xff"),
        ("data.json", '{"training_te', "data.json: expected JSON, but the file is damaged"),
        ("log.jsonl", '{"step": 1}\n{"st\n{"step": 2}\n', "log.jsonl:2: expected a row of the log, got .*; delete this line"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(trained: Path, stopped: Path, name: str, text: str, sentence: str) -> None:
    (stopped / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=sentence):
        train(tiny_config(trained.parent, **CHANGES), stopped, quiet=True)


def test_a_stopped_run_ends_with_the_same_bits(trained: Path, stopped: Path) -> None:
    assert train(tiny_config(trained.parent, **CHANGES), stopped, quiet=True)
    weights, again = (load_file(run / "model" / "model.safetensors") for run in (trained, stopped))
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@dataclass(frozen=True)
class Tied(Backbone):
    """Two layers with one matrix, which a model folder could not hold."""

    def build(self, inputs: int, outputs: int, max_length: int) -> nn.Module:
        return TiedLayers(inputs, outputs)


class TiedLayers(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.one, self.other, self.down = nn.Linear(inputs, inputs), nn.Linear(inputs, inputs), nn.Linear(inputs, outputs)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor, t: Tensor, gamma: Tensor, mask: Tensor | None = None) -> Tensor:
        found: Tensor = self.down(self.other(self.one(x)))
        return found


def test_a_model_that_cannot_be_saved_is_refused_before_the_first_step(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, **CHANGES, model={"backbone": "test_writing:Tied"})
    with pytest.raises(UserError, match=r"model: this model cannot be saved: .* shared tensors .*give each .* its own tensor"):
        train(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "log.jsonl").exists() and not list((tmp_path / "run").glob("model*"))


def test_a_run_that_cannot_save_its_model_is_refused_before_it_goes_on(trained: Path, stopped: Path) -> None:
    (stopped / "model.new").mkdir()
    (stopped / "model.new" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="model.new: this place is needed to prepare model/"):
        train(tiny_config(trained.parent, **CHANGES), stopped, quiet=True)
    assert not (stopped / "checkpoints" / "checkpoint-4").exists()
    assert (stopped / "model.new" / "notes.txt").read_text() == "mine"


def test_the_last_checkpoint_and_samples_are_not_doubled(tmp_path: Path) -> None:
    near = {"training": {"steps": 11, "save_every": 10, "sample_every": 10, "evaluate_every": 10, "keep": 5}}
    assert train(tiny_config(tmp_path, **near), tmp_path / "run", quiet=True)
    assert [path.name for path in (tmp_path / "run" / "samples").iterdir()] == ["step-11.txt"]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-11"]


def test_text_files_are_utf_8_in_any_locale(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from diffusionlm.files import *\nprint(ascii(read_text(Path(sys.argv[1]))))"
    write_text(tmp_path / "text.txt", "café\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, str(tmp_path / "text.txt")]
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == "'caf\\xe9\\n'\n"


def test_an_unreadable_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no.txt: there is no such file"):
        read_text(tmp_path / "no.txt")
    with pytest.raises(UserError, match="expected a file, got a folder"):
        read_json(tmp_path)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="deep.json: expected JSON, but the file is damaged: "):
        read_json(tmp_path / "deep.json")


def test_a_failed_write_leaves_nothing_beside_the_previous_file(tmp_path: Path) -> None:
    write_text(tmp_path / "report.txt", "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "report.txt", "half a pair: \ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["report.txt"] and read_text(tmp_path / "report.txt") == "before"
