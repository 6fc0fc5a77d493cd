"""Control branches: bases that take none, conditions that do not fit, and folders whose files were changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_lora_folders import refused
from tiny_adapters import base_and_tuned, edit, tiny_family
from tiny_runs import tiny_plain

from diffusionlm.cli import main
from diffusionlm.config import UserError, build
from diffusionlm.data.corpora import to_dataset
from diffusionlm.models.adapters import FILE
from diffusionlm.models.control_branch import ControlBranch
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.restaurants.grammar import parse
from diffusionlm.training.run import RunConfig, train

TAGS = {"name": "control-branch", "layers": 1, "condition": {"name": "tags"}}


def corpus(folder: Path) -> Path:
    """Write the texts of the tiny corpus with their tags; return the file."""
    tiny_plain(folder)
    parsed = [parse(text) for text in (folder / "texts.txt").read_text().splitlines()]
    path = folder / "tagged.jsonl"
    to_dataset([{"text": " ".join(each.words), "tags": each.tags} for each in parsed if each]).to_json(path)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("branches")
    data = {"corpus": str(corpus(folder))}
    return base_and_tuned(folder, adapter=TAGS, data=data, training={"steps": 2})


def branch_of(runs: tuple[Path, Path], folder: Path) -> Path:
    return Path(shutil.copytree(runs[1] / "model", folder / "branch"))


def test_the_branch_of_another_base_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(runs[0] / "model", tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["network.down.bias"][0] += 1e-3
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    assert "was trained on another base model than" in refused(lambda: open_pipeline(other, adapter=runs[1]))


def test_a_run_starts_from_no_branch(runs: tuple[Path, Path], tmp_path: Path) -> None:
    for adapter in ({"name": "full"}, TAGS):
        config = tiny_family(runs[0].parent, "diffusion", init_from=str(runs[1]), adapter=adapter)
        sentence = refused(lambda: train(config, tmp_path / "run", quiet=True))  # noqa: B023
        expected = f"{runs[1] / 'model'} holds a 'control-branch' of {runs[0]}, which a run cannot start from; take its base"
        assert sentence == f"init_from: {expected}" and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("adapter", "sentence"),
    [
        ({"layers": 3}, "adapter.layers: expected at most 1, the layers of the base, got 3"),
        ({"condition": {"name": "label", "field": "tagz"}}, "adapter.condition: the corpus has no column 'tagz'; did you mean"),
        ({"condition": {"name": "tags", "labels": ["NOUNS"]}}, "condition: no training text has the tag 'NOUNS'; did you mean"),
        ({"condition": {"name": "tags", "column": "text"}}, "condition: expected a list of tags in 'text', got 'By "),
    ],
)
def test_conditions_that_do_not_fit_the_corpus_or_the_base(
    adapter: dict[str, Any], sentence: str, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    data = {"corpus": str(runs[0].parent / "tagged.jsonl")}
    config = tiny_family(runs[0].parent, "diffusion", init_from=str(runs[0]), adapter={**TAGS, **adapter}, data=data)
    assert refused(lambda: train(config, tmp_path / "run", quiet=True)).startswith(sentence)
    assert not (tmp_path / "run").exists()


def test_sources_of_other_words_than_the_bases_are_reported(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": "The Vaults is cheap .", "source": "cheap xylophones"}] * 40
    path = tmp_path / "pairs.jsonl"
    to_dataset(rows).to_json(path)
    adapter = {"name": "control-branch", "condition": {"name": "source", "layers": 1}}
    plain = {"data": {"corpus": str(path)}, "training": {"steps": 1}, "init_from": str(runs[0]), "adapter": adapter}
    assert train(tiny_family(runs[0].parent, "diffusion", **plain), tmp_path / "run", write_samples=False, quiet=True)
    assert (
        "train: 50% of the tokens of the sources are not in the vocabulary of the base and are all read"
        in capsys.readouterr().err
    )


def test_a_prefix_is_refused_where_the_settings_are_read() -> None:
    with pytest.raises(UserError, match="^adapter.condition: a branch reads no prefix of the text, as 'partial-noising' has"):
        build(RunConfig, {"adapter": {**TAGS, "condition": "partial-noising"}, "init_from": "base"})


@pytest.mark.parametrize(
    ("family", "changes", "sentence"),
    [
        ("causal", {}, "adapter: 'control-branch' is for models 'diffusion' and 'masked', and the base is 'causal'"),
        (
            "diffusion",
            {"model": {"backbone": {"name": "bert", "layers": 1, "width": 16, "heads": 2, "feedforward": 16}}},
            "adapter: 'control-branch' cannot read the layers of the backbone 'bert'; expected a base with 'transformer'",
        ),
        (
            "diffusion",
            {"model": {"condition": {"name": "tags"}}},
            "adapter: 'control-branch' gives a condition to a model that was trained without one, and the base has 'tags'",
        ),
    ],
)
def test_bases_that_take_no_branch(family: str, changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    data = {"corpus": str(corpus(tmp_path))}
    short = {"steps": 1, "batch_tokens": 256}
    base = tiny_family(tmp_path, family, data=data, training=short, **changes)
    assert train(base, tmp_path / "base", write_samples=False, quiet=True)
    plain: dict[str, Any] = {"init_from": str(tmp_path / "base"), "adapter": TAGS, **changes}
    config = tiny_family(tmp_path, family, data=data, training=short, **plain)
    assert refused(lambda: train(config, tmp_path / "run", quiet=True)).startswith(sentence)


def _drop(weights: dict[str, torch.Tensor]) -> None:
    del weights["branch.signal.weight"]


def _reshape(weights: dict[str, torch.Tensor]) -> None:
    weights["branch.signal.weight"] = weights["branch.signal.weight"][:, :2].contiguous()


def _damage(weights: dict[str, torch.Tensor]) -> None:
    weights["branch.signal.weight"][0, 0] = float("nan")


def _retype(weights: dict[str, torch.Tensor]) -> None:
    weights["branch.signal.weight"] = weights["branch.signal.weight"].long()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_drop, "expected the weights that adapter.json describes, but branch.signal.weight differs"),
        (_reshape, "branch.signal.weight: expected the shape ("),
        (_retype, "as adapter.json describes, got (16, 14) of torch.int64"),
        (_damage, "expected finite weights, but branch.signal.weight holds NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit_or_are_damaged(
    change: Callable[[dict[str, torch.Tensor]], None], sentence: str, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = branch_of(runs, tmp_path)
    weights = load_file(folder / ControlBranch.file)
    change(weights)
    save_file(weights, folder / ControlBranch.file)
    assert sentence in refused(lambda: open_pipeline(folder))


def test_an_edited_adapter_file_is_refused_and_imports_nothing(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = branch_of(runs, tmp_path)
    plain = json.loads((folder / FILE).read_text())["adapter"]
    for changed, sentence in (
        ({"condition": {**plain["condition"], "labels": plain["condition"]["labels"][:3]}}, "expected the shape (16, 3)"),
        ({"layers": 0}, "layers: expected 1 to 1000, got 0"),
        ({"condition": {"name": "elsewhere:Thing"}}, "'elsewhere:Thing' is code from outside the library"),
        ({"condition": {**plain["condition"], "annotator": {"name": "elsewhere:Thing"}}}, "is code from outside the library"),
    ):
        edit(folder / FILE, adapter={**plain, **changed})
        assert sentence in refused(lambda: open_pipeline(folder))
    (folder / ControlBranch.file).unlink()
    edit(folder / FILE, adapter=plain)
    assert main(["generate", str(folder), "--count", "1"]) == 2
    assert "the model is damaged or incomplete" in capsys.readouterr().err
