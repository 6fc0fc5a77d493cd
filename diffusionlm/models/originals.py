"""Checkpoints of the original repositories: Diffusion-LM (Li et al. 2022) and DiffuSeq (Gong et al. 2023), as our models.

    XiangLi1999/Diffusion-LM   improved_diffusion/transformer_model2.py:TransformerNetModel2
    Shark-NLP/DiffuSeq         diffuseq/transformer_model.py:TransformerNetModel

Both save a state dict beside ``training_args.json``. Their network is that of ``backbones.Bert`` under other names; its sizes
are read from the tensors. ``torch.load(weights_only=True)`` reads the file and runs no code of it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffusionlm.config import UserError, build
from diffusionlm.core.schedule import NoiseSchedule
from diffusionlm.models.backbones import Bert
from diffusionlm.models.diffusion import ModelConfig
from diffusionlm.models.io import not_finite
from diffusionlm.models.original_arguments import ARGUMENTS, Arguments, DiffuSeqArguments, read_arguments
from diffusionlm.models.source import PartialNoising

NAMES = {  # prefixes of tensors there -> here
    "word_embedding.": "embedding.",
    "lm_head.bias": "rounding_bias",
    "time_embed.": "network.time.",
    "input_up_proj.": "network.up.",
    "position_embeddings.": "network.position.",
    "LayerNorm.": "network.norm.",
    "input_transformers.": "network.encoder.",
    "output_down_proj.": "network.down.",
}
LAYER = "input_transformers.layer."
WORDS, HEAD, POSITIONS = "word_embedding.weight", "lm_head.weight", "position_ids"
BERTS = {"bert-base": (12, 768, 3072, 12), "bert-large": (24, 1024, 4096, 16)}  # layers, width, perceptron, heads
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_FILE = re.compile(r"(?:ema_(?P<rate>[0-9.]+)_|model)(?P<step>[0-9]+)\.pt")


@dataclass(frozen=True)
class Original:
    """A checkpoint that was read: its file, its arguments, and its tensors in fp32 under the names that they have there."""

    file: Path
    arguments: Arguments
    weights: Mapping[str, Tensor]

    @property
    def embedding_gap(self) -> float:
        """The largest difference between the two copies of the word vectors, which are one parameter in training.

        The original averages only ``word_embedding.weight``; when it loads the file, ``lm_head.weight`` replaces it.
        """
        return float((self.weights[WORDS] - self.weights[HEAD]).abs().max())

    def settings(self, heads: int | None = None) -> ModelConfig:
        """Return the model's settings; ``heads`` is the number of attention heads where the name of its BERT does not tell it.

        Raises:
            UserError: a tensor that determines a size is missing, or contradicts the arguments; unknown ``heads``.
        """
        given = self.arguments
        self._check_sizes()
        layers = len({name.split(".")[2] for name in self.weights if name.startswith(LAYER)})
        width, feedforward = self._size("time_embed.2.weight", 0), self._size(f"{LAYER}0.intermediate.dense.weight", 0)
        heads = self._heads((layers, width, feedforward), heads)
        try:
            return ModelConfig(
                dimension=self._size(WORDS, 1),
                backbone=Bert(
                    layers,
                    width,
                    heads,
                    feedforward,
                    given.dropout,
                    given.diffusion_steps,
                    self._size("time_embed.0.weight", 1),
                ),
                schedule=build(NoiseSchedule, {"name": given.noise_schedule, "T": given.diffusion_steps}),
                prediction="x0" if given.predict_xstart else "eps",
                embedding="free",
                self_conditioning=False,
                explicit_length=False,
                condition=self._condition(),
            )
        except UserError as error:
            raise UserError(f"{self.file}: {error}") from None

    def _condition(self) -> PartialNoising | None:
        """Return the condition of a DiffuSeq model, whose targets have three tokens or more: [CLS], a word and [SEP]."""
        if not isinstance(self.arguments, DiffuSeqArguments):
            return None
        return PartialNoising(max_length=self.arguments.longest_source, drop=0, times="text", layout="diffuseq")

    def state(self, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors under our names, of the names and shapes ``expected``. Raises UserError where they differ."""
        names = {renamed(name): name for name in self.weights if name not in (POSITIONS, WORDS, HEAD)}
        names[renamed(WORDS)] = HEAD
        for name, tensor in expected.items():
            if name not in names:
                raise UserError(f"{self.file}: expected a tensor {original_name(name)}, got none")
            if (shape := self.weights[names[name]].shape) != tensor.shape:
                raise UserError(f"{self.file}: {names[name]}: expected the shape {tuple(tensor.shape)}, got {tuple(shape)}")
        if extra := [there for name, there in names.items() if name not in expected]:
            raise UserError(f"{self.file}: {extra[0]}: the network that {ARGUMENTS} describes has no such tensor")
        return {name: self.weights[names[name]] for name in expected}

    def _check_sizes(self) -> None:
        """Raise UserError where tensors contradict the arguments, or the network has no projections."""
        for name, (tensor, axis, size) in self.arguments.sizes.items():
            if self._size(tensor, axis) != size:
                there = f"{tensor} in {self.file.name} has the shape {tuple(self.weights[tensor].shape)}"
                raise UserError(
                    f"{self.file.parent / ARGUMENTS}: {name}: expected the size of the weights, got {size}; {there}"
                )
        if "input_up_proj.0.weight" not in self.weights and self._size(WORDS, 1) == self._size("time_embed.2.weight", 0):
            width = self._size(WORDS, 1)
            raise UserError(
                f"{self.file}: expected projections of the word vectors, but they have the network's width, {width}"
            )

    def _size(self, name: str, axis: int) -> int:
        """Return the size of a matrix. Raises UserError where there is none."""
        tensor = self.weights.get(name)
        if tensor is None or tensor.dim() != 2:
            got = "none" if tensor is None else f"one of the shape {tuple(tensor.shape)}"
            raise UserError(f"{self.file}: expected a matrix {name}, got {got}")
        return tensor.shape[axis]

    def _heads(self, sizes: tuple[int, int, int], heads: int | None) -> int:
        """Return the number of attention heads. Raises UserError where it is unknown, or contradicts the BERT's name."""
        name, place = self.arguments.config_name, f"{self.file.parent / ARGUMENTS}: config_name"
        known = next((bert[3] for prefix, bert in BERTS.items() if name.startswith(prefix) and bert[:3] == sizes), None)
        if known is not None and heads not in (None, known):
            raise UserError(f"--heads: expected {known}, the heads of {name}, got {heads}")
        heads = known if heads is None else heads
        if heads is None:
            found = f"{sizes[0]} layers of width {sizes[1]} and {sizes[2]}"
            raise UserError(
                f"{place}: the weights have {found}, which {name!r} does not say; give its attention heads with --heads"
            )
        return heads


