"""``doctor`` and ``completion``: what is installed and whether it works, and completion in the shell."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusionlm.arguments import command, flag, option, parser
from diffusionlm.config import UserError
from diffusionlm.processes import cores
from diffusionlm.verbs.shared import DEVICE, DTYPE
from diffusionlm.verbs.showing import CHOICES, SHOWN

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NAME = "diffusion-lm"  # of the distribution
SHELLS = ("bash", "zsh", "fish")
GIB = 2**30


@command(flag("--json", "print JSON instead of a table"))
def _doctor(options: argparse.Namespace) -> int:
    """Check the installation: packages, device, cache, and a tiny model; the exit status is 1 where something fails."""
    report: dict[str, dict[str, Any]] = {}
    for part, facts in {"installed": _installed, "machine": _machine, "self_test": _tested}.items():
        try:
            report[part] = facts()
        except Exception as error:  # whatever an installation that is not complete raises
            sentence = str(error).strip().partition("\n")[0]
            report[part] = {"failed": sentence if isinstance(error, UserError) else f"{type(error).__name__}: {sentence}"}
        if not options.json:
            lines = [f"  {name.replace('_', ' '):<17} {value}" for name, value in report[part].items()]
            print("\n".join([part.replace("_", " ").capitalize(), *lines]), flush=True)
    if options.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    return int(any("failed" in facts for facts in report.values()))


@command(option("shell", ", ".join(SHELLS), "SHELL", choices=SHELLS))
def _completion(options: argparse.Namespace) -> int:
    """Print the script with which a shell completes commands, options and files."""
    try:
        import shtab
    except ImportError:
        raise UserError(f"completion needs shtab: pip install '{NAME}[completion]'") from None

    completions = dict.fromkeys(("FILE", "CHECKPOINT"), shtab.FILE) | dict.fromkeys(("FOLDER", "MODEL"), shtab.DIRECTORY)
    completions[SHOWN] = shtab.cmd(f"printf %s\\\\n {' '.join(CHOICES)}")  # a name per line, for fish
    print(shtab.complete(parser(completions), options.shell))
    return 0


def _installed() -> dict[str, str]:
    """Return the versions of Python, of this library, of what it needs, and of what each of its extras needs."""
    from packaging.requirements import Requirement

    found = {"python": platform.python_version(), NAME: version(NAME)}
    requirements = [Requirement(line) for line in requires(NAME) or ()]
    needed = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    found |= {each.name: installed_version(each) for each in needed}
    for extra in metadata(NAME).get_all("Provides-Extra", ()):
        own = [each for each in requirements if each.marker is not None and each.marker.evaluate({"extra": extra})]
        versions = {each.name: installed_version(each) for each in own if each not in needed}
        install = f"; pip install '{NAME}[{extra}]'" if any(" " in number for number in versions.values()) else ""
        found[f"extra_{extra}"] = ", ".join(f"{name} {number}" for name, number in versions.items()) + install
    return found


def installed_version(requirement: Requirement) -> str:
    """Return the version of a package, and what is wrong with it where it does not meet the ``requirement``."""
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return "not installed"
    fits = requirement.specifier.contains(found, prereleases=True)
    return found if fits else f"{found} (expected {requirement.specifier})"


def _machine() -> dict[str, Any]:
    """Return the device and the precision of training and sampling, as they are without settings, and the cache."""
    import torch

    from diffusionlm.data.store import VARIABLE, cache_folder
    from diffusionlm.training.arguments import arguments_of
    from diffusionlm.training.optimizers import has_bf16
    from diffusionlm.training.trainer import TrainingConfig

    config = TrainingConfig()
    training, cache = arguments_of(config, Path(), False), cache_folder()
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    facts = {
        "cpu_cores": cores(),
        "cpu_threads": torch.get_num_threads(),
        "gpus": ", ".join(f"{gpu.name} ({gpu.total_memory / GIB:.0f} GiB)" for gpu in gpus) or "none",
        "training": f"{training.device}, {'bf16' if training.bf16 else 'fp32'}",
        "sampling": ", or ".join([f"{DEVICE}, {DTYPE}", *["--device cuda"] * bool(gpus), *["--dtype bf16"] * has_bf16()]),
        "torch_compile": "used in training" if config.compile else "not used; --training.compile true (pays off on a GPU)",
        "cache": f"off ({VARIABLE})" if cache is None else str(cache),
    }
    if cache is not None:
        there = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
        facts["cache_free"] = f"{shutil.disk_usage(there).free / GIB:.1f} GiB"
    return facts


def _tested() -> dict[str, Any]:
    """Run the self-test."""
    from diffusionlm.restaurants.self_test import self_test

    return self_test()
