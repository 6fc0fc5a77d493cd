"""Conditional generation from end to end: train on sources, sample from a source with controls, guide, edit a text.

The sources are the attributes of the restaurants corpus, such as ``food[Japanese], price[low]`` (data to text); a corpus of
your own has them in a column ``source`` (``configs/restaurants-source.yaml``, ``docs/conditional.md``). The model trained here
is small and stops early: its samples are worth little, but controls hold in each of them, since they are hard constraints.

    python examples/conditional.py             train for 300 steps, then show all of it
    python examples/conditional.py my-run      with a run of configs/restaurants-source.yaml
"""

from __future__ import annotations

import sys

import tiny

from diffusionlm.controls import Length, Words

SOURCE = "name[The Golden Fox], food[Japanese], price[low]"
CONDITION = {"name": "source", "column": "attributes", "layers": 1}


def main(run_or_steps: str = "300") -> None:
    """Print samples for each use of the condition."""
    if run_or_steps.isdecimal():
        pipe = tiny.model(model={"condition": CONDITION}, training={"steps": int(run_or_steps)})
    else:
        pipe = tiny.model(run_or_steps)

    print(f"from {SOURCE}:")
    for row in pipe(2, source=SOURCE):
        print(f"  {row.text}")

    print("several sources, with controls, guided away from the model without a source:")
    sources = ["food[Italian], area[riverside]", "food[Thai], price[high]"]
    for row in pipe(1, source=sources, controls=[Length(10, 14), ~Words("cheap")], cfg=1.2):
        print(f"  {row.source} -> {row.text}  ({row.length} tokens)")

    text = "The Golden Fox is a cheap pub near the old church."
    print(f"edits of {text!r}, towards another source and without a word:")
    for row in pipe.edit(text, level=0.6, controls=[~Words("cheap")], condition="food[Thai], price[high]", count=2):
        print(f"  {row.text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
