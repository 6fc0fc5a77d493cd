"""The judge and its model: exact likelihood, what is counted, sampling, third-party models, training by the same run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_runs import restaurant_texts, tiny_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from diffusionlm.cli import main
from diffusionlm.config import UserError, build
from diffusionlm.core.objective import Batch, collate
from diffusionlm.data.batches import encode
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.evaluation.judge import Judge, perplexity, windows
from diffusionlm.models.causal import CausalConfig, NextToken
from diffusionlm.models.diffusion import DiffusionLM, DiffusionLMConfig
from diffusionlm.models.spec import ModelSpec
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.training.run import RunConfig, train

TEXTS = ["the old man walks", "the dog walks the old man", "a man", "the dog"]
CAUSAL = {
    "model": {"name": "causal", "layers": 1, "width": 16, "heads": 2},
    "objective": {"name": "causal", "dropped_share": 0.1},
}


def made(longest: int = 16) -> Judge:
    """Return a judge with random weights, spread so that its beliefs are far from uniform."""
    tokenizer = WordTokenizer().make(TEXTS, longest)
    model = CausalConfig(layers=2, width=16, heads=2).make(tokenizer, [], longest)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(20 if weight.ndim == 2 else 1)
    model.requires_grad_(False)
    return Judge(model.train(False), tokenizer)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert train(tiny_config(folder, **CAUSAL), folder / "run", quiet=True)
    return folder / "run"


def byte_level() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **ends)


# Likelihood


def test_a_bigram_by_hand() -> None:
    """With attention and the network in it put out, the next word depends on the last one through two known matrices."""
    judge = made()
    model, tokenizer = judge.model, judge.tokenizer
    assert isinstance(model, LlamaForCausalLM)
    V = len(tokenizer)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    vectors, out = model.model.embed_tokens.weight.detach().double(), model.lm_head.weight.detach().double()
    scores = vectors / (vectors.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt() @ out.T
    table = scores - scores.exp().sum(-1, keepdim=True).log()
    assert table.shape == (V, V)
    start, the, dog, end = (tokenizer.convert_tokens_to_ids(token) for token in ("[START]", "▁the", "▁dog", "[END]"))
    (scored,) = judge.score(["the dog"])
    assert scored.nats == pytest.approx(-float(table[start, the] + table[the, dog] + table[dog, end]), rel=1e-5)
    assert (scored.tokens, scored.characters, scored.unknown) == (3, 7, 0)


def test_an_empty_text_is_as_likely_as_ending_at_once() -> None:
    judge = made()
    ids = torch.tensor([[judge.tokenizer.bos_token_id]])
    end = judge.model(ids).logits.detach()[0, -1].double().log_softmax(-1)[judge.tokenizer.eos_token_id].exp()
    (nothing,) = judge.score([""])
    assert math.exp(-nothing.nats) == pytest.approx(float(end), rel=1e-5)
    assert (nothing.tokens, nothing.characters) == (1, 0)


def test_scores_are_transformers_own_loss_whatever_the_batch() -> None:
    judge = made()
    alone = [judge.score([text])[0] for text in TEXTS]
    for batch_tokens in (1, 12, 8192):
        together = judge.score(TEXTS, batch_tokens)
        assert [one.tokens for one in together] == [one.tokens for one in alone]
        assert [one.nats for one in together] == pytest.approx([one.nats for one in alone], rel=1e-5)
    for text, one in zip(TEXTS, alone, strict=True):
        ids = judge.tokenizer(text, return_tensors="pt")["input_ids"]  # the tokenizer itself adds start and end
        assert one.tokens == ids.shape[1] - 1
        assert one.nats / one.tokens == pytest.approx(judge.model(input_ids=ids, labels=ids).loss.item(), rel=1e-5)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    judge = made()
    with torch.no_grad():
        judge.model.lm_head.weight.zero_()
    scored = judge.score(TEXTS)
    V = len(judge.tokenizer)
    assert perplexity(scored) == pytest.approx(V, rel=1e-6)
    tokens, characters = sum(len(text.split()) + 1 for text in TEXTS), sum(map(len, TEXTS))
    nats = sum(one.nats for one in scored)
    assert nats / math.log(2) / characters == pytest.approx(math.log2(V) * tokens / characters, rel=1e-6)


def test_unknown_words_are_counted_and_reported() -> None:
    (scored,) = made().score(["the zebra walks"])
    assert (scored.tokens, scored.unknown) == (4, 1)


def test_nothing_to_score_has_no_perplexity() -> None:
    assert made().score([]) == []
    with pytest.raises(UserError, match="expected at least one token"):
        perplexity([])


@pytest.mark.parametrize(("length", "reach"), [(1, 5), (5, 5), (6, 5), (23, 5), (23, 4), (9, 2)])
def test_windows_score_every_token_once_with_half_the_reach_before_it(length: int, reach: int) -> None:
    scored: list[int] = []
    for first, last, new in windows(length, reach):
        assert 0 <= first < last <= length and last - first <= reach
        assert all(token - first >= min(token, reach - max(1, reach // 2)) for token in range(new, last))
        scored += range(new, last)
    assert scored == list(range(1, length))


def test_a_text_longer_than_the_model_reads_has_every_token_scored() -> None:
    judge = made(longest=8)
    long = " ".join(["the dog walks the old man"] * 4)
    (scored,) = judge.score([long])
    assert scored.tokens == 25
    first = judge.score([" ".join(long.split()[:7])])[0]
    assert scored.nats > first.nats > 0


# Writing


def test_the_first_texts_depend_on_neither_count_nor_batch() -> None:
    judge = made()
    texts = judge.sample(7, seed=3)
    assert judge.sample(3, seed=3) == texts[:3]
    assert judge.sample(7, seed=3, batch_size=2) == texts
    assert judge.sample(7, seed=4) != texts
    assert len(set(texts)) > 1
    torch.manual_seed(5)
    before = torch.get_rng_state()
    judge.sample(2)
    assert torch.equal(before, torch.get_rng_state())


def test_texts_are_drawn_from_the_likelihood() -> None:
    judge = made()
    with torch.no_grad():
        judge.model.lm_head.weight.mul_(0.3)
    texts = judge.sample(4000, batch_size=4000, max_tokens=1)
    words = ["the", "dog", "man", "old", "walks", "a"]
    start = judge.model(torch.tensor([[judge.tokenizer.bos_token_id]])).logits[0, -1].double()
    ids = [judge.tokenizer.convert_tokens_to_ids(f"▁{word}") for word in words] + [judge.tokenizer.eos_token_id]
    chances = start[ids].softmax(-1).tolist()  # other special tokens are barred
    for word, chance in zip([*words, ""], chances, strict=True):
        assert texts.count(word) / 4000 == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / 4000) + 1e-9)


def test_temperature_near_zero_takes_the_most_probable_word_and_the_length_has_a_limit() -> None:
    judge = made()
    assert len(set(judge.sample(5, temperature=1e-4))) == 1
    assert all(len(text.split()) <= 3 for text in judge.sample(20, max_tokens=3))
    assert all(len(text.split()) <= 14 for text in judge.sample(20))
    with pytest.raises(UserError, match="temperature: expected a positive number"):
        judge.sample(1, temperature=0)


# A third-party model


def test_a_third_party_gpt2_judges_and_samples(tmp_path: Path) -> None:
    tokenizer = byte_level()
    model = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_positions=32, n_embd=16, n_layer=1, n_head=2))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    judge = Judge.load(tmp_path)
    (scored,) = judge.score(["the dog, señor"])
    pieces = tokenizer("the dog, señor", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[0, *pieces, 0]])
    assert (scored.tokens, scored.unknown) == (len(pieces) + 1, 0)
    assert scored.nats / scored.tokens == pytest.approx(model.train(False)(ids, labels=ids).loss.item(), rel=1e-5)
    assert judge.sample(4, max_tokens=6) == judge.sample(6, max_tokens=6, batch_size=4)[:4]


def test_a_tokenizer_without_ends_counts_none(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.bos_token = tokenizer.eos_token = None
    judge = Judge(GPT2LMHeadModel(GPT2Config(vocab_size=320, n_positions=32, n_embd=16, n_layer=1, n_head=2)), tokenizer)
    assert judge.score(["the dog"])[0].tokens == len(tokenizer("the dog")["input_ids"]) - 1
    with pytest.raises(UserError, match="expected a tokenizer with a BOS token"):
        judge.sample(1)
    with pytest.raises(UserError, match="an empty text has no likelihood"):
        judge.score([""])


def test_what_is_no_causal_model_is_refused(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(UserError, match="expected a model folder, but there is none"):
        Judge.load(tmp_path / "nowhere")
    DiffusionLM(DiffusionLMConfig()).save_pretrained(tmp_path / "diffusion")
    with pytest.raises(UserError, match="expected a causal language model, got model_type 'diffusionlm'"):
        Judge.load(tmp_path / "diffusion")
    small = BertConfig(vocab_size=320, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertLMHeadModel(small).save_pretrained(tmp_path / "bert")
    byte_level().save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="sees the words it is to predict"):
        Judge.load(tmp_path / "bert")
    with pytest.raises(UserError, match="dtype: expected one of"):
        Judge.load(trained, dtype="fp8")


# Training, by the run that trains diffusion


def test_the_loss_is_the_judges_likelihood() -> None:
    judge = made()
    objective = NextToken().build(judge.model)
    rows = encode(TEXTS, judge.tokenizer, 16).ids
    loss = float(objective(collate(rows, objective.pad_id, objective.width))["cross_entropy"])
    assert math.exp(loss) == pytest.approx(perplexity(judge.score(TEXTS)), rel=1e-5)


def test_hidden_words_change_the_training_loss_alone() -> None:
    objective = NextToken(dropped_share=0.5).build(made().model)
    plain = NextToken().build(objective.model)
    batch = Batch(ids=torch.tensor([[2, 4, 5, 6, 3]]), mask=torch.ones(1, 5, dtype=torch.bool))
    assert objective.train()(batch) != plain.train()(batch)
    assert objective.train(False)(batch) == plain.train(False)(batch)


def test_a_run_trains_it_and_anyone_reads_it(trained: Path) -> None:
    rows = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["eval_loss"] < math.log(600)
    assert len((trained / "samples" / "step-8.txt").read_text().splitlines()) == 10
    model = AutoModelForCausalLM.from_pretrained(trained / "model")
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    assert isinstance(model, LlamaForCausalLM)
    text = restaurant_texts(1)[0]
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    (scored,) = Judge.load(trained).score([text])
    assert scored.nats / scored.tokens == pytest.approx(model(ids, labels=ids).loss.item(), rel=1e-5)


def test_generate_writes_what_the_judge_writes(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(trained), "--count", "3", "--seed", "2", "--watch"]) == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [list(row) for row in rows] == [["text", "index", "seed", "length"]] * 3
    assert [row["text"] for row in rows] == Judge.load(trained).sample(3, seed=2)
    assert "t = 0.9" in err
    assert len(open_pipeline(trained)(2, candidates=3)) == 2
    for flag, sentence in ((["--length", "5"], "length: an auto"), (["--clamp"], "clamp: an auto")):
        assert main(["generate", str(trained), *flag]) == 2
        assert sentence in capsys.readouterr().err


def test_fine_tuning_starts_from_it_and_refuses_other_sizes(trained: Path, tmp_path: Path) -> None:
    again = {**CAUSAL, "init_from": str(trained), "training": {"steps": 1, "optimizer": "adamw"}}
    assert train(tiny_config(trained.parent, **again), tmp_path / "run", quiet=True)
    wider = {**again, "model": {**CAUSAL["model"], "width": 32}}
    with pytest.raises(UserError, match="model: expected the settings of"):
        train(tiny_config(trained.parent, **wider), tmp_path / "wider", quiet=True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "causal"}, "objective: 'cross-entropy' trains a 'diffusion' model, and model is 'causal'"),
        ({"objective": "causal"}, "objective: 'causal' trains a 'causal' model, and model is 'diffusion'"),
    ],
)
def test_an_objective_of_another_kind_is_refused_before_anything_is_written(
    changes: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        train(build(RunConfig, changes), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_name_is_diffusion() -> None:
    assert build(ModelSpec, {"dimension": 16}) == build(ModelSpec, {"name": "diffusion", "dimension": 16})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"heads": 3}, "heads: expected the width"),
        ({"layers": 0}, "layers: expected 1 to 1000"),
        ({"expansion": 0}, "expansion:"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        CausalConfig(**changes)  # type: ignore[arg-type]
