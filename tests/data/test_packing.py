"""Packed rows: all texts in their order, each with EOS behind it, in rows of one length."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import tiny_config

from diffusionlm.cli import main
from diffusionlm.config import UserError, build, merge, to_plain
from diffusionlm.data.batches import DataConfig, encode
from diffusionlm.data.packing import Packer
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.models.causal import CausalConfig
from diffusionlm.models.diffusion import ModelConfig
from diffusionlm.models.masked import masked_token_losses, word_positions
from diffusionlm.models.pieces import check_rows
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.recipe.cross_entropy import CrossEntropy
from diffusionlm.training.run import RunConfig, prepare, save_model

WORDS = {"layers": 1, "width": 16, "heads": 2}
MASKED: dict[str, Any] = {
    "model": {"name": "masked", "cooccurrence": 0, "dimension": 8, "backbone": {"name": "transformer", **WORDS}},
    "objective": {"name": "masked"},
    "sampling": {"sampler": {"name": "ancestral"}, "steps": 4, "passes": 1, "sweeps": 0},
}


def test_the_rows_of_three_texts() -> None:
    packer = Packer(start=2, end=3, max_length=6)
    rows, lengths, origins = packer.pack(np.array([5, 6, 7, 8, 9, 9, 9, 9], np.int32), np.array([3, 0, 1, 4]), 10)
    assert rows.reshape(-1, 6).tolist() == [[2, 5, 6, 7, 3, 3], [2, 8, 3, 9, 9, 3]]
    assert (lengths.tolist(), origins.tolist(), packer.rest.tolist()) == ([6, 6], [10, 12], [9, 9, 3])


def test_no_token_is_lost_or_moved_whatever_the_blocks() -> None:
    draw = np.random.default_rng(0)
    lengths = draw.integers(0, 9, 60)
    ids = draw.integers(4, 50, lengths.sum()).astype(np.int32)
    texts = np.split(ids, np.cumsum(lengths)[:-1])
    whole, single = Packer(2, 3, 11), Packer(2, 3, 11)
    rows, _, origins = whole.pack(ids, lengths, 0)
    parts = [single.pack(text, np.array([len(text)]), number) for number, text in enumerate(texts)]
    assert rows.tolist() == [i for each, _, _ in parts for i in each] and single.rest.tolist() == whole.rest.tolist()
    assert origins.tolist() == [i for _, _, each in parts for i in each]
    stream = [*rows.reshape(-1, 11)[:, 1:-1].ravel(), *whole.rest]
    found = [list(part) for last, part in itertools.groupby(stream, lambda i: i == 3) if not last]
    assert found == [text.tolist() for text in texts if len(text)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"packing": "wrap", "too_long": "split"}, "^data.packing: no text is too long for packed rows; leave too_long out"),
        ({"packing": "wrap", "context": 3}, "^data.context: expected 0, since too_long is 'truncate'"),
        ({"packing": "rap"}, "^data.packing: expected 'none' or 'wrap', got 'rap'"),
    ],
)
def test_settings_that_packing_leaves_without_effect_are_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(DataConfig, data, "data")


def test_texts_that_fill_no_row_and_models_without_rows_are_refused() -> None:
    few = "^data.packing: the texts have 5 tokens together, with an EOS each, fewer than the 7 of a row; lower data.max_length"
    with pytest.raises(UserError, match=few):
        encode(["a b", "c"], WordTokenizer().make(["a b c"]), 9, packing="wrap")
    data = DataConfig(packing="wrap")
    with pytest.raises(UserError, match="^data.packing: expected 'none' for this model"):
        check_rows(ModelConfig(explicit_length=False), CrossEntropy(), data)
    check_rows(CausalConfig(), CrossEntropy(), data)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of an untrained diffusion and an untrained masked model of packed rows, with the batches of both."""
    home = tmp_path_factory.mktemp("packed")
    plain = to_plain(tiny_config(home, data={"packing": "wrap"}, model={"cooccurrence": 0}))
    for name, changes in (("diffusion", {}), ("masked", MASKED)):
        config = build(RunConfig, {**plain, **changes})
        torch.manual_seed(0)
        model: Any
        model, tokenizer, rows, _ = prepare(config)
        assert {*map(len, rows)} == {48} and model.config.length_counts == [*[0] * 48, len(rows)]
        objective = config.objective.build(model)
        batch = objective.collate(list(rows[:4]))
        free = word_positions(batch.mask) & batch.free if name == "masked" else model.free_positions(batch)
        assert batch.attend is None and bool(free[:, 1:-1].all()) and not bool(free[:, [0, -1]].any())
        assert int((batch.ids[:, 1:-1] == tokenizer.eos_token_id).sum()) > 4
        assert all(bool(torch.isfinite(term)) for term in objective(batch).values())
        save_model(model, tokenizer, config.sampling, home / name)
    return {name: home / name for name in ("diffusion", "masked")}


