"""Some settings of a component without its name change the component that is there: in YAML, on the command line, in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from diffusionlm import ModelConfig, UserError
from diffusionlm.config import build, to_plain
from diffusionlm.data.batches import DataConfig
from diffusionlm.models.backbones import Transformer
from diffusionlm.models.classifier import ClassifierConfig
from diffusionlm.models.spec import ModelSpec
from diffusionlm.training.run import RunConfig, read_config

CHANGES: list[dict[str, Any]] = [
    {"training": {"optimizer": {"learning_rate": 0.001}}},
    {"training": {"optimizer": {"name": "adamw", "learning_rate": 0.001}}},
    {"data": {"tokenizer": {"min_count": 2}, "corpus": {"drawn": 7}}},
    {"model": {"dimension": 8}},
    {"model": {"backbone": {"layers": 3}, "schedule": {"training_shift": 0.5}}},
    {"model": {"name": "masked", "backbone": {"layers": 3}}, "objective": "masked"},
    {"model": {"schedule": {"name": "sqrt", "T": 100}}},
    {"sampling": {"sampler": {"name": "ddim"}, "guidance": {"strength": 2.0}}},
    {"training": {"optimizer": {}}},
]


def dotted(plain: Any, place: str = "") -> list[tuple[str, str]]:
    if not isinstance(plain, dict):
        return [(place, str(plain))]
    return [pair for key, value in plain.items() for pair in dotted(value, f"{place}.{key}".lstrip("."))]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_yaml_and_the_command_line_mean_the_same(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(change))
    found = read_config([tmp_path / "a.yaml"])
    assert found == read_config([], dotted(change)) == build(RunConfig, change)
    assert build(RunConfig, to_plain(found)) == found


def test_the_settings_that_are_not_named_stay_those_of_the_default() -> None:
    optimizer = build(RunConfig, {"training": {"optimizer": {"learning_rate": 0.001}}}).training.optimizer
    assert to_plain(optimizer) == to_plain(RunConfig().training.optimizer) | {"learning_rate": 0.001}
    plain = {"name": "classifier", "denoiser": "run", "labels": ["x"]}
    model = build(ModelSpec, plain | {"backbone": {"layers": 1}})  # the default of this field is not that of its class
    assert isinstance(model, ClassifierConfig) and model.backbone == Transformer(layers=1, width=96, heads=4)
    model = build(ModelSpec, plain | {"backbone": {"name": "transformer", "layers": 1}})
    assert isinstance(model, ClassifierConfig) and model.backbone == Transformer(layers=1)


@pytest.mark.parametrize(
    ("kind", "plain", "sentence"),
    [
        (
            RunConfig,
            {"training": {"optimizer": {"lr": 1}}},
            "training.optimizer.lr: there is no such setting; choose from betas, ",
        ),
        (RunConfig, {"training": {"optimizer": {"learning_rate": -1}}}, "training.optimizer.learning_rate: expected 0 or more"),
        (
            RunConfig,
            {"training": {"optimizer": {"name": "adamw", "learning_rate": 1e39}}},
            "training.optimizer.learning_rate: expected at most 1000000, got 1e+39",
        ),
        (ModelConfig, {"condition": {"field": "x"}}, "condition: expected the name of a condition, or a mapping with its name"),
        (DataConfig, {"corpus": {"train": "a.txt"}}, "corpus.train: there is no such setting"),
    ],
)
def test_what_the_component_that_is_there_does_not_have_is_refused(kind: Any, plain: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        build(kind, plain)
    assert str(caught.value).startswith(sentence)
