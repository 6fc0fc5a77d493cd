"""Convert checkpoints of the original repositories of Diffusion-LM and DiffuSeq to model folders."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError, to_plain
from diffusionlm.core.sampler import DDPM
from diffusionlm.data.folders import is_folder
from diffusionlm.data.tokenizers import Pretrained
from diffusionlm.data.vocabularies import (
    LINE_END,
    read_vocabulary,
    unreadable_words,
    vocabulary_tokenizer,
    word_piece_tokenizer,
)
from diffusionlm.models.diffusion import DiffusionLM, DiffusionLMConfig, ModelConfig
from diffusionlm.models.io import special_ids
from diffusionlm.models.original_arguments import ARGUMENTS, Arguments, DiffuSeqArguments, DiffusionLMArguments
from diffusionlm.models.originals import Original, read_original
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.training.run import save_model

VOCABULARY = "vocab.json"
ATTENTION_DROPOUT = 0.1  # of BERT's config, which the original code leaves as it is


def convert(
    checkpoint: str | Path, out: str | Path, tokenizer: str | None = None, heads: int | None = None, quiet: bool = False
) -> None:
    """Convert ``checkpoint``, a ``.pt`` file or its folder, to the model folder ``out``, with the paper's sampling settings.

    Args:
        checkpoint: with ``training_args.json``, and ``vocab.json`` where its tokens are words.
        out: a new or empty folder.
        tokenizer: where its tokens are BERT's: the tokenizer's folder, or ``vocab.txt``.
        heads: attention heads, for a BERT of sizes that its name does not tell.
        quiet: whether to leave out what is said on stderr.

    Raises:
        UserError: files are missing, damaged or contradict each other; this library has no such model; ``out`` is in use.
    """
    out = Path(out)
    if out.exists() and not (is_folder(out) and not any(out.iterdir())):
        raise UserError(f"--out: expected a new or empty folder, but there is already something in {out}")
    original = read_original(checkpoint)
    words = original_tokenizer(original, tokenizer)
    model = original_model(original, original.settings(heads), words, tokenizer or original.file.parent / VOCABULARY)
    save_model(model, words, original_sampling(original.arguments), out.resolve())
    if not quiet:
        for line in remarks(original, model.settings, words):
            print(line, file=sys.stderr)


def original_model(
    original: Original, settings: ModelConfig, tokenizer: PreTrainedTokenizerFast, place: str | Path = "the tokenizer"
) -> DiffusionLM:
    """Return the model of ``settings`` with the original weights, for the ``tokenizer`` from ``place``.

    Raises:
        UserError: they do not fit each other.
    """
    arguments, size = original.arguments, len(tokenizer)
    if size != arguments.vocab_size:
        path = original.file.parent / ARGUMENTS
        raise UserError(f"{path}: vocab_size is {arguments.vocab_size}, but {place} has {size} tokens")
    with torch.device("meta"):  # no random weights: they are all replaced
        ids = {str(name): i for name, i in special_ids(tokenizer).items()}
        config = DiffusionLMConfig(to_plain(settings), size, arguments.max_length, special_ids=ids)
        model = DiffusionLM(config)
    model.load_state_dict(original.state(model.state_dict()), assign=True)
    return model


def original_sampling(arguments: Arguments) -> SamplingConfig:
    """Return the paper's sampling: ancestral, as many steps as in training, clamped."""
    steps, sampler = arguments.diffusion_steps, DDPM(arguments.variance)
    return SamplingConfig(steps=steps, passes=1, sampler=sampler, sweeps=0, clamp=True)


def original_tokenizer(original: Original, tokenizer: str | None) -> PreTrainedTokenizerFast:
    """Return the tokenizer: of the words in ``vocab.json``, or BERT's, from the place that the user named."""
    arguments, folder = original.arguments, original.file.parent
    if isinstance(arguments, DiffusionLMArguments) and not arguments.word_pieces:
        if tokenizer is not None:
            raise UserError(f"--tokenizer: expected none, since this checkpoint has the words of {folder / VOCABULARY}")
        words = read_vocabulary(folder / VOCABULARY)
        return vocabulary_tokenizer(words, arguments.max_length, _ends_lines(arguments, words))
    if tokenizer is None:
        needed = f"the tokens of this checkpoint are those of {arguments.config_name}"
        raise UserError(f"--tokenizer: expected the tokenizer's folder or its vocab.txt: {needed}")
    if is_folder(tokenizer):
        return Pretrained(tokenizer).make([], arguments.max_length)
    if not Path(tokenizer).is_file():
        raise UserError(
            f"--tokenizer: expected the tokenizer's folder or its vocab.txt on this machine, but there is no {tokenizer}"
        )
    return word_piece_tokenizer(tokenizer, arguments.max_length, lower_case="-cased" not in arguments.config_name)


def remarks(original: Original, settings: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return what a user has to know of the converted model, a line each."""
    arguments, file, backbone = original.arguments, original.file, to_plain(settings.backbone)
    sizes = f"{len(tokenizer)} tokens, {arguments.max_length} positions, {backbone['layers']} layers, width {backbone['width']}"
    lines = [f"{file}: {sizes}, {backbone['heads']} heads, {arguments.noise_schedule} schedule of {backbone['T']} steps"]
    if original.embedding_gap:
        lines.append(
            f"{file}: word_embedding.weight and lm_head.weight differ by up to {original.embedding_gap:.2g}: the original "
            "averages only the first, and replaces it by the second when it loads the file; so does this conversion"
        )
    if isinstance(arguments, DiffuSeqArguments):
        lines.append(
            f"{file}: source and text share the {arguments.max_length} positions; a source has at most "
            f"{arguments.longest_source} tokens (the original cuts longer ones)"
        )
    if isinstance(arguments, DiffusionLMArguments):
        if arguments.padding_mode == "block":
            lines.append(
                f"{file.parent / ARGUMENTS}: padding_mode is 'block': the model was trained on windows of running text without "
                "padding: a sample is what a window holds before its first end, often the rest of a text, and `score` bounds "
                "padded texts, which the model never saw"
            )
        if not arguments.word_pieces and (blanks := unreadable_words(tokenizer, tokenizer.get_vocab())):
            lines.append(f"{file.parent / VOCABULARY}: no text is read as {', '.join(map(repr, blanks[:3]))}, of white space")
    if arguments.dropout != ATTENTION_DROPOUT:
        lines.append(f"{file}: fine-tuning drops attention at {arguments.dropout}, the original at {ATTENTION_DROPOUT}")
    return lines


def _ends_lines(arguments: DiffusionLMArguments, words: dict[str, int]) -> bool:
    """Return whether each training text ends with the token of its line end, which the original leaves on E2E's."""
    return arguments.modality == "e2e-tgt" and LINE_END in words
