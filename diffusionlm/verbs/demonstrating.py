"""``demo``: a web page to try a model."""

from __future__ import annotations

import argparse

from diffusionlm.arguments import command, option
from diffusionlm.verbs.shared import LOADING

MODEL = "restaurants"


@command(
    option("model", "model folder, run folder or bundled model (default: %(default)s)", "MODEL", nargs="?", default=MODEL),
    option("--compare", "another model, which samples the same beside it", "MODEL"),
    option("--host", "address to listen at (default %(default)s: this machine alone)", "ADDRESS", default="127.0.0.1"),
    option("--port", "port to listen at; 0 is a free one (default %(default)s)", default=7860),
    *(each for each in LOADING if each[0] != ["--processes"]),
)
def _demo(options: argparse.Namespace) -> int:
    """Show a page to try a model in the browser: controls, texts that settle step by step, gaps to fill.

    The address is printed on stdout. Nothing is sent to other machines, and the page loads nothing from them.
    """
    from diffusionlm.demo.models import open_model
    from diffusionlm.demo.server import load_gradio, serve

    load_gradio()
    models = [open_model(options.model, options.device, options.dtype, options.adapter, options.imports)]
    if options.compare is not None:
        models.append(open_model(options.compare, options.device, options.dtype, imports=options.imports))
    serve(models, options.host, options.port)
    return 0
