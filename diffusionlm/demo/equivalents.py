"""A request of the demo as a command line and as Python, which give the same texts."""

from __future__ import annotations

import shlex

from diffusionlm.demo.models import DemoModel
from diffusionlm.demo.requests import DemoRequest


def command_line(model: DemoModel, request: DemoRequest) -> str:
    """Return the command of a shell with which ``model`` gives the texts of ``request``."""
    edits = request.text is not None
    words = ["diffusionlm", "edit" if edits else "generate", model.name]
    if request.text is not None:
        words += ["--text", request.text, "--level", f"{request.level:g}"]
    words += ["--count", str(request.count), "--seed", str(request.seed)]
    for name in ("length", "evaluations", "temperature", "strength"):
        if (value := getattr(request, name)) is not None:
            words += [f"--{name}", repr(value)]
    for control in request.controls:
        words += ["--control", control]
    if request.tries > 1:
        words += ["--ensure", str(request.tries)]
    for value in request.conditions:
        words += ["--condition", value]
    for name, value in model.loading.items():
        words += [f"--{name}", value]
    for module in model.imports:
        words += ["--import", module]
    if edits or not request.source:
        return shlex.join(words)
    return f"printf '%s\\n' {shlex.quote(request.source)} | {shlex.join([*words, '--source', '-'])}"


def python_code(model: DemoModel, request: DemoRequest) -> str:
    """Return the Python that prints the texts that ``model`` gives for ``request``."""
    loading = "".join(f", {name}={value!r}" for name, value in model.loading.items())
    controls = f"[{', '.join(map(repr, request.controls))}]"
    condition = model.pipeline.read_condition(request.conditions)
    more = [] if request.tries == 1 else [f"tries={request.tries}"]
    more += [] if condition is None else [f"condition={condition!r}"]
    settings = [f"{name}={value!r}" for name, value in request.settings.items()]
    lines = [f"import {module}" for module in model.imports]
    lines += ["from diffusionlm import open_pipeline", "", f"pipe = open_pipeline({model.name!r}{loading})"]
    if request.text is None:
        source = [f"source={request.source!r}"] if request.source else []
        lines.append(f"rows = pipe({', '.join([str(request.count), controls, *more, *source, *settings])})")
    else:
        lines.append(f"sampling = pipe.changed(dict({', '.join(settings)}))")
        given = [repr(request.text), f"level={request.level:g}", f"controls={controls}", f"count={request.count}"]
        lines.append(f"rows = pipe.edit({', '.join([*given, 'sampling=sampling', *more])})")
    return "\n".join([*lines, "for row in rows:", "    print(row.text)"])
