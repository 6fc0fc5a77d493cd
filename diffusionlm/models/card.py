"""Model cards: ``README.md`` of a model folder, made from the files of the model and of its run.

A card ends with a digest of its text. Where that does not match, a user has edited the card, and it is not replaced; a licence
that was filled in does not count as an edit, and is kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from diffusionlm.config import UserError, build_untrusted, read_yaml
from diffusionlm.data.corpora import Corpus
from diffusionlm.files import read_json, read_text, write_text
from diffusionlm.models.adapters import FILE
from diffusionlm.models.hub import repository
from diffusionlm.models.io import fingerprint

CARD, LIBRARY = "README.md", "diffusionlm"
SHOWN = 5  # samples
LONGEST = 500  # characters of a sample
REPORTS = ("evaluation.json", "references.json", "control.json")  # of ``evaluate``, each beside its table.txt
_MARK = re.compile(r"\n<!-- diffusionlm writes this card again until it is edited \((\w*)\) -->\n\Z")
_LICENCE = re.compile(r"^license: .*$", re.MULTILINE)
_PATH = re.compile(r"(?<![\w.~/-])~?/(?:[^\s/:;,()]+/)+")  # the folders in an absolute path

# By ``model_type``: what the model is, and how it is loaded, here and by an auto class of transformers.
FAMILIES = {
    "diffusionlm": (
        "A text diffusion model: it denoises the vectors of all words of a text together (Diffusion-LM, Li et al. 2022).",
        "Pipeline.from_pretrained",
        "AutoModel",
    ),
    "diffusionlm-masked": (
        "A masked diffusion model: it replaces masks by words, several in each step.",
        "MaskedPipeline.from_pretrained",
        "AutoModel",
    ),
    "diffusionlm-classifier": (
        "A classifier of the latents of a text diffusion model, whose gradients guide that model. It generates no text.",
        "Classifier.load",
        "AutoModel",
    ),
    "llama": ("An autoregressive language model.", "open_pipeline", "AutoModelForCausalLM"),
    "t5": ("An autoregressive sequence-to-sequence model.", "open_pipeline", "AutoModelForSeq2SeqLM"),
}
LOAD = """```python
from {library} import {imported}

classifier = {load}({model})
```"""
GENERATE = """```python
from {library} import {imported}

pipeline = {load}({model})
for sample in pipeline({given}):
    print(sample.text)
```

```bash
diffusionlm generate {words} {options}
```"""
WITH_TRANSFORMERS = """With `transformers`:

