"""A model folder is data: no code of it runs, and nothing that its files name is downloaded, wherever a folder is read."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import ROOT, tiny_config
from transformers import DistilBertConfig, DistilBertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from diffusionlm.cli import main
from diffusionlm.config import UserError
from diffusionlm.controls import Binding
from diffusionlm.data.folders import REFUSED_KEYS
from diffusionlm.data.tokenizers import Pretrained, WordTokenizer, load_tokenizer
from diffusionlm.evaluation.judge import Judge
from diffusionlm.models.classifier import LatentClassifier
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.training.run import train

LIBRARY = ROOT / "diffusionlm"
STORED = ROOT / "tests" / "golden" / "format-1"
EVIL = """
import pathlib
(pathlib.Path(__file__).parent / "ran").touch()
pathlib.Path({mark!r}).touch()
class X:
    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        return cls()
"""


@pytest.fixture(autouse=True)
def answer_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer every prompt whether to run code with yes."""
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")


def stored(folder: Path) -> Path:
    return Path(shutil.copytree(STORED, folder))


def stored_classifier(folder: Path) -> Path:
    return Path(shutil.copytree(STORED / "classifiers" / "tags", folder))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **changes}))


def poison(folder: Path) -> Path:
    """Name a class of ``evil.py`` wherever transformers looks for one; return a file that exists once it ran."""
    mark = folder.parent / f"{folder.name}-ran"
    (folder / "evil.py").write_text(EVIL.format(mark=str(mark)))
    edit(folder / "tokenizer_config.json", tokenizer_class="X", auto_map={"AutoTokenizer": ["evil.X", "evil.X"]})
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer")
    if json.loads((folder / "config.json").read_text())["model_type"] in ("gpt2", "distilbert"):
        edit(folder / "config.json", auto_map=dict.fromkeys(names, "evil.X"))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(EVIL.format(mark=str(mark)))
    return mark


def tried(use: Callable[[], object]) -> str:
    """Return the sentence with which ``use`` is refused; "" where it is not."""
    try:
        use()
    except UserError as error:
        return str(error)
    return ""


