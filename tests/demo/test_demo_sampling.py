"""Sampling of the demo: the same texts as the command line and Python, frames on the way, what each model family can do."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_sources
import torch
from tiny_demo import make_models

from diffusionlm.cli import main
from diffusionlm.config import UserError
from diffusionlm.core.sampler import Denoised, State
from diffusionlm.demo.equivalents import command_line, python_code
from diffusionlm.demo.models import DemoModel, open_model
from diffusionlm.demo.requests import DemoRequest
from diffusionlm.demo.sampling import CERTAIN, Check, Frame, Sampled, pieces, sampled, steps
from diffusionlm.demo.server import POLICY, described, free_port
from diffusionlm.demo.words import frame_html, outcome, refusal_html, samples_html
from diffusionlm.pipelines.masked import MaskedState

FEW: dict[str, Any] = {"count": 2, "evaluations": 4}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of the restaurants corpus, and tiny models of other families."""
    folder = make_models(tmp_path_factory.mktemp("models"))
    (folder / "sources").mkdir()
    tiny_sources.trained(folder / "sources", "seq2seq")
    return folder


MODELS = {"run": "run", "several": "several", "masked": "masked", "causal": "causal", "seq2seq": "sources/seq2seq"}


@pytest.fixture(scope="module")
def models(home: Path) -> dict[str, DemoModel]:
    return {name: open_model(str(home / place)) for name, place in MODELS.items()}