def test_eos_is_a_token_like_others_between_the_ends(folders: dict[str, Path]) -> None:
    """A uniform model gives each token of a row, EOS included, the probability of one among all but PAD and BOS."""
    model = open_pipeline(folders["masked"]).model
    torch.nn.init.zeros_(model.network.down.weight)
    torch.nn.init.zeros_(model.network.down.bias)
    ids = torch.tensor([[2, 5, 3, 6, 3]])
    losses = masked_token_losses(model, ids, torch.ones_like(ids, dtype=torch.bool), word_positions(ids > 0))
    expected = torch.tensor(model.config.vocabulary - 2).log().expand(3)
    assert torch.allclose(losses[0, 1:4], expected) and losses[0, [0, 4]].tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["diffusion", "masked"])
def test_samples_are_rows_of_several_texts(kind: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = open_pipeline(folders[kind])
    rows = pipeline(12)
    assert {row.length for row in rows} == {46} and all(row.texts and row.text == "\n".join(row.texts) for row in rows)
    assert max(len(row.texts or ()) for row in rows) > 1
    assert rows[4:6] == pipeline(6, batch_size=2)[4:]
    assert main(["generate", str(folders[kind]), "-n", "1"]) == 0
    said = capsys.readouterr()
    assert '"texts": [' in said.out and "each sample is a packed row of several texts" in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("generate MODEL --length 10", "length: expected 46, that of the packed rows of this model's training, or none"),
        ("generate MODEL --control Length(5)", "control: expected a model of single texts"),
        ("edit MODEL --text The", "text: expected a model of single texts"),
        ("score MODEL texts.txt", "model: expected a model of single texts"),
    ],
)
def test_what_needs_single_texts_is_refused(
    words: str, message: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folders["diffusion"]
    places = {"MODEL": str(folder), "texts.txt": str(folder.parent / "texts.txt")}
    assert main([places.get(word, word) for word in words.split()]) != 0
    assert message in capsys.readouterr().err


def test_a_run_on_single_texts_from_a_packed_model_makes_one_of_single_texts(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = merge(to_plain(tiny_config(tmp_path, model={"cooccurrence": 0})), {"init_from": str(folders["diffusion"])})
    (tmp_path / "texts.txt").write_text((folders["diffusion"].parent / "texts.txt").read_text())
    model, _, rows, _ = prepare(build(RunConfig, plain))
    assert "packed_rows" not in model.config.to_dict() and len({*map(len, rows)}) > 5


def test_shorter_rows_than_those_of_the_base_are_sampled_as_they_were_trained_on(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    plain = merge(to_plain(tiny_config(tmp_path, model={"cooccurrence": 0})), {"init_from": str(folders["diffusion"])})
    config = build(RunConfig, merge(plain, {"data": {"packing": "wrap", "max_length": 20}}))
    model, tokenizer, _, _ = prepare(config)
    save_model(model, tokenizer, config.sampling, tmp_path / "short")
    pipeline = open_pipeline(tmp_path / "short")
    assert pipeline(1, length=18) == pipeline(1) and pipeline(1)[0].length == 18
    with pytest.raises(UserError, match="^length: expected 18, that of the packed rows"):
        pipeline(1, length=46)


def test_the_split_whose_texts_fill_no_row_is_named(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data={"packing": "wrap", "max_length": 2000}, model={"cooccurrence": 0})
    few = "^validation: data.packing: the texts have [0-9]+ tokens together, .*; lower data.max_length, or give more"
    with pytest.raises(UserError, match=few):
        prepare(config)


def test_a_causal_model_does_not_learn_that_texts_end_where_rows_do(tmp_path: Path) -> None:
    causal = {"model": {"name": "causal", **WORDS}, "objective": {"name": "causal"}}
    config = build(RunConfig, {**to_plain(tiny_config(tmp_path, data={"packing": "wrap", "max_length": 12})), **causal})
    model: Any
    model, tokenizer, rows, _ = prepare(config)
    batch = config.objective.build(model).collate(list(rows[:6]))
    logits = model(input_ids=batch.ids).logits[:, :-1].log_softmax(-1)
    nats = -logits.gather(-1, batch.ids[:, 1:, None])[..., 0]
    assert batch.ids[:, -1].tolist() == [tokenizer.eos_token_id] * 6
    assert torch.allclose(config.objective.build(model)(batch)["cross_entropy"], nats[:, :-1].mean())
