"""What holds for every test: one thread, a random state of its own, no network; files of few but long tests run first."""

from __future__ import annotations

import os
from collections import Counter

os.environ["HF_HUB_OFFLINE"] = "1"  # is read when the library of the hub is imported

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


LONG = (  # of few tests that take long, the longest first
    "test_examples.py", "test_sharing.py", "test_quickstart.py", "test_trainer.py", "test_writing.py",
    "test_benchmarks.py", "test_benchmark.py", "test_conditioning.py",
    "test_classifier.py", "test_cli.py", "test_mutations.py", "test_exit_status.py", "test_branches.py", "test_grammar.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files, which each run in one process, so that none is left alone at the end."""
    counts = Counter(item.path for item in items)

    def place(item: pytest.Item) -> tuple[int, int, str]:
        name = item.path.name
        return LONG.index(name) if name in LONG else len(LONG), -counts[item.path], str(item.path)

    items.sort(key=place)
