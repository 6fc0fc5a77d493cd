import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from tiny_runs import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_the_wheel_finds_its_corpus_and_models_from_another_folder(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("diffusion_lm-*.whl")
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    (tmp_path / "elsewhere").mkdir()
    code = """import diffusionlm
from diffusionlm.models.named import named_folder
from diffusionlm.restaurants.corpus import Restaurants
print(diffusionlm.__file__, len(Restaurants().load()["train"]), named_folder("restaurants"), named_folder("restaurants-few-steps"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    file, count, *models = done.stdout.split()
    assert Path(file).is_relative_to(target)
    assert count == "20000"
    assert all(Path(folder).is_relative_to(target) for folder in models)
    assert all((Path(folder) / "README.md").exists() for folder in models)


def test_the_wheel_is_typed_and_the_source_archive_is_whole(built: Path) -> None:
    (wheel,), (archive,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert wheel.stat().st_size < 10_000_000  # of which the models are eight
    with zipfile.ZipFile(wheel) as packed:
        assert "diffusionlm/py.typed" in packed.namelist()
        assert not [name for name in packed.namelist() if name.startswith(("tests/", "configs/"))]
    with tarfile.open(archive) as packed:
        inside = {name.partition("/")[2] for name in packed.getnames()}
    assert {
        "README.md",
        "LICENSE",
        "configs/e2e-paper.yaml",
        "data/models/restaurants/model.safetensors",
        "data/restaurants/train.jsonl.gz",
        "tests/tiny_runs.py",
    } <= inside
