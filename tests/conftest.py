"""What holds for every test: one thread, and a random state of its own; files of few but long tests run first."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


LONG = ("test_quickstart.py", "test_readme.py", "test_docs_evaluation.py", "test_trainer.py", "test_docs_conditional.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files, which each run in one process, so that none is left alone at the end."""
    counts = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.name not in LONG, -counts[item.path], str(item.path)))
