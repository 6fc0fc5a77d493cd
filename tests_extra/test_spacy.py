"""spaCy as an annotator, with a small English model that is installed as a package."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import datasets  # type: ignore[import-untyped]
import pytest

from diffusionlm.config import UserError, build
from diffusionlm.data.annotators import Annotation, Annotator, annotated

pytest.importorskip("spacy")
TEXT = "Mary Smith quickly left Paris."


@pytest.fixture(scope="module")
def annotator() -> Annotator:
    names = [entry.name for entry in entry_points(group="spacy_models") if entry.name.startswith("en_core_web_sm")]
    if not names:
        pytest.skip("no English model of spaCy is installed")
    return build(Annotator, {"name": "spacy", "model": names[0]})


def test_tags_entities_and_dependencies(annotator: Annotator) -> None:
    found = annotator.annotate(TEXT)
    assert found == Annotation(
        words=("Mary", "Smith", "quickly", "left", "Paris", "."),
        tags=("PROPN", "PROPN", "ADV", "VERB", "PROPN", "PUNCT"),
        entities=("B-PERSON", "I-PERSON", "O", "O", "B-GPE", "O"),
        heads=(1, 3, 3, 3, 3, 3),
        relations=("compound", "nsubj", "advmod", "ROOT", "dobj", "punct"),
    )


def test_a_corpus_gets_columns_of_labels(annotator: Annotator) -> None:
    rows = annotated(datasets.Dataset.from_list([{"text": TEXT}]), annotator, ["tags", "entities", "relations"])
    assert rows[0]["entities"][:2] == ["B-PERSON", "I-PERSON"] and rows[0]["relations"][3] == "ROOT"
    with pytest.raises(UserError, match="annotator: 'spacy' gives no tree"):
        annotated(rows, annotator, ["tree"])


def test_folders_and_other_packages_are_refused(annotator: Annotator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("mine", str(tmp_path / "mine"), "numpy"):
        with pytest.raises(UserError, match="annotator.model: expected a spaCy model that is installed as a package"):
            build(Annotator, {"name": "spacy", "model": name}).annotate(TEXT)
