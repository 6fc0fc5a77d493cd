import io
import json
import os
import resource
import shutil
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file
from test_trainer import COMMAND, ENVIRONMENT, assert_same, weights
from tiny_runs import ROOT, restaurant_texts, tiny_config, tiny_plain

from diffusionlm.cli import main
from diffusionlm.training.checkpoints import newest_checkpoint
from diffusionlm.training.run import train
from diffusionlm.verbs.showing import FAMILIES


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with redirect_stderr(io.StringIO()):
        train(tiny_config(folder), folder / "run", quiet=True)
    return folder / "run"


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail with one sentence, and return the sentence."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.strip()]
    assert out == ""
    assert len(lines) == 1, err
    assert lines[0].startswith("diffusionlm: ")
    return lines[0]


def config_file(folder: Path, plain: dict[str, object]) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(plain))
    return str(path)


@pytest.mark.parametrize(
    ("plain", "sentence"),
    [
        ({"trainin": {}}, "trainin: there is no such setting; did you mean 'training'?"),
        ({"training": {"stepps": 3}}, "training.stepps: there is no such setting; did you mean 'steps'?"),
        ({"model": {"schedule": "sqrtt"}}, "model.schedule: no noise schedule is called 'sqrtt'; did you mean 'sqrt'?"),
        (
            {"model": {"schedule": {"name": "sqrt", "TT": 3}}},
            "model.schedule.TT: there is no such setting; did you mean 'T'?",
        ),
        ({"training": {"steps": "many"}}, "training.steps: expected a valid integer"),
        ({"training": {"steps": 0}}, "training.steps: expected at least 1, got 0"),
        ({"data": {"corpus": "no/such.txt"}}, "no/such.txt"),
        ({"objective": "regression"}, "objective: 'regression' needs model.prediction"),
    ],
)
def test_a_bad_config_is_one_sentence(
    plain: dict[str, object], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refused(["train", "--config", config_file(tmp_path, plain), "--out", str(tmp_path / "run")], capsys)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_override_with_a_typing_error_names_the_nearest_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'steps'" in refused(["train", "--out", str(tmp_path / "run"), "--training.step=3"], capsys)
    assert "a value is expected" in refused(["train", "--out", str(tmp_path / "run"), "--training.steps"], capsys)


@pytest.mark.parametrize("text", ["{", "- a\n- b", "\x00"])
def test_a_config_that_is_no_mapping_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert str(path) in refused(["show", "--config", str(path)], capsys)


def test_a_missing_config_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no.yaml: there is no such file" in refused(["show", "--config", "no.yaml"], capsys)


def test_a_missing_column_and_an_empty_corpus_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, empty = tmp_path / "table.csv", tmp_path / "empty.txt"
    table.write_text("id,sentence\n1,Good food.\n")
    empty.write_text("\n \n")
    out = ["--out", str(tmp_path / "run")]
    said = refused(["train", *out, "--data.corpus", str(table), "--data.corpus.text", "sentense"], capsys)
    assert "sentense" in said and "sentence" in said
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    assert "empty.txt" in refused(["train", *out, "--data.corpus", str(empty)], capsys)


def test_an_unwritable_output_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("kept")
    config = config_file(tmp_path, tiny_plain(tmp_path))
    assert "a place for a new one, got a file" in refused(
        ["train", "--config", config, "--out", str(tmp_path / "file" / "run")], capsys
    )
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_with_other_files_or_another_run_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, tiny_plain(trained.parent))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert "holds other files" in refused(["train", "--config", config, "--out", str(tmp_path / "mine")], capsys)
    said = refused(["train", "--config", config, "--out", str(trained), "--training.seed", "5"], capsys)
    assert "its training.seed is 0, not 5" in said


def test_a_finished_run_is_not_trained_again(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "model" / "model.safetensors").stat().st_mtime_ns
    assert main(["train", "--config", config_file(tmp_path, tiny_plain(trained.parent)), "--out", str(trained)]) == 0
    assert "already trained" in capsys.readouterr().err
    assert (trained / "model" / "model.safetensors").stat().st_mtime_ns == before


def damage_nothing(model: Path) -> None:
    shutil.rmtree(model)


def damage_weights(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def damage_kind(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "gpt2"}))


def damage_version(model: Path) -> None:
    plain = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**plain, "format_version": 99}))


