"""What all pipelines share: sampling settings, generated rows, loading a model folder.

The noise of each sample, and its length where none is given, are drawn from the seed and the sample's own index: the first n
samples depend neither on their number nor, beyond rounding, on the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from diffusionlm.config import Settings, UserError, build, build_untrusted, merge, to_plain, upgraded
from diffusionlm.controls import Control, read_controls
from diffusionlm.core.guidance import Guidance
from diffusionlm.core.sampler import DDPM, Sampler
from diffusionlm.data.annotators import Annotator
from diffusionlm.data.folders import read_object
from diffusionlm.files import taken_version
from diffusionlm.models.conditions import condition_of
from diffusionlm.models.io import model_folder, model_tokenizer
from diffusionlm.models.publishing import publish
from diffusionlm.pipelines.budget import affordable, check_evaluations, noise_shift_for
from diffusionlm.pipelines.conditioning import Requested, at_length, check_cfg, requested
from diffusionlm.pipelines.effect import OFF, Unused, check_given, given_settings
from diffusionlm.pipelines.gradient import Gradient
from diffusionlm.pipelines.particles import Particles
from diffusionlm.pipelines.placing import placed
from diffusionlm.pipelines.ranking import MinimumBayesRisk, Ranking, best_candidates
from diffusionlm.pipelines.rows import Generated, decoded, restored
from diffusionlm.processes import at_most, shared

M = TypeVar("M", bound=PreTrainedModel)
Controls = Sequence[str | Control] | str | Control
Watch = Callable[[Any, list[str]], None]  # receives a state with a time ``t`` and the decoded texts after every step


@dataclass(frozen=True)
class SamplingConfig(Settings):
    """Sampling settings.

    Args:
        steps: sampling steps from noise to text.
        passes: self-conditioning passes per step: evaluations of the network at the same noisy vectors, each of which receives
            the estimate of the one before.
        sampler: the sampler, by name or import path.
        noise_shift: is added to gamma of all steps but the first, to spend steps at more noise (above 0) or less. Models with a
            source need fewer steps with a shift of 2 to 3: what the source decides is decided at high noise.
        temperature: of the token posterior; below 1 gives more fluent and less diverse samples. Needs prediction ``logits``.
        step_temperature: of the posterior whose mean the sampler moves toward; empty is ``temperature``. Near 0 the sampler
            moves toward the most probable token, while self-conditioning still receives the posterior mean.
        sweeps: refinement sweeps over the finished tokens, each predicted again given all the others. Needs prediction
            ``logits`` and training at mixed noise levels. A sweep takes 11 evaluations (blockwise ICM), or one where the
            backbone excludes each position's own input (parallel ICM).
        sweep_odds: a sweep replaces a token by one that is at least this many times as probable.
        guidance: how the gradients of controls act.
        particles: how controls that only score texts act.
        cfg: scale of classifier-free guidance on the model's condition: logits are moved from those without the condition
            through those with it; 1 is no guidance, 0 no condition (Ho and Salimans 2021; their weight is one less).
        self_cfg: likewise on the estimate for self-conditioning.
        cfg_floor: a ``cfg`` above 1 raises only tokens of at least this ratio to the largest probability given the condition;
            0 is classifier-free guidance without this limit.
        clamp: replace each predicted vector by its nearest word vector (Diffusion-LM's clamping trick).
        length: tokens per sample, BOS and EOS not counted; empty draws from the training-length histogram, or from the lengths
            that the condition predicts.
        length_temperature: of that draw; near 0 each sample has the most probable length.
        candidates: candidates per sample, of which the best is kept; 1 is plain sampling.
        ranking: which of several candidates is the best.
        batch_size: samples per batch; fewer are drawn at once where a large vocabulary does not fit in memory.
        seed: of the noise and the lengths.
    """

    steps: int = 28
    passes: int = 2
    sampler: Sampler = field(default_factory=DDPM)
    noise_shift: float = 0.0
    temperature: float = 1.0
    step_temperature: float | None = None
    sweeps: int = 6
    sweep_odds: float = 3.0
    guidance: Guidance = field(default_factory=Gradient)
    particles: Particles = field(default_factory=Particles)
    cfg: float = 1.0
    self_cfg: float = 1.0
    cfg_floor: float = 0.1
    clamp: bool = False
    length: int | None = None
    length_temperature: float = 1.0
    candidates: int = 1
    ranking: Ranking = field(default_factory=MinimumBayesRisk)
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        self.expect("at least 1", "steps", "batch_size", "sweep_odds")
        self.expect("1 to 10000", "passes", "candidates")
        self.expect("a positive number", "temperature", "step_temperature", "length_temperature")
        self.expect("0 to 10000", "sweeps")
        self.expect("-100 to 100", "noise_shift")
        self.expect("0 or more", "seed")
        self.expect("0 to 10000", "cfg", "self_cfg")  # in fp32 larger scales are rounding errors, or overflow
        self.expect("a share from 0 to below 1", "cfg_floor")


@dataclass
class BasePipeline(Generic[M]):
    """Base of the pipelines, one for each model family: a model, its tokenizer, and default sampling settings."""

    model: M
    tokenizer: PreTrainedTokenizerFast
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    dtype: torch.dtype = torch.float32  # of the network's arithmetic
    folder: Path | None = None  # that the model was loaded from
    adapter: Path | None = None  # the folder of the adapter that was added to it

    exact_likelihood: ClassVar[bool] = False  # whether the likelihood is exact, not bounded
    has_flow: ClassVar[bool] = False  # whether there is a probability flow: diffusion on word vectors

    @property
    def has_logits(self) -> bool:
        """Whether the model predicts token logits."""
        return bool(getattr(self.model, "has_logits", True))

    @property
    def any_order_bound(self) -> bool:
        """Whether the model has an any-order likelihood bound: it predicts each token from any subset of the others."""
        return self.has_logits and not self.exact_likelihood

    @property
    def network(self) -> torch.nn.Module:
        """The module that sampling calls again and again, on a row for each sample; encoders of conditions are not in it."""
        model: Any = self.model
        network: torch.nn.Module = model.network
        return network

    @property
    def conditional(self) -> bool:
        """Whether the model was trained with a condition."""
        return condition_of(self.model) is not None

    def read_condition(self, texts: Sequence[str]) -> Any:
        """Return the request for the model's condition that ``texts`` of the command line stand for; None for no text."""
        if not texts:
            return None
        condition = condition_of(self.model)
        return texts[0] if condition is None else condition.read_all(texts)

    # Of a model folder, and the base of its adapter or None; raises UserError for a damaged folder or another family.
    load_model: ClassVar[staticmethod[[str | Path, str | Path | None], Any]]

    def check(self, sampling: SamplingConfig) -> None:
        """Raise UserError where a setting does not fit the model."""

    def unused(self, sampling: SamplingConfig, controls: Sequence[Control] = ()) -> Unused:
        """Return what has no effect for this model and ``controls``: settings and arguments of ``stream``, with the reason.

        Raises:
            UserError: the model cannot follow ``controls``.
        """
        raise NotImplementedError

    def check_given(
        self, given: Mapping[str, Any], sampling: SamplingConfig, requests: Sequence[Sequence[Control]] = ((),),
        labels: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Raise UserError for a setting of ``given``, dotted, without effect in any of ``requests``, lists of controls.

        ``labels`` say how the user wrote a setting, where that is not its name.
        """
        # A setting that has an effect without controls has one with them, so controls are compiled for the other settings only.
        check_given(given, (self.unused(sampling, each) for each in [(), *requests]), labels)

    def check_controls(self, controls: Sequence[Control], sampling: SamplingConfig) -> None:
        """Raise UserError where the model cannot follow ``controls``."""
        if controls:
            raise self.unsteered("control")

    def check_request(
        self, sampling: SamplingConfig, controls: Sequence[Control], tries: int, condition: Any, source: Any = None
    ) -> None:
        """Raise UserError for ``tries``, a ``condition`` or a ``source`` without effect, or an impossible number of tries."""
        if tries < 1:
            raise UserError(f"tries: expected at least 1, got {tries}")
        wanted = {"condition": condition, "source": source}
        given = {"tries": tries, **{name: value for name, value in wanted.items() if value is not None}}
        self.check_given(given, sampling, [controls])

    def check_requested(self, sampling: SamplingConfig, conditions: Sequence[Requested]) -> None:
        """Raise UserError where guidance or the ranking of candidates does not fit what samples are conditioned on."""
        check_cfg(self.model, sampling.cfg, conditions)
        if sampling.candidates > 1:
            sampling.ranking.check(self, conditions)

    def set_annotator(self, annotator: Annotator) -> None:
        """Check the controls of finished samples with ``annotator``. Raises UserError for a model that takes no controls."""
        raise self.unsteered("annotator")

    def unsteered(self, name: str) -> UserError:
        """Return the error for the argument ``name`` of a model that takes no controls."""
        return UserError(
            f"{name}: a {self.model.config.model_type} model takes no controls; only diffusion on word vectors does"
        )

    def stream(
        self, count: int = 1, sampling: SamplingConfig | None = None, watch: Watch | None = None,
        controls: Controls = (), tries: int = 1, condition: Any = None, source: str | Sequence[str] | None = None,
        first: int = 0,
    ) -> Iterator[Generated]:  # fmt: skip
        """Yield ``count`` samples, for each source if there are several, in order, each batch as soon as it is finished.

        Args:
            count: the number of samples, of each source.
            sampling: the settings; None is the pipeline's.
            watch: called after every step with the state, whose time ``t`` falls from 1, and the decoded texts.
            controls: constraints and targets, for diffusion models.
            tries: attempts per sample until one passes the checks of all controls; the last is kept if none does.
            condition: the value of the model's condition, for all samples; of several conditions, a mapping of their values.
                A list of ``conditioning.Requested`` has one for each ``count`` samples.
            source: the source text of a model with such a condition, or a list of them.
            first: the index of the first sample to yield; those before it are not sampled.

        Raises:
            UserError: a setting, control or condition that does not fit the model, before any sampling.
        """
        raise NotImplementedError

    def __call__(
        self, count: int = 1, controls: Controls = (), tries: int = 1, condition: Any = None,
        source: str | Sequence[str] | None = None, **changes: Any,
    ) -> list[Generated]:  # fmt: skip
        """Return ``count`` samples as ``stream`` does; ``changes`` are fields of ``SamplingConfig``, components also by name.

        ``evaluations`` stands for the steps, passes and sweeps of at most so many network evaluations per candidate.

        Raises:
            UserError: as ``stream``; an unknown field or a wrong value.
        """
        sampling = self.changed(changes)
        self.check_given(given_settings(changes), sampling, [read_controls(controls)])
        return list(self.stream(count, sampling, None, controls, tries, condition, source))

    def changed(self, changes: Mapping[str, Any]) -> SamplingConfig:
        """Return the default settings with ``changes``. Raises UserError for an unknown field or a wrong value."""
        fields = {name: value for name, value in changes.items() if name != "evaluations"}
        sampling = build(SamplingConfig, merge(to_plain(self.sampling), to_plain(fields)))
        if "evaluations" not in changes:
            return sampling
        return self.with_evaluations(sampling, changes["evaluations"], given_settings(fields))

    def with_evaluations(self, sampling: SamplingConfig, evaluations: int, given: Collection[str] = ()) -> SamplingConfig:
        """Return ``sampling`` with at most a number of network ``evaluations`` per candidate, see ``budget``.

        A model with logits is guided without gradients through the network, which cost two more evaluations in each step,
        unless their scale is ``given``. A model with a source takes few steps at more noise.

        Raises:
            UserError: no such number, or one of the settings that it decides is ``given``; a model that has no steps.
        """
        spent = self.spent_on(sampling, check_evaluations(evaluations, given))
        if not self.has_logits:
            return spent
        shift = noise_shift_for(self.model, spent, evaluations, given) if self.has_flow else 0.0
        return replace(spent, guidance=affordable(spent.guidance, evaluations, given), noise_shift=shift)

    def spent_on(self, sampling: SamplingConfig, evaluations: int) -> SamplingConfig:
        """Return ``sampling`` with the split of ``evaluations``. Raises UserError for a model that has no steps."""
        reason = "samples one token after the other; leave it out"
        raise UserError(f"evaluations: a {self.model.config.model_type} model {reason}")

    def preview(self, count: int) -> list[str]:
        """Return ``count`` samples with little computation, for progress reports during training."""
        return [row.text for row in self.stream(count, replace(self.sampling, candidates=1, cfg=1.0))]  # without a condition

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str = "cpu", dtype: str = "fp32", adapter: str | Path | None = None
    ) -> Self:
        """Load a model folder; ``dtype`` is that of the network's arithmetic, fp32 or bf16.

        ``adapter`` is the folder of an adapter that was trained on this model: its weights are added to the model's, and
        tokenizer, lengths and sampling settings are its own. Classifiers are those of ``folder``.

        Raises:
            UserError: not a model folder, damaged or of a newer format; an unknown device or dtype; another model's adapter.
        """
        folder = model_folder(folder)
        own = folder if adapter is None else model_folder(adapter)
        model = cls.load_model(own, None if adapter is None else folder)
        tokenizer = model_tokenizer(model, own)
        dtype_of = placed(model, device, dtype)
        return cls(model, tokenizer, saved_sampling(own), dtype_of, folder, None if adapter is None else own)

    def push_to_hub(self, name: str, private: bool = False, token: str | None = None, base: str | None = None) -> str:
        """Upload the folder that the model, or its adapter, was loaded from to the Hugging Face hub; return the address.

        The arguments are those of ``publishing.publish``. Changes since loading are not uploaded: save them first.

        Raises:
            UserError: as ``publish``; the model was loaded from no folder.
        """
        if (folder := self.adapter or self.folder) is None:
            raise UserError("push_to_hub: this model was loaded from no folder; save it, and load it from there")
        return publish(folder, name, private, token, base)


class UnguidedPipeline(BasePipeline[M]):
    """Base of the pipelines whose models take no controls; a subclass defines ``sample_ids``."""

    def sample_ids(
        self, seeds: Sequence[Sequence[int]], sampling: SamplingConfig, watch: Watch | None, values: Sequence[Any]
    ) -> list[list[int]]:
        """Return the token ids of a sample for each seed, without BOS, EOS and padding; ``values`` are their conditions."""
        raise NotImplementedError

    def stream(
        self, count: int = 1, sampling: SamplingConfig | None = None, watch: Watch | None = None,
        controls: Controls = (), tries: int = 1, condition: Any = None, source: str | Sequence[str] | None = None,
        first: int = 0,
    ) -> Iterator[Generated]:  # fmt: skip
        sampling = self.sampling if sampling is None else sampling
        self.check_controls(read_controls(controls), sampling)
        check_count(count)
        check_count(first, "first")
        self.check(sampling)
        self.check_request(sampling, (), tries, condition, source)
        conditions = requested(self.model, self.tokenizer, condition, source)
        self.check_requested(sampling, conditions)
        sampling = at_length(sampling, self.model, conditions)

        def sampled(indices: range) -> list[Generated]:
            seeds = [(sampling.seed, index, c) for index in indices for c in range(sampling.candidates)]
            ids = self.sample_ids(seeds, sampling, watch, [conditions[index // count].value for _, index, _ in seeds])
            texts, parts = decoded(self.model, self.tokenizer, ids)
            given = [conditions[index // count] for index in indices]
            best = best_candidates(self, sampling, indices, given, ids, texts)
            return [
                Generated(texts[row], index, sampling.seed, len(ids[row]), each.source, parts[row])
                for index, row, each in zip(indices, best, given, strict=True)
            ]

        for rows in shared(batches(count * len(conditions), sampling, first), sampled, restored):
            yield from (row for row in rows if row.index >= first)


def batches(count: int, sampling: SamplingConfig, first: int = 0) -> list[range]:
    """Return the sample indices of each batch that reaches ``first``.

    Where there are fewer than processes that share the work, they are smaller.
    """
    size = at_most(max(1, sampling.batch_size // sampling.candidates), count)
    return [range(start, min(start + size, count)) for start in range(0, count, size) if start + size > first]


def check_count(count: int, name: str = "count") -> None:
    """Raise UserError for what is no number of samples."""
    if type(count) is not int or count < 0:
        raise UserError(f"{name}: expected a number of samples, 0 or more, got {count!r}")


def check_length(length: int, longest: int) -> None:
    """Raise UserError for a number of tokens, BOS and EOS not counted, that is not from 1 to ``longest``."""
    if not 1 <= length <= longest:
        raise UserError(f"length: expected 1 to {longest} tokens for this model, got {length}")


def check_unused(sampling: SamplingConfig, unused: Unused) -> None:
    """Raise UserError where a setting of ``unused`` is neither off nor the default, as in a model's saved settings."""
    for name in filter(unused.__contains__, OFF):
        if getattr(sampling, name, OFF[name]) not in (OFF[name], getattr(SamplingConfig(), name, None)):
            raise UserError(f"{name}: {unused[name]}")


def saved_sampling(folder: str | Path) -> SamplingConfig:
    """Return the sampling settings saved with a model, or the library's defaults.

    Raises:
        UserError: the file is damaged or has an unknown setting.
    """
    path = model_folder(folder) / "sampling.json"
    if not path.exists():
        return SamplingConfig()
    plain: Any = read_object(path)
    version = taken_version(plain, path)
    plain = upgraded(plain, "sampling") if version == 1 else plain
    guidance = plain.get("guidance")
    if isinstance(guidance, dict) and guidance.get("name") == "gradient":  # earlier versions wrote all others, and took each
        plain["guidance"] = {"constraint_every": 1, **guidance}
    return build_untrusted(SamplingConfig, plain, str(path))
