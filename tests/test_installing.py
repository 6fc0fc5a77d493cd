"""``doctor`` and ``completion``; the commands of the page about installing run."""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from documents import run_commands
from packaging.requirements import Requirement
from test_trainer import ENVIRONMENT
from tiny_runs import ROOT

from diffusionlm.arguments import COMMANDS
from diffusionlm.cli import main
from diffusionlm.config import UserError
from diffusionlm.controls import Outcome
from diffusionlm.pipelines.rows import Controlled
from diffusionlm.restaurants.self_test import check
from diffusionlm.verbs.installing import SHELLS, installed_version


def test_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_commands(ROOT / "docs" / "installing.md", capsys) == {"doctor", "completion"}
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line in ("Installed", "Machine", "Self test")] == ["Installed", "Machine", "Self test"]
    assert ["result", "OK"] in map(str.split, lines)


def test_a_failed_self_test_is_one_sentence_and_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    monkeypatch.setenv("DIFFUSIONLM_CACHE", str(tmp_path / "not" / "yet"))
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["self_test"].keys() == {"failed"} and "FileNotFoundError" in report["self_test"]["failed"]
    assert report["machine"]["cache"] == str(tmp_path / "not" / "yet") and report["machine"]["cache_free"].endswith("GiB")
    assert {"python", "torch", "transformers", "datasets", "tokenizers", "accelerate", "extra_flow"} <= report[
        "installed"
    ].keys()


def test_a_package_that_cannot_be_imported_is_named_and_no_traceback_shown() -> None:
    code = "import sys; sys.modules['transformers'] = None; from diffusionlm.cli import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == ""
    assert [line.split()[:2] for line in done.stdout.splitlines() if "import of transformers" in line] == [
        ["failed", "ModuleNotFoundError:"]
    ] * 2


def test_a_package_that_is_missing_or_of_another_version_is_named() -> None:
    assert installed_version(Requirement("no-such-package>=1")) == "not installed"
    assert installed_version(Requirement("pyyaml>=6")).startswith("6.")
    assert installed_version(Requirement("pyyaml<1")).endswith(" (expected <1)")


def test_the_check_of_samples_finds_another_text_and_a_control_that_fails() -> None:
    good = Controlled("a pub", 0, 0, 2, controls=(Outcome("Length(2)", True, 1.0),), tried=1)
    check([good], [good])
    with pytest.raises(UserError, match="expected the same sample from the same seed, got 'a pub', then 'a café'"):
        check([good], [replace(good, text="a café")])
    bad = replace(good, controls=(Outcome("Length(2)", False, 0.0),))
    with pytest.raises(UserError, match=r"expected a sample with Length\(2\), got 'a pub'"):
        check([bad], [bad])


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_completes_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert [name for name in COMMANDS if name not in script] == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("do", "doctor"),
        ("generate --cand", "--candidates"),
        ("train --config configs/e2e-pap", "configs/e2e-paper.yaml"),
        ("generate bench", "benchmarks"),
        ("show sampl", "samplers"),
    ],
)
def test_bash_completes_commands_options_and_files(words: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    complete = (
        f'COMP_WORDS=(diffusionlm {words}); COMP_CWORD={len(words.split())}; _shtab_diffusionlm; echo "${{COMPREPLY[@]}}"'
    )
    script = f"{capsys.readouterr().out}\n{complete}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{expected}\n"


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "csh"]) == 2
    assert "invalid choice: 'csh'" in capsys.readouterr().err
