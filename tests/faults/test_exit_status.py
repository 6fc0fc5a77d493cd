"""Exit status 0 means that the work is done; streams that break or cannot show a character stop no work that needs none of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_runs import ROOT, tiny_plain

from diffusionlm.arguments import Messages
from diffusionlm.cli import main

STORED = str(ROOT / "tests" / "golden" / "format-1")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
COMMAND = [sys.executable, "-m", "diffusionlm"]


def test_a_reader_that_closes_the_output_gives_the_status_of_a_closed_pipe() -> None:
    command = f"{sys.executable} -m diffusionlm generate {STORED} --steps 2 --count 50 --batch-size 1 | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=ENVIRONMENT, capture_output=True, text=True)
    text, status = done.stdout.splitlines()
    assert json.loads(text)["index"] == 0
    assert status == "141"  # 128 + SIGPIPE, what the shell reports of any command
    assert done.stderr == ""


def test_training_goes_on_when_nobody_reads_its_messages(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_plain(tmp_path)))
    command = [*COMMAND, "train", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]
    training = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert training.stderr is not None
    training.stderr.read(1)
    training.stderr.close()
    assert training.wait() == 0
    assert (tmp_path / "run" / "model" / "finished").is_file()


def test_training_goes_on_where_the_shell_closed_standard_error(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_plain(tmp_path, training={"steps": 2})))
    command = [*COMMAND, "train", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]
    done = subprocess.run(["bash", "-c", '"$@" 2>&-', "bash", *command], env=ENVIRONMENT, capture_output=True)
    assert done.returncode == 0
    assert (tmp_path / "run" / "model" / "finished").is_file()


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (f"generate {STORED} --steps 2 --count 1 >&-", "diffusionlm: output: Bad file descriptor\n"),
        (f"score {STORED} - <&-", "diffusionlm: standard input: "),
    ],
)
def test_input_and_output_that_the_shell_closed_are_no_success(command: str, sentence: str) -> None:
    done = subprocess.run(["bash", "-c", f'"$@" {command}', "bash", *COMMAND], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(sentence) and done.stderr.count("\n") == 1


def test_messages_are_lost_and_not_raised() -> None:
    reading, writing = os.pipe()
    with open(writing, "w") as stream:
        os.close(reading)
        messages = Messages(stream)
        assert messages.write("lost\n") == 5
        messages.flush()
        assert messages.fileno() == writing
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)  # so that closing the stream can flush


def test_samples_are_utf_8_in_any_locale() -> None:
    environment = {**ENVIRONMENT, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    command = [*COMMAND, "score", STORED, "-", "--strata", "2"]
    done = subprocess.run(command, env=environment, input="The café is a pub.\n".encode(), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode())["text"] == "The café is a pub."


def test_a_module_is_imported_only_when_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "named_sampler.py").write_text(
        "from dataclasses import dataclass\n"
        "from diffusionlm.recipe.samplers import DDIM\n"
        "@dataclass(frozen=True)\n"
        "class Mine(DDIM):\n"
        "    pass\n"
    )
    model = tmp_path / "model"
    for file in Path(STORED).iterdir():
        if file.is_file():
            (model / file.name).parent.mkdir(exist_ok=True)
            (model / file.name).write_bytes(file.read_bytes())
    settings = json.loads((model / "sampling.json").read_text())
    (model / "sampling.json").write_text(json.dumps({**settings, "sampler": "named_sampler:Mine", "steps": 2}))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["generate", str(model), "--count", "1"]) == 2
    assert "import named_sampler first (--import named_sampler) if you trust it" in capsys.readouterr().err
    assert main(["generate", str(model), "--count", "1", "--import", "named_sampler"]) == 0
    assert json.loads(capsys.readouterr().out)["index"] == 0
    assert main(["generate", str(model), "--count", "1", "--import", "no_such_module"]) == 2
    assert "--import: cannot import no_such_module: " in capsys.readouterr().err


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("diffusionlm ")
