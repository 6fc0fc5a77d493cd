"""The models of the lm-evaluation-harness (Gao et al. 2024): its tasks run with ``--model diffusionlm``.

    python -m diffusionlm.evaluation.harness --model diffusionlm --model_args pretrained=runs/mine --tasks my_task

Log-likelihoods are lower bounds, by Monte Carlo, for diffusion and masked models (their negatives are the bounds of
``likelihood`` and ``masked_likelihood``), and exact for autoregressive ones. That of a continuation is computed with the tokens
of its context known: they are never noised or hidden, and have no loss,

    log p(continuation | context, number of tokens) >= -(prior + reconstruction + diffusion)

A difference of two bounds, of the text with and without the continuation, would be no bound. The noise of each request depends
on the seed alone, so that the answers to a question are compared under the same draws.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from diffusionlm.config import UserError, build
from diffusionlm.controls import Prefix
from diffusionlm.data.pieces import Example
from diffusionlm.data.tokenizers import decode_texts
from diffusionlm.evaluation.effect import given_of, unused_in_scoring
from diffusionlm.evaluation.likelihood import Bound, bound
from diffusionlm.evaluation.masked_likelihood import masked_bound
from diffusionlm.evaluation.scoring import ScoringConfig, check_unconditional, score
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.causal import write_ids
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.pipelines.effect import check_given
from diffusionlm.pipelines.pieces import check_single
from diffusionlm.progress import intervals

NAME = "diffusionlm"
GREEDY = 1e-6  # temperature: draws from an autoregressive model are then its most probable tokens
BOUNDS: dict[str, Callable[..., Iterator[Bound]]] = {"diffusionlm": bound, "diffusionlm-masked": masked_bound}


class HarnessModel:
    """The requests of the harness, answered by the model in a folder; each has its arguments in ``args``."""

    def __init__(
        self, pretrained: str, batch_size: Any = 1, max_batch_size: Any = None, device: str = "cpu", **settings: Any
    ) -> None:
        """Open the model; ``settings`` are those of ``ScoringConfig``, such as ``strata``, ``orders``, ``seed`` and ``device``.

        Raises:
            UserError: not a model folder, a model that is conditioned or was trained on packed rows, or predicts no logits; an
                unknown setting, or one that has no effect.
        """
        if str(batch_size) != "1" or max_batch_size is not None:
            raise UserError("batch_size: requests are answered one by one, each with many noisy copies at once; leave it out")
        if device.startswith("cuda") and not torch.cuda.is_available():  # the harness's default is the first GPU
            print(f"no GPU was found: the model is on the CPU, not on {device}", file=sys.stderr)
            device = "cpu"
        options = build(ScoringConfig, {**settings, "device": device}, "model_args")
        if options.flow:
            raise UserError("model_args.flow: it has no likelihood of a text given its beginning; leave it out")
        self.pipeline = open_pipeline(pretrained, options.device, options.dtype)
        self.options = replace(options, device="cpu", dtype="fp32")  # those of the pipeline
        check_given(given_of(self.options, None), [unused_in_scoring(self.pipeline, self.options, True)])
        check_unconditional(self.pipeline, pretrained)
        check_single(self.pipeline.model, pretrained)
        if not self.pipeline.exact_likelihood and not self.pipeline.has_logits:
            raise UserError(
                f"{pretrained}: expected a model that predicts logits; its bound has no part of a text given the other"
            )

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return log p(continuation | context) in nats, or its lower bound, and whether greedy decoding gives the continuation.

        The latter is False for bounds: these models decode no token after the other.

        Raises:
            UserError: a text is longer than the model's maximum.
        """
        of = self._exact if self.pipeline.exact_likelihood else self._bound
        return [of(*self._given(*request.args)) for request in self._shown(requests, disable_tqdm)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return log p(text) in nats of each text with its end, or its lower bound, with its length. Raises as ``score``."""
        found = []
        for request in self._shown(requests, disable_tqdm):
            scored = score(self.pipeline, [request.args[0]], self.options)
            found.append(sum(-each.nats for _, each in scored))
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return a continuation of each context, cut before the first of the texts ``until``.

        An autoregressive model decodes greedily unless ``do_sample`` is set; a diffusion model samples a text that begins with
        the words of the context (``Prefix``), with its own settings.

        Raises:
            UserError: a masked model, or a context that a text cannot begin with.
        """
        return [self._continued(*request.args) for request in self._shown(requests, disable_tqdm)]

    def _shown(self, requests: Sequence[Any], hidden: bool) -> Any:
        return tqdm(requests, desc="requests", disable=hidden, **intervals())

    def _given(self, context: str, continuation: str) -> tuple[list[int], int]:
        """Return the token ids of a text with BOS and EOS, and how many of the first are those of its context."""
        tokenizer = self.pipeline.tokenizer
        begin, whole = ([tokenizer.bos_token_id, *self._ids(text)] for text in (context, context + continuation))
        longest = int(self.pipeline.model.config.max_position_embeddings)
        if len(whole) + 1 > longest:
            text = f"{context}{continuation}"
            got = f"{len(whole) - 1} tokens, more than this model's maximum of {longest - 2}"
            raise UserError(f"{text[:60]!r}: {got}; ask with fewer examples (num_fewshot), or leave it out")
        same = [one == other for one, other in zip(begin, whole, strict=False)]
        return [*whole, tokenizer.eos_token_id], same.index(False) if False in same else len(same)

    def _ids(self, text: str) -> list[int]:
        return list(self.pipeline.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _bound(self, row: list[int], given: int) -> tuple[float, bool]:
        """Return the bound of the tokens of a row behind the first ``given`` ones, EOS left out."""
        model, options = self.pipeline.model, self.options
        if given == len(row) - 1:
            return 0.0, False
        known = Example(row)
        width = len(row) if model.explicit_length else model.config.max_tokens
        known.known = [i < given or (i == len(row) - 1 and model.explicit_length) for i in range(width)]
        draws = {"strata": options.strata, "orders": options.orders, "seed": options.seed, "batch_size": options.batch_size}
        (found,) = BOUNDS[model.config.model_type](model, [known], dtype=self.pipeline.dtype, **draws)
        return -(found.prior + found.reconstruction + found.diffusion), False

    @torch.no_grad()
    def _exact(self, row: list[int], given: int) -> tuple[float, bool]:
        """Return the log-likelihood of the tokens of a row behind the first ``given`` ones, EOS left out."""
        model = self.pipeline.model
        ids = torch.tensor([row[:-1]], device=model.device)
        with torch.autocast(ids.device.type, self.pipeline.dtype, enabled=self.pipeline.dtype != torch.float32):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0, given - 1 :].double()
        wanted = ids[0, given:]
        found = logits.log_softmax(-1).gather(-1, wanted[:, None]).sum()
        tokenizer = self.pipeline.tokenizer
        logits[:, sorted({*tokenizer.all_special_ids} - {tokenizer.eos_token_id})] = -torch.inf  # as in ``draw_ids``
        return float(found), bool((logits.argmax(-1) == wanted).all())

    def _continued(self, context: str, settings: dict[str, Any]) -> str:
        pipeline, begun = self.pipeline, self._ids(context)
        until, most = settings.get("until") or [], settings.get("max_gen_toks")
        if pipeline.exact_likelihood:
            temperature = float(settings.get("temperature") or 1) if settings.get("do_sample") else GREEDY
            longest = None if most is None else len(begun) + int(most)
            (ids,) = write_ids(
                pipeline.model, pipeline.tokenizer, [[self.options.seed]], temperature, longest, pipeline.dtype, begun=begun
            )
        elif isinstance(pipeline, Pipeline):
            (row,) = pipeline(1, Prefix(context) if begun else (), seed=self.options.seed)
            ids = self._ids(row.text)
        else:
            raise UserError("generate_until: a masked model samples no text with a given beginning; leave such tasks out")
        (text,) = decode_texts(pipeline.tokenizer, [ids[len(begun) :][:most]])
        ends = [text.find(each) for each in ([until] if isinstance(until, str) else until) if each and each in text]
        return text[: min(ends)] if ends else text


def register() -> None:
    """Make ``diffusionlm`` a model of the harness in this process. Raises UserError where it is not installed."""
    try:
        from lm_eval.api.model import LM
        from lm_eval.api.registry import model_registry, register_model
    except ImportError:
        raise UserError("the harness is not installed: pip install 'diffusion-lm[harness]'") from None
    import lm_eval.models  # noqa: F401  # registers its own, which it does not once there are others

    class Registered(HarnessModel, LM):  # type: ignore[misc]
        """The model with the harness's own bookkeeping."""

        def __init__(self, **arguments: Any) -> None:
            LM.__init__(self)
            HarnessModel.__init__(self, **arguments)

    if NAME not in model_registry:
        register_model(NAME)(Registered)


def main() -> int:
    """Run the command line of the harness with this model."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
