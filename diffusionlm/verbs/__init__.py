"""The commands of the command line, a module for each group; a command is a function with its options above it."""

# The help text has the order of these imports.
# isort: off
from diffusionlm.verbs import training
from diffusionlm.verbs import sampling
from diffusionlm.verbs import evaluating
from diffusionlm.verbs import demonstrating
from diffusionlm.verbs import reporting
from diffusionlm.verbs import publishing
from diffusionlm.verbs import showing
from diffusionlm.verbs import installing

__all__ = ["demonstrating", "evaluating", "installing", "publishing", "reporting", "sampling", "showing", "training"]