def gpt2(folder: Path) -> Path:
    tokenizer = WordTokenizer().make(["a dog", "a cat"], 16)
    sizes: dict[str, Any] = {"n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sequence_classifier(folder: Path) -> Path:
    tokenizer = WordTokenizer().make(["a dog", "a cat"], 16)
    sizes: dict[str, Any] = {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8, "max_position_embeddings": 16}
    DistilBertForSequenceClassification(DistilBertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bound() -> Binding:
    pipe = Pipeline.from_pretrained(STORED)
    return Binding(pipe.model, pipe.tokenizer, STORED)


READERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "a model folder": (stored, open_pipeline),
    "the model to start from": (
        stored,
        lambda folder: train(
            tiny_config(folder.parent, init_from=str(folder), data={"max_length": 20}), folder.parent / "run", quiet=True
        ),
    ),
    "data.tokenizer": (stored, lambda folder: Pretrained(str(folder)).make([])),
    "a judge": (gpt2, Judge.load),
    "a sequence classifier": (sequence_classifier, lambda folder: bound().sequence_classifier(str(folder))),
    "a classifier": (stored_classifier, lambda folder: bound().classifier(str(folder), LatentClassifier)),
    "a tokenizer": (stored, load_tokenizer),
}


@pytest.mark.parametrize("reader", READERS)
def test_no_code_of_a_folder_is_run(reader: str, tmp_path: Path) -> None:
    make, use = READERS[reader]
    mark = poison(make(tmp_path / "evil"))
    sentence = tried(lambda: use(tmp_path / "evil"))
    assert not mark.exists()
    assert "evil" not in sys.modules
    assert "trust_remote_code" not in sentence  # there is no such setting here


def test_the_command_line_asks_nothing_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = poison(stored(tmp_path / "evil"))
    status = main(["generate", str(tmp_path / "evil"), "--count", "1", "--steps", "2"])
    assert not mark.exists()
    assert "custom code" not in capsys.readouterr().out
    assert status == 2


@pytest.mark.parametrize("key", sorted(REFUSED_KEYS))
@pytest.mark.parametrize("deep", [False, True])
def test_a_config_that_loads_kernels_or_quantizers_is_refused(key: str, deep: bool, tmp_path: Path) -> None:
    change: dict[str, Any] = {key: "somebody/kernel"}
    edit(gpt2(tmp_path / "model") / "config.json", **({"text_config": change} if deep else change))
    assert f"{key}: expected none, since it loads code from elsewhere; got 'somebody/kernel'" in tried(
        lambda: Judge.load(tmp_path / "model")
    )


def test_attention_of_torch_itself_is_allowed(tmp_path: Path) -> None:
    edit(gpt2(tmp_path / "model") / "config.json", attn_implementation="eager", quantization_config=None)
    assert Judge.load(tmp_path / "model").score(["a dog"])


def test_the_config_of_a_library_model_holds_its_own_keys_alone(tmp_path: Path) -> None:
    edit(stored(tmp_path / "model") / "config.json", auto_map={"AutoModel": "evil.X"})
    assert "auto_map: there is no such setting" in tried(lambda: open_pipeline(tmp_path / "model"))


@pytest.mark.parametrize("name", ["somebody/model", "../../elsewhere", "pytorch_model.bin"])
def test_weights_are_safetensors_of_the_folder(name: str, tmp_path: Path) -> None:
    folder = stored(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "no file named model.safetensors" in tried(lambda: open_pipeline(folder))
    edit(folder / "model.safetensors.index.json", metadata={}, weight_map={"embedding.weight": name})
    assert f"expected names of safetensors files, got {name!r}" in tried(lambda: open_pipeline(folder))


def test_an_adapter_of_peft_loads_no_base_model(tmp_path: Path) -> None:
    edit(gpt2(tmp_path / "model") / "adapter_config.json", base_model_name_or_path="somebody/model", peft_type="LORA")
    assert "adapters of peft are not loaded" in tried(lambda: Judge.load(tmp_path / "model"))


def test_the_base_of_an_adapter_is_a_folder_and_is_never_downloaded(tmp_path: Path) -> None:
    folder = stored(tmp_path / "model")
    edit(folder / "adapter.json", format_version=2, base="gpt2", adapter={"name": "full"})
    assert "base: expected the folder of the base model, but there is no gpt2" in tried(lambda: DiffusionLM.load(folder))
    edit(folder / "adapter.json", base=["gpt2"])
    assert "base: expected the folder of the base model, got ['gpt2']" in tried(lambda: DiffusionLM.load(folder))
    edit(folder / "adapter.json", base=str(STORED), adapter="evil:X")
    assert "'evil:X' is code from outside the library" in tried(lambda: DiffusionLM.load(folder))


def test_a_name_that_is_no_folder_is_not_looked_up_elsewhere(tmp_path: Path) -> None:
    for use in (load_tokenizer, open_pipeline, Judge.load):
        assert tried(lambda use=use: use(tmp_path / "gpt2"))  # type: ignore[misc]
    assert "expected a folder on this machine" in tried(lambda: load_tokenizer(Path("gpt2")))


@pytest.mark.parametrize("reader", [reader for reader in READERS if reader != "the model to start from"])
def test_reading_a_folder_opens_no_connection(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, use = READERS[reader]
    folder = make(tmp_path / "model")
    if reader in ("a judge", "a sequence classifier"):
        edit(folder / "config.json", _name_or_path="gpt2")
    edit(folder / "tokenizer_config.json", name_or_path="gpt2", tokenizer_file="/etc/hostname")

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a connection to {arguments[1:]}")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert use(folder)


def calls(tree: ast.AST, attribute: str) -> list[ast.Call]:
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [node for node in found if isinstance(node.func, ast.Attribute) and node.func.attr == attribute]


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda path: path.relative_to(LIBRARY).as_posix())
def test_each_call_of_from_pretrained_says_that_no_code_is_run_and_whether_it_downloads(path: Path) -> None:
    """The pipelines' own ``from_pretrained`` end in the same calls."""
    for call in calls(ast.parse(path.read_text()), "from_pretrained"):
        owner = ast.unparse(call.func)
        if owner in ("Pipeline.from_pretrained", "PIPELINES.get(kind, Pipeline).from_pretrained"):
            continue
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert given["trust_remote_code"] == "False", owner
        assert given["local_files_only"] == ("False" if "name" in ast.unparse(call.args[0]) else "True"), owner


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda path: path.relative_to(LIBRARY).as_posix())
def test_no_format_that_can_hold_code_is_read(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names} | {getattr(node, "module", "") for node in imports}
    assert not names & {"pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"}
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {"yaml.unsafe_load", "yaml.full_load", "eval", "exec", "__import__"}
    for call in calls(tree, "load"):
        if ast.unparse(call.func) == "torch.load":  # checkpoints of the user's own run
            assert "weights_only=True" in ast.unparse(call)
    assert not {call for call in called if call.endswith(".load_state_dict_from_url")}
