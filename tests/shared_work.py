"""Run by the tests in each of several processes: command lines one after the other, each with its output in a file."""

import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from diffusionlm.cli import main

if __name__ == "__main__":
    for name, words in json.loads(Path(sys.argv[1]).read_text()).items():
        own = f"{name}-{os.environ['RANK']}"
        with open(f"{own}.out", "w") as out, open(f"{own}.err", "w") as err, redirect_stdout(out), redirect_stderr(err):
            status = main(words)
        assert status == 0, (own, status, Path(f"{own}.err").read_text())
