"""The choice of the best of several candidates: by minimum Bayes risk, likelihood, or a function of texts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffusionlm.config import build
from diffusionlm.controls import Length, Outcome
from diffusionlm.data.tokenizers import WordTokenizer, decode_texts
from diffusionlm.evaluation.ranking import LikelihoodRanking, framed
from diffusionlm.evaluation.reference_report import evaluate_references
from diffusionlm.evaluation.scoring import ScoringConfig, score
from diffusionlm.evaluation.slots import realised
from diffusionlm.models.spec import ModelSpec
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import BasePipeline, SamplingConfig, saved_sampling
from diffusionlm.pipelines.causal import CausalPipeline
from diffusionlm.pipelines.conditioning import Requested
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.pipelines.masked import MaskedPipeline
from diffusionlm.pipelines.ranking import Candidates, FunctionRanking, MinimumBayesRisk, Ranking, best_candidates
from diffusionlm.pipelines.seq2seq import Seq2SeqPipeline
from diffusionlm.training.run import save_model

TOKENIZER = WordTokenizer().make(["a b c d e f g h i j"])
SOURCES = ["a b c", "j i"]
SMALL = {"layers": 1, "width": 16, "heads": 2}
DIFFUSION: dict[str, Any] = {"name": "diffusion", "dimension": 16, "backbone": {"name": "transformer", **SMALL}}
SOURCE = {"name": "source", "layers": 1}
PAPER = {**DIFFUSION, "prediction": "x0", "explicit_length": False, "self_conditioning": False, "schedule": "sqrt"}
QUICK: dict[str, Any] = {"steps": 3, "passes": 1, "sweeps": 0}
MASKED: dict[str, Any] = {"steps": 3, "sampler": {"name": "ancestral"}}
FAMILIES: dict[str, tuple[type[BasePipeline[Any]], dict[str, Any], dict[str, Any]]] = {
    "diffusion": (Pipeline, DIFFUSION, QUICK),
    "source": (Pipeline, {**DIFFUSION, "condition": SOURCE}, QUICK),
    "paper": (Pipeline, PAPER, QUICK),
    "masked": (MaskedPipeline, {"name": "masked", "backbone": DIFFUSION["backbone"]}, MASKED),
    "causal": (CausalPipeline, {"name": "causal", **SMALL}, {}),
    "seq2seq": (Seq2SeqPipeline, {"name": "seq2seq", **SMALL, "condition": SOURCE}, {}),
}


def made(family: str) -> Any:
    """Return a pipeline of an untrained model whose weights are so large that texts differ in likelihood."""
    kind, model, sampling = FAMILIES[family]
    torch.manual_seed(0)
    network: Any = build(ModelSpec, model).make(TOKENIZER, [[2, 4, 5, 6, 3]], 12)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    network.config.length_counts = [0, 0, 0, 0, 3, 2, 1]
    return kind(network.train(False), TOKENIZER, build(SamplingConfig, sampling))


def candidates_of(texts: Sequence[str], *pools: Sequence[int], sources: Sequence[str] = ()) -> Candidates:
    """Return candidates that have texts alone, of one sample or of that of each pool."""
    requests = [Requested(None, source) for source in sources] or [Requested()] * len(texts)
    groups = pools or (range(len(texts)),)
    anything: Any = None
    return Candidates(anything, SamplingConfig(candidates=len(texts)), [0] * len(texts), requests, [], texts, groups)


# Likelihood


def nats_of(pipe: Any, ids: Sequence[int], source: str | None) -> float:
    """Return -log p(text | source) with the loss of transformers."""
    row = torch.tensor([[TOKENIZER.bos_token_id, *ids, TOKENIZER.eos_token_id]])
    if source is None:
        logits = pipe.model(input_ids=row[:, :-1]).logits[0]
    else:
        asked = torch.tensor([[TOKENIZER.bos_token_id, *TOKENIZER(source, add_special_tokens=False)["input_ids"]]])
        logits = pipe.model(input_ids=asked, decoder_input_ids=row[:, :-1]).logits[0]
    return float(torch.nn.functional.cross_entropy(logits.double(), row[0, 1:], reduction="sum"))


@pytest.mark.parametrize("family", ["causal", "seq2seq"])
def test_the_candidate_of_the_largest_exact_likelihood_is_kept(family: str) -> None:
    pipe, sources = made(family), SOURCES if family == "seq2seq" else [None]
    given = {"source": SOURCES} if family == "seq2seq" else {}
    per_text = pipe(3, candidates=6, ranking="likelihood", **given)
    per_token = pipe(3, candidates=6, ranking={"name": "likelihood", "per_token": True}, **given)
    sampling = replace(pipe.sampling, candidates=6)
    for row, other in zip(per_text, per_token, strict=True):
        source = sources[row.index // 3]
        value = TOKENIZER(source, add_special_tokens=False)["input_ids"] if source else None
        ids = pipe.sample_ids([(0, row.index, c) for c in range(6)], sampling, None, [value] * 6)
        texts = decode_texts(TOKENIZER, ids)
        with torch.no_grad():
            nats = [nats_of(pipe, each, source) for each in ids]
        assert row.source == source and row.text == texts[min(range(6), key=nats.__getitem__)]
        means = [nat / (len(each) + 1) for nat, each in zip(nats, ids, strict=True)]
        assert other.text == texts[min(range(6), key=means.__getitem__)]
    assert per_text != per_token
    assert per_text != pipe(3, candidates=6, **given)
    assert pipe(3, candidates=6, ranking="likelihood", batch_size=6, **given) == per_text


@pytest.mark.parametrize("family", ["diffusion", "source", "paper", "masked"])
def test_bounds_rank_the_candidates_of_a_sample_by_the_same_draws(family: str) -> None:
    pipe = made(family)
    ids, texts = [[4, 5, 6, 7], [6, 7, 8], [4, 5, 6, 7], [4, 5, 6, 7]], ["a b c d", "c d e", "a b c d", "a b c d"]
    value = [4, 5, 6] if family == "source" else None
    sampling = replace(pipe.sampling, candidates=3, seed=5)

    def utilities(sampling: SamplingConfig, **changes: Any) -> list[float]:
        requests = [Requested(value)] * 4
        found = Candidates(pipe, sampling, [0, 0, 0, 1], requests, ids, texts, [[0, 1, 2], [3]])
        return [*LikelihoodRanking(**{"strata": 8, **changes}).utilities(found, range(4))]

    first = utilities(sampling)
    assert first[0] == first[2] != first[3]  # of another sample
    assert first == utilities(sampling) and first != utilities(replace(sampling, seed=6))
    per_token = utilities(sampling, per_token=True)
    assert per_token == pytest.approx([nats / (len(row) + 1) for nats, row in zip(first, ids, strict=True)])
    source: dict[str, Any] = {"source": ["a b c"]} if family == "source" else {}
    ((_, bound),) = score(pipe, texts[:1], ScoringConfig(strata=512), **source)
    assert utilities(sampling, strata=512)[0] == pytest.approx(-bound.nats, abs=6 * bound.deviation)


def test_a_sample_without_an_end_is_scored_in_the_room_of_the_model() -> None:
    """Where PAD is a word, sampled tokens may fill all positions."""
    pipe = made("paper")
    assert framed(pipe, [4] * 12, None) == [TOKENIZER.bos_token_id, *[4] * 11]
    assert framed(pipe, [4], None) == [TOKENIZER.bos_token_id, 4, TOKENIZER.eos_token_id]
    found = Candidates(pipe, pipe.sampling, [0] * 2, [Requested()] * 2, [[4] * 12, []], ["a " * 12, ""], [[0, 1]])
    assert all(math.isfinite(nats) for nats in LikelihoodRanking().utilities(found, [0, 1]))


@pytest.mark.parametrize("family", ["diffusion", "source", "paper", "masked"])
def test_the_seed_decides_which_candidate_has_the_highest_bound(family: str) -> None:
    pipe = made(family)
    given: dict[str, Any] = {"source": SOURCES} if family == "source" else {}
    settings: dict[str, Any] = {"candidates": 4, "ranking": "likelihood", **given}
    rows = pipe(4, **settings)
    assert rows == pipe(4, **settings) == pipe(4, batch_size=4, **settings)
    assert rows[:2] == pipe(2, **{**settings, **({"source": SOURCES[0]} if given else {})})
    assert rows != pipe(4, candidates=4, **given)


# Minimum Bayes risk


def by_bleu(texts: Sequence[str]) -> int:
    """Return the number of the candidate that ``mbr`` keeps."""
    found = candidates_of(texts)
    return MinimumBayesRisk().best(found, found.pools)[0]


@pytest.mark.parametrize(
    ("texts", "best"),
    [
        (["an old man walks by", "the house is blue now", "the house is blue now"], 1),
        (["the house is blue now", "an old man walks by", "the house is blue now"], 0),
        (["a b c d x y z", "a b c d e f g", "p q r d e f g"], 1),
        (["one", "two"], 0),
        (["one"], 0),
    ],
)
def test_minimum_bayes_risk_keeps_the_first_of_those_most_like_the_others(texts: list[str], best: int) -> None:
    assert by_bleu(texts) == best


# Functions


def test_among_equal_scores_the_mean_bleu_against_all_candidates_decides() -> None:
    texts = ["bad one two three four", "good five six seven eight", "good one two three four", "bad one two three nine"]
    ranking = FunctionRanking(lambda texts: ["good" in text for text in texts])
    found = candidates_of(texts)
    assert ranking.leaders(found, found.pools) == [[1, 2]]
    assert by_bleu([texts[1], texts[2]]) == 0  # among these two alone neither is better
    assert ranking.best(found, found.pools) == [2]
    assert FunctionRanking(lambda texts: [len(text) for text in texts]).best(found, found.pools) == [1]
    assert FunctionRanking(lambda texts: [0.0] * len(texts)).best(found, found.pools) == [by_bleu(texts)]


def test_rankings_of_equal_scores_nest_and_score_only_what_is_in_doubt() -> None:
    asked: list[list[str]] = []

    def counted(texts: Sequence[str]) -> list[float]:
        asked.append([*texts])
        return [-len(text) for text in texts]

    inner = FunctionRanking(counted, then=FunctionRanking(lambda texts: ["z" in text for text in texts]))
    ranking = FunctionRanking(lambda texts: [text.count("a") for text in texts], then=inner)
    found = candidates_of(["a", "aa b", "aa z", "aa long", "a", "a b"], [0, 1, 2, 3], [4, 5])
    assert ranking.best(found, found.pools) == [2, 4]
    assert asked == [["aa b", "aa z", "aa long", "a", "a b"]]
    assert FunctionRanking(counted).best(candidates_of(["one"]), [[0]]) == [0] and len(asked) == 1


def test_a_function_receives_sources_if_it_has_a_parameter_of_that_name() -> None:
    texts, sources = ["a", "b", "a", "b"], ["a", "a", "b", "b"]
    found = candidates_of(texts, [0, 1], [2, 3], sources=sources)

    def same(texts: Sequence[str], sources: Sequence[str]) -> list[bool]:
        return [text == source for text, source in zip(texts, sources, strict=True)]

    def either(texts: Sequence[str], sources: Sequence[str] | None = None) -> list[bool]:
        return [text == "b" for text in texts] if sources is None else same(texts, sources)

    assert FunctionRanking(same).best(found, found.pools) == [0, 3]
    assert FunctionRanking(either).best(found, found.pools) == [0, 3]
    assert FunctionRanking(either).best(candidates_of(texts, [0, 1], [2, 3]), found.pools) == [1, 3]


def test_e2e_candidates_are_ranked_by_what_they_realise() -> None:
    source = "name[The Oak], eatType[pub], food[French], area[riverside]"
    texts = ["The Oak is a pub.", "The Oak is a French pub by the river.", "It is a cheap pub.", "The Oak serves French food."]
    assert realised(texts, [source] * 4) == [-2, 0, -4, -2]
    found = candidates_of(texts, sources=[source] * 4)
    assert FunctionRanking("diffusionlm.evaluation.slots:realised").best(found, found.pools) == [1]


def prefers_j(texts: Sequence[str]) -> list[int]:
    return [text.split().count("j") for text in texts]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_the_candidate_with_the_highest_score(family: str) -> None:
    pipe = made(family)
    given: dict[str, Any] = {"source": SOURCES[0]} if family in ("source", "seq2seq") else {}
    rows = pipe(6, candidates=6, ranking={"name": "function", "function": "test_ranking:prefers_j"}, **given)
    assert rows == pipe(6, candidates=6, ranking=FunctionRanking(prefers_j), **given)
    scores = [sum(prefers_j([row.text for row in each])) for each in (rows, pipe(6, candidates=6, **given))]
    assert scores[0] > scores[1]


# Checks, and rankings of other origin


@dataclass(frozen=True)
class Longest(Ranking):
    """The longest text; ``sign`` -1 takes the shortest."""

    sign: int = 1

    def utilities(self, candidates: Candidates, numbers: Sequence[int]) -> list[float]:
        return [self.sign * len(candidates.texts[number]) for number in numbers]


@pytest.mark.parametrize("ranking", [Longest(), FunctionRanking(lambda texts: [len(text) for text in texts])])
def test_candidates_that_pass_their_checks_come_first_whatever_the_ranking(ranking: Ranking) -> None:
    sampling = SamplingConfig(candidates=3, ranking=ranking)
    texts = ["aaaa", "aa", "a", "aaa", "aaaa", "aa"]
    passed = [(False,), (True, True), (True,), (False,), (True, False), (False,)]
    checks = [[Outcome("x", each, float(each)) for each in row] for row in passed]
    no_pipeline: Any = SimpleNamespace()
    best = partial(best_candidates, no_pipeline, sampling, [0, 1], [Requested()] * 2, [[]] * 6, texts)
    assert best(checks) == [1, 4]  # of the second sample none passes
    assert best() == [0, 4]


def test_a_ranking_of_ones_own_is_named_by_its_import_path() -> None:
    pipe = made("causal")
    lengths = {
        sign: sum(len(row.text) for row in pipe(6, candidates=4, ranking={"name": "test_ranking:Longest", "sign": sign}))
        for sign in (1, -1)
    }
    assert lengths[1] > lengths[-1]


def test_two_candidates_are_two_for_rankings_that_prefer_one() -> None:
    pipe = made("diffusion")
    rows = pipe(8, "Length(2, 4)", candidates=2, ranking="likelihood")
    assert rows != pipe(8, Length(2, 4)) and len(rows) == 8


def test_the_edit_that_is_nearest_to_the_text_is_kept() -> None:
    """The source of an edit is its text."""

    def kept(texts: Sequence[str], sources: Sequence[str]) -> list[int]:
        return [sum(a == b for a, b in zip(t.split(), s.split(), strict=False)) for t, s in zip(texts, sources, strict=True)]

    pipe = made("diffusion")
    totals = []
    for ranking in (MinimumBayesRisk(), FunctionRanking(kept)):
        sampling = replace(pipe.sampling, candidates=6, ranking=ranking)
        totals.append(sum(kept([row.text], ["a b c"])[0] for row in pipe.edit("a b c", 0.7, count=6, sampling=sampling)))
    assert totals[1] > totals[0]


# Saved models and reports


def test_saved_settings_without_a_ranking_load_and_others_come_back(tmp_path: Path) -> None:
    golden = Path(__file__).parent.parent / "golden" / "format-1"
    assert "ranking" not in json.loads((golden / "sampling.json").read_text())
    assert saved_sampling(golden).ranking == MinimumBayesRisk()
    pipe, ranking = made("causal"), LikelihoodRanking(per_token=True)
    save_model(pipe.model, TOKENIZER, SamplingConfig(candidates=4, ranking=ranking), tmp_path / "model")
    loaded = open_pipeline(tmp_path / "model")
    assert loaded.sampling.ranking == ranking
    assert [row.text for row in loaded(3)] == [row.text for row in pipe(3, candidates=4, ranking=ranking)]


def test_an_evaluation_against_references_has_a_row_for_each_ranking(tmp_path: Path) -> None:
    pipe = made("seq2seq")
    save_model(pipe.model, TOKENIZER, pipe.sampling, tmp_path / "run" / "model")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({"source": s, "target": s}) + "\n" for s in SOURCES))
    changes = [("candidates", "4"), ("ranking", "likelihood")]
    called = [("candidates", "4"), ("ranking", "function"), ("ranking.function", "test_ranking:prefers_j")]
    for sampling in ([], changes, [*changes, ("ranking.per_token", "true")], called):
        report = evaluate_references(
            tmp_path / "pairs.jsonl", out=tmp_path / "out", models=[tmp_path / "run"], sampling=sampling, ter=False, quiet=True
        )
    *labels, with_function = [row.system for row in report.rows]
    table, models = (tmp_path / "out" / "table.txt").read_text().split("Evaluated models")
    assert "ranking function, ranking.function prefers_j)" in table and "test_ranking:" not in table
    assert with_function in models and "test_ranking:prefers_j" in with_function
    named = "run (candidates 4, ranking likelihood)"
    assert labels == ["run", named, "run (candidates 4, ranking likelihood, ranking.per_token true)"]
    texts = (tmp_path / "out" / "texts" / f"{named.replace(' ', '-')}.jsonl").read_text().splitlines()
    rows = pipe(1, source=SOURCES, candidates=4, ranking="likelihood")
    assert [json.loads(line)["text"] for line in texts] == [row.text for row in rows]
