"""Each example runs as a user runs it, on a small stored model or with a few steps, and prints what its docstring promises."""

from __future__ import annotations

import importlib
import io
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest
import straight_path
import torch
from safetensors.torch import load_file

from diffusionlm import Pipeline, UserError
from diffusionlm.config import build
from diffusionlm.controls import read_controls
from diffusionlm.core.sampler import Sampler

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
STORED = str(ROOT / "tests" / "golden" / "format-1")
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def run(name: str, *arguments: str) -> str:
    """Return what ``python examples/NAME.py ARGUMENTS`` prints; it runs in this process, which has imported what it needs."""
    path, shown = str(EXAMPLES / f"{name}.py"), io.StringIO()
    with patch.object(sys, "argv", [path, *arguments]), redirect_stdout(shown), warnings.catch_warnings():
        warnings.simplefilter("default")  # as Python's own: a warning does not end it
        runpy.run_path(path, run_name="__main__")
    return shown.getvalue()


def numbers(pattern: str, text: str) -> list[float]:
    return [float(number) for number in re.findall(pattern, text)]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_listed(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 130
    assert f"[{name}.py]({name}.py)" in (EXAMPLES / "README.md").read_text()


def test_tiny_samples_from_a_run() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLES / "tiny.py")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5 and run("tiny", "restaurants") == done.stdout
    assert run("tiny", STORED) != done.stdout


def test_the_core_alone_learns_a_small_language() -> None:
    source = (EXAMPLES / "minimal.py").read_text()
    assert set(re.findall(r"^from (diffusionlm\.\w+)", source, re.MULTILINE)) == {"diffusionlm.core"}
    kinds = re.findall(r"\((trained on|new|no sentence of this language)\)", run("minimal", "1000"))
    assert len(kinds) == 12 and kinds.count("no sentence of this language") <= 6


def test_the_midpoint_method_takes_two_evaluations_a_step_and_converges() -> None:
    shown = run("midpoint", STORED)
    assert "midpoint      8           15 " in shown and "midpoint     64          127 " in shown
    few, many = numbers(r"midpoint .*?([\d.]+)\n", shown.split("\n\n")[0] + "\n")
    assert many < few / 8
    assert build(Sampler, "midpoint:Midpoint") is not None


def test_both_kinds_of_score_matching_approach_the_exact_score() -> None:
    shown = run("score_matching", "160")
    assert all(error < 1 for error in numbers(r"(\S+) at the data", shown))
    untrained, denoised, by_slices = numbers(r"(?:untrained|denoising|sliced) +(\S+)  \d+ %", shown)
    assert denoised < untrained and by_slices < untrained


def test_annealed_langevin_finds_the_weights_of_the_modes(tmp_path: Path) -> None:
    (data, plain, annealed) = numbers(r"(?:data|Langevin) (\d\.\d+)", run("langevin", str(tmp_path / "modes.png")))
    assert abs(annealed - data) < 0.08 and abs(plain - 0.5) < 0.08
    assert (tmp_path / "modes.png").stat().st_size > 10_000


def test_processes_of_one_schedule_give_the_same_samples() -> None:
    shown = run("straight_path", STORED, "2")
    (difference,) = numbers(r"same noise: (\S+)", shown)
    assert difference < 1e-3  # fp32, in vectors of norm sqrt(D)
    _, preserving, straight, trained = shown.split("\n\n")
    assert preserving.splitlines()[1:] == straight.splitlines()[1:]
    assert "trained for 2 steps under StraightPath" in trained


def test_ancestral_samples_and_sweeps_are_the_same_too() -> None:
    pipe = Pipeline.from_pretrained(STORED)
    preserving = [row.text for row in pipe(4)]
    pipe.model.process = straight_path.StraightPath(pipe.model.process.schedule)
    assert [row.text for row in pipe(4)] == preserving


