"""The benchmark of controls beside a source: what it asks for, how it counts, and a run of it."""

import json
from pathlib import Path
from random import Random

import e2e_source
import pytest
from e2e_source import Output, figures, forbidden
from tiny_runs import tiny_config

from diffusionlm.data.references import read_items
from diffusionlm.evaluation.slots import Places
from diffusionlm.training.run import train

TEXTS = {
    "name[Aromi], food[Chinese], area[riverside]": [
        "Aromi serves Chinese food by the riverside.", "Chinese food is served at Aromi in the riverside area.",
    ],
    "name[Cotto], food[English], area[city centre]": [
        "Cotto serves English food in the city centre.", "English food is served at Cotto in the city centre.",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{"src": source, "trg": text} for source, texts in TEXTS.items() for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_forbidden_word_is_in_a_reference_and_not_needed(references: Path) -> None:
    aromi, _ = read_items(references)
    known = frozenset({"serves", "chinese", "food", "area", "is", "riverside", "served"})
    drawn = {forbidden(aromi, Random(seed), known) for seed in range(40)}
    assert drawn == {"serves", "served"}  # "area" and "food" name slots, "is" is short
    assert forbidden(aromi, Random(0), frozenset({"riverside"})) is None


def test_the_figures_count_slots_and_held_controls(references: Path) -> None:
    aromi, cotto = read_items(references)
    places = Places.of(item.slots for item in (aromi, cotto) if item.slots)
    exact = figures([Output(aromi, TEXTS[aromi.source][0]), Output(cotto, TEXTS[cotto.source][1])], places, 3.0)
    assert exact == {
        "outputs": 2, "controls hold": None, "right": 1.0, "missing or wrong": 0.0, "added": 0.0,
        "BLEU": pytest.approx(100), "distinct": 1.0, "CPU seconds per output": 1.5,
    }  # fmt: skip
    text = "Cotto is a cheap place for English food in the city centre."
    wrong = figures([Output(aromi, text, True), Output(cotto, text, False)], places, 0, ("food", "area"))
    assert (wrong["controls hold"], wrong["right"], wrong["distinct"]) == (0.5, 0.5, 0.5)
    assert wrong["added"] == 2 / 4  # the price, twice


def test_a_run_of_a_tiny_model(references: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(
        tmp_path, data={"corpus": {"name": "pairs", "path": str(references)}}, model={"condition": "source"},
        training={"batch_tokens": 64},
    )  # fmt: skip
    train(config, tmp_path / "run", write_samples=False, quiet=True)
    command = [str(tmp_path / "run"), "--references", str(references), "--candidates", "2", "--results", str(tmp_path)]
    assert e2e_source.main(command) == 0
    (rows,) = json.loads((tmp_path / "e2e-source" / "controls.json").read_text())["rows"].values()
    assert list(rows) == ["source alone", "length and word", "another source"]
    assert rows["length and word"]["controls hold"] == 1
    assert "| controls hold" in capsys.readouterr().out
