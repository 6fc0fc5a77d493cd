"""Where a model computes, and in which precision."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from diffusionlm.config import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def placed(model: PreTrainedModel, device: str, dtype: str) -> torch.dtype:
    """Move a model to ``device`` in evaluation mode; return the torch dtype that ``dtype`` names.

    Raises:
        UserError: an unknown device or dtype, or a device without float64.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    try:
        torch.nn.Module.to(model, torch.device(device)).train(False)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (RuntimeError, TypeError):  # mps has none
        raise UserError(f"device: {device!r} has no float64, in which noise levels are computed; use cpu or cuda") from None
    return DTYPES[dtype]
