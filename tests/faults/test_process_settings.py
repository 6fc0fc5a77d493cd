"""A process is a component: it has hyperparameters, shares the model's schedule, and old configs name it by a string."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from straight_path import StraightPath as Scaled
from tiny_runs import ROOT, tiny_config

from diffusionlm import DiffusionLM, ModelConfig, Pipeline, UserError
from diffusionlm.config import build, to_plain
from diffusionlm.core.process import VariancePreserving
from diffusionlm.core.schedule import Sqrt
from diffusionlm.training.run import RunConfig, read_config, train

GOLDEN = ROOT / "tests" / "golden" / "format-1"
NAME = "straight_path:StraightPath"


def model(config: RunConfig) -> ModelConfig:
    assert isinstance(config.model, ModelConfig)
    return config.model


def test_hyperparameters_are_given_in_yaml_and_on_the_command_line() -> None:
    found = model(read_config([], [("model.process.scale", "3"), ("model.process.name", NAME)]))
    assert found.process == Scaled(found.schedule, 3.0)
    plain = {"model": {"process": {"name": NAME, "scale": 3}, "schedule": "sqrt"}}
    assert model(build(RunConfig, plain)).process == Scaled(Sqrt(), 3.0)
    assert to_plain(model(build(RunConfig, plain)))["process"] == {"name": NAME, "scale": 3.0}
    with pytest.raises(UserError, match="model.process.scale: expected a positive number, got -1"):
        build(RunConfig, {"model": {"process": {"name": NAME, "scale": -1}}})
    with pytest.raises(UserError, match="model.process.sigma: there is no such setting"):
        build(RunConfig, {"model": {"process": {"sigma": 3}}})


def test_the_schedule_is_that_of_the_model_and_of_no_other_place() -> None:
    config = ModelConfig(schedule=Sqrt(T=100), process=Scaled(Sqrt(T=7), 2.0))
    assert config.process == Scaled(Sqrt(T=100), 2.0)
    assert replace(config, schedule=Sqrt(T=50)).process == Scaled(Sqrt(T=50), 2.0)
    assert ModelConfig().process == VariancePreserving(ModelConfig().schedule)
    assert build(ModelConfig, to_plain(config)) == config
    for change in ({"schedule": "cosine"}, {"name": NAME, "schedule": {"name": "cosine"}}):
        with pytest.raises(UserError, match="model.process.schedule: there is no such setting; a process has the schedule of"):
            build(RunConfig, {"model": {"process": change}})
    with pytest.raises(UserError, match=r"model\.process\.schedule"):
        read_config([], [("model.process.schedule.name", "cosine")])


def test_a_config_that_names_the_process_by_a_string_loads_and_samples_alike(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "old")
    plain = json.loads((tmp_path / "old" / "config.json").read_text())
    plain["settings"]["process"] = "variance-preserving"
    (tmp_path / "old" / "config.json").write_text(json.dumps(plain))
    old, golden = Pipeline.from_pretrained(tmp_path / "old"), Pipeline.from_pretrained(GOLDEN)
    assert old.model.process == golden.model.process == VariancePreserving(golden.model.settings.schedule)
    assert [row.text for row in old(2)] == [row.text for row in golden(2)]


def test_a_trained_process_is_saved_with_its_hyperparameters(tmp_path: Path) -> None:
    quick = {"steps": 2, "evaluate_every": 2, "save_every": 2}
    config = tiny_config(tmp_path, model={"process": {"name": NAME, "scale": 3.0}}, training=quick)
    assert train(config, tmp_path / "run", write_samples=False, quiet=True)
    loaded = DiffusionLM.load(tmp_path / "run" / "model")
    assert isinstance(loaded.process, Scaled) and loaded.process == Scaled(loaded.settings.schedule, 3.0)
    assert train(config, tmp_path / "run", quiet=True)  # which is the same run
    assert len(Pipeline.from_pretrained(tmp_path / "run")(1)) == 1
