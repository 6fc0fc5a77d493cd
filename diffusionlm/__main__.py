"""Run the command line as ``python -m diffusionlm``."""

import sys

from diffusionlm.cli import main

sys.exit(main())
