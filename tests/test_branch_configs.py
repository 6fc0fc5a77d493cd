"""The configs of control branches: they load, and the restaurants corpus has what their conditions read."""

from pathlib import Path

import pytest
from tiny_runs import ROOT

from diffusionlm.config import build, to_plain
from diffusionlm.models.control_branch import ControlBranch
from diffusionlm.training.run import RunConfig, read_config


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "control-branch").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_config_of_a_branch_loads_and_fits_the_corpus(path: Path) -> None:
    config = read_config([path], [("init_from", str(ROOT / "tests" / "golden" / "format-1"))])
    assert build(RunConfig, to_plain(config)) == config and isinstance(config.adapter, ControlBranch)
    config.check()
    splits = config.data.corpus.load()
    condition = config.adapter.fitted({"train": splits["train"].select(range(2000))}).condition
    assert condition.size > 10
    values = condition.values(splits["validation"].select(range(50)))
    assert any(value is not None for value in values)
