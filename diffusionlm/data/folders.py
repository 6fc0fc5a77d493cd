"""Folders of models and tokenizers, which anybody may have made: they are read as safetensors and JSON, and nothing else.

Each ``from_pretrained`` of ``transformers`` for a folder is called by ``load_folder``: it runs no code of the folder, downloads
nothing, not even what a file of the folder names, and raises a UserError where the folder is damaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusionlm.config import UserError
from diffusionlm.files import read_object as read_object

# Files of a folder that transformers reads, all of them JSON objects.
OBJECTS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "model.safetensors.index.json",
)  # fmt: skip
# Keys, in a config or a part of it, by which transformers would load code, kernels from the hub, or files of other formats.
REFUSED_KEYS = frozenset(
    {
        *(
            "quantization_config",
            "compression_config",
            "transformers_weights",
            "use_kernels",
            "kernel_config",
            "custom_generate",
        ),
        *(f"{prefix}{part}_implementation" for prefix in ("", "_") for part in ("attn", "experts")),
        *(f"_{part}_implementation_internal" for part in ("attn", "experts")),
    }
)
HARMLESS = (None, False, "eager", "sdpa")  # values of these keys that load nothing
MOST_LAYERS = 10_000
DAMAGED = "the model is damaged or incomplete"


def load_folder(kind: Any, folder: str | Path, damage: str = DAMAGED, **given: Any) -> Any:
    """Return ``kind.from_pretrained(folder)``. Raises UserError where it is no folder, is damaged, or needs other code."""
    check_folder(Path(folder))
    with damage_errors(folder, damage):
        return kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **given)


def check_folder(folder: Path) -> None:
    """Raise UserError where ``folder`` is none, its JSON is damaged, or names more than JSON and safetensors."""
    if not is_folder(folder):
        raise UserError(f"{folder}: expected a folder on this machine, but there is none")
    plain = {name: read_object(folder / name) for name in OBJECTS if (folder / name).exists()}
    for name, value in plain.items():
        check_keys(value, f"{folder / name}: ")
    if not (folder / "adapter.json").exists():  # which tells that models.adapters reads the folder, not transformers
        refuse_peft(folder)
    weights = plain.get("model.safetensors.index.json", {}).get("weight_map", {})
    for file in weights.values() if isinstance(weights, dict) else [weights]:
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(f"{folder}: model.safetensors.index.json: expected names of safetensors files, got {file!r}")


def refuse_peft(folder: Path) -> None:
    """Raise UserError where ``folder`` holds an adapter of peft: transformers would load the base model that it names."""
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder / 'adapter_config.json'}: adapters of peft are not loaded; merge it into its base model")


def check_keys(plain: object, where: str) -> None:
    """Raise UserError for a key, at any depth, by which transformers would load code, and for numbers of layers beyond use."""
    if isinstance(plain, list):
        for each in plain:
            check_keys(each, where)
    for key, value in plain.items() if isinstance(plain, Mapping) else ():
        if key in REFUSED_KEYS and not (isinstance(value, str | bool | None) and value in HARMLESS):
            raise UserError(f"{where}{key}: expected none, since it loads code from elsewhere; got {str(value)[:60]!r}")
        if "layer" in key and isinstance(value, int | float) and abs(value) > MOST_LAYERS:
            raise UserError(f"{where}{key}: expected at most {MOST_LAYERS}, got {value}")
        check_keys(value, where)


@contextmanager
def damage_errors(folder: str | Path, what: str = DAMAGED) -> Iterator[None]:
    """Turn a failure to read ``folder`` into a UserError: what its files hold decides which error the libraries raise."""
    try:
        yield
    except UserError as error:
        raise error if str(folder) in str(error) else UserError(f"{Path(folder) / 'config.json'}: {error}") from None
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of a library in Rust
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if "trust_remote_code" in reason:
            raise UserError(f"{folder}: it needs Python code that came with it, which is never run") from None
        if "ignore_mismatched_sizes" in reason:
            reason = "the weights have other shapes than those that the config describes"
        if "instantiate the backend tokenizer" in reason:  # a paragraph on packages to install, which would not help
            reason = "expected tokenizer.json, or the files of another tokenizer that its tokenizer_config.json names"
        if isinstance(error, KeyError) and error.args:  # its text is nothing but the key
            reason = f"nothing is called {error.args[0]!r}"
        raise UserError(f"{folder}: {what}: {reason}") from error


def is_folder(name: str | Path) -> bool:
    """Return whether there is a folder of this name; a name that no file can have names none."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False
