"""Runs whose sources have their own tokenizer: resumed, fine-tuned, adapted, and given to a frozen model as a branch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_sources import FAMILIES, OWN, PLAIN, WORDS, config, digits, trained

from diffusionlm.cli import main
from diffusionlm.config import UserError
from diffusionlm.data.tokenizers import SOURCES, of_sources
from diffusionlm.models.io import fingerprint
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.training.run import read_config, train

BRANCH: dict[str, Any] = {"name": "control-branch", "condition": OWN}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return trained(folder, "source")


@pytest.fixture(scope="module")
def branch(folder: Path, base: Path) -> Path:
    train(config(folder, PLAIN), folder / "plain", write_samples=False, quiet=True)
    changes = {"init_from": str(folder / "plain"), "adapter": BRANCH}
    train(config(folder, PLAIN, **changes), folder / "branch", write_samples=False, quiet=True)
    return folder / "branch"


def words(run: Path) -> dict[str, int]:
    """Return the vocabulary of a model's sources."""
    own = of_sources(open_pipeline(run).tokenizer)
    assert own is not None
    return own.get_vocab()


def tuned(folder: Path, base: Path, name: str, **changes: Any) -> Path:
    """Fine-tune ``base`` on texts whose sources have other digits."""
    other = digits(folder, "other.jsonl", {**WORDS, "7": "ant", "8": "bee", "9": "cat"}, count=80)
    given = {"init_from": str(base), "data": {"corpus": str(other)}, **changes}
    train(config(folder, FAMILIES["seq2seq" if "seq2seq" in name else "source"], **given), folder / name, write_samples=False)
    return folder / name