def test_alliteration_holds_by_construction() -> None:
    shown = run("alliteration", STORED)
    free, rest = shown.split('alliteration:Alliteration("t", 6) & Length(12, 16)\n')
    samples = free.splitlines()[1:], rest.splitlines()[:3]
    for letter, count, texts in zip("pt", (4, 6), samples, strict=True):
        assert all(sum(word.lower().startswith(letter) for word in text.split()) >= count for text in texts)
    assert numbers(r"all controls: (\S+)", shown) == [1, 1]
    assert len(numbers(r"alliteration, share of words: (\S+)", shown)) == 2
    (control,) = read_controls(["alliteration:Alliteration('b')"])
    assert str(control) == 'alliteration:Alliteration("b")'


def test_arithmetic_annotates_and_measures() -> None:
    shown = run("arithmetic", "20", "8")
    assert "the annotator is Sums()" in shown
    assert re.search(r"correct: \d+% of \d+", shown) and re.search(r"new: \d+% of \d+", shown)
    assert shown.count("result is nine: True, is a sum: ") == 3
    corpus = importlib.import_module("arithmetic").Arithmetic()
    metrics = corpus.metrics(["one plus two is three ."])
    texts = ["one plus two is three .", "one plus two is four .", "two plus two is four .", "two and two"]
    assert metrics["correct"](texts) == [1.0, 0.0, 1.0, None]
    assert metrics["new"](texts) == [0.0, None, 1.0, None]
    loaded = corpus.load()
    assert not set(loaded["train"]["text"][:]) & set(loaded["validation"]["text"][:])


def test_a_distilled_student_is_nearer_to_its_teacher_and_resumes(tmp_path: Path) -> None:
    shown = run("distillation", STORED, "20", str(tmp_path / "run"))
    teacher, student = numbers(r"in one pass (\S+\d)", shown.splitlines()[0])
    assert student < teacher
    weights = tmp_path / "run" / "model" / "model.safetensors"
    before = load_file(weights)
    (tmp_path / "run" / "model" / "finished").unlink()  # as if stopped after the checkpoint of step 10
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-20")
    run("distillation", STORED, "20", str(tmp_path / "run"))
    after = load_file(weights)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any("teacher" in name for name in before)


def test_a_convolutional_network_has_its_stated_reach() -> None:
    assert "an output depends on 13 positions" in run("convolutional", "5", "2")


def test_samples_contain_the_keywords_they_are_conditioned_on() -> None:
    shown = run("keywords", "5", "4")
    assert [line.split(":")[0] for line in shown.splitlines() if line.startswith("condition=")] == [
        "condition=None cfg=1",
        "condition=['cheap'] cfg=1",
        "condition=['cheap'] cfg=2",
        "condition=['coffee'] cfg=1",
        "condition=['coffee'] cfg=2",
    ]
    keywords = importlib.import_module("keywords").Keywords()
    features = keywords.build(None).eval()(**keywords.collate([["food", "river"], [], None])).features
    assert features.tolist() == [[1, 0, 1, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    with pytest.raises(UserError, match="'foot' is no keyword of this model; did you mean 'food'"):
        keywords.collate([["foot"]])


def test_samples_and_edits_from_a_source_satisfy_their_controls() -> None:
    first, guided, edits = (
        part.splitlines()[1:] for part in re.split(r"^(?=several sources|edits of)", run("conditional", "5"), flags=re.M)
    )
    assert len(first) == len(guided) == len(edits) == 2
    assert all("cheap" not in line.lower() for line in [*guided, *edits])
    assert all(10 <= number <= 14 for number in numbers(r"\((\d+) tokens\)", "\n".join(guided)))
    assert [line.strip().partition(" -> ")[0] for line in guided] == [
        "food[Italian], area[riverside]",
        "food[Thai], price[high]",
    ]


def test_particles_follow_scikit_learn() -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install 'diffusion-lm[examples]'")
    without, steered = numbers(r"p\(cheap\) (\S+)", run("sklearn_classifier", "restaurants", "6"))
    assert steered > without + 0.1
