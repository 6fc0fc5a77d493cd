"""``report``: one page about a training run."""

from __future__ import annotations

import argparse

from diffusionlm.arguments import command, option, several


@command(
    option("run_folder", "run folder", "RUN"),
    option("--out", "HTML file to write (default: report.html in the run folder)", "FILE"),
    several("--evaluation", "show the evaluation in this folder too (evaluate --out)", "FOLDER"),
)
def _report(options: argparse.Namespace) -> int:
    """Write one HTML page about a training run: curves, noise schedule, samples, evaluations, settings."""
    from diffusionlm.evaluation.run_report.report import write_report

    print(write_report(options.run_folder, options.out, options.evaluation))
    return 0
