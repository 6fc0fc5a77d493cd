"""A model of the demo: its pipeline, what it can do, and the fields of its form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from diffusionlm.config import UserError
from diffusionlm.controls import Attribute, Classifier, Control, annotator_for
from diffusionlm.data.annotators import Annotator
from diffusionlm.data.labels import NONE, OTHER
from diffusionlm.models.attributes import Label, Several
from diffusionlm.models.classifier import LatentClassifier
from diffusionlm.models.classifier.heads import LatentSequenceClassifier
from diffusionlm.models.conditions import condition_of
from diffusionlm.models.io import model_folder
from diffusionlm.models.pieces import is_packed
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import BasePipeline
from diffusionlm.pipelines.causal import CausalPipeline
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.pipelines.masked import MaskedPipeline
from diffusionlm.pipelines.seq2seq import Seq2SeqPipeline

FAMILIES = {
    MaskedPipeline: "masked diffusion",
    CausalPipeline: "autoregressive",
    Seq2SeqPipeline: "encoder-decoder",
}
STATED = "attributes."  # how fields of a classifier begin that are attributes of the corpus


@dataclass(frozen=True)
class Field:
    """A drop-down of the form: the values of a ``field`` that the model's ``classifier`` knows."""

    field: str
    values: tuple[str, ...]
    classifier: str

    @property
    def label(self) -> str:
        """The name shown."""
        return self.field.removeprefix(STATED)

    def control(self, value: str) -> Control:
        """Return the control of a text with this ``value``."""
        if not self.field.startswith(STATED):
            return Classifier(value, self.classifier, self.field)
        named = {} if self.classifier == "attributes" else {"classifier": self.classifier}
        return Attribute(self.label, value, **named)


@dataclass(frozen=True)
class DemoModel:
    """A model that the demo samples from.

    Args:
        name: of its folder, or of a bundled model, as the user gave it.
        pipeline: the opened model.
        loading: how it was opened: ``adapter``, ``device`` and ``dtype``, those alone that are not the default.
        imports: modules that define components of the model.
    """

    name: str
    pipeline: BasePipeline[Any]
    loading: dict[str, str] = field(default_factory=dict)
    imports: tuple[str, ...] = ()

    @property
    def controls(self) -> bool:
        """Whether samples can be controlled."""
        return isinstance(self.pipeline, Pipeline) and not is_packed(self.pipeline.model)

    @property
    def edits(self) -> bool:
        """Whether given texts can be edited."""
        return self.controls and bool(self.pipeline.model.explicit_length)

    @property
    def longest(self) -> int:
        """The most tokens of a text, BOS and EOS not counted."""
        return int(self.pipeline.model.config.max_tokens) - 2

    @cached_property
    def has_length(self) -> bool:
        """Whether the number of tokens is a setting; with controls it is a control."""
        return not self.controls and "length" not in self.pipeline.unused(self.pipeline.sampling)

    @cached_property
    def has_evaluations(self) -> bool:
        """Whether a number of network evaluations can be given."""
        try:
            self.pipeline.with_evaluations(self.pipeline.sampling, 64)
        except UserError:
            return False
        return True

    @property
    def has_temperature(self) -> bool:
        """Whether the model has token logits, which a temperature sharpens."""
        return self.pipeline.has_logits

    @property
    def has_source(self) -> bool:
        """Whether the model is conditioned on a source text."""
        condition = condition_of(self.pipeline.model)
        return condition is not None and "source" in condition.keys

    @property
    def conditions(self) -> dict[str, tuple[str, ...]]:
        """The conditions other than a source, each with its values; none where any text may be one."""
        condition = condition_of(self.pipeline.model)
        parts: Sequence[Any] = () if condition is None else condition.parts if isinstance(condition, Several) else [condition]
        return {each.key: each.labels if isinstance(each, Label) else () for each in parts if each.key != "source"}

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """The drop-downs of the classifiers of texts that lie with the model. Raises UserError for a damaged one."""
        if not (self.controls and isinstance(self.pipeline, Pipeline) and self.pipeline.folder is not None):
            return ()
        home = model_folder(self.pipeline.folder) / "classifiers"
        found = []
        for name in sorted({path.parent.name for path in home.glob("*/config.*")}):
            classifier = self.pipeline.binding.classifier(name, LatentClassifier)
            if isinstance(classifier, LatentSequenceClassifier):
                labels = classifier.labels.items()
                found += [Field(key, tuple(v for v in values if v not in (NONE, OTHER)), name) for key, values in labels]
        return tuple(found)

    @cached_property
    def annotator(self) -> Annotator:
        """The annotator of the corpus that the model was trained on."""
        return self.pipeline.binding.annotator if isinstance(self.pipeline, Pipeline) else annotator_for(self.pipeline.folder)

    @property
    def summary(self) -> str:
        """One line about the model: its family, parameters and vocabulary."""
        model = self.pipeline.model
        parameters = sum(each.numel() for each in model.parameters())
        family, tokens = FAMILIES.get(type(self.pipeline), "diffusion"), len(self.pipeline.tokenizer)
        return f"{family} model, {parameters / 1e6:.1f} million parameters, {tokens:,} tokens"


def open_model(
    name: str, device: str = "cpu", dtype: str = "fp32", adapter: str | None = None, imports: Sequence[str] = ()
) -> DemoModel:
    """Open a model folder, a run folder or a bundled model, whose components ``imports`` define.

    Raises:
        UserError: as ``open_pipeline``; a damaged classifier.
    """
    loading = {"device": device, "dtype": dtype, "adapter": adapter}
    usual = {"device": "cpu", "dtype": "fp32", "adapter": None}
    given = {key: value for key, value in loading.items() if value and value != usual[key]}
    model = DemoModel(name, open_pipeline(name, device, dtype, adapter), given, (*imports,))
    _ = model.fields  # before the page is there
    return model
