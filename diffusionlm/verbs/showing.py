"""``show``: all settings, and the members of the families of components."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import fields

from diffusionlm.arguments import command, option
from diffusionlm.config import UserError, nearest, to_plain
from diffusionlm.verbs.shared import CONFIG

FAMILIES = {  # the families that ``show`` lists, with the import paths of their base classes
    "models": "diffusionlm.models.spec:ModelSpec",
    "adapters": "diffusionlm.models.adapters:Adapter",
    "processes": "diffusionlm.core.process:Process",
    "conditions": "diffusionlm.models.conditions:Condition",
    "schedules": "diffusionlm.core.schedule:NoiseSchedule",
    "samplers": "diffusionlm.core.sampler:Sampler",
    "backbones": "diffusionlm.models.backbones:Backbone",
    "objectives": "diffusionlm.core.objective:ObjectiveConfig",
    "optimizers": "diffusionlm.training.optimizers:OptimizerConfig",
    "controls": "diffusionlm.controls:Control",
    "guidance": "diffusionlm.core.guidance:Guidance",
    "rankings": "diffusionlm.pipelines.ranking:Ranking",
    "annotators": "diffusionlm.data.annotators:Annotator",
    "tasks": "diffusionlm.evaluation.control.tasks:Task",
    "corpora": "diffusionlm.data.corpora:Corpus",
    "tokenizers": "diffusionlm.data.tokenizers:TokenizerRecipe",
}


BUNDLED = "bundled"
SHOWN = f"config|{BUNDLED}|FAMILY"
CHOICES = ("config", BUNDLED, *FAMILIES)


def _show_bundled() -> None:
    """Print the names of the bundled models, with their sizes, classifiers and folders."""
    from diffusionlm.models.named import bundled_models

    for name, folder in bundled_models().items():
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
        classifiers = sorted(path.parent.name for path in folder.glob("classifiers/*/config.json"))
        print(f"{name}: {size:.1f} MB" + f"; classifiers: {', '.join(classifiers)}" * bool(classifiers))
        print(f"    {folder}")


@command(
    option("what", f"{SHOWN}, a family being one of: {', '.join(FAMILIES)}", SHOWN, nargs="?", default="config"),
    CONFIG,
    example="show --training.steps 500",
)
def _show(options: argparse.Namespace) -> int:
    """Show all settings with their values, the models that come with the package, or the members of a family of components."""
    import yaml

    from diffusionlm.training.run import read_config

    if options.what == "config":
        plain = to_plain(read_config(options.config, options.overrides))
        print(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), end="")
        return 0
    if options.what not in CHOICES:
        raise UserError(f"show: there is no {options.what!r}{nearest(options.what, CHOICES)}")
    if options.config or options.overrides:
        raise UserError(f"show: {options.what} have no settings of yours to show; leave out --config and --NAME VALUE")
    if options.what == BUNDLED:
        _show_bundled()
        return 0
    module, _, name = FAMILIES[options.what].partition(":")
    members = getattr(importlib.import_module(module), name).kinds()
    if not members:
        print(f"no {options.what} come with the library: name one of your own, my.module:Thing ({FAMILIES[options.what]})")
    for member, kind in members.items():
        print(f"{member}: {(kind.__doc__ or '').splitlines()[0]}")
        for field in fields(kind):
            print(f"    {field.name}: {field.type}" + ("" if repr(field.default).startswith("<") else f" = {field.default}"))
    return 0
