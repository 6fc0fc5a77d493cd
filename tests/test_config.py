"""Plain data and components: round trips, the sentences of mistakes, overrides, merging, components from elsewhere."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import diffusionlm
from diffusionlm.config import (
    Component,
    UserError,
    build,
    build_untrusted,
    merge,
    nearest,
    override,
    read_yaml,
    to_plain,
    upgraded,
)
from diffusionlm.core.objective import ObjectiveConfig
from diffusionlm.core.sampler import DDPM, Sampler
from diffusionlm.core.schedule import NoiseSchedule, Sqrt
from diffusionlm.data.corpora import Corpus
from diffusionlm.library import LIBRARY
from diffusionlm.models.backbones import Backbone, Transformer
from diffusionlm.models.diffusion import ModelConfig
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.recipe.gumbel import Gumbel
from diffusionlm.recipe.samplers import DDIM
from diffusionlm.recipe.schedules import Cosine, Linear
from diffusionlm.training.optimizers import AdamW, MuonAdamW, OptimizerConfig
from diffusionlm.training.run import read_config

for _module in pkgutil.walk_packages(diffusionlm.__path__, "diffusionlm."):
    if not _module.name.endswith("__main__"):
        importlib.import_module(_module.name)

# Only the library's own: other tests define components too.
FAMILIES = [family for family in Component.__subclasses__() if family.__module__.startswith("diffusionlm.")]
MEMBERS = [
    (family, name) for family in FAMILIES for name, kind in family.kinds().items()
    if kind.__module__.startswith("diffusionlm.")
]  # fmt: skip


VALUES: dict[str, object] = {  # of settings that have no default and are no words
    "condition": {"name": "label", "field": "food"},
    "control": {"name": "prefix", "text": "a"},
    "controls": [{"name": "prefix", "text": "a"}, {"name": "length", "low": 3}],
    "first": 0,
    "function": "math:fsum",
    "labels": ["somewhere"],
    "parts": [{"name": "label", "field": "food"}, {"name": "source"}],
    "last": 2,
    "low": 3,
    "tasks": ["length", "tree"],
    "tree": "(S (NP (PRON it)) (VP (VERB is)))",
    "weight": 2.0,
    "words": ["a", "b"],
}


def test_the_families_are_known() -> None:
    assert {NoiseSchedule, Sampler, Backbone, ObjectiveConfig, OptimizerConfig, Corpus} <= set(FAMILIES)
    assert {"sqrt", "cosine", "linear", "gumbel"} <= set(NoiseSchedule.members)
    assert {"ddpm", "ddim", "renoise", "dpm++2m"} <= set(Sampler.members)


@pytest.mark.parametrize(("family", "name"), MEMBERS)
def test_every_component_survives_the_round_trip(family: type[Component], name: str) -> None:
    kind = family.find(name)
    assert dataclasses.is_dataclass(kind)
    needed = [
        field.name for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    values = {**VALUES, "control": "length"} if family.family == "task" else VALUES
    component = build(family, {"name": name, **{field: values.get(field, "somewhere") for field in needed}})
    assert type(component) is kind
    plain = to_plain(component)
    assert plain["name"] == name
    assert build(family, plain) == component
    assert build(family, component) is component
    assert component.family == family.family


@pytest.mark.parametrize(("family", "name"), [(family, name) for family in LIBRARY for name in LIBRARY[family]])
def test_every_entry_of_the_library_leads_to_a_class_of_that_name(family: str, name: str) -> None:
    base = next(kind for kind in FAMILIES if kind.family == family)
    kind = base.find(name)
    assert issubclass(kind, base) and kind.name == name
    assert LIBRARY[family][name] == f"{kind.__module__}:{kind.__name__}"


def test_settings_of_format_1_are_renamed_by_their_place() -> None:
    run = {"sampling": {"corrections": 2, "guidance": {"tilting": 3.0}}, "model": {"reads": "belief"}, "seed": 1}
    renamed = {"sampling": {"sweeps": 2, "guidance": {"logit_scale": 3.0}}, "model": {"reads": "prediction"}, "seed": 1}
    assert upgraded(run) == renamed
    assert upgraded(run["sampling"], "sampling") == renamed["sampling"]
    assert upgraded({"frames": ["a"]}, "classifier") == {"templates": ["a"]}
    assert upgraded({"corrections": 2}) == {"corrections": 2}


@pytest.mark.parametrize("format_1", [True, False])
def test_a_run_of_format_1_loads_and_a_users_file_has_no_aliases(format_1: bool, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("sampling: {corrections: 2, guidance: {name: gradient, tilting: 3}}")
    if format_1:
        (tmp_path / "log.jsonl").write_text("")
        sampling = read_config([path]).sampling
        assert sampling.sweeps == 2 and to_plain(sampling.guidance)["logit_scale"] == 3
    else:
        with pytest.raises(UserError, match=r"^sampling\.\S+: there is no such setting; it is now called "):
            read_config([path])


@pytest.mark.parametrize(
    "settings",
    [
        ModelConfig(),
        ModelConfig(16, Transformer(), Sqrt(T=50, offset=1e-3), prediction="v", embedding="free"),
        SamplingConfig(sampler=DDIM(eta=0.5), length=7),
    ],
)
def test_settings_survive_the_round_trip(settings: ModelConfig | SamplingConfig) -> None:
    plain = to_plain(settings)
    assert build(type(settings), plain) == settings
    text = str(plain)
    assert not any(kind in text for kind in ("Sqrt(", "DDIM(", "Gumbel(", "Transformer("))


def test_a_changed_component_reads_back_changed() -> None:
    changed = build(OptimizerConfig, {"name": "muon", "betas": [0.5, 0.6], "momentum": 0.1})
    assert changed == MuonAdamW(betas=(0.5, 0.6), momentum=0.1)
    assert to_plain(changed)["betas"] == [0.5, 0.6]
    assert build(OptimizerConfig, to_plain(changed)) == changed


@pytest.mark.parametrize("plain", ["sqrt", {"name": "sqrt"}, {"name": "sqrt", "T": 2000}, Sqrt()])
def test_a_component_is_its_name_or_a_mapping(plain: object) -> None:
    assert build(NoiseSchedule, plain) == Sqrt(T=2000)


@pytest.mark.parametrize(
    ("kind", "plain", "where", "sentence"),
    [
        (ModelConfig, {"schedul": 1}, "model", "model.schedul: there is no such setting; did you mean 'schedule'?"),
        (ModelConfig, {"schedul": 1}, "", "schedul: there is no such setting; did you mean 'schedule'?"),
        (
            ModelConfig,
            {"schedule": {"name": "sqrt", "ofset": 1}},
            "model",
            "model.schedule.ofset: there is no such setting; did you mean 'offset'?",
        ),
        (
            ModelConfig,
            {"schedule": {"name": "sqrt", "zzz": 1}},
            "",
            "schedule.zzz: there is no such setting; choose from T, offset",
        ),
        (
            ModelConfig,
            {"schedule": "sqrtt"},
            "model",
            "model.schedule: no noise schedule is called 'sqrtt'; did you mean 'sqrt'?",
        ),
        (NoiseSchedule, "SQRT", "", "no noise schedule is called 'SQRT'; did you mean 'sqrt'?"),
        (
            Sampler,
            "zzz",
            "sampler",
            "sampler: no sampler is called 'zzz'; choose from ancestral, annealed-langevin, ddim, ddpm, dpm++2m, flow, heun, "
            "mask-predict, maskgit, predictor-corrector, renoise",
        ),
        (
            ModelConfig,
            {"schedule": {"name": "sqrt", "T": "many"}},
            "model",
            "model.schedule.T: expected a valid integer, unable to parse string as an integer, got 'many'",
        ),
        (ModelConfig, {"schedule": {"name": "sqrt", "T": 1}}, "m", "m.schedule.T: expected at least 2 steps, got 1"),
        (ModelConfig, {"dimension": 0}, "model", "model.dimension: expected 1 to 100000, got 0"),
        (ModelConfig, {"prediction": "x1"}, "", "prediction: expected 'logits', 'x0', 'eps' or 'v', got 'x1'"),
        (
            ModelConfig,
            {"schedule": 3},
            "model",
            "model.schedule: expected the name of a noise schedule, or a mapping with its name, got 3",
        ),
        (Corpus, "e2e", "data.corpus", "data.corpus.folder: this setting is needed and has no default"),
        (
            SamplingConfig,
            {"sampler": {"name": "ddim", "eta": 2}},
            "sampling",
            "sampling.sampler.eta: expected a number between 0 and 1, got 2.0",
        ),
        (
            ModelConfig,
            {"backbone": {"name": "transformer", "width": 10, "heads": 4}},
            "model",
            "model.backbone.heads: expected a divisor of the width 10, got 4",
        ),
    ],
)
def test_sentences(kind: type, plain: object, where: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        build(kind, plain, where)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("plain", [[], "text", None, 3])
def test_settings_that_are_no_mapping(plain: object) -> None:
    with pytest.raises(UserError, match=r"^model: expected a dictionary"):
        build(ModelConfig, plain, "model")


@pytest.mark.parametrize(
    ("word", "options", "end"),
    [
        ("sqrtt", ["linear", "sqrt"], "; did you mean 'sqrt'?"),
        ("t", ["T", "offset"], "; did you mean 'T'?"),
        ("zzz", ["b", "a"], "; choose from a, b"),
        ("zzz", [], ""),
    ],
)
def test_nearest(word: str, options: list[str], end: str) -> None:
    assert nearest(word, options) == end


def test_numbers_that_yaml_takes_for_words() -> None:
    plain = read_yaml("name: adamw\nlearning_rate: 1e-3\nweight_decay: 5E-2", "here")
    assert build(OptimizerConfig, plain) == AdamW(learning_rate=1e-3, weight_decay=5e-2)
    assert build(OptimizerConfig, override({"name": "adamw"}, [("learning_rate", "2e-5")])) == AdamW(learning_rate=2e-5)


def test_reading_yaml() -> None:
    assert read_yaml("", "here") == {}
    assert read_yaml("a: {b: [1, x]}", "here") == {"a": {"b": [1, "x"]}}
    with pytest.raises(UserError, match=r"^here: expected 'key: value' lines, got list$"):
        read_yaml("- a", "here")
    with pytest.raises(UserError, match=r"^here: not valid YAML: [^\n]*$"):
        read_yaml("a: [", "here")


@pytest.mark.parametrize(
    ("base", "change", "merged"),
    [
        ({"a": 1, "b": 2}, {"b": 3}, {"a": 1, "b": 3}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3, "d": 4}}, {"a": {"b": 1, "c": 3, "d": 4}}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": None}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"s": {"name": "sqrt", "T": 3}}, {"s": {"offset": 1}}, {"s": {"name": "sqrt", "T": 3, "offset": 1}}),
        ({"s": {"name": "sqrt", "T": 3}}, {"s": {"name": "sqrt", "T": 4}}, {"s": {"name": "sqrt", "T": 4}}),
        ({"s": {"name": "sqrt", "T": 3}}, {"s": {"name": "linear"}}, {"s": {"name": "linear"}}),
        ({"s": {"name": "sqrt", "T": 3}}, {"s": "linear"}, {"s": "linear"}),
        ({"s": "sqrt"}, {"s": {"T": 3}}, {"s": {"name": "sqrt", "T": 3}}),
        ({"s": "sqrt"}, {"s": {"name": "sqrt", "T": 3}}, {"s": {"name": "sqrt", "T": 3}}),
        ({"s": "sqrt"}, {"s": {"name": "linear", "T": 3}}, {"s": {"name": "linear", "T": 3}}),
        ({"s": 3}, {"s": {"name": "linear"}}, {"s": {"name": "linear"}}),
    ],
)
def test_merge(base: dict[str, Any], change: dict[str, Any], merged: dict[str, Any]) -> None:
    before = str(base), str(change)
    assert merge(base, change) == merged
    assert (str(base), str(change)) == before


def test_dotted_overrides() -> None:
    plain = {"model": {"dimension": 8, "schedule": "sqrt"}, "seed": 1}
    changed = override(plain, [("model.schedule.T", "30"), ("seed", "2"), ("training.lr", "0.5"), ("notes", "[a, b]")])
    assert changed == {
        "model": {"dimension": 8, "schedule": {"name": "sqrt", "T": 30}},
        "seed": 2,
        "training": {"lr": 0.5},
        "notes": ["a", "b"],
    }
    assert plain == {"model": {"dimension": 8, "schedule": "sqrt"}, "seed": 1}
    assert override({"s": "sqrt"}, [("s", "linear"), ("s.T", "7")]) == {"s": {"name": "linear", "T": 7}}
    assert override({"s": "sqrt"}, [("s", "{name: cosine, T: 9}")]) == {"s": {"name": "cosine", "T": 9}}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_overrides_hold_in_whatever_order_they_are_given(order: tuple[int, ...]) -> None:
    given = [("data.corpus.train", "a.txt"), ("data.corpus.name", "files"), ("data", "{max_length: 9}")]
    changed = override({"data": {"corpus": {"name": "restaurants"}}}, [given[i] for i in order])
    assert changed == {"data": {"corpus": {"name": "files", "train": "a.txt"}, "max_length": 9}}
    assert override({}, [("seed", "1"), ("seed", "2")]) == {"seed": 2}


def test_an_override_that_is_no_yaml_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"^training\.steps: [^\n]*$"):
        override({}, [("training.steps", "[1")])


FOREIGN = '''
from dataclasses import dataclass

from torch import Tensor

from diffusionlm.core.schedule import NoiseSchedule


@dataclass(frozen=True)
class Straight(NoiseSchedule):
    """Gamma is a straight line."""

    steepness: float = 10.0

    def gamma(self, t: Tensor) -> Tensor:
        return self.steepness * (2 * t.double() - 1)
'''


@pytest.fixture
def foreign_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Put a module that defines a noise schedule where Python finds it, and return its name."""
    (tmp_path / "foreign_schedules.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "foreign_schedules"
    sys.modules.pop("foreign_schedules", None)


def test_a_component_from_elsewhere(foreign_module: str) -> None:
    settings = build(ModelConfig, {"schedule": {"name": f"{foreign_module}:Straight", "steepness": "3"}})
    assert to_plain(settings.schedule) == {"name": f"{foreign_module}:Straight", "steepness": 3.0}
    assert build(ModelConfig, to_plain(settings)) == settings
    assert build(NoiseSchedule, f"{foreign_module}:Straight") == type(settings.schedule)()
    assert type(settings.schedule).__name__ not in NoiseSchedule.members


def test_a_mistake_in_a_component_from_elsewhere(foreign_module: str) -> None:
    with pytest.raises(UserError) as caught:
        build(ModelConfig, {"schedule": {"name": f"{foreign_module}:Straight", "steepnes": 3}}, "model")
    assert str(caught.value) == "model.schedule.steepnes: there is no such setting; did you mean 'steepness'?"


def test_untrusted_data_import_nothing(foreign_module: str) -> None:
    with pytest.raises(UserError, match=rf"code from outside the library: import {foreign_module} first"):
        build_untrusted(NoiseSchedule, f"{foreign_module}:Straight")
    assert foreign_module not in sys.modules
    importlib.import_module(foreign_module)
    assert type(build_untrusted(NoiseSchedule, f"{foreign_module}:Straight")).__module__ == foreign_module


def test_trust_returns_after_untrusted_data(foreign_module: str) -> None:
    with pytest.raises(UserError):
        build_untrusted(NoiseSchedule, f"{foreign_module}:Straight")
    assert type(build(NoiseSchedule, f"{foreign_module}:Straight")).__module__ == foreign_module


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("diffusionlm.core.sampler:DDPM", "expected a subclass of diffusionlm.core.schedule:NoiseSchedule"),
        ("diffusionlm.core.schedule:math", "expected a subclass of diffusionlm.core.schedule:NoiseSchedule"),
        ("diffusionlm.core.schedule:Nothing", "cannot import the noise schedule 'diffusionlm.core.schedule:Nothing'"),
        ("no_such_module:Thing", "cannot import the noise schedule 'no_such_module:Thing'"),
        (":Thing", "Empty module name"),
    ],
)
def test_what_an_import_path_must_lead_to(name: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        build(ModelConfig, {"schedule": name}, "model")
    assert str(caught.value).startswith("model.schedule: ")
    assert sentence in str(caught.value)


@pytest.mark.parametrize("component", [Sqrt(T=9), Cosine(), Linear(), Gumbel(location=1.25), DDPM("upper")])
def test_components_can_be_compared_and_used_as_keys(component: Component) -> None:
    twin = build(Component, component)
    assert {component: 1}[twin] == 1
    assert dataclasses.replace(component) == component  # type: ignore[type-var]


@pytest.mark.parametrize("version", ["7", "one", "0", "2.0"])
def test_a_config_of_another_format_is_refused(version: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"format_version: {version}\ntraining: {{steps: 3}}\n")
    with pytest.raises(UserError, match=r"a\.yaml: format_version: expected a whole number up to 2, got"):
        read_config([tmp_path / "a.yaml"])
