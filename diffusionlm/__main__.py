"""Run the command line as ``python -m diffusionlm``."""

from diffusionlm.cli import entry

entry()
