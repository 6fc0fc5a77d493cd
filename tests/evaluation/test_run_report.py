"""``diffusionlm report``: what the page of a run says, read with an HTML parser."""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
from contextlib import redirect_stderr
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_adapters import tiny_family
from tiny_runs import ROOT, TINY, restaurant_texts

from diffusionlm.cli import main
from diffusionlm.config import UserError, build, merge
from diffusionlm.core.objective import collate
from diffusionlm.evaluation.run_report.noise_levels import losses_by_level
from diffusionlm.evaluation.run_report.report import SECTIONS, write_report
from diffusionlm.evaluation.run_report.run import Run
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.models.io import model_tokenizer
from diffusionlm.models.masked import MaskedLM, masked_token_losses, word_positions
from diffusionlm.training.run import RunConfig, train

RESULTS = ROOT / "benchmarks" / "results"
SCRIPT = '<script>alert("1")</script> & <b>bold</b>'
OFTEN = {"training": {"evaluate_every": 4, "sample_every": 4}}


class Page(HTMLParser):
    """The text, the rows of tables and the images of each section of a page, and all tags and attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.heading, self.tags = "", dict[str, int]()
        self.texts, self.rows, self.images = dict[str, str](), dict[str, list[list[str]]](), dict[str, list[str]]()
        self.attributes: list[tuple[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "img":
            self.images.setdefault(self.heading, []).append(dict(attrs)["src"] or "")
        if tag not in ("img", "meta"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.setdefault(self.heading, []).append([])
        if tag in ("td", "th"):
            self.rows[self.heading][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["h2"]:
            self.heading = data
        elif self.heading:
            self.texts[self.heading] = self.texts.get(self.heading, "") + data
            if {"td", "th"} & {*self.open}:
                self.rows[self.heading][-1][-1] += data

    def facts(self, heading: str) -> dict[str, str]:
        """Return the rows of two cells of a section."""
        return {row[0]: row[1] for row in self.rows[heading] if len(row) == 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports")


def trained(home: Path, family: str) -> Path:
    """Return the run of a tiny model of a family, trained by the first test that needs it."""
    if not (home / family / "model" / "finished").exists():
        with redirect_stderr(io.StringIO()):
            assert train(tiny_family(home, family, **OFTEN), home / family, quiet=True)
    return home / family


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained(home, "diffusion"), tmp_path / "run"))


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_the_page_has_the_numbers_of_the_log_and_needs_no_other_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    page, rows = Page(run / "report.html"), logged(run)
    assert [*page.texts] == [*SECTIONS]
    evaluations = [row for row in rows if "eval_loss" in row]
    shown = [[str(row["step"]), f"{row['eval_loss']:.4f}", f"{row['eval_bound']:.4f}"] for row in evaluations]
    assert page.rows["Curves"] == [["step", "validation loss", "bound"], *shown]
    best, summary = min(evaluations, key=lambda row: row["eval_loss"]), page.facts("Summary")
    assert summary["steps"] == "8 of 8 (finished)"
    assert summary["lowest validation loss"] == f"{best['eval_loss']:.4f} at step {best['step']}"
    assert summary["saved weights"] == f"those of step {best['step']}"
    assert page.facts("Environment")["seconds of training"] == f"{rows[-2]['seconds']:,}"
    assert page.texts["Configuration"].count((run / "config.yaml").read_text()) == 1
    assert all(value.startswith("data:image/") for name, value in page.attributes if name in ("src", "href"))
    assert not {"script", "link", "iframe", "object"} & {*page.tags}


def test_the_schedule_and_the_loss_by_noise_level_are_those_of_the_saved_model(run: Path) -> None:
    page, model = Page(write_report(run)), DiffusionLM.load(run / "model")
    middle = model.process.schedule.gamma(torch.tensor(0.5))
    alpha, sigma = model.process.alpha_sigma(middle)
    assert ["0.50", f"{middle:.3f}", f"{alpha:.4f}", f"{sigma:.4f}"] in page.rows["Noise schedule"]
    found = losses_by_level(Run(run))
    assert [[f"{x:.3f}", f"{y:.4f}"] for x, y in found.points] == page.rows["Loss by noise level"][1:]
    assert found.points[0][0] == pytest.approx(model.settings.schedule.end)  # type: ignore[attr-defined]
    assert found.points[0][1] < found.points[-1][1]


def test_an_equal_folder_gives_an_equal_page(run: Path, tmp_path: Path) -> None:
    one = write_report(run, tmp_path / "one.html").read_bytes()
    assert write_report(run, tmp_path / "other.html").read_bytes() == one


def test_texts_are_shown_as_texts(run: Path) -> None:
    (run / "samples" / "step-4.txt").write_text(f"{SCRIPT}\nsecond\n")
    settings = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(f"# {SCRIPT}\n{settings}")
    page = Page(write_report(run))
    assert ["4", f"{SCRIPT}second"] in page.rows["Samples during training"]
    assert page.texts["Configuration"].count(SCRIPT) == 1
    assert not {"script", "b"} & {*page.tags}


def test_a_run_that_has_just_begun_says_what_is_missing(run: Path) -> None:
    for name in ("model", "checkpoints", "samples", "figures"):
        shutil.rmtree(run / name)
    (run / "log.jsonl").unlink()
    page = Page(write_report(run))
    assert page.facts("Summary")["steps"] == "0 of 8 (unfinished)"
    assert page.facts("Summary")["saved weights"] == "not known: there is no checkpoint"
    assert "has no log yet" in page.texts["Curves"]
    for heading in ("Noise schedule", "Loss by noise level"):
        assert page.texts[heading].strip() == "Missing: the run has not saved a model yet."
    assert "has saved no samples" in page.texts["Samples during training"]
    assert "holds no evaluation" in page.texts["Evaluations"]
    assert page.images == {}


def test_a_log_that_is_being_written_is_read_up_to_its_last_row(run: Path) -> None:
    log = (run / "log.jsonl").read_text()
    (run / "log.jsonl").write_text(log + '{"step": 9, "lo')
    assert Page(write_report(run)).facts("Summary")["steps"] == "8 of 8 (finished)"
    (run / "log.jsonl").write_text("damaged\n" + log)
    page = Page(write_report(run))
    assert "log.jsonl:1: expected a row of the log, got 'damaged'" in page.texts["Curves"]


def test_a_masked_model_has_a_loss_by_the_share_of_masked_words(home: Path) -> None:
    run = Run(trained(home, "masked"))
    found, model = losses_by_level(run), MaskedLM.load(run.folder / "model")
    page = Page(write_report(run.folder))
    assert "Missing: a masked model has none." in page.texts["Noise schedule"]
    assert ["share of the words that is masked", "cross-entropy (nats per masked word)"] in page.rows["Loss by noise level"]
    # With all words masked nothing is drawn: the loss is that of the lengths alone.
    texts = run.config.data.corpus.load()["validation"]["text"][: found.texts]
    tokenizer = model_tokenizer(model, run.folder / "model")
    batch = collate([tokenizer(text)["input_ids"][:48] for text in texts], model.config.special_ids["pad"])
    hidden = word_positions(batch.mask)
    with torch.no_grad():
        losses = masked_token_losses(model.eval(), batch.ids, batch.mask, hidden)  # type: ignore[no-untyped-call]
    assert found.points[-1][0] == 1.0
    assert found.points[-1][1] == pytest.approx(float(losses.sum() / hidden.sum()))


def test_a_causal_model_has_no_noise_levels(home: Path) -> None:
    page = Page(write_report(trained(home, "causal")))
    for heading in ("Noise schedule", "Loss by noise level"):
        assert page.texts[heading].startswith("\nMissing: a causal model has no")
    assert page.facts("Summary")["model"] == "causal"
    assert len(page.images["Curves"]) == 1


def test_a_classifier_has_its_figure_and_no_samples(home: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "first": text.split()[0] == "The"}) for text in restaurant_texts(100)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    plain = {
        "data": {"max_length": 48, "corpus": str(tmp_path / "texts.jsonl")},
        "model": {"name": "classifier", "denoiser": str(trained(home, "diffusion")), "features": 8, "labels": ["first"]},
        "objective": {"name": "classification", "report_texts": 5},
        "training": {"steps": 2, "batch_tokens": 512},
    }
    assert train(build(RunConfig, merge({"training": TINY["training"]}, plain)), tmp_path / "run", quiet=True)
    page = Page(write_report(tmp_path / "run"))
    drawn = page.images["Figures drawn during training"]
    figures = sorted((tmp_path / "run" / "figures").glob("*.png"))
    assert [base64.b64decode(image.partition(",")[2]) for image in drawn] == [path.read_bytes() for path in figures]
    assert figures and "has saved no samples" in page.texts["Samples during training"]
    assert "Missing: a classifier model has none." in page.texts["Noise schedule"]


def test_evaluations_are_shown_with_their_figures_and_a_damaged_one_is_named(run: Path, tmp_path: Path) -> None:
    shutil.copytree(RESULTS / "lora", run / "evaluation")
    shutil.copytree(RESULTS / "few-steps-control-e2e-8", tmp_path / "control")
    (run / "damaged").mkdir()
    (run / "damaged" / "evaluation.json").write_text("{")
    page = Page(write_report(run, evaluated=[tmp_path / "control"]))
    found = json.loads((RESULTS / "lora" / "evaluation.json").read_text())["rows"]
    shown = [cell for row in page.rows["Evaluations"] for cell in row]
    assert {f"{row['judge_perplexity']:.2f}" for row in found} <= {*shown}
    assert "damaged/evaluation.json: this evaluation is damaged" in page.texts["Evaluations"]
    assert len(page.images["Evaluations"]) == 2
    assert "e2e-parts-of-speech" in shown
    svg = base64.b64decode(page.images["Evaluations"][0].partition(",")[2]).decode()
    assert "#0072b2" in svg and "#1f77b4" not in svg  # Okabe and Ito's blue, not matplotlib's


def test_without_matplotlib_only_the_figures_are_missing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as an import finds it where it is not installed
    page = Page(write_report(run))
    assert "matplotlib is not installed" in page.texts["Curves"]
    assert len(page.rows["Noise schedule"]) > 9
    assert [*page.images] == ["Figures drawn during training"]


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        ("run/model", "expected the folder of a training run, but this is a model folder, which has no log"),
        ("nowhere", "expected the folder of a training run, but there is no such folder"),
        ("run/samples", "expected the folder of a training run, but it has no config.yaml"),
        ("config", "but it has only a config.yaml, and neither a log nor a model"),
    ],
)
def test_what_is_no_run_is_refused(
    folder: str, sentence: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "config")
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", str(tmp_path / folder)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and sentence in err
    assert sorted(tmp_path.rglob("*")) == before


def test_another_file_is_not_replaced(run: Path, tmp_path: Path) -> None:
    log = (run / "log.jsonl").read_bytes()
    with pytest.raises(UserError, match="log.jsonl holds something else than a report; choose another file"):
        write_report(run, run / "log.jsonl")
    with pytest.raises(UserError, match="--out: expected a file, got the folder"):
        write_report(run, tmp_path)
    with pytest.raises(
        UserError, match="--evaluation: expected a folder with evaluation.json, control.json or references.json"
    ):
        write_report(run, tmp_path / "page.html", [tmp_path])
    assert (run / "log.jsonl").read_bytes() == log and not (tmp_path / "page.html").exists()
