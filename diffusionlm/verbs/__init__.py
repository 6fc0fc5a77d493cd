"""The commands of the command line, a module for each group; a command is a function with its options above it."""

# isort: off, so that the help text has this order
from diffusionlm.verbs import evaluating, sampling, showing, training

__all__ = ["evaluating", "sampling", "showing", "training"]
