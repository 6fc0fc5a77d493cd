"""LoRA: which weights are trained, what is saved, and that merged weights are those of peft."""

from __future__ import annotations

import copy
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import connected
from safetensors.torch import load_file
from tiny_adapters import FAMILIES, LORA, base_and_tuned, edit, tiny_family
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffusionlm.config import UserError
from diffusionlm.core.model import DenoisingModel
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.models.adapters import trained_share
from diffusionlm.models.backbones import Backbone, Bert, Transformer
from diffusionlm.models.causal import CausalConfig
from diffusionlm.models.diffusion import DiffusionLM, ModelConfig
from diffusionlm.models.leave_one_out import LeaveOneOut
from diffusionlm.models.lora import Lora, linear_layers, target_layers
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.training.optimizers import ChainedOptimizer, MuonAdamW
from diffusionlm.training.run import train

SIZES: dict[str, Any] = {"width": 16, "heads": 2}
ROWS = [[2, 4, 5, 6, 3], [2, 6, 5, 3]]


def new_model(backbone: Backbone | None = None) -> DiffusionLM:
    torch.manual_seed(0)
    settings = ModelConfig(dimension=8, backbone=backbone or LeaveOneOut(**SIZES))
    return settings.make(WordTokenizer().make(["a b c d"]), ROWS, 8)


