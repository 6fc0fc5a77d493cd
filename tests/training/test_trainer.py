import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_runs
import torch
import two_processes
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from tiny_runs import ROOT

from diffusionlm.cli import main
from diffusionlm.config import UserError, build, merge
from diffusionlm.evaluation.provenance import training_of
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.recipe.cross_entropy import CrossEntropy
from diffusionlm.training.checkpoints import MARKER, newest_checkpoint, trim_log
from diffusionlm.training.run import RunConfig, train
from diffusionlm.training.trainer import TrainingConfig, _average_with
from diffusionlm.training.validation import evaluate_terms

COMMAND = [sys.executable, "-m", "diffusionlm.cli"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "0"}


HALFWAY = {"training": {"evaluate_every": 4, "sample_every": 4}}  # between the steps at which runs are stopped


def tiny_plain(folder: Path, **changes: object) -> dict[str, object]:
    return tiny_runs.tiny_plain(folder, **merge(HALFWAY, changes))


def tiny_config(folder: Path, **changes: object) -> RunConfig:
    return build(RunConfig, tiny_plain(folder, **changes))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def read_until(process: subprocess.Popen[str], wanted: str) -> None:
    """Read the progress bar until it shows ``wanted``."""
    assert process.stderr is not None
    seen = ""
    while wanted not in seen:
        character = process.stderr.read(1)
        assert character, seen
        seen += character


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    assert train(tiny_config(folder), folder / "run", quiet=True)
    return folder / "run"


def test_a_run_goes_on_with_the_texts_it_began_with(unbroken: Path, tmp_path: Path) -> None:
    run = shutil.copytree(unbroken, tmp_path / "run")
    config, corpus = tiny_config(unbroken.parent), unbroken.parent / "texts.txt"
    (run / "model" / "finished").unlink()  # as if it had been stopped just before
    texts = corpus.read_text()
    try:
        corpus.write_text(texts.replace("restaurant", "pub"))
        with pytest.raises(UserError, match="run: the training texts differ from those that this run started with"):
            train(config, run, quiet=True)
    finally:
        corpus.write_text(texts)
    assert train(config, run, quiet=True)


def test_a_run_directory_explains_itself(unbroken: Path) -> None:
    assert yaml.safe_load((unbroken / "config.yaml").read_text())["training"]["steps"] == 8
    assert sorted(p.name for p in (unbroken / "samples").iterdir()) == ["step-4.txt", "step-8.txt"]
    assert len((unbroken / "samples" / "step-8.txt").read_text().splitlines()) == 10
    assert [p.name for p in sorted((unbroken / "checkpoints").iterdir())] == ["checkpoint-6", "checkpoint-8"]
    assert all((p / MARKER).exists() for p in (unbroken / "checkpoints").iterdir())
    (events,) = (unbroken / "tensorboard").glob("events*")
    drawn = EventAccumulator(str(events), {"images": 0}).Reload()
    assert [image.step for image in drawn.Images("schedule")] == [4, 8]
    assert (unbroken / "figures" / "schedule.png").read_bytes().startswith(b"\x89PNG")
    assert not list(unbroken.rglob("training_args.bin"))
    logged = rows(unbroken)
    assert [r["step"] for r in logged if "loss" in r] == list(range(1, 9))
    assert [r["step"] for r in logged if "eval_loss" in r] == [4, 8]
    assert all(r["loss"] == pytest.approx(r["cross_entropy"] + r["schedule"], rel=1e-5) for r in logged if "loss" in r)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # PyTorch's own, while it traces
def test_compiling_takes_a_few_graphs_for_all_shapes(unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.nn.Module.compile
    # The graphs are traced for real; turning them into machine code takes minutes on a processor.
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **kwargs: whole(self, backend="eager", **kwargs))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert train(tiny_config(tmp_path, training={"compile": True}), tmp_path / "run", quiet=True)
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4  # with a mask and without, twice
    assert_same(weights(tmp_path / "run"), weights(unbroken))


def test_the_saved_model_is_the_average_not_the_last_weights(unbroken: Path) -> None:
    last = load_file(unbroken / "checkpoints" / "checkpoint-8" / "model.safetensors")
    averaged = weights(unbroken)["network.down.weight"]
    assert not torch.equal(averaged, last["model.network.down.weight"])


