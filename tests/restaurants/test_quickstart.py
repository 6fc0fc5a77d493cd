import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import restaurant_texts, tiny_config

from diffusionlm import restaurants
from diffusionlm.cli import main
from diffusionlm.config import UserError
from diffusionlm.evaluation.text_metrics import unigram_entropy
from diffusionlm.restaurants.quickstart import SAMPLING, quickstart
from diffusionlm.restaurants.report import grammar_report, trigram_texts
from diffusionlm.training.run import claim


def test_quickstart_fits_its_steps_writes_its_figures_and_reuses_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(restaurants.quickstart, "SAMPLING", replace(SAMPLING, steps=5, sweeps=1))
    monkeypatch.setattr(restaurants.quickstart, "TEXTS_PER_CONTROL", 1)
    monkeypatch.setattr(restaurants.quickstart, "CONTROLS", restaurants.quickstart.CONTROLS[:2])
    folder = tmp_path / "runs" / "quickstart"
    (tmp_path / "restaurants").mkdir()  # is not the bundled model
    monkeypatch.chdir(tmp_path)
    report = quickstart(folder, minutes=0.001, texts=5)
    assert "steps: 20\n" in (folder / "config.yaml").read_text()  # the fewest: steps were timed, and none fits in the time
    assert json.loads((folder / "quickstart.json").read_text()) == report
    assert set(report) == {
        "accepted", "new", "distinct", "entropy", "entropy_real", "texts", "trigram_accepted", "controlled",
        "restaurants", "seconds_training", "seconds_total",
    }  # fmt: skip
    assert report["restaurants"]["accepted"] > report["accepted"] < 1  # of the bundled model, and of one after 20 steps
    assert report["texts"] == 5 == len((folder / "texts.jsonl").read_text().splitlines())
    said = capsys.readouterr()
    assert "labels: " not in said.err  # the corpus comes with the library: nobody can do anything about its labels
    assert "Timing a few steps" in said.err and "after 20 steps" in said.err and "Try next" in said.err
    assert said.err.index("comes with the library") < said.err.index("Control: ") < said.err.index("Training 20 steps")
    assert said.err.count("Control: ") == 4 == said.err.count("  ✓ ") + said.err.count("  ✗ ")  # each model's
    (row,) = re.findall(r"accepted by the corpus's grammar +([\d.]+)% +([\d.]+)%", said.err)
    assert [float(share) for share in row] == [round(100 * r["accepted"], 1) for r in (report, report["restaurants"])]
    weights = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    again = quickstart(folder, texts=5)
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == weights
    assert {k: v for k, v in again.items() if k != "seconds_total"} == {k: v for k, v in report.items() if k != "seconds_total"}


def test_quickstart_does_not_go_on_with_another_run(tmp_path: Path) -> None:
    claim(tiny_config(tmp_path), tmp_path / "run")
    with pytest.raises(UserError, match="run: holds another run, not a quickstart's; choose another --out"):
        quickstart(tmp_path / "run")


def test_what_is_wrong_is_refused_before_time_is_spent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.py").write_text("")
    (tmp_path / "file").write_text("")
    for out, minutes, expected in (
        ("full", "1", "it holds other files, such as mine.py"),
        ("file", "1", "got a file"),
        ("new", "nan", "--minutes: expected a positive number, got nan"),
    ):
        assert main(["quickstart", "--out", str(tmp_path / out), "--minutes", minutes]) == 2
        said = capsys.readouterr().err
        assert expected in said and said.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_the_report_counts_accepted_new_and_distinct_texts() -> None:
    training, real = restaurant_texts(30, "train"), restaurant_texts(10)
    texts = [training[0], real[0], real[1], real[1], "The is a."]
    report = grammar_report(texts, training, real)
    assert (report.accepted, report.new, report.distinct, report.texts) == (0.8, 0.75, 0.8, 5)
    assert report.entropy_real == unigram_entropy(real[:5])


def test_unigram_entropy_of_equal_words_is_the_log_of_their_number() -> None:
    assert unigram_entropy(["a b", "c d"]) == pytest.approx(math.log(4))
    assert unigram_entropy(["a a a"]) == 0


def test_a_trigram_model_writes_only_trigrams_it_has_seen() -> None:
    training = restaurant_texts(200, "train")
    seen = {
        words[i : i + 3]
        for text in training
        if (words := tuple(text.replace(".", " .").replace(",", " ,").split()))
        for i in range(len(words))
    }
    for text in random.Random(0).sample(trigram_texts(training, 20, seed=1), 5):
        words = tuple(text.replace(".", " .").replace(",", " ,").split())
        assert all(words[i : i + 3] in seen for i in range(len(words) - 2))
