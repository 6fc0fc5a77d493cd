"""What the original code of Diffusion-LM and DiffuSeq writes beside its checkpoints: ``training_args.json``.

    XiangLi1999/Diffusion-LM   improved_diffusion/script_util.py, scripts/train.py
    Shark-NLP/DiffuSeq         basic_utils.py, diffuseq/config.json

A field has the type of the values that this library has a model for; any other is refused. Arguments of training are not read.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from diffusionlm.config import Settings, UserError, build
from diffusionlm.data.folders import read_object

ARGUMENTS = "training_args.json"


@dataclass(frozen=True, kw_only=True)
class Arguments(Settings):
    """What both repositories' ``training_args.json`` says of the model; arguments that came later have their defaults."""

    noise_schedule: Literal["sqrt", "cosine", "linear"]
    diffusion_steps: int
    predict_xstart: bool
    rescale_timesteps: bool
    learn_sigma: Literal[False]
    vocab_size: int
    dropout: float
    timestep_respacing: Literal[""] = ""
    config_name: str = "bert-base-uncased"
    emb_scale_factor: float = 1.0

    def __post_init__(self) -> None:
        self.expect("at least 1", "vocab_size")
        self.expect("2 to 1000000", "diffusion_steps")
        self.expect("a share from 0 to below 1", "dropout")
        if not self.rescale_timesteps and self.diffusion_steps != 1000:
            raise UserError("rescale_timesteps: expected true, by which the network receives times from 0 to 1000, got false")
        if self.emb_scale_factor != 1:
            raise UserError(f"emb_scale_factor: expected 1, got {self.emb_scale_factor}")
        if not self.config_name.rpartition("/")[2].startswith("bert"):
            raise UserError(f"config_name: expected the name of a BERT, such as 'bert-base-uncased', got {self.config_name!r}")

    @property
    def sizes(self) -> dict[str, tuple[str, int, int]]:
        """Return the tensor, the axis and the size there that each argument of a size describes."""
        raise NotImplementedError

    @property
    def max_length(self) -> int:
        """The number of tokens of a sequence."""
        raise NotImplementedError

    @property
    def variance(self) -> Literal["posterior", "upper"]:
        """The variance of a step of its ancestral sampling, as ``core.sampler.DDPM`` calls it."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class DiffusionLMArguments(Arguments):
    """The arguments of Diffusion-LM."""

    model_arch: Literal["transformer"]
    training_mode: Literal["e2e", "e2e-simple"]
    class_cond: Literal[False]
    in_channel: int
    out_channel: int
    num_channels: int
    image_size: int
    modality: Literal["e2e-tgt", "roc", "roc-aug", "yelp", "commonGen", "commonGen-aug", "book"]
    padding_mode: Literal["pad", "block"]
    experiment_mode: Literal["lm"] = "lm"
    logits_mode: Literal[1] = 1
    use_bert_tokenizer: Literal["yes", "no"] = "no"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect("at least 1", "in_channel", "out_channel", "num_channels")
        self.expect("2 to 100", "image_size")  # the sequence is a square: two tokens are BOS and EOS

    @property
    def sizes(self) -> dict[str, tuple[str, int, int]]:
        return {
            "vocab_size": ("word_embedding.weight", 0, self.vocab_size),
            "in_channel": ("word_embedding.weight", 1, self.in_channel),
            "out_channel": ("output_down_proj.2.weight", 0, self.out_channel),
            "num_channels": ("time_embed.0.weight", 1, self.num_channels),
        }

    @property
    def max_length(self) -> int:
        return self.image_size**2

    @property
    def variance(self) -> Literal["posterior", "upper"]:
        return "posterior"  # its scripts of sampling set sigma_small

    @property
    def word_pieces(self) -> bool:
        """Whether its tokens are those of BERT, not the words of vocab.json."""
        return self.modality == "book" or self.use_bert_tokenizer == "yes"


@dataclass(frozen=True, kw_only=True)
class DiffuSeqArguments(Arguments):
    """The arguments of DiffuSeq; its sequence is [CLS] source [SEP] [SEP] [CLS] target [SEP], the source without noise."""

    hidden_dim: int
    hidden_t_dim: int
    seq_len: int
    vocab: Literal["bert"]
    learned_mean_embed: Literal[False] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect("at least 1", "hidden_dim", "hidden_t_dim")
        self.expect("7 to 100000", "seq_len")  # a word each: six tokens are special ones

    @property
    def sizes(self) -> dict[str, tuple[str, int, int]]:
        return {
            "vocab_size": ("word_embedding.weight", 0, self.vocab_size),
            "hidden_dim": ("word_embedding.weight", 1, self.hidden_dim),
            "hidden_t_dim": ("time_embed.0.weight", 1, self.hidden_t_dim),
        }

    @property
    def max_length(self) -> int:
        return self.seq_len

    @property
    def longest_source(self) -> int:
        """The most tokens of a source, without special ones, that leave room for a target of one."""
        return self.seq_len - 6

    @property
    def variance(self) -> Literal["posterior", "upper"]:
        return "upper"


def read_arguments(path: Path) -> Arguments:
    """Read ``training_args.json`` of either repository. Raises UserError for what this library does not have."""
    if not path.exists():
        raise UserError(f"{path}: expected the training arguments that the original code saves here, but there is no such file")
    plain = read_object(path)
    kind: type[Arguments] = DiffusionLMArguments if "model_arch" in plain else DiffuSeqArguments
    if "model_arch" not in plain and "hidden_t_dim" not in plain:
        raise UserError(f"{path}: expected arguments of Diffusion-LM (model_arch) or of DiffuSeq (hidden_t_dim), got neither")
    known = {field.name for field in fields(kind)}
    try:
        return build(kind, {name: value for name, value in plain.items() if name in known})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
