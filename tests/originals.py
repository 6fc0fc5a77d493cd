"""Checkpoints as the code of Diffusion-LM and DiffuSeq saves them, with random weights and any sizes, and their arithmetic.

The forward pass is written after the formulas of the original networks, without the library and without ``transformers``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

WORDS = ["The", "Vaults", "pub", "is", "a", "cheap", "family", "-", "friendly", "place", "do", "n't", "'s", "£", "20", ".", ","]
DIMENSION, WIDTH, LAYERS, HEADS, FEEDFORWARD, TIME = 6, 16, 2, 4, 24, 8
DIFFUSION_LM: dict[str, Any] = {
    "model_arch": "transformer", "modality": "e2e-tgt", "padding_mode": "pad", "experiment": "random", "lr": 1e-4,
    "training_mode": "e2e", "experiment_mode": "lm", "logits_mode": 1, "class_cond": False, "learn_sigma": False,
    "predict_xstart": True, "rescale_timesteps": True, "noise_schedule": "sqrt", "diffusion_steps": 2000,
    "timestep_respacing": "", "in_channel": DIMENSION, "out_channel": DIMENSION, "num_channels": TIME, "image_size": 4,
    "dropout": 0.1, "config_name": "bert-base-uncased", "use_bert_tokenizer": "no", "emb_scale_factor": 1.0,
}  # fmt: skip
DIFFUSEQ: dict[str, Any] = {
    "noise_schedule": "sqrt", "diffusion_steps": 2000, "timestep_respacing": "", "predict_xstart": True, "seed": 102,
    "rescale_timesteps": True, "learn_sigma": False, "vocab": "bert", "use_plm_init": "no", "seq_len": 16,
    "hidden_t_dim": TIME, "hidden_dim": DIMENSION, "dropout": 0.1, "config_name": "bert-base-uncased", "emb_scale_factor": 1.0,
}  # fmt: skip


def linear(name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(outputs, inputs) / math.sqrt(inputs), f"{name}.bias": 0.1 * torch.randn(outputs)}


def norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + 0.1 * torch.randn(width), f"{name}.bias": 0.1 * torch.randn(width)}


def layer(name: str, width: int, feedforward: int) -> dict[str, Tensor]:
    """Return the tensors of a layer of BERT."""
    attention = [linear(f"{name}.attention.self.{part}", width, width) for part in ("query", "key", "value")]
    parts = [
        *attention, linear(f"{name}.attention.output.dense", width, width), norm(f"{name}.attention.output.LayerNorm", width),
        linear(f"{name}.intermediate.dense", width, feedforward), linear(f"{name}.output.dense", feedforward, width),
        norm(f"{name}.output.LayerNorm", width),
    ]  # fmt: skip
    return {key: tensor for part in parts for key, tensor in part.items()}


def state_dict(
    words: int, dimension: int = DIMENSION, width: int = WIDTH, layers: int = LAYERS, feedforward: int = FEEDFORWARD,
    time: int = TIME,
) -> dict[str, Tensor]:  # fmt: skip
    """Return random weights under the names of the original network, in its order."""
    torch.manual_seed(0)
    table = torch.randn(words, dimension)
    blocks = [layer(f"input_transformers.layer.{number}", width, feedforward) for number in range(layers)]
    return {
        "position_ids": torch.arange(512)[None],
        "word_embedding.weight": table,
        "lm_head.weight": table,
        "lm_head.bias": torch.randn(words),
        **linear("time_embed.0", time, 4 * time), **linear("time_embed.2", 4 * time, width),
        **linear("input_up_proj.0", dimension, width), **linear("input_up_proj.2", width, width),
        **{key: tensor for block in blocks for key, tensor in block.items()},
        "position_embeddings.weight": torch.randn(512, width),
        **norm("LayerNorm", width),
        **linear("output_down_proj.0", width, width), **linear("output_down_proj.2", width, dimension),
    }  # fmt: skip


def vocabulary(words: list[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(["START", "END", "UNK", "PAD", *words])}


def checkpoint(folder: Path, name: str = "ema_0.9999_200000.pt", **arguments: Any) -> Path:
    """Write a checkpoint of Diffusion-LM: weights, ``training_args.json`` and ``vocab.json``; return the weights file."""
    words = vocabulary([*WORDS, "\n"])
    folder.mkdir(exist_ok=True)
    plain = {**DIFFUSION_LM, "vocab_size": len(words), **arguments}
    (folder / "training_args.json").write_text(json.dumps({key: value for key, value in plain.items() if value != "LEFT OUT"}))
    (folder / "vocab.json").write_text(json.dumps(words))
    torch.save(state_dict(len(words)), folder / name)
    return folder / name


def diffuseq_checkpoint(folder: Path, words: int, **arguments: Any) -> Path:
    """Write a checkpoint of DiffuSeq; return the weights file."""
    folder.mkdir(exist_ok=True)
    (folder / "training_args.json").write_text(json.dumps({**DIFFUSEQ, "vocab_size": words, **arguments}))
    torch.save(state_dict(words), folder / "ema_0.9999_050000.pt")
    return folder / "ema_0.9999_050000.pt"


def forward(weights: dict[str, Tensor], x: Tensor, index: Tensor, steps: int, heads: int = HEADS) -> Tensor:
    """Return the original network's output (B, L, D) for vectors ``x`` (B, L, D) at the steps ``index`` (B,), from 0."""

    def dense(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def normed(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    half = weights["time_embed.0.weight"].shape[1] // 2
    frequencies = torch.tensor([10_000 ** (-number / half) for number in range(half)])
    angles = (index.float() * (1000 / steps))[:, None] * frequencies
    time = dense("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1))
    time = dense("time_embed.2", time * torch.sigmoid(time))
    hidden = dense("input_up_proj.2", dense("input_up_proj.0", x).tanh())
    hidden = normed("LayerNorm", hidden + weights["position_embeddings.weight"][: x.shape[1]] + time[:, None])
    for number in range(len({name.split(".")[2] for name in weights if name.startswith("input_transformers.")})):
        block = f"input_transformers.layer.{number}"
        query, key, value = (
            dense(f"{block}.attention.self.{part}", hidden).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        hidden = normed(f"{block}.attention.output.LayerNorm", hidden + dense(f"{block}.attention.output.dense", mixed))
        inner = dense(f"{block}.intermediate.dense", hidden)
        inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        hidden = normed(f"{block}.output.LayerNorm", hidden + dense(f"{block}.output.dense", inner))
    return dense("output_down_proj.2", dense("output_down_proj.0", hidden).tanh())


def alpha_bar(name: str, steps: int) -> Tensor:
    """Return the original's cumulative products of 1 - beta at its steps 0 ... ``steps`` - 1, in float64."""
    if name == "linear":
        beta = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
        return (1 - beta).cumprod(0)

    def curve(u: float) -> float:
        return 1 - math.sqrt(u + 1e-4) if name == "sqrt" else math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - curve((i + 1) / steps) / curve(i / steps), 0.999) for i in range(steps)]
    return (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0)


def rounded(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return the tokens (B, L) of the finished vectors ``x``: the largest logits of the tied output layer."""
    return F.linear(x, weights["lm_head.weight"], weights["lm_head.bias"]).topk(1).indices[..., 0]
