"""Weights & Biases and trackio, without a network: the losses of a run arrive, and the run is the same."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import yaml

STEPS = 4


def rows_of(folder: Path, tracker: str) -> list[dict[str, float]]:
    """Train with a tracker on the command line, as a process of its own; return the rows of the log."""
    config = tiny_runs.tiny_plain(
        folder, training={"steps": STEPS, "log_every": 1, "evaluate_every": 2, "report_to": [tracker]}
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    places = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "trackio"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path[1:])), **places}
    command = [sys.executable, "-m", "diffusionlm", "train", "--config", "config.yaml", "--out", "run"]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]


def expected(rows: list[dict[str, float]]) -> dict[str, list[tuple[int, float]]]:
    """Return the training and validation losses of a log under their names in a tracker, with their steps."""
    names = {"loss": "train/loss", "eval_loss": "eval/loss"}
    return {shown: [(int(row["step"]), row[name]) for row in rows if name in row] for name, shown in names.items()}


def records_of(data: bytes) -> Iterator[bytes]:
    """Yield the records of a file of Weights & Biases, a log of LevelDB behind a header of 7 bytes: parts in blocks of 32 KB."""
    place, record = 7, b""
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:  # no header fits into the rest of a block
            place += 2**15 - place % 2**15
        size, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # complete, or the last part
            yield record
            record = b""


def test_losses_arrive_in_weights_and_biases(tmp_path: Path) -> None:
    records: Any = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    wanted = expected(rows_of(tmp_path, "wandb"))
    assert len(wanted["train/loss"]) == STEPS and len(wanted["eval/loss"]) == 2
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in wanted}
    settings: dict[str, Any] = {}
    for data in records_of(path.read_bytes()):
        record = records.Record()
        record.ParseFromString(data)
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for name in wanted.keys() & items.keys():
            found[name].append((int(items["_step"]), items[name]))
        settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    assert found == wanted
    assert settings["training"]["steps"] == STEPS


def test_losses_arrive_in_trackio(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    wanted = expected(rows_of(tmp_path, "trackio"))
    with sqlite3.connect(tmp_path / "trackio" / "diffusionlm.db") as database:
        kept = database.execute("select step, metrics from metrics order by step").fetchall()
        configs = [json.loads(row[0]) for row in database.execute("select config from configs")]
    rows = [(int(step), json.loads(metrics)) for step, metrics in kept]
    found = {name: [(step, values[name]) for step, values in rows if name in values] for name in wanted}
    assert found == wanted
    assert configs[0]["training"]["steps"] == STEPS