@pytest.mark.parametrize("adapter", ["full", {"name": "lora", "rank": 2}])
def test_fine_tuning_takes_the_tokenizer_of_the_base(
    adapter: Any, folder: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Words of the new sources are not in it, which training says, by its share and its own mark."""
    name = "full" if adapter == "full" else "lora"
    run = tuned(folder, base, name, adapter=adapter)
    said = capsys.readouterr().err
    assert (
        "% of the tokens of the sources are not in the vocabulary of the base and are all read as the same token [UNK]; "
        in said
    )
    assert words(run) == words(base) and "▁7" not in words(run)
    assert (run / "model" / SOURCES / "tokenizer.json").read_bytes() == (
        base / "model" / SOURCES / "tokenizer.json"
    ).read_bytes()
    assert open_pipeline(run)(1, source="3 1")[0].source == "3 1"
    if name == "lora":
        assert open_pipeline(base, adapter=run)(1, source="3 1")[0].text == open_pipeline(run)(1, source="3 1")[0].text


def test_an_encoder_decoder_is_fine_tuned_by_lora(folder: Path) -> None:
    pytest.importorskip("peft")
    start = trained(folder, "seq2seq")
    run = tuned(folder, start, "seq2seq-lora", adapter={"name": "lora", "rank": 2, "targets": ["q"]})
    assert words(run) == words(start) and type(open_pipeline(run).model) is type(open_pipeline(start).model)
    assert open_pipeline(start, adapter=run)(1, source="3")[0].text == open_pipeline(run)(1, source="3")[0].text


def test_the_settings_of_a_base_name_its_tokenizer(base: Path) -> None:
    given = read_config([], [("init_from", str(base))]).model
    assert given.condition == read_config([base / "config.yaml"]).model.condition  # type: ignore[attr-defined]


def test_a_base_with_another_kind_of_tokenizer_is_refused(folder: Path, base: Path) -> None:
    other = {"condition": {**OWN, "tokenizer": {"name": "bpe", "vocab_size": 20}}}
    with pytest.raises(UserError, match=r"^model: expected the settings of .*source; pass the config.yaml of its run"):
        train(config(folder, PLAIN, model=other, init_from=str(base)), folder / "other", quiet=True)


def test_a_branch_has_the_tokenizer_of_its_sources_in_its_own_folder(folder: Path, branch: Path) -> None:
    base, pipe = folder / "plain" / "model", open_pipeline(branch)
    assert not (base / SOURCES).exists() and "source_vocabulary" not in (base / "config.json").read_text()
    own = of_sources(pipe.tokenizer)
    assert own is not None and own.get_vocab() == words(folder / "source")
    assert pipe.model.condition.embedding.num_embeddings == len(own) == pipe.model.config.source_vocabulary
    assert pipe.tokenizer.get_vocab() == open_pipeline(base).tokenizer.get_vocab()
    given = pipe(2, source=["3 1", "2"])
    assert [row.text for row in open_pipeline(base, adapter=branch)(2, source=["3 1", "2"])] == [row.text for row in given]


def test_a_branch_of_impossible_sources_names_the_adapter(folder: Path, branch: Path) -> None:
    condition = {**OWN, "tokenizer": {"name": "words", "min_count": 10**6}}
    changes = {"init_from": str(folder / "plain"), "adapter": {**BRANCH, "condition": condition}}
    with pytest.raises(UserError, match=r"^adapter.condition.tokenizer.min_count: the sources hold no word 1000000 times"):
        train(config(folder, PLAIN, **changes), folder / "impossible", quiet=True)


def test_a_run_is_resumed_with_the_sources_that_it_began_with(tmp_path: Path) -> None:
    """Other sources, of as many words, would be read with the vectors of the first ones."""
    run = trained(tmp_path, "source")
    config_of, model = config(tmp_path, FAMILIES["source"]), run / "model"
    before = {path.name: path.read_bytes() for path in model.rglob("*.json")}
    (model / "finished").unlink()
    digits(tmp_path, words=dict(zip("5678", WORDS.values(), strict=True)))
    with pytest.raises(UserError, match="source: the training texts differ from those that this run started with"):
        train(config_of, run, write_samples=False, quiet=True)
    digits(tmp_path)
    assert train(config_of, run, write_samples=False, quiet=True)
    assert {path.name: path.read_bytes() for path in model.rglob("*.json")} == before


def test_checkpoints_replace_both_tokenizers(tmp_path: Path) -> None:
    """A run exports its model again and again."""
    digits(tmp_path)
    run = tmp_path / "run"
    train(config(tmp_path, FAMILIES["source"], training={"steps": 4, "save_every": 1}), run, write_samples=False, quiet=True)
    assert sorted(path.name for path in (run / "model" / SOURCES).iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert not (run / "model.new").exists()


def test_another_tokenizer_of_sources_is_another_model(base: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(base / "model", tmp_path / "model"))
    assert fingerprint(model) == fingerprint(base)
    path = model / SOURCES / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert fingerprint(model) != fingerprint(base)


def test_unknown_words_of_a_new_tokenizer_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits(tmp_path)
    condition = {**OWN, "tokenizer": {"name": "words", "min_count": 45}}
    train(config(tmp_path, PLAIN, model={"condition": condition}), tmp_path / "run", write_samples=False, quiet=True)
    said = capsys.readouterr().err
    assert (
        "of the tokens of the sources are not in the vocabulary of their tokenizer and are all read as the same token" in said
    )


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train, generate, score, edit and evaluate: each reads the sources with their tokenizer."""
    file, run = digits(tmp_path), str(tmp_path / "run")
    tiny = {"model.dimension": 8, "model.backbone": "transformer", "model.backbone.width": 16, "model.backbone.heads": 2}
    small = {"training.steps": 2, "training.threads": 1, "data.max_length": 8, "sampling.steps": 2, "sampling.sweeps": 0}
    given = {"data.corpus": file, "model.condition": "source", "model.condition.tokenizer": "words", **tiny, **small}
    arguments = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    assert main(["train", "--out", run, *arguments]) == 0
    capsys.readouterr()
    sources = tmp_path / "sources.txt"
    sources.write_text("3 1\nant 2\n")
    assert main(["generate", run, "--source", str(sources)]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "source: 1 word is not in the vocabulary of this model and is read as [UNK]: 'ant'" in err
    assert main(["score", run, str(file), "--strata", "2"]) == 0
    assert main(["edit", run, "--text", "ant bee", "--level", "0.5", "--condition", "1 2"]) == 0
    references = tmp_path / "references.jsonl"
    references.write_text('{"source": "1 2", "target": "ant bee"}\n{"source": "3 4 1", "target": "cat dog ant"}\n')
    assert main(["evaluate", run, "--references", str(references), "--out", str(tmp_path / "report")]) == 0
    assert "unknown" not in capsys.readouterr().err
