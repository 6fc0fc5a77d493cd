"""``push``: a model to the Hugging Face hub."""

from __future__ import annotations

import argparse

from diffusionlm.arguments import command, flag, option
from diffusionlm.verbs.shared import MODEL


@command(
    MODEL,
    option("name", "repository of the Hugging Face hub: user/model", "NAME"),
    flag("--private", "make the repository private", default=False),
    option("--base", "of an adapter: the name on the hub of the model that it was trained on", "NAME"),
)
def _push(options: argparse.Namespace) -> int:
    """Upload a model with its card, classifiers and sampling settings to the Hugging Face hub; print its address.

    Log in first: hf auth login. The card is the README.md of the model folder; it gets the figures of the run's evaluations,
    unless you have edited it.
    """
    from diffusionlm.pipelines.auto import open_pipeline

    print(open_pipeline(options.model).push_to_hub(options.name, options.private, base=options.base))
    return 0
