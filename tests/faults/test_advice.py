"""Advice in messages works: every option, file and command that a message names is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffusionlm
from diffusionlm.arguments import COMMANDS, parser
from diffusionlm.cli import main
from diffusionlm.config import UserError
from diffusionlm.models.classifier import find_classifier
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.training.run import RunConfig

PACKAGE = Path(diffusionlm.__file__).parent
ROOT = PACKAGE.parent
GOLDEN = ROOT / "tests" / "golden" / "format-1"
GROUPS = {*RunConfig.__dataclass_fields__, *SamplingConfig.__dataclass_fields__, "task", "annotator"}  # of dotted settings
EXAMPLES = ("--a.b", "--a.b=value", "--name")  # of docstrings
OF_OTHERS = {
    "diffusionlm/evaluation/harness.py": ("--model", "--model_args", "--tasks")
}  # options of the lm-evaluation-harness


def literals() -> Iterator[tuple[str, str]]:
    """Yield every string of the package, f-strings joined with {} for what is filled in, and its place."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr):
                yield place, "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)  # type: ignore[misc]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                yield place, node.value


def options() -> set[str]:
    parser()  # fills COMMANDS by the import of the command line
    flags = {flag for _, options, _ in COMMANDS.values() for given, _ in options for flag in given}
    return flags | {"--help", "--version", "--import"}


def test_every_option_that_a_string_names_is_an_option_of_a_command() -> None:
    known = options()
    named = [(where, flag) for where, text in literals() for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]+", text)]
    assert len(named) > 50
    for where, flag in named:
        if flag.endswith(".") and flag.strip("-.") in GROUPS:
            continue
        if flag in OF_OTHERS.get(where.partition(":")[0], ()):
            continue
        dotted = "." in flag.rstrip(".") and flag.strip("-").partition(".")[0] in GROUPS
        assert dotted or flag.rstrip(".") in known or flag in EXAMPLES, (where, flag)


def test_every_file_of_configs_that_a_string_names_is_there() -> None:
    for where, text in literals():
        for path in re.findall(r"configs/[\w{}/.-]+", text):
            assert "{}" in path or (ROOT / path.rstrip(".")).exists(), (where, path)


def test_every_command_that_a_string_names_is_a_command() -> None:
    for where, text in literals():
        for verb in re.findall(r"(?<![\w/])diffusionlm ([a-z]+)(?= [-{]|$)", text):
            assert verb in COMMANDS, (where, verb)


def test_a_missing_classifier_names_a_config_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(
        UserError, match=r"train it, .*: diffusionlm train --config configs/classifiers/sentiment\.yaml --model"
    ):
        find_classifier(GOLDEN, "sentiment")
    with pytest.raises(UserError, match=r"--config CONFIG\.yaml .*, CONFIG\.yaml being a classifier's settings$"):
        find_classifier(GOLDEN, "mood")
    with pytest.raises(UserError, match=r"^classifier: there is no folder 'runs/mood'"):
        find_classifier(GOLDEN, "runs/mood")


def test_too_few_texts_for_an_evaluation_suggest_a_count_only_where_it_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(GOLDEN), "--judge", str(GOLDEN), "--count", "1"]) == 2
    assert "count: expected at least 2" in capsys.readouterr().err