def at_random(model: PreTrainedModel) -> None:
    """Draw the matrices B, which start at zero."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(generator=generator)


def token_logits(model: DiffusionLM) -> Tensor:
    xt = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return DenoisingModel.token_logits(model.train(False), xt, torch.full((3,), 0.5))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return base_and_tuned(tmp_path_factory.mktemp("lora"))


@pytest.mark.parametrize(
    ("backbone", "names"),
    [
        (Bert(layers=1, feedforward=16, **SIZES), {f"encoder.layer.0.attention.self.{name}" for name in ("query", "value")}),
        (Transformer(layers=2, **SIZES), {f"blocks.{i}.{name}" for i in (0, 1) for name in ("query", "value")}),
        (
            LeaveOneOut(layers=1, query_layers=1, **SIZES),
            {f"streams.{side}.0.{name}" for side in (0, 1) for name in ("query", "value")}
            | {"queries.0.query", "queries.0.values.0", "queries.0.values.1"},
        ),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
def test_the_default_targets_are_the_query_and_value_projections(backbone: Backbone, names: set[str]) -> None:
    assert target_layers(new_model(backbone), ()) == sorted(f"network.{name}" for name in names)


def test_the_default_targets_of_an_autoregressive_model_are_those_of_peft() -> None:
    model = CausalConfig(layers=2, width=16, heads=2).make(WordTokenizer().make(["a b"]), [], 8)
    expected = [f"model.layers.{i}.self_attn.{name}" for i in (0, 1) for name in ("q_proj", "v_proj")]
    assert target_layers(model, ()) == expected


def test_a_target_is_a_part_of_a_layers_name() -> None:
    model = new_model(Transformer(layers=2, **SIZES))
    assert target_layers(model, ("network.blocks.1.merge", "down")) == ["network.blocks.1.merge", "network.down"]
    assert len(target_layers(model, ("network.blocks.0",))) == 7  # query, key, value, merge, expand, gate, contract
    assert "network.level.0" in target_layers(model, ("level",))


def test_layers_that_share_weights_with_word_vectors_are_no_targets() -> None:
    model = CausalConfig(layers=1, width=16, heads=2).make(WordTokenizer().make(["a b"]), [], 8)
    assert "lm_head" in linear_layers(model)
    head, vectors = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(head, nn.Linear) and isinstance(vectors, nn.Embedding)
    head.weight = vectors.weight
    assert "lm_head" not in linear_layers(model)


def test_only_the_updates_are_trained() -> None:
    base = new_model()
    counted = sum(weight.numel() for weight in base.parameters())
    model = Lora(rank=2).wrap(copy.deepcopy(base))
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained and all(".lora_A." in name or ".lora_B." in name for name in trained)
    added = sum(weight.numel() for weight in trained.values())
    assert added == 2 * (16 + 16) * len(target_layers(base, ()))
    assert trained_share(model) == added / (counted + added)
    assert trained_share(base) == 1


@pytest.mark.parametrize("backbone", [None, Transformer(layers=1, **SIZES), Bert(layers=1, feedforward=16, **SIZES)])
def test_before_the_first_step_the_model_is_its_base_to_the_bit(backbone: Backbone | None, tmp_path: Path) -> None:
    base = new_model(backbone)
    model, loaded = Lora().wrap(copy.deepcopy(base)), copy.deepcopy(base)
    assert torch.equal(token_logits(model), token_logits(base))
    Lora().save(model, tmp_path)
    Lora().load(loaded, tmp_path)
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in base.state_dict().items())


def test_merged_weights_compute_what_the_updates_did(tmp_path: Path) -> None:
    base, lora = new_model(), Lora(rank=3, alpha=7.5)
    model = lora.wrap(copy.deepcopy(base))
    at_random(model)
    lora.save(model, tmp_path)
    merged = lora.load(copy.deepcopy(base), tmp_path)
    assert not torch.allclose(token_logits(merged), token_logits(base), atol=1e-2)
    assert torch.allclose(token_logits(merged), token_logits(model), atol=1e-5)
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert all(weight.requires_grad for weight in merged.parameters())  # so that it can be trained further
    target = target_layers(base, ())[0]
    weights = load_file(tmp_path / "adapter_model.safetensors")
    a, b = (weights[f"base_model.model.{target}.lora_{part}.weight"] for part in "AB")
    expected = base.state_dict()[f"{target}.weight"] + 7.5 / 3 * b @ a
    assert torch.allclose(merged.state_dict()[f"{target}.weight"], expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers for it
def test_the_folder_is_one_of_peft_and_peft_merges_the_same_weights(tmp_path: Path) -> None:
    from peft import PeftModel

    base, lora = new_model(), Lora(rank=3, targets=("query", "merge"))
    model = lora.wrap(copy.deepcopy(base))
    at_random(model)
    lora.save(model, tmp_path)
    merged = lora.load(copy.deepcopy(base), tmp_path)
    theirs: Any = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))
    for name, weight in theirs.merge_and_unload().state_dict().items():
        assert torch.equal(weight, merged.state_dict()[name]), name
    PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).save_pretrained(str(tmp_path / "again"))
    plain = json.loads((tmp_path / "again" / "adapter_config.json").read_text())  # with all keys of peft's config
    assert len(plain) > 30 and plain["auto_mapping"]["base_model_class"] == "DiffusionLM"
    edit(tmp_path / "again" / "adapter_config.json", auto_mapping=None)  # code to import, which is never accepted
    again = lora.load(copy.deepcopy(base), tmp_path / "again")
    assert torch.equal(token_logits(again), token_logits(merged))


def test_loading_an_adapter_draws_no_random_numbers(tmp_path: Path) -> None:
    base = new_model()
    Lora().save(Lora().wrap(copy.deepcopy(base)), tmp_path)
    torch.manual_seed(5)
    Lora().load(base, tmp_path)
    drawn = torch.randn(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.randn(3))


def test_muon_trains_the_updates_of_layers_and_nothing_else_is_optimized() -> None:
    model = Lora(targets=("query", "down")).wrap(new_model())
    optimizer = MuonAdamW().build(model)
    assert isinstance(optimizer, ChainedOptimizer)
    muon, adamw = ([p for group in part.param_groups for p in group["params"]] for part in optimizer.parts)
    trained = {name: id(p) for name, p in model.named_parameters() if p.requires_grad}
    assert {id(p) for p in muon} == {i for name, i in trained.items() if "query" in name}
    assert {id(p) for p in adamw} == {i for name, i in trained.items() if "down" in name}


def test_a_run_changes_the_targets_alone_and_saves_their_average(runs: tuple[Path, Path]) -> None:
    base, tuned = (DiffusionLM.load(run / "model") for run in runs)
    weights = tuned.state_dict()
    changed = {name for name, weight in base.state_dict().items() if not torch.equal(weight, weights[name])}
    assert changed == {f"{name}.weight" for name in target_layers(base, ())}
    assert "embedding.weight" not in changed and torch.equal(base.word_vectors(), tuned.word_vectors())
    saved = runs[1] / "model"
    assert not (saved / "model.safetensors").exists()
    averaged = load_file(runs[1] / "checkpoints" / "checkpoint-8" / "ema.safetensors")
    for name, weight in load_file(saved / "adapter_model.safetensors").items():
        inner = name.removeprefix("base_model.model.").replace(".weight", ".default.weight")
        assert torch.equal(weight, averaged[f"module.model.{inner}"])


def test_the_learned_schedule_and_the_lengths_are_those_of_the_new_texts(runs: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = (DiffusionLM.load(run / "model") for run in runs)
    assert base.settings.schedule != tuned.settings.schedule
    assert replace(tuned.settings, schedule=base.settings.schedule) == base.settings
    (tmp_path / "texts.txt").write_text("\n".join(["The Vaults has cheap food."] * 30 + ["Cheap food is near the river."] * 30))
    changes = {"steps": 1, "batch_tokens": 256}
    config = tiny_family(tmp_path, "diffusion", init_from=str(runs[0]), adapter=LORA, training=changes)
    assert train(config, tmp_path / "run", write_samples=False, quiet=True)
    other = DiffusionLM.load(tmp_path / "run" / "model")
    assert sum(other.config.length_counts) <= 60 < sum(base.config.length_counts)


def test_an_interrupted_run_ends_with_the_same_bits(runs: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = runs
    shutil.copytree(tuned, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-8")
    config = tiny_family(base.parent, "diffusion", init_from=str(base), adapter=LORA)
    assert train(config, tmp_path / "run", write_samples=False, quiet=True)
    for file in ("adapter_model.safetensors", "adapter_config.json", "adapter.json", "config.json"):
        assert (tmp_path / "run" / "model" / file).read_bytes() == (tuned / "model" / file).read_bytes(), file


def test_a_run_and_its_base_with_the_adapter_give_the_same_samples(runs: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = runs
    texts = [row.text for row in open_pipeline(tuned).stream(3)]
    assert texts == [row.text for row in Pipeline.from_pretrained(base, adapter=tuned).stream(3)]
    shutil.copytree(base, tmp_path / "moved")
    shutil.copytree(tuned / "model", tmp_path / "adapter")
    moved = open_pipeline(tmp_path / "moved" / "model", adapter=tmp_path / "adapter")
    assert texts == [row.text for row in moved.stream(3)]
    assert moved.folder == tmp_path / "moved" / "model"  # whose classifiers fit, as the word vectors are the same


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"diffusion"}))
def test_other_families_have_adapters(family: str, tmp_path: Path) -> None:
    base, tuned = base_and_tuned(tmp_path, family, training={"steps": 2})
    one, other = open_pipeline(base), open_pipeline(base, adapter=tuned)
    changed = {n for n, w in one.model.state_dict().items() if not torch.equal(w, other.model.state_dict()[n])}
    assert changed == {f"{name}.weight" for name in target_layers(one.model, ())}
    assert [row.text for row in other.stream(2)] == [row.text for row in open_pipeline(tuned).stream(2)]


def test_all_weights_of_a_merged_model_can_be_trained_further(runs: tuple[Path, Path], tmp_path: Path) -> None:
    config = tiny_family(runs[0].parent, "diffusion", init_from=str(runs[1]), training={"steps": 2})
    assert train(config, tmp_path / "run", write_samples=False, quiet=True)
    before, after = (DiffusionLM.load(run / "model").state_dict() for run in (runs[1], tmp_path / "run"))
    assert not any(torch.equal(before[name], after[name]) for name in ("network.down.weight", "embedding.weight"))


def test_the_settings_of_the_model_come_from_the_model(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from diffusionlm.cli import main

    corpus, out = str(runs[0].parent / "texts.txt"), str(runs[0].parent / "by-command")
    command = ["train", "--init-from", str(runs[0]), "--adapter", "lora", "--adapter.rank", "4", "--data.corpus", corpus]
    small = ["--data.max_length", "48", "--training.steps", "1", "--training.batch_tokens", "256", "--sampling.steps", "2"]
    assert main([*command, "--out", out, *small]) == 0
    layers = 2 * 4 * (16 + 16)
    share = 100 * layers / (layers + sum(w.numel() for w in DiffusionLM.load(runs[0] / "model").parameters()))
    assert f"adapter: {share:.2g} % of the weights are trained" in capsys.readouterr().err
    for words in (["generate", str(runs[0]), "--adapter", out, "--count", "2"], ["generate", out, "--count", "2"]):
        assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == lines[2:] and len(lines) == 4
    held_out = runs[0].parent / "held-out.txt"
    held_out.write_text("\n".join(Path(corpus).read_text().splitlines()[:3]))
    assert main(["score", str(runs[0]), str(held_out), "--adapter", out, "--strata", "2"]) == 0
    assert all(math.isfinite(json.loads(line)["nats"]) for line in capsys.readouterr().out.splitlines())


def test_an_adapter_is_found_on_the_hub_with_its_base(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = runs
    expected = Pipeline.from_pretrained(tuned)(2)
    with connected(tmp_path, monkeypatch):
        Pipeline.from_pretrained(base).push_to_hub("user/base")
        Pipeline.from_pretrained(tuned).push_to_hub("user/tuned", base="user/base")
        with pytest.raises(
            UserError, match=r"there is no user/base; where it has moved, or is on the hub, name it: MODEL --adapter"
        ):
            Pipeline.from_pretrained("user/tuned")  # nothing that a file names is downloaded
        assert Pipeline.from_pretrained("user/base", adapter="user/tuned")(2) == expected
        assert Pipeline.from_pretrained("user/tuned")(2) == expected