def test_killed_and_started_again_it_ends_with_the_same_bits(unbroken: Path, tmp_path: Path) -> None:
    """At step 7: samples have been written, an older checkpoint removed. An interrupt, below, comes at step 3."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_plain(unbroken.parent)))
    arguments = ["train", "--config", str(config), "--out", str(tmp_path / "run")]
    with subprocess.Popen([*COMMAND, *arguments], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        read_until(process, "7/8")
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "run" / "model" / "finished").exists()
    assert main(arguments) == 0
    assert_same(weights(tmp_path / "run"), weights(unbroken))
    assert [r["step"] for r in rows(tmp_path / "run") if "loss" in r] == list(range(1, 9))
    assert (tmp_path / "run/samples/step-8.txt").read_text() == (unbroken / "samples/step-8.txt").read_text()


def test_a_run_stopped_before_its_last_export_ends_with_its_last_model(unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path / "run")
    for left in ("junk", "nothing"):
        (tmp_path / "run" / "model" / "finished").unlink()
        if left == "junk":
            (tmp_path / "run" / "model" / "model.safetensors").write_text("an older model")
        else:
            shutil.rmtree(tmp_path / "run" / "model")
        assert train(tiny_config(unbroken.parent), tmp_path / "run", write_samples=False, quiet=True)
        assert_same(weights(tmp_path / "run"), weights(unbroken))


def test_a_damaged_checkpoint_is_reported(unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path / "run")
    (tmp_path / "run" / "model" / "finished").unlink()
    newest = tmp_path / "run" / "checkpoints" / "checkpoint-8"
    (newest / "ema.safetensors").write_bytes((newest / "ema.safetensors").read_bytes()[:100])
    with pytest.raises(
        UserError, match=r"checkpoint-8: this checkpoint is damaged; delete it to resume from the one before \(.*\): "
    ):
        train(tiny_config(unbroken.parent), tmp_path / "run", quiet=True)
    shutil.rmtree(newest)
    assert train(tiny_config(unbroken.parent), tmp_path / "run", write_samples=False, quiet=True)
    assert_same(weights(tmp_path / "run"), weights(unbroken))


def test_an_interrupt_keeps_a_checkpoint_and_every_row(unbroken: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_plain(unbroken.parent)))
    arguments = ["train", "--config", str(config), "--out", str(tmp_path / "run")]
    with subprocess.Popen([*COMMAND, *arguments], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        read_until(process, "3/8")
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate()
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    checkpoint = newest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    step = int(checkpoint.name.split("-")[1])
    assert 3 <= step < 8
    assert [r["step"] for r in rows(tmp_path / "run") if "loss" in r] == list(range(1, step + 1))
    assert main(arguments) == 0
    assert_same(weights(tmp_path / "run"), weights(unbroken))


def test_a_checkpoint_without_its_marker_is_not_resumed(unbroken: Path, tmp_path: Path) -> None:
    for step in (2, 4, 10):
        (tmp_path / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
    for step in (2, 4):
        (tmp_path / "checkpoints" / f"checkpoint-{step}" / MARKER).write_text(json.dumps({"step": step}))
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "checkpoint-4"


def test_the_log_is_trimmed_to_the_resumed_step(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    trim_log(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_accumulated_gradients_are_those_of_the_joint_batch_in_number(unbroken: Path, tmp_path: Path) -> None:
    changes = {"training": {"steps": 4, "accumulation": 2, "save_every": 4}}
    train(tiny_config(unbroken.parent, **changes), tmp_path / "run", quiet=True)
    tokens = [r["tokens"] for r in rows(tmp_path / "run") if "loss" in r]
    assert tokens[-1] == [r["tokens"] for r in rows(unbroken) if "loss" in r][-1]


def test_evaluation_is_repeatable_and_leaves_the_random_state(unbroken: Path) -> None:
    model = DiffusionLM.load(unbroken / "model")
    objective = CrossEntropy().build(model)
    texts = [[2, *range(5, 5 + n), 3] for n in (4, 9, 7)]

    def evaluate() -> dict[str, float]:
        return evaluate_terms(objective, texts, 32, torch.device("cpu"), bf16=False)

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = evaluate()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert evaluate() == first


def test_early_stopping_ends_a_run_that_no_longer_improves(unbroken: Path, tmp_path: Path) -> None:
    frozen = {"name": "adamw", "learning_rate": 0.0}
    stopping = {"steps": 40, "evaluate_every": 2, "patience": 2, "optimizer": frozen, "save_every": 40}
    assert train(tiny_config(unbroken.parent, training=stopping), tmp_path / "run", quiet=True)
    assert max(r["step"] for r in rows(tmp_path / "run")) == 6
    # Stopped between two checkpoints, it keeps its last model all the same.
    assert weights(tmp_path / "run") and (tmp_path / "run" / "model" / "finished").exists()


def test_a_resumed_run_goes_on_with_its_patience_and_its_clock(unbroken: Path, tmp_path: Path) -> None:
    frozen = {"name": "adamw", "learning_rate": 0.0}
    stopping = {"evaluate_every": 2, "patience": 2, "optimizer": frozen, "save_every": 1, "keep": 40, "log_every": 1}
    config = tiny_config(unbroken.parent, training={"steps": 40, **stopping})
    assert train(config, tmp_path / "run", quiet=True)
    for name in ("checkpoint-6", "checkpoint-5"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / name)
    (tmp_path / "run" / "model" / "finished").unlink()
    marker = tmp_path / "run" / "checkpoints" / "checkpoint-4" / MARKER
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "seconds": 1000.0, "processor_seconds": 2000.0}))
    assert train(config, tmp_path / "run", quiet=True)
    assert max(r["step"] for r in rows(tmp_path / "run")) == 6
    clock = [r["seconds"] for r in rows(tmp_path / "run") if "seconds" in r]
    assert clock[3] < 1000 < clock[4] < clock[5]
    assert training_of(tmp_path / "run")["training_processor_seconds"] >= 2000


def test_a_few_hundred_steps_learn(tmp_path: Path) -> None:
    changes = {
        "model": {"backbone": {"width": 32}},
        "training": {"steps": 150, "evaluate_every": 75, "save_every": 150, "sample_every": 150, "warmup": 20},
    }
    train(tiny_config(tmp_path, **changes), tmp_path / "run", quiet=True)
    losses = [r["cross_entropy"] for r in rows(tmp_path / "run") if "cross_entropy" in r]
    bounds = [r["eval_bound"] for r in rows(tmp_path / "run") if "eval_loss" in r]
    assert bounds[-1] < bounds[0] and losses[-1] < losses[0] - 0.5


def test_fine_tuning_starts_from_the_weights_and_refuses_another_vocabulary(unbroken: Path, tmp_path: Path) -> None:
    again = {
        "init_from": str(unbroken / "model"),
        "training": {"steps": 2, "optimizer": {"name": "adamw", "learning_rate": 0.0}},
    }
    train(tiny_config(unbroken.parent, **again), tmp_path / "run", quiet=True)
    before, after = weights(unbroken), weights(tmp_path / "run")
    assert torch.allclose(before["network.down.weight"], after["network.down.weight"])
    other = {**again, "data": {"tokenizer": {"name": "words", "min_count": 3}}}
    with pytest.raises(UserError, match=r"init_from: .* has another vocabulary than data\.tokenizer"):
        train(tiny_config(unbroken.parent, **other), tmp_path / "refused", quiet=True)


def test_the_average_has_the_half_life_of_its_decay() -> None:
    averaged, current = [torch.ones(1, dtype=torch.float64)], [torch.zeros(1, dtype=torch.float64)]
    update = _average_with(0.9999, warmup=False)
    for count in range(6931):
        update(averaged, current, count)
    assert averaged[0].item() == pytest.approx(0.5, abs=1e-4)


def test_the_paper_schedule_of_the_learning_rate_is_linear_to_zero(unbroken: Path, tmp_path: Path) -> None:
    changes = {"training": {"steps": 4, "warmup": 0, "decay": "linear", "optimizer": {"name": "adamw", "learning_rate": 1e-4}}}
    train(tiny_config(unbroken.parent, **changes), tmp_path / "run", write_samples=False, quiet=True)
    rates = [r["learning_rate"] for r in rows(tmp_path / "run") if "loss" in r]
    assert rates == pytest.approx([1e-4, 7.5e-5, 5e-5, 2.5e-5])


def test_two_processes_train_as_one_on_the_joint_batch(tmp_path: Path) -> None:
    script = str(ROOT / "tests" / "two_processes.py")
    tiny_plain(tmp_path)
    environment = {**ENVIRONMENT, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        script,
        str(tmp_path),
    ]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for adapter in ("full", "lora"):
        two_processes.main(tmp_path, adapter)
        saved = tmp_path / f"{adapter}-rank"
        first, second = (torch.load(f"{saved}-{rank}-of-2.pt", weights_only=True) for rank in (0, 1))
        single = torch.load(f"{saved}-0-of-1.pt", weights_only=True)
        assert_same(first["weights"], second["weights"])
        assert not torch.equal(first["noise"], second["noise"])
        for name, value in single["weights"].items():
            assert torch.allclose(value, first["weights"][name], atol=1e-5), name
        updates = [value for name, value in first["weights"].items() if "lora_B" in name]
        assert bool(updates) == (adapter == "lora") and all(bool(value.any()) for value in updates)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"ema": 1.0}, "ema: expected a decay"),
        ({"threads": 0}, "threads: expected 1 to 1024"),
    ],
)
def test_impossible_numbers_are_refused(changes: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        TrainingConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_tokens": 10}, r"^training\.batch_tokens: a batch may hold 10, but text \d+ alone has \d+"),
        ({"patience": 2}, r"^training\.patience: expected 0, since there is no validation set, got 2"),
    ],
)
def test_a_run_that_cannot_begin_leaves_nothing(tmp_path: Path, changes: dict[str, int], sentence: str) -> None:
    tiny_plain(tmp_path)
    corpus = {"name": "files", "train": str(tmp_path / "texts.txt"), "validation_share": 0.0}
    with pytest.raises(UserError, match=sentence):
        train(tiny_config(tmp_path, training=changes, data={"corpus": corpus}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