def renamed(name: str) -> str:
    """Return our name of a tensor; a name that the original networks do not have stays."""
    prefix = next((prefix for prefix in NAMES if name.startswith(prefix)), "")
    return NAMES.get(prefix, "") + name[len(prefix) :]


def original_name(name: str) -> str:
    """Return the original name of our tensor ``name``."""
    prefix = next((prefix for prefix, ours in NAMES.items() if name.startswith(ours)), "")
    return prefix + name[len(NAMES.get(prefix, "")) :]


def read_original(checkpoint: str | Path) -> Original:
    """Read a checkpoint: a ``.pt`` file beside its ``training_args.json``, or the folder of both.

    Raises:
        UserError: files are missing or damaged; the arguments describe a model that this library does not have.
    """
    file = checkpoint_file(Path(checkpoint))
    arguments = read_arguments(file.parent / ARGUMENTS)
    weights = read_tensors(file)
    if missing := [name for name in (WORDS, HEAD) if name not in weights]:
        raise UserError(f"{file}: expected a tensor {missing[0]}, got none")
    if (words := tuple(weights[WORDS].shape)) != (head := tuple(weights[HEAD].shape)):
        raise UserError(f"{file}: {HEAD}: expected the shape of {WORDS}, {words}, got {head}")
    return Original(file, arguments, weights)


def checkpoint_file(checkpoint: Path) -> Path:
    """Return the weights file: ``checkpoint`` itself, or in its folder the newest average, or else the newest model.

    Raises:
        UserError: there is none, or there are several averages of the newest step.
    """
    if checkpoint.is_file():
        return checkpoint
    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint}: expected a checkpoint (.pt) or its folder, but there is none")
    found = [(match, file) for file in sorted(checkpoint.iterdir()) if (match := _FILE.fullmatch(file.name))]
    if not found:
        raise UserError(f"{checkpoint}: expected ema_RATE_STEP.pt or modelSTEP.pt, but there is no such file")
    kept = [each for each in found if each[0]["rate"]] or found
    newest = max(int(match["step"]) for match, _ in kept)
    names = [file.name for match, file in kept if int(match["step"]) == newest]
    if len(names) > 1:
        raise UserError(f"{checkpoint}: expected one average of step {newest}, got {', '.join(names)}; name the file")
    return checkpoint / names[0]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict in fp32, by name, without running code of the file.

    Raises:
        UserError: the file is damaged, holds anything but tensors, or numbers that are not finite.
    """
    try:
        with path.open("rb"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of forms that older versions of torch wrote
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file holds decides which
        raise UserError(f"{path}: {_damage(error)}") from None
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path}: expected a state dict, tensors by name, got {type(found).__name__}")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{path}: expected tensors by name, got {type(tensor).__name__} for {str(name)[:60]!r}")
        _check_tensor(path, name, tensor)
    weights = {name: tensor.detach().float() for name, tensor in found.items()}
    if name := not_finite(weights.items()):
        raise UserError(f"{path}: expected finite weights, but {name} holds NaN or infinity")
    return weights


def _check_tensor(path: Path, name: str, tensor: Tensor) -> None:
    """Raise UserError unless ``tensor`` is dense, holds all its numbers, and is of a kind that fp32 represents."""
    kinds = (torch.int64,) if name == POSITIONS else DTYPES
    if tensor.is_nested or tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in kinds:
        names = " or ".join(str(kind).removeprefix("torch.") for kind in kinds)
        got = f"{tensor.dtype} ({tensor.layout}, {tensor.device})".replace("torch.", "")
        raise UserError(f"{path}: {name}: expected a dense tensor of {names}, got {got}")
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise UserError(f"{path}: {name}: expected a number for each place of {tuple(tensor.shape)}, but the file holds fewer")
    if name == POSITIONS and not torch.equal(tensor.flatten(), torch.arange(tensor.numel())):
        raise UserError(f"{path}: {name}: expected 0, 1, 2, ..., got another order of positions")


def _damage(error: Exception) -> str:
    """Return the sentence for a file that ``torch.load`` refuses."""
    if isinstance(error, OSError) and error.filename and error.strerror:  # without a name: a read beyond the end
        return f"cannot be read: {error.strerror}"
    text = str(error)
    if code := re.search(r"GLOBAL ([\w.]+)", text):
        return f"expected tensors alone, but the file names {code[1]}, Python code, which is never run"
    inner = text.partition("WeightsUnpickler error: ")[2] or text
    reason = " ".join(inner.split()).partition(". ")[0][:150] or type(error).__name__
    return f"expected a file of torch.save, but it is damaged, or holds more than tensors: {reason}"