```python
import diffusionlm.auto
from transformers import {auto}, AutoTokenizer

model, tokenizer = {auto}.from_pretrained({model}), AutoTokenizer.from_pretrained({model})
```"""
AS_TASK = """```python
import diffusionlm.auto
from transformers import pipeline

texts = pipeline("text-diffusion", model={model})({input})
```"""
FROM_NOISE = {"given": "5", "options": "--count 5", "input": "5"}
FROM_SOURCE = {"given": '1, source="a source"', "options": "--source sources.txt", "input": '"a source"'}
LIMITS = """It knows only the texts that it was trained on: it generates texts of their kind, in their language, with their
biases and errors, and what a text says need not be true. Some samples may be copies of training texts; `diffusionlm evaluate`
counts them. A text has at most {longest} tokens."""


def write_card(folder: Path) -> None:
    """Write the card of a model folder, unless the one that is there was edited. Raises UserError where that is impossible."""
    write_text(folder / CARD, current_card(folder))


def current_card(folder: Path, name: str | None = None, base: str | None = None) -> str:
    """Return the card of a model folder: the one that is there if it was edited, or the run that it is made from is not.

    ``name`` is that of the model on the hub, ``base`` that of the model that an adapter was trained on.
    """
    there = read_text(folder / CARD) if (folder / CARD).exists() else None
    made_from = _Facts(folder, name, base)
    if there is not None and (is_edited(there) or made_from.run is None):
        return there
    text = made_from.card()
    if there is not None and (licence := _LICENCE.search(there)):
        text = _LICENCE.sub(lambda _: licence[0], text, count=1)
    return f"{text}\n<!-- diffusionlm writes this card again until it is edited ({_digest(text)}) -->\n"


def is_edited(card: str) -> bool:
    """Return whether a card was not written by ``write_card``, or changed since, in more than its licence."""
    mark = _MARK.search(card)
    return mark is None or mark[1] != _digest(card[: mark.start()])


def unmarked(card: str) -> str:
    """Return a card without the mark of ``write_card``, so that it counts as edited."""
    return _MARK.sub("\n", card)


def _digest(text: str) -> str:
    return hashlib.sha256(_LICENCE.sub("", text, count=1).encode()).hexdigest()[:16]


def run_of(folder: Path) -> Path | None:
    """Return the folder of the run that trained the model in ``folder``; None where that is not in a run."""
    place = folder.resolve()
    return place.parent if place.name == "model" and (place.parent / "config.yaml").is_file() else None


def portable(plain: Any) -> Any:
    """Return JSON values with absolute paths of this machine replaced by the names of their files."""
    if isinstance(plain, Mapping):
        return {key: portable(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [portable(value) for value in plain]
    if isinstance(plain, str) and (path := Path(plain).expanduser()).is_absolute() and path.parent.exists():
        return path.name
    return plain


@dataclass(frozen=True)
class _Facts:
    """What the files of a model ``folder``, and of its run, tell about the model."""

    folder: Path
    name: str | None
    published_base: str | None

    @cached_property
    def run(self) -> Path | None:
        """The folder of the run that trained the model, or None."""
        return run_of(self.folder)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of the run."""
        return {} if self.run is None else read_yaml(read_text(self.run / "config.yaml"), str(self.run / "config.yaml"))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config of the model."""
        plain = read_json(self.folder / "config.json")
        return plain if isinstance(plain, dict) else {}

    @property
    def family(self) -> tuple[str, str, str]:
        """What the model is, and how it is loaded."""
        other = ("A model of the library diffusionlm.", "open_pipeline", "AutoModel")
        return FAMILIES.get(str(self.config.get("model_type")), other)

    @property
    def generates(self) -> bool:
        """Whether the model generates texts."""
        return self.family[1] != "Classifier.load"

    @property
    def base(self) -> str | None:
        """The model that an adapter was trained on; None for a complete model."""
        recorded = str(read_json(self.folder / FILE)["base"]) if (self.folder / FILE).exists() else None
        return self.published_base or recorded

    @cached_property
    def corpus(self) -> Corpus | None:
        """The corpus of the run; None where it is not known, or defined by a module that is not imported."""
        with suppress(UserError, KeyError, TypeError):
            return build_untrusted(Corpus, self.settings["data"]["corpus"])
        return None

    def card(self) -> str:
        """Return the card without its digest."""
        title = self.name or (self.run or self.folder.resolve()).name
        longest = self.config.get("max_tokens") or self.config.get("max_position_embeddings")
        sections = {
            "": self.family[0],
            "How to use it": self._use(),
            "Samples": self._samples(),
            "Data": self._data(),
            "Training": self._training(),
            "Evaluation": self._evaluation(),
            "Limits": LIMITS.format(longest=longest) if self.generates else "",
        }
        text = "\n".join(f"## {heading}\n\n{body}\n" if heading else f"{body}\n" for heading, body in sections.items() if body)
        return f"---\n{yaml.safe_dump(self._front(), sort_keys=False, allow_unicode=True)}---\n\n# {title}\n\n{text}"

    def _front(self) -> dict[str, Any]:
        """Return the metadata that the hub reads."""
        corpus, start = self.corpus, self.base or self.settings.get("init_from")
        front = {
            "license": "unknown",
            "language": getattr(corpus, "language", None),
            "library_name": LIBRARY,
            "pipeline_tag": "text-generation" if self.generates else None,
            "tags": ["diffusionlm", *["text-diffusion"] * str(self.config.get("model_type")).startswith("diffusionlm")],
            "datasets": [corpus.dataset] if corpus is not None and corpus.dataset else None,
            "base_model": start.partition("@")[0] if isinstance(start, str) and repository(start) else None,
        }
        return {name: value for name, value in front.items() if value is not None}

    def _use(self) -> str:
        """Return code that loads the model and samples from it."""
        name, (_, load, auto) = self.name or "MODEL", self.family
        said = [] if self.name else ["`MODEL` is this folder, or the name of the model on the hub."]
        if self.base is not None:
            said.append(f"`BASE` is the model that this adapter was trained on, {_code(portable(self.base))}.")
        names = {
            "library": LIBRARY, "load": load, "imported": load.partition(".")[0], "name": name, "auto": auto,
            "model": f'"{name}"' if self.base is None else f'"BASE", adapter="{name}"',
            "words": name if self.base is None else f"BASE --adapter {name}",
            **(FROM_SOURCE if self._has_source() else FROM_NOISE),
        }  # fmt: skip
        code = [GENERATE if self.generates else LOAD]
        if self.generates and self.base is None:
            code += [WITH_TRANSFORMERS, *[AS_TASK] * (auto == "AutoModel")]
        return "\n\n".join([*said, *(each.format(**names) for each in code)])

    def _has_source(self) -> bool:
        condition = (self.config.get("settings") or {}).get("condition") or {}
        return self.config.get("model_type") == "t5" or condition.get("name") in ("source", "partial-noising")

    def _samples(self) -> str:
        """Return the first of the last samples of the run."""
        found = [] if self.run is None else [*(self.run / "samples").glob("step-*.txt")]
        steps = {int(match[1]): path for path in found if (match := re.fullmatch(r"step-(\d+)\.txt", path.name))}
        if not steps:
            return ""
        # Not as ``read_text`` reads a user's file: a model may have drawn any character of its tokenizer, such as NUL.
        lines = steps[max(steps)].read_text(encoding="utf-8", errors="replace").split("\n")[:SHOWN]
        texts = ["".join(c if c.isprintable() else "\ufffd" for c in line[:LONGEST]) for line in lines if line]
        return f"Drawn at the end of training, not selected.\n\n{_fenced(texts)}"

    def _data(self) -> str:
        """Return what is recorded of the texts: counts, and names of files without their folders."""
        data = self.settings.get("data")
        if self.run is None or not isinstance(data, dict) or not isinstance(data.get("corpus"), dict):
            return ""
        recorded = _read(self.run / "data.json")
        corpus = {
            key: value if self.corpus is not None and value == self.corpus.dataset else re.split(r"[/\\]", value)[-1]
            for key, value in data["corpus"].items()
            if isinstance(value, str)
        }
        facts = {
            "corpus": ", ".join(f"{key} {_code(value)}" for key, value in corpus.items()),
            "training texts": _number(recorded.get("training_texts")),
            "tokenizer": _code((data.get("tokenizer") or {}).get("name")),
            "vocabulary": _number(self.config.get("vocabulary") or self.config.get("vocab_size")),
        }
        return _list(facts)

    def _training(self) -> str:
        """Return the main settings of the run, and what its log tells."""
        if self.run is None:
            return ""
        log = _log(self.run / "log.jsonl")
        last: dict[str, Any] = next((row for row in reversed(log) if "tokens" in row), {})
        losses = [row["eval_loss"] for row in log if "eval_loss" in row]
        training = self.settings.get("training") or {}
        optimizer = training.get("optimizer") or {}
        start = self.settings.get("init_from")
        facts = {
            "model": _named(self.settings, "model"),
            "parameters" if self.base is None else "parameters of the adapter": _number(self._parameters()),
            "started from": _code(portable(start)) if start else "",
            "adapter": "" if self.base is None else _named(self.settings, "adapter"),
            "objective": _named(self.settings, "objective"),
            "steps": _number(last.get("step")),
            "tokens": _number(last.get("tokens")),
            "tokens per batch": _number(training.get("batch_tokens")),
            "optimizer": f"{_named(training, 'optimizer')}, learning rate {optimizer.get('learning_rate')}",
            "seconds": _number(last.get("seconds")),
            "lowest validation loss": f"{min(losses):.4f}" if losses else "",
            "seed": _number(training.get("seed")),
            "library": f"diffusionlm {_version()}",
        }
        return f"{_list(facts)}\n\nAll settings are in `config.yaml`."

    def _parameters(self) -> int:
        """Return the number of weights that are saved."""
        count = 0
        for path in self.folder.glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (it is no mapping)
        return count

    def _evaluation(self) -> str:
        """Return the tables of the newest evaluations of each kind that measured these weights."""
        own, tables = fingerprint(self.folder), []
        for kind in REPORTS:
            paths = [] if self.run is None else [path for path in self.run.glob(f"*/{kind}") if _measures(path, own)]
            if paths:
                newest = max(paths, key=lambda path: path.stat().st_mtime)
                tables.append(_fenced(_PATH.sub("", read_text(newest.with_name("table.txt"))).splitlines()))
        return "\n\n".join(tables)


def _version() -> str:
    with suppress(PackageNotFoundError):  # run from a checkout that is not installed
        return version("diffusion-lm")
    return "(a checkout)"


def _read(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file of a run; {} where there is none, or it is damaged."""
    with suppress(UserError):
        plain = read_json(path)
        return plain if isinstance(plain, dict) else {}
    return {}


def _measures(report: Path, model: str) -> bool:
    """Return whether a report, which is finished, has figures of the ``model`` with this fingerprint."""
    systems = _read(report).get("systems")
    found = systems.values() if isinstance(systems, dict) else ()
    own = any(isinstance(each, dict) and each.get("fingerprint") == model for each in found)
    return own and report.with_name("table.txt").exists()


def _log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log, without those that are damaged."""
    rows: list[dict[str, Any]] = []
    for line in read_text(path).splitlines() if path.exists() else ():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def _named(plain: Mapping[str, Any], key: str) -> str:
    component = plain.get(key)
    return _code(component.get("name") if isinstance(component, dict) else component)


def _code(value: object) -> str:
    return "" if value is None else f"`{str(value).replace('`', chr(39))}`"


def _number(value: object) -> str:
    return f"{round(value):,}" if isinstance(value, int | float) else ""


def _list(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)


def _fenced(lines: list[str]) -> str:
    fence = "`" * max(3, 1 + max((len(run) for line in lines for run in re.findall("`+", line)), default=0))
    return "\n".join([f"{fence}text", *lines, fence])