def of_command(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return the rows of a command line, whose source is printed to a pipe."""
    given, pipe, command = line.rpartition(" | ")
    if pipe:
        printf, form, source = shlex.split(given)
        assert (printf, form) == ("printf", "%s\\n")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{source}\n".encode())))
    program, *words = shlex.split(command)
    assert program == "diffusionlm"
    capsys.readouterr()
    assert main(words) == 0, capsys.readouterr().err
    return [json.loads(row) for row in capsys.readouterr().out.splitlines()]


def of_python(code: str) -> list[str]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "demo", "exec"), {"__name__": "demo"})
    return printed.getvalue().splitlines()


REQUESTS: dict[str, tuple[str, DemoRequest]] = {
    "plain": ("run", DemoRequest(count=3, evaluations=4, seed=5)),
    "the model's own settings": ("run", DemoRequest(count=1)),
    "controls": (
        "run",
        DemoRequest(
            controls=('Attribute("food", "Thai")', "Length(6, 9)", '~Words("cheap")'), temperature=0.8, strength=2.5, tries=2, **FEW,
        ),
    ),
    "gaps": ("run", DemoRequest(controls=('Infill("The {} is a {2} .")',), **FEW)),
    "an edit": ("run", DemoRequest(text="It is a cheap pub.", level=0.7, controls=('Words("pub")',), **FEW)),
    "a source and a label": ("several", DemoRequest(source="dog ant", condition={"kind": "low"}, seed=1, **FEW)),
    "an edit with a source": ("several", DemoRequest(source="dog ant", text="ant dog", condition={"kind": "low"}, **FEW)),
    "a masked model": ("masked", DemoRequest(source="bee", length=3, **FEW)),
    "an autoregressive model": ("causal", DemoRequest(count=2, temperature=0.7)),
    "an encoder-decoder": ("seq2seq", DemoRequest(count=2, source="1 2 3")),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_command_line_and_python_give_the_same_texts(
    name: str, models: dict[str, DemoModel], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, request = models[REQUESTS[name][0]], REQUESTS[name][1]
    rows = sampled(model, request).rows
    assert len(rows) == request.count
    assert of_command(command_line(model, request), monkeypatch, capsys) == [json.loads(json.dumps(row.row())) for row in rows]
    assert of_python(python_code(model, request)) == [row.text for row in rows]


def test_the_options_with_which_a_model_was_opened_are_in_its_equivalents(home: Path) -> None:
    model = open_model(str(home / "run"), dtype="bf16", imports=["json"])
    assert command_line(model, DemoRequest()).endswith("--dtype bf16 --import json")
    code = python_code(model, DemoRequest())
    assert code.startswith("import json\n") and f"open_pipeline({str(home / 'run')!r}, dtype='bf16')" in code


@pytest.mark.parametrize("name", ["controls", "an edit", "a masked model", "an autoregressive model"])
def test_steps_end_with_the_same_texts(name: str, models: dict[str, DemoModel]) -> None:
    model, request = models[REQUESTS[name][0]], REQUESTS[name][1]
    *frames, last = steps(model, request)
    assert last == sampled(model, request) and isinstance(last, Sampled)
    assert len(frames) > 1 and all(isinstance(frame, Frame) for frame in frames)
    shown = [frame for frame in frames if isinstance(frame, Frame)]
    if request.tries == 1:
        assert [frame.t for frame in shown] == sorted((frame.t for frame in shown), reverse=True)
        assert ["".join(text for text, _ in each) for each in shown[-1].texts] == [row.text for row in last.rows]
    assert all(certainty in range(CERTAIN + 1) for frame in shown for each in frame.texts for _, certainty in each)


def test_closing_the_steps_ends_the_sampling(models: dict[str, DemoModel]) -> None:
    before = threading.active_count()
    found: Iterator[Any] = steps(models["run"], DemoRequest(count=1, evaluations=256))
    assert isinstance(next(found), Frame)
    found.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_certainties_are_shares_of_the_probability(models: dict[str, DemoModel]) -> None:
    tokenizer = models["run"].pipeline.tokenizer
    text = "The pub is cheap."
    ids = tokenizer(text)["input_ids"]
    logits = torch.full((1, len(ids), len(tokenizer)), -1000.0)
    for place, (token, p) in enumerate(zip(ids[1:-1], (0.9, 0.7, 0.5, 0.2, 0.86), strict=True), 1):
        logits[0, place, token], logits[0, place, (token + 1) % len(tokenizer)] = torch.tensor([p, 1 - p]).log()
    state = State(torch.zeros(1, len(ids), 1), Denoised(torch.zeros(1, len(ids), 1), logits), t=0.5, step=1)
    assert pieces(tokenizer, text, state, 0) == [("The", 3), (" pub", 2), (" is", 1), (" cheap", 0), (".", 3)]
    everywhere = torch.ones(1, len(ids), dtype=torch.bool)
    hidden = everywhere.clone()
    hidden[0, 2] = False
    masked = MaskedState(0.5, torch.tensor([ids]), hidden, torch.zeros(1, len(ids)), everywhere)
    assert [level for _, level in pieces(tokenizer, text, masked, 0)] == [0, 3, 0, 0, 0]


def test_checks_are_those_of_the_controls_and_the_corpus(models: dict[str, DemoModel]) -> None:
    found = sampled(models["run"], DemoRequest(count=2, controls=("Length(5)",), evaluations=4))
    for row, checks in zip(found.rows, found.checks, strict=True):
        assert checks[0] == Check("Length(5)", True) and row.length == 5
        assert checks[1] == Check("accepted by the annotator (grammar)", models["run"].annotator.annotate(row.text) is not None)
    assert sampled(models["causal"], DemoRequest(count=1)).checks == ((),)


def test_what_each_family_can_do(models: dict[str, DemoModel]) -> None:
    able = {
        name: (m.controls, m.edits, m.has_length, m.has_evaluations, m.has_temperature, m.has_source, [*m.conditions])
        for name, m in models.items()
    }
    assert able == {
        "run": (True, True, False, True, True, False, []),
        "several": (True, True, False, True, True, True, ["kind"]),
        "masked": (False, False, True, True, True, True, []),
        "causal": (False, False, False, False, True, False, []),
        "seq2seq": (False, False, False, False, True, True, []),
    }
    assert models["several"].conditions == {"kind": ("high", "low")}
    assert described(models["several"])["conditions"] == {"kind": ["high", "low"], "source": []}
    assert json.loads(json.dumps(described(models["run"])))["labels"]["price"]


@pytest.mark.parametrize(
    ("name", "request_", "sentence"),
    [
        ("causal", DemoRequest(controls=("Length(3)",)), "controls?: a llama model takes no controls"),
        ("masked", DemoRequest(source="bee", text="bee"), "text: a .* model edits no texts; diffusion models do"),
        ("run", DemoRequest(strength=2), "guidance.strength: there are no controls"),
        ("run", DemoRequest(controls=('Words("zzz")',)), "the model's vocabulary has no word 'zzz'"),
        ("run", DemoRequest(controls=("Length(2)", "Length(3)")), r"Length\(2\)"),
        ("run", DemoRequest(source="x"), "source: this model was trained without a condition"),
        ("causal", DemoRequest(evaluations=4), "evaluations: a llama model samples one token after the other"),
    ],
)
def test_what_a_model_cannot_do_is_one_sentence(
    name: str, request_: DemoRequest, sentence: str, models: dict[str, DemoModel]
) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        list(steps(models[name], request_))
    assert "\n" not in str(caught.value)


def test_a_classifier_is_refused(home: Path) -> None:
    with pytest.raises(UserError, match="expected a model that generates text, but this is a classifier"):
        open_model(str(home / "run" / "model" / "classifiers" / "attributes"))


def test_texts_are_escaped() -> None:
    evil = "<script>alert(1)</script>&"
    shown = [frame_html(Frame(0.5, (((evil, 0), (evil, 3)),))), refusal_html(evil)]
    for html in shown:
        assert "<script" not in html and "&lt;script&gt;" in html


def test_a_shade_is_behind_the_word_alone() -> None:
    shown = frame_html(Frame(0.5, ((("A", 3), (" pub", 0), (".", 2)),)))
    assert 'A <span class="c0">pub</span><span class="c2">.</span></p>' in shown


def test_results_say_what_holds(models: dict[str, DemoModel]) -> None:
    found = sampled(models["several"], DemoRequest(count=2, controls=("Length(3)",), source="dog", evaluations=4))
    assert outcome(found).startswith("2 texts, 2 of which pass all checks; ")
    assert samples_html(found).count("✓") == 2 and samples_html(found).count("holds: ") == 2
    assert outcome(sampled(models["causal"], DemoRequest(count=1))).startswith("1 text; ")


def test_without_gradio_one_sentence_names_the_extra(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", str(home / "run")]) == 2
    assert capsys.readouterr().err == "diffusionlm: demo needs gradio: pip install 'diffusion-lm[demo]'\n"


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="cannot listen there"):
        free_port("127.0.0.1", taken.getsockname()[1])
    assert free_port("127.0.0.1", 0) > 0
    with pytest.raises(UserError, match="--port: expected 0 to 65535, got 70000"):
        free_port("127.0.0.1", 70000)
    with pytest.raises(UserError, match="cannot listen there"):
        free_port("no such host", 0)


def test_a_browser_is_told_to_load_nothing_from_elsewhere() -> None:
    assert "http" not in POLICY and "*" not in POLICY and "default-src 'self'" in POLICY
