"""BOS, EOS, PAD and the unknown token are four tokens: where two are one, texts end where they begin, and nothing says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import ROOT, TINY, tiny_plain
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError, build
from diffusionlm.core.objective import collate
from diffusionlm.data.tokenizers import Pretrained, TokenizerRecipe, load_tokenizer
from diffusionlm.evaluation.scoring import score
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.training.run import RunConfig, train

STORED = ROOT / "tests" / "golden" / "format-1"
END = "<|endoftext|>"
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


def one_token(folder: Path, roles: tuple[str, ...] = ROLES) -> str:
    """Save a byte-level tokenizer whose special tokens are one."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), END]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, **dict.fromkeys(roles, END)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("roles", [ROLES, ROLES[:3], ROLES[1:3], ("bos_token", "eos_token"), ("bos_token", "pad_token"), ()])
def test_tokens_that_are_one_get_tokens_of_their_own(roles: tuple[str, ...], tmp_path: Path) -> None:
    made = Pretrained(one_token(tmp_path, roles)).make([])
    special = [made.bos_token_id, made.eos_token_id, made.pad_token_id]
    assert None not in special and len({*special}) == 3 and made.unk_token_id not in special
    assert sorted(made.get_vocab().values()) == list(range(len(made)))
    ids = made("A café.")["input_ids"]
    assert (ids[0], ids[-1]) == (made.bos_token_id, made.eos_token_id)


SMALL: dict[str, Any] = TINY
SIZES: dict[str, dict[str, Any]] = {
    "diffusion": SMALL["model"],
    "masked": {**SMALL["model"], "name": "masked"},
    "causal": {"name": "causal", "layers": 1, "width": 16, "heads": 2},
}


@pytest.mark.parametrize("family", SIZES)
def test_a_model_with_such_a_tokenizer_generates_texts_and_tells_them_apart(family: str, tmp_path: Path) -> None:
    tokenizer = {"name": "pretrained", "path": one_token(tmp_path / "tokenizer")}
    plain = tiny_plain(tmp_path, data={"tokenizer": tokenizer, "max_length": 64}, sampling={"length": 5})
    plain["model"] = SIZES[family]
    if family != "diffusion":
        plain |= {"objective": family, "sampling": {"sampler": "ancestral", "steps": 4} if family == "masked" else {}}
    assert train(build(RunConfig, plain), tmp_path / "run", quiet=True)
    pipe = open_pipeline(tmp_path / "run")
    assert any(one.text for one in pipe(4))
    bounds = [bound.nats / bound.tokens for _, bound in score(pipe, ["The pub is cheap.", "zzzz"])]
    assert bounds[0] != bounds[1]


@dataclass(frozen=True)
class Unchanged(TokenizerRecipe):
    """A user's recipe that leaves a tokenizer as it is."""

    folder: str

    def make(self, texts: Iterable[str], max_length: int = 64) -> PreTrainedTokenizerFast:
        return load_tokenizer(Path(self.folder))


@pytest.mark.parametrize("family", SIZES)
def test_training_with_a_tokenizer_whose_tokens_are_one_is_refused_before_it_begins(family: str, tmp_path: Path) -> None:
    tokenizer = {"name": f"{__name__}:Unchanged", "folder": one_token(tmp_path / "tokenizer", ROLES[1:3])}
    plain = {**tiny_plain(tmp_path, data={"tokenizer": tokenizer}), "model": SIZES[family]}
    plain |= {"objective": "cross-entropy" if family == "diffusion" else family, "sampling": {}}
    with pytest.raises(UserError, match="special_ids: expected"):
        train(build(RunConfig, plain), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "model").exists()


def test_an_end_that_also_stands_for_unknown_characters_is_refused(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "dog": 1, END: 2}, unk_token=END))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, **dict.fromkeys(ROLES, END)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="stands for unknown characters and for the end; give each a token"):
        Pretrained(str(tmp_path)).make([])


def test_padding_is_found_by_lengths_and_not_by_the_id_of_a_token() -> None:
    batch = collate([[0, 5, 0], [0, 5, 0, 0, 0]], pad_id=0)
    assert batch.mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        ({"start": 3}, "start and end are one token"),
        ({"pad": 2}, "pad and start are one token"),
        ({"unk": 0}, "pad and unk are one token"),
        ({"end": 541}, "expected ids below the vocabulary of 541, got 541"),
        ({"end": -1}, "special_ids.end: expected greater than or equal to 0, got -1"),
        ({"end": "3"}, "special_ids.end: expected a valid integer, got '3'"),
        ({"end": None}, "special_ids.end: expected a valid integer, got None"),
        ({"fin": 9}, "special_ids.fin"),
        ({"start": 9}, "the model's start is 9, the tokenizer's 2"),
        ({"unk": 9}, "the model's unk is 9, the tokenizer's 1"),
    ],
)
def test_special_ids_of_a_saved_model_are_checked(ids: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    folder = shutil.copytree(STORED, tmp_path / "model")
    plain = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**plain, "special_ids": {**plain["special_ids"], **ids}}))
    with pytest.raises(UserError) as caught:
        open_pipeline(folder)
    assert sentence in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["pad", "start", "end"])
def test_special_ids_of_a_saved_model_are_complete(name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(STORED, tmp_path / "model")
    plain = json.loads((folder / "config.json").read_text())
    del plain["special_ids"][name]
    (folder / "config.json").write_text(json.dumps(plain))
    with pytest.raises(UserError, match="special_ids: expected ids of pad, start and end"):
        open_pipeline(folder)
