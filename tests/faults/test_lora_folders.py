"""Adapters: a base model that is another one, files that hold more than plain LoRA, and targets that are not there."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_code import gpt2
from tiny_adapters import LORA, base_and_tuned, edit, tiny_family
from tiny_runs import ROOT

from diffusionlm.cli import main
from diffusionlm.config import UserError, to_plain
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.evaluation.judge import Judge
from diffusionlm.models.adapters import FILE
from diffusionlm.models.backbones import Transformer
from diffusionlm.models.diffusion import ModelConfig
from diffusionlm.models.io import fingerprint
from diffusionlm.models.lora import CONFIG, WEIGHTS, Lora
from diffusionlm.pipelines.auto import open_models, open_pipeline
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.training.run import read_config, train

STORED = ROOT / "tests" / "golden" / "format-1"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return base_and_tuned(tmp_path_factory.mktemp("faults"), training={"steps": 2})


def adapter_of(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs[1] / "model", tmp_path / "adapter"))


def refused(use: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        use()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_the_adapter_of_another_base_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = runs
    other = Path(shutil.copytree(base / "model", tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["network.down.bias"][0] += 1e-3
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    sentence = refused(lambda: open_pipeline(other, adapter=adapter))
    assert (
        f"{adapter / 'model'}: this adapter was trained on another base model than {other}: expected weights with" in sentence
    )
    assert sentence.endswith(f"name its own base: MODEL --adapter {adapter / 'model'}")
    assert "was trained on another base model" in refused(lambda: open_pipeline(STORED, adapter=adapter))  # of another size
    assert "is for a model of the family 'diffusionlm', and" in refused(
        lambda: open_pipeline(gpt2(tmp_path / "x"), adapter=adapter)
    )


def test_a_base_that_was_trained_again_is_found_out(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, tuned = (Path(shutil.copytree(run, tmp_path / run.name)) for run in runs)
    edit(tuned / "model" / FILE, base=str(base))
    assert main(["generate", str(tuned), "--count", "1"]) == 0
    weights = load_file(base / "model" / "model.safetensors")
    save_file({name: weight * 1.01 for name, weight in weights.items()}, base / "model" / "model.safetensors", {"format": "pt"})
    assert main(["generate", str(tuned), "--count", "1"]) == 2
    assert f"{tuned / 'model'}: this adapter was trained on another base model than {base}" in capsys.readouterr().err
    shutil.rmtree(base)
    assert main(["generate", str(tuned), "--count", "1"]) == 2
    wanted = f"there is no {base}; where it has moved, or is on the hub, name it: MODEL --adapter {tuned / 'model'}"
    assert wanted in capsys.readouterr().err


def test_a_run_is_not_resumed_from_another_base(runs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0].parent, tmp_path / "all")
    base, tuned = tmp_path / "all" / "base", tmp_path / "all" / "tuned"
    shutil.rmtree(tuned)
    config = tiny_family(base.parent, "diffusion", init_from=str(base), adapter=LORA, training={"steps": 2})
    assert train(config, tuned, write_samples=False, quiet=True)
    (tuned / "model" / "finished").unlink()
    weights = load_file(base / "model" / "model.safetensors")
    save_file({name: weight * 1.01 for name, weight in weights.items()}, base / "model" / "model.safetensors", {"format": "pt"})
    sentence = refused(lambda: train(config, tuned, quiet=True))
    assert sentence == f"{tuned}: the weights of {base} differ from those that this run started from; choose another --out"


def test_an_adapter_is_no_base(runs: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = runs
    config = tiny_family(base.parent, "diffusion", init_from=str(tuned), adapter=LORA)
    sentence = refused(lambda: train(config, tmp_path / "run", quiet=True))
    assert f"init_from: expected the folder of a complete model, but {tuned / 'model'} holds an adapter" in sentence
    assert not (tmp_path / "run").exists()
    sentence = refused(lambda: open_pipeline(tuned, adapter=tuned))
    assert "adapter.json: base: expected the folder of a complete model, but" in sentence


def test_a_complete_model_is_no_adapter(runs: tuple[Path, Path]) -> None:
    sentence = refused(lambda: Pipeline.from_pretrained(runs[0], adapter=runs[0]))
    assert sentence == f"{runs[0] / 'model'}: expected the folder of an adapter, but it has no adapter.json"
    assert refused(lambda: open_models(runs, "cpu", "fp32", runs[1])) == "adapter: expected one model, its base, got 2"
    assert refused(lambda: open_models([], "cpu", "fp32", runs[1])) == "adapter: expected one model, its base, got 0"


def test_the_digest_of_the_base_is_needed(runs: tuple[Path, Path], tmp_path: Path) -> None:
    adapter = adapter_of(runs, tmp_path)
    edit(adapter / FILE, base_sha256=None)
    assert "base_sha256: expected the digest of the base's weights, got None" in refused(lambda: open_pipeline(adapter))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"peft_type": "IA3"}, "peft_type: expected 'LORA', got 'IA3'"),
        ({"auto_mapping": {"parent_library": "evil"}}, "auto_mapping: expected none, since only plain LoRA is applied"),
        ({"runtime_config": {"a": 1}}, "runtime_config: expected none"),
        ({"modules_to_save": ["embedding"]}, "modules_to_save: expected none"),
        ({"rank_pattern": {"query": 4}}, "rank_pattern: expected none"),
        ({"use_dora": True}, "use_dora: expected none"),
        ({"use_rslora": True}, "use_rslora: expected none"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out: expected none"),
        ({"megatron_core": "evil.core"}, "megatron_core: expected none"),
        ({"base_model_name_or_path": ["somebody/model"]}, "base_model_name_or_path: expected none"),
        ({"something_new": 1}, "something_new: expected none"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: expected True, got 'pissa'"),
        ({"bias": "all"}, "bias: expected 'none', got 'all'"),
        ({"r": 3}, "expected r 2 and lora_alpha 16 as in adapter.json, got 3 and 16"),
        ({"r": True}, "r: expected a number, got true"),
        ({"lora_alpha": 8}, "expected r 2 and lora_alpha 16 as in adapter.json, got 2 and 8"),
        ({"lora_alpha": -1}, "lora_alpha: expected a positive number, got -1"),
        ({"target_modules": "all-linear"}, "target_modules: "),
        ({"target_modules": []}, "target_modules: expected the names of linear layers, got none"),
        ({"target_modules": ["query"]}, "target_modules: there is no linear layer 'query'"),
        ({"target_modules": ["network.blocks.0.qeury"]}, "did you mean 'network.blocks.0.query'?"),
        (
            {"target_modules": ["network.blocks.0.query"]},
            "expected A and B of each of target_modules, but base_model.model.network",
        ),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_a_config_that_is_not_plain_lora_is_refused(
    change: dict[str, Any], sentence: str, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    adapter = adapter_of(runs, tmp_path)
    edit(adapter / CONFIG, **change)
    assert sentence in refused(lambda: open_pipeline(adapter))


def test_what_only_describes_a_folder_is_not_used(runs: tuple[Path, Path], tmp_path: Path) -> None:
    adapter = adapter_of(runs, tmp_path)
    edit(
        adapter / CONFIG, base_model_name_or_path="somebody/model", revision="main", peft_version="0.18.0", megatron_config=None
    )
    assert open_pipeline(adapter)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda tensors: {name: w for name, w in tensors.items() if "lora_A" in name}, "but base_model.model.network"),
        (lambda tensors: {**tensors, "extra": torch.zeros(2)}, "but extra differs"),
        (lambda tensors: {name: w.T.contiguous() for name, w in tensors.items()}, "lora_A.weight: expected the shape (2, 16)"),
        (lambda tensors: {name: w.long() for name, w in tensors.items()}, "got (2, 16) of torch.int64"),
        (lambda tensors: {name: w * torch.nan for name, w in tensors.items()}, "expected finite weights, but network.blocks.0"),
    ],
    ids=["missing", "extra", "transposed", "integers", "nan"],
)
def test_damaged_weights_of_an_adapter_are_refused(
    damage: Callable[[dict[str, Any]], dict[str, Any]], sentence: str, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    adapter = adapter_of(runs, tmp_path)
    save_file(damage(load_file(adapter / WEIGHTS)), adapter / WEIGHTS)
    assert sentence in refused(lambda: open_pipeline(adapter))


def test_weights_that_are_cut_off_or_pickled_are_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    adapter = adapter_of(runs, tmp_path)
    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:100])
    assert f"{adapter}: the model is damaged or incomplete" in refused(lambda: open_pipeline(adapter))
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    assert "No such file" in refused(lambda: open_pipeline(adapter))


def test_the_files_of_an_adapter_make_no_other_folder_loadable_by_transformers(tmp_path: Path) -> None:
    judge = gpt2(tmp_path / "judge")
    (judge / CONFIG).write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "somebody/model"}))
    plain = {"format_version": 2, "base": str(gpt2(tmp_path / "base")), "base_sha256": "0", "adapter": {"name": "lora"}}
    (judge / FILE).write_text(json.dumps(plain))
    assert "this adapter was trained on another base model" in refused(lambda: Judge.load(judge))
    shutil.copy(judge / CONFIG, tmp_path / "base" / CONFIG)
    assert "adapters of peft are not loaded" in refused(lambda: Judge.load(judge))


def test_unknown_targets_are_refused_with_the_nearest_name() -> None:
    model = ModelConfig(dimension=8, backbone=Transformer(layers=1, width=16, heads=2)).make(
        WordTokenizer().make(["a b c d"]), [[2, 4, 3]], 8
    )
    sentence = refused(lambda: Lora(targets=("query", "qvalue")).wrap(model))
    assert sentence == "adapter.targets: no linear layer of this model is called 'qvalue'; did you mean 'value'?"
    assert "called 'embedding'" in refused(lambda: Lora(targets=("embedding",)).wrap(model))
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_backbone_without_named_projections_needs_targets() -> None:
    from convolutional import Convolutional

    tokenizer = WordTokenizer().make(["a b c d"])
    model = ModelConfig(dimension=8, backbone=Convolutional(layers=1, width=8), evidence_input=False).make(
        tokenizer, [[2, 4, 3]], 8
    )
    sentence = refused(lambda: Lora().wrap(model))
    assert "adapter.targets: expected names of linear layers, since 'convolutional:Convolutional' does not name" in sentence
    assert "inner" in sentence.rpartition("choose from ")[2].split(", ")
    assert Lora(targets=("inner", "outer")).wrap(model)


def test_the_settings_of_the_model_to_start_from_import_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_network.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    folder = Path(shutil.copytree(STORED, tmp_path / "model"))
    settings = json.loads((folder / "config.json").read_text())["settings"]
    assert to_plain(read_config([], [("init_from", str(folder))]).model)["dimension"] == settings["dimension"] == 24
    edit(folder / "config.json", settings={**settings, "backbone": "evil_network:X"})
    assert read_config([], [("init_from", str(folder))]).model == ModelConfig()
    assert "evil_network" not in sys.modules


def test_training_without_peft_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    model = ModelConfig(dimension=8).make(WordTokenizer().make(["a b c d"]), [[2, 4, 3]], 8)
    sentence = refused(lambda: Lora().wrap(model))
    assert sentence == "adapter: 'lora' is trained by peft, which is not installed; it is in the extra 'lora'"


def test_an_adapter_is_loaded_without_peft(runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert open_pipeline(runs[1])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["--adapter.rank", "0"], "adapter.rank: expected 1 to 100000, got 0"),
        (["--adapter.alpha", "0"], "adapter.alpha: expected a positive number, got 0.0"),
        (["--adapter.dropout", "1"], "adapter.dropout: expected a share from 0 to below 1, got 1.0"),
        (["--adapter.rnak", "4"], "adapter.rnak: there is no such setting; did you mean 'rank'?"),
        (["--adapter", "lroa"], "adapter: no adapter is called 'lroa'; did you mean 'lora'?"),
    ],
)
def test_wrong_settings_of_an_adapter_end_in_a_sentence(
    settings: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--out", str(tmp_path / "run"), "--init-from", str(STORED)]
    assert main([*command, *(["--adapter", "lora"] if "--adapter" not in settings else []), *settings]) == 2
    assert capsys.readouterr().err.strip() == f"diffusionlm: {sentence}"
    assert not (tmp_path / "run").exists()


def test_the_fingerprint_of_a_model_is_that_of_its_base_too(runs: tuple[Path, Path], tmp_path: Path) -> None:
    adapter = adapter_of(runs, tmp_path)
    before = fingerprint(adapter)
    edit(adapter / FILE, base_sha256="0")
    assert fingerprint(adapter) != before
