"""Fine-tuning with further words: the model is its base on the words that this knows, and is saved and resumed like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_adapters import LORA, tiny_family
from tiny_conditions import SOURCE, pairs, trained
from tiny_runs import restaurant_texts
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from diffusionlm.cli import main
from diffusionlm.config import UserError, build, merge
from diffusionlm.data import store
from diffusionlm.data.rows import TokenRows
from diffusionlm.data.tokenizers import load_tokenizer
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.recipe import word_init
from diffusionlm.training.distillation.config import distillation_config
from diffusionlm.training.run import RunConfig, prepare, save_model, train

WORDS = {"words": 50, "min_count": 2}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "diffusion": ("diffusion", {}),
    "without-evidence-input": ("diffusion", {"model": {"evidence_input": False}}),
    "vectors": ("diffusion", {
        "model": {"prediction": "x0", "schedule": "sqrt", "embedding": "free"}, "objective": {"name": "regression"},
    }),
    "masked": ("masked", {}),
    "causal": ("causal", {}),
    "seq2seq": ("seq2seq", {}),
    "bpe": ("causal", {"data": {"tokenizer": {"name": "bpe", "vocab_size": 200}}}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def few_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the factors of the co-occurrences, most of these tests' time, be those of fewer context words."""
    monkeypatch.setattr(word_init, "CONTEXT_WORDS", 60)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts of known words, and ``other.txt``, where 'pub' is 'wombat' in every other text."""
    home = tmp_path_factory.mktemp("extension")
    texts = restaurant_texts(200)
    (home / "texts.txt").write_text("\n".join(texts))
    other = [text.replace(" pub", " wombat") if number % 2 else text for number, text in enumerate(texts)]
    (home / "other.txt").write_text("\n".join([*other, "a marsupial", "a marsupial", "an echidna"]))
    return home


def base_of(home: Path, name: str) -> Path:
    """Return the folder of a tiny base model, with random weights."""
    family, changes = BASES[name]
    if not (home / name).exists():
        config = tiny_family(home, family, **changes)
        model, tokenizer, _, _ = prepare(config)
        save_model(model, tokenizer, config.sampling, home / name)
    return home / name


def extended(home: Path, name: str, **changes: Any) -> RunConfig:
    family, settings = BASES[name]
    given = {"init_from": str(base_of(home, name)), "data": {"corpus": str(home / "other.txt")}, "extend_vocabulary": WORDS}
    settings = {key: value for key, value in settings.items() if key != "data"}  # the base's tokenizer
    return tiny_family(home, family, **merge(merge(settings, given), changes))


def prepared(config: RunConfig) -> tuple[Any, PreTrainedTokenizerFast, Any]:
    """Return the model, the tokenizer and the training rows of a run."""
    model, tokenizer, rows, _ = prepare(config)
    return model, tokenizer, rows


@torch.no_grad()
def outputs(model: Any, ids: Tensor) -> Tensor:
    """Return the logits of a model of any family at texts ``ids``, before any step of training."""
    model.train(False)
    torch.manual_seed(0)
    if isinstance(model, DiffusionLM):
        noise, t = torch.randn(*ids.shape, model.settings.dimension), torch.full((len(ids),), 0.5)
        found: Tensor = model(model.process.noise(model.encode(ids), t, noise), t).logits
        return found
    if hasattr(model, "mask_vector"):
        return model(ids, torch.arange(ids.shape[1]).expand(ids.shape) % 3 == 1)
    given = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **given).logits


@pytest.mark.parametrize("name", BASES)
def test_before_any_step_the_model_is_its_base_on_the_words_that_this_knows(
    name: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = extended(home, name)
    folder = base_of(home, name)
    base: Any = config.model.load(folder)
    old = load_tokenizer(folder)
    capsys.readouterr()
    model, tokenizer, _ = prepared(config)
    known, size = len(old), len(tokenizer)
    assert known < size == model.config.vocab_size and old.get_vocab().items() <= tokenizer.get_vocab().items()
    ids = torch.tensor([old(text)["input_ids"][:8] for text in restaurant_texts(4)])
    if name != "bpe":  # words that were split into many pieces are tokens now
        assert ids.tolist() == [tokenizer(text)["input_ids"][:8] for text in restaurant_texts(4)]
    expected, got = outputs(base, ids), outputs(model, ids)
    assert got.shape[-1] == size
    # The network of a continuous model also receives the token posterior, in which the new words have a part.
    tolerance = 1e-2 if name == "diffusion" else 1e-5
    finite = expected.isfinite()
    assert torch.allclose(got[..., :known][finite], expected[finite], atol=tolerance)
    told = capsys.readouterr().err
    added = f"extend_vocabulary: new words: {size - known}, beside the {known:,} tokens of {config.init_from}; unknown tokens: "
    assert added in told and " from words with similar contexts, " in told


def test_words_start_from_those_with_similar_contexts_and_others_from_pieces_or_at_random(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = extended(home, "masked")
    folder = base_of(home, "masked")
    base: Any = config.model.load(folder)
    old = load_tokenizer(folder)
    model, tokenizer, _ = prepared(config)
    assert tokenizer.get_vocab().keys() - old.get_vocab().keys() == {"▁wombat", "▁marsupial"}
    wombat, pub = (tokenizer.get_vocab()[word] for word in ("▁wombat", "▁pub"))
    assert torch.equal(model.embedding.weight[: len(old)], base.embedding.weight)
    cosines = torch.nn.functional.cosine_similarity(model.embedding.weight[wombat], model.embedding.weight[4 : len(old)])
    assert cosines[pub - 4] > 0.5 and (cosines > cosines[pub - 4]).float().mean() < 0.1
    lengths = model.embedding.weight.norm(dim=1)
    assert lengths[len(old) :].min() > 0.5 * lengths[: len(old)].min() and lengths[len(old) :].max() < lengths.max() * 1.01
    told = capsys.readouterr().err
    assert (
        "unknown tokens: " in told and "; start: 2 from words with similar contexts, 0 from their pieces, 0 at random" in told
    )
    model, tokenizer, _ = prepared(extended(home, "bpe", extend_vocabulary={"words": 2000}))
    base, old = extended(home, "bpe").model.load(home / "bpe"), load_tokenizer(home / "bpe")
    pieces, new = old("marsupial")["input_ids"][1:-1], tokenizer.get_vocab()["▁marsupial"]
    assert len(pieces) >= 3 and new >= len(old)
    assert torch.allclose(model.lm_head.weight[new], base.lm_head.weight[pieces].mean(0), atol=1e-6)
    assert "tokens per word: " in capsys.readouterr().err


def test_a_run_with_further_words_is_saved_sampled_and_resumed_to_the_bit(home: Path, tmp_path: Path) -> None:
    base = base_of(home, "diffusion")
    files = {path: path.read_bytes() for path in base.iterdir()}
    config = extended(home, "diffusion", training={"steps": 3, "save_every": 2})
    assert train(config, tmp_path / "whole", write_samples=False, quiet=True)
    assert {path: path.read_bytes() for path in base.iterdir()} == files
    assert train(config, tmp_path / "broken", write_samples=False, quiet=True)
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "checkpoint-3")
    shutil.rmtree(tmp_path / "broken" / "model")
    assert train(config, tmp_path / "broken", write_samples=False, quiet=True)
    whole, broken = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    pipe: Any = open_pipeline(tmp_path / "whole")
    assert (
        len(pipe.tokenizer)
        == len(pipe.model.word_vectors())
        == json.loads((tmp_path / "whole" / "model" / "config.json").read_text())["vocabulary"]
    )
    assert len(pipe(2)) == 2 and "wombat" in pipe(1, "Words('wombat')")[0].text
    again = extended(home, "diffusion", init_from=str(tmp_path / "whole"), training={"steps": 1})
    assert len(prepare(again)[1]) == len(pipe.tokenizer)  # which has all words
    plain = distillation_config(str(tmp_path / "whole"), "joint", 2)
    assert not plain.extend_vocabulary.words


def test_a_large_corpus_gives_the_model_of_a_small_one(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSIONLM_CACHE", str(tmp_path))
    config, found = extended(home, "diffusion"), []
    for size in (2**40, 1):
        monkeypatch.setattr(store, "LARGE", size)
        torch.manual_seed(0)
        found.append(prepared(config))
    (small, tokenizer, _), (large, other, rows) = found
    assert isinstance(rows, TokenRows) and tokenizer.get_vocab() == other.get_vocab()
    assert all(torch.equal(weight, large.state_dict()[name]) for name, weight in small.state_dict().items())


def test_sources_read_by_the_tokenizer_of_the_texts_are_extended_too(tmp_path: Path) -> None:
    trained(tmp_path, "source")
    rows = [json.loads(line) for line in pairs(tmp_path).read_text().splitlines()]
    rows = [{**row, "source": row["source"].replace("cat", "lynx")} for row in rows]
    (tmp_path / "new.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = build(RunConfig, {
        "init_from": str(tmp_path / "source"), "extend_vocabulary": {"words": 3}, "sampling": {"steps": 2},
        "data": {"corpus": str(tmp_path / "new.jsonl"), "max_length": 8},
        "model": {**json.loads((tmp_path / "source" / "model" / "config.json").read_text())["settings"], "condition": SOURCE},
    })  # fmt: skip
    model, tokenizer, rows_of_ids = prepared(config)
    assert tokenizer.get_vocab()["▁lynx"] == len(tokenizer) - 1 == len(model.condition.embedding.weight) - 1
    assert any(len(tokenizer) - 1 in row.condition for row in rows_of_ids)


def test_a_corpus_of_known_words_adds_none_and_says_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = extended(home, "masked", data={"corpus": str(home / "texts.txt")})
    model, tokenizer, _ = prepared(config)
    assert model.config.vocab_size == len(tokenizer) == len(load_tokenizer(home / "masked"))
    assert (
        "extend_vocabulary: no word was added: of the words that occur 2 times or more, none is unknown"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"init_from": None}, r"words: a new model has the words of its own corpus"),
        ({"adapter": LORA}, r"words: the adapter 'lora' leaves the words as they are"),
        ({"objective": "joint", "model": {"joint_width": 8}}, r"words: a student has the words of its teacher"),
        ({"objective": {"name": "consistency", "teacher": "x"}, "model": {"distilled_for": 4}}, r"words: a student has"),
        ({"extend_vocabulary": {"words": 0}}, r"min_count: no words are added"),
        (
            {"model": {"name": "classifier", "denoiser": "x", "labels": ["x"]}, "objective": "classification"},
            "words: a classifier",
        ),
    ],
    ids=["new", "adapter", "joint", "student", "none", "classifier"],
)
def test_where_no_words_can_be_added_the_run_is_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    plain = {"init_from": "base", "extend_vocabulary": WORDS}
    config = build(RunConfig, merge(plain, changes) if "adapter" not in changes else {**plain, **changes})
    with pytest.raises(UserError, match=f"^extend_vocabulary.{sentence}"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_adds_words(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = base_of(home, "masked")
    words = ["--init-from", str(base), "--data.corpus", str(home / "other.txt"), "--extend-vocabulary", "1", "--steps", "1"]
    quick = ["--objective.name", "masked", "--training.save_every", "1", "--config", str(tmp_path / "quick.yaml")]
    (tmp_path / "quick.yaml").write_text(
        "sampling: {steps: 2, passes: 1, sampler: ancestral, sweeps: 0}\ndata: {max_length: 48}\n"
    )
    assert main(["train", *words, *quick, "--out", str(tmp_path / "run")]) == 0
    assert "extend_vocabulary: new words: 1, beside the " in capsys.readouterr().err
    assert main(["train", "--extend-vocabulary", "0", "--out", str(tmp_path / "no")]) == 2