def damage_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_nothing, "expected a model folder"),
        (damage_weights, "damaged or incomplete"),
        (damage_kind, "expected model_type 'diffusionlm', got 'gpt2'"),
        (damage_version, "format 99 is newer"),
        (damage_tokenizer, "the tokenizer is missing or damaged"),
    ],
)
def test_a_bad_model_folder_is_refused(
    damage: object, sentence: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(damage)
    shutil.copytree(trained / "model", tmp_path / "model")
    damage(tmp_path / "model")
    assert sentence in refused(["generate", str(tmp_path / "model")], capsys)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "100000"], "steps: expected 1 to"),
        (["--steps", "0"], "steps: expected at least 1"),
        (["--length", "1000"], "length: expected 1 to 46 tokens"),
        (["--count", "0"], "--count: expected at least 1"),
        (["--sampler", "dpm"], "no sampler is called 'dpm'"),
        (["--temperature", "0"], "temperature: expected a positive number"),
        (["--device", "cudda"], "device: 'cudda' cannot be used here"),
        (["--dtype", "fp8"], "dtype: expected one of fp32, bf16"),
        (["--no-such-thing", "1"], "--no-such-thing: there is no such argument"),
        (["--seeds", "1"], "did you mean '--seed'?"),
        (["--sampler.etaa", "1"], "sampling.sampler.etaa: there is no such setting"),
        (["--annotator", "{name: words"], "annotator: not valid YAML"),
        (["--guidance.name", "adagrad", "--guidance.learning_rate", "-1"], "learning_rate: expected 0 or more"),
    ],
)
def test_a_bad_request_is_refused(
    arguments: list[str], sentence: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refused(["generate", str(trained), *arguments], capsys)


def test_generate_writes_rows_and_the_same_again(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rows(*arguments: str) -> list[dict[str, object]]:
        assert main(["generate", str(trained), "--steps", "3", *arguments]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    five = rows("--count", "5", "--seed", "3")
    assert [list(row) for row in five] == [["text", "index", "seed", "length"]] * 5
    assert [(row["index"], row["seed"]) for row in five] == [(i, 3) for i in range(5)]
    assert rows("--count", "5", "--seed", "3") == five
    assert rows("--count", "2", "--seed", "3", "--batch-size", "1") == five[:2]
    assert rows("--count", "5", "--seed", "4") != five
    assert {row["length"] for row in rows("--length", "7", "--sampler", "dpm++2m", "--temperature", "0.5")} == {7}
    assert len(rows("--count", "2", "--candidates", "3", "--sampler", "ddim", "--sampler.eta", "0.5", "--dtype", "bf16")) == 2


def test_targets_are_all_checked_before_any_is_written(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "targets.jsonl"
    path.write_text('{"controls": ["Length(5)"]}\n{"controls": ["Length(6)"]}\n')
    asked = ["generate", str(trained), "--steps", "2", "--count", "2", "--targets", str(path)]
    assert main(asked) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["target"], row["index"], row["length"]) for row in rows] == [(0, 0, 5), (0, 1, 5), (1, 0, 6), (1, 1, 6)]
    path.write_text('{"controls": ["Length(5)"]}\n{"controls": ["Length(5000)"]}\n')
    assert f"{path}, line 2: Length(5000): expected at most" in refused(asked, capsys)
    assert "expected a file, got a folder" in refused([*asked[:-1], ""], capsys)


def test_another_annotator_can_check_texts(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["generate", str(trained), "--steps", "2", "--count", "1", "--control", "Length(5)", "--annotator"]
    assert main([*asked, "words"]) == 0
    assert json.loads(capsys.readouterr().out)["controls"][0]["passed"]
    assert "--annotator" in refused([*asked, "wrods"], capsys)


def test_watch_shows_every_step_and_keeps_stdout_clean(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(trained), "--count", "2", "--steps", "3", "--sweeps", "0", "--watch"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert err.count("t = ") == 3


def test_show_prints_a_config_that_train_would_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--training.steps", "7", "--sampling.sampler", "ddim"]) == 0
    path = tmp_path / "shown.yaml"
    path.write_text(capsys.readouterr().out)
    assert yaml.safe_load(path.read_text())["sampling"]["sampler"] == {"name": "ddim", "eta": 0.0}
    assert main(["show", "--config", str(path)]) == 0
    assert capsys.readouterr().out == path.read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_show_lists_the_members_of_a_family(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", family]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert len(lines) >= (1 if family in ("adapters", "processes") else 2)
    assert all(line.partition(": ")[2] for line in lines)


def test_show_of_an_unknown_family_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'samplers'?" in refused(["show", "sampler"], capsys)


@pytest.mark.parametrize("verb", [[], ["quickstart"], ["train"], ["generate"], ["show"]])
def test_every_command_has_help(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*verb, "--help"])
    assert stopped.value.code == 0
    assert "usage: diffusionlm" in capsys.readouterr().out


def test_a_full_disk_while_saving_loses_nothing(trained: Path, tmp_path: Path) -> None:
    arguments = ["train", "--config", config_file(tmp_path, tiny_plain(trained.parent)), "--out", str(tmp_path / "run")]
    # As if it had been stopped after step 7, with a model of its own from step 6.
    model = shutil.copytree(trained, tmp_path / "run") / "model"
    (model / "finished").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-8")
    before = {name: value + 1 for name, value in weights(trained).items()}
    save_file(before, model / "model.safetensors", {"format": "pt"})
    checkpoint = newest_checkpoint(tmp_path / "run")
    assert checkpoint is not None and checkpoint.name == "checkpoint-6"

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    command = [*COMMAND, *arguments]
    full = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, preexec_fn=small_files)
    assert full.returncode == 2
    assert "cannot be written" in full.stderr.splitlines()[-1], full.stderr
    assert "Traceback" not in full.stderr
    assert newest_checkpoint(tmp_path / "run") == checkpoint
    assert_same(load_file(model / "model.safetensors"), before)
    assert main(arguments) == 0
    assert_same(weights(tmp_path / "run"), weights(trained))


def test_texts_longer_than_the_model_reads_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tiny_plain(tmp_path, data={"max_length": 16}, training={"steps": 1})
    assert main(["train", "--config", config_file(tmp_path, plain), "--out", str(tmp_path / "run")]) == 0
    longer = sum(len(text.replace(".", " .").replace(",", " ,").split()) > 14 for text in restaurant_texts(200))
    said = capsys.readouterr().err
    counts = [int(line.split()[1]) for line in said.splitlines() if "longer than 16 tokens and were cut" in line]
    assert sum(counts) == longer > 0


def test_the_command_is_installed() -> None:
    assert os.access(ROOT / "diffusionlm" / "cli.py", os.R_OK)
    done = subprocess.run([*COMMAND, "--help"], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0 and "quickstart" in done.stdout


def test_a_users_own_component_is_found_where_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sampler_of_mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from diffusionlm.core.sampler import Sampler\n"
        "@dataclass(frozen=True)\n"
        "class Mine(Sampler):\n"
        "    pace: float = 0.5\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["show", "config", "--sampling.sampler", "{name: 'sampler_of_mine:Mine', pace: 0.25}"]) == 0
    assert "sampler_of_mine:Mine\n    pace: 0.25" in capsys.readouterr().out


def test_flags_and_dotted_settings_act_in_any_order(capsys: pytest.CaptureFixture[str]) -> None:
    stored = str(ROOT / "tests" / "golden" / "format-1")
    common = ["generate", stored, "--count", "2", "--steps", "4", "--sweeps", "0"]
    assert main(common) == 0
    plain = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert main([*common, "--control", "food=Thai", "--strength", "0", "--guidance.name", "adagrad"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == plain
    assert main([*common, "--sampling.steps", "4"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == plain


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["generate", "M", "--corrections", "2"], "--corrections: there is no such argument; it is now called '--sweeps'"),
        (["generate", "M", "--objective", "x"], "a setting has a dotted name, a component such as --objective.name"),
        (
            ["evaluate", "M", "--judge", "J", "--sampling.seed", "3"],
            "--sampling.seed: an evaluation sets it itself; use --seed",
        ),
        (["evaluate", "M", "--judge", "J", "--sampling.temperature", "3"], "an evaluation sets it itself; use --temperatures"),
    ],
)
def test_a_name_of_another_kind_is_explained(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err


def test_a_component_without_a_method_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty_control.py").write_text(
        "from dataclasses import dataclass\n"
        "from diffusionlm.controls import Control\n"
        "@dataclass(frozen=True)\n"
        "class Nothing(Control):\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    stored = str(ROOT / "tests" / "golden" / "format-1")
    assert main(["generate", stored, "--control", "empty_control:Nothing()"]) == 2
    assert capsys.readouterr().err.endswith("diffusionlm: empty_control:Nothing does not define compile\n")


def test_a_target_with_an_unknown_key_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "targets.jsonl").write_text('{"controls": ["Length(9)"], "refrence": "The pub."}\n')
    stored = str(ROOT / "tests" / "golden" / "format-1")
    assert main(["generate", stored, "--targets", str(tmp_path / "targets.jsonl")]) == 2
    assert "line 1: there is no such key 'refrence'; expected controls, reference, task" in capsys.readouterr().err
