"""The form of the page, in gradio, made for a model: it shows only what the model can do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from diffusionlm.demo.models import DemoModel
from diffusionlm.demo.requests import MOST_CHARACTERS, MOST_EVALUATIONS, MOST_TEXTS, MOST_TRIES, DemoRequest, form_controls

ANY = "any"
EVALUATIONS = tuple(n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n <= MOST_EVALUATIONS)
OWN = "the model's own"
PLAIN = ("count", "seed", "tries", "evaluations", "temperature", "strength", "length")
NUMBERS = (*PLAIN, "shortest", "longest")


@dataclass
class Form:
    """The components of the form, by the name of what they give."""

    model: DemoModel
    named: dict[str, Any] = field(default_factory=dict)

    @property
    def components(self) -> list[Any]:
        """All components, in the order of their values."""
        return [*self.named.values()]

    def request(
        self, values: Sequence[Any], template: str | None = None, text: str | None = None, level: float = 0.5
    ) -> DemoRequest:
        """Return the request of the ``values`` of the components, perhaps for a text with gaps, or one to edit.

        Raises:
            UserError: an impossible value.
        """
        given = {name: None if value in ("", ANY, OWN) else value for name, value in zip(self.named, values, strict=True)}
        given |= {name: number(given[name]) for name in NUMBERS if given.get(name) is not None}
        chosen = [given.get(f"field {place}") for place in range(len(self.model.fields))]
        words = {name: given.get(name) for name in ("shortest", "longest", "include", "avoid", "expressions")}
        named = {name: given.get(f"condition {name}") for name in self.model.conditions}
        source = given.get("source")
        plain: dict[str, Any] = {name: given[name] for name in PLAIN if given.get(name) is not None}
        return DemoRequest(
            controls=form_controls(self.model, chosen, template=template, **words) if self.model.controls else (),
            condition={name: value for name, value in named.items() if value is not None},
            source=source.strip() if source else None, text=text, level=level, **plain,
        )  # fmt: skip


def number(value: Any) -> Any:
    """Return the number that a component gives, or that a visitor typed; other text as it is, for ``DemoRequest`` to refuse."""
    if isinstance(value, str):
        for kind in (int, float):
            with suppress(ValueError):
                return kind(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def form_of(gradio: Any, model: DemoModel) -> Form:
    """Add the form of ``model`` to the page that is being built, and return it."""
    form = Form(model)
    if model.has_source or model.conditions:
        _conditions(gradio, model, form)
    if model.controls:
        _controls(gradio, model, form)
    _sampling(gradio, model, form)
    return form


def _conditions(gradio: Any, model: DemoModel, form: Form) -> None:
    with gradio.Group():
        gradio.Markdown("## What the texts are made from", elem_classes="heading")
        if model.has_source:
            form.named["source"] = gradio.Textbox(label="Source", lines=2, max_length=MOST_CHARACTERS, elem_id="source")
        for name, values in model.conditions.items():
            form.named[f"condition {name}"] = (
                gradio.Dropdown([ANY, *values], value=ANY, label=name) if values else gradio.Textbox(label=name, max_length=100)
            )


def _controls(gradio: Any, model: DemoModel, form: Form) -> None:
    with gradio.Group():
        gradio.Markdown("## What every text must be", elem_classes="heading")
        for start in range(0, len(model.fields), 2):
            with gradio.Row():
                for number, each in enumerate(model.fields[start : start + 2], start):
                    form.named[f"field {number}"] = gradio.Dropdown(
                        [ANY, *each.values], value=ANY, label=each.label, min_width=120, elem_id=f"field-{each.label}"
                    )
        with gradio.Row():
            for name, label in (("shortest", "Tokens, at least"), ("longest", "Tokens, at most")):
                form.named[name] = _number(gradio, label, "any", name)
        limit = {"max_length": MOST_CHARACTERS}
        between = "words or phrases, with commas between them"
        form.named["include"] = gradio.Textbox(label="With these words", placeholder=between, elem_id="include", **limit)
        form.named["avoid"] = gradio.Textbox(label="Without these words", placeholder=between, elem_id="avoid", **limit)
        with gradio.Accordion("More controls", open=False):
            example = 'Words("pub") | Words("inn")'
            form.named["expressions"] = gradio.Textbox(
                label="Expressions, one a line", lines=2, elem_id="expressions", placeholder=example, **limit
            )
            form.named["tries"] = gradio.Slider(
                1, MOST_TRIES, value=1, step=1, label="Attempts per text until all controls hold", elem_id="tries"
            )


def _sampling(gradio: Any, model: DemoModel, form: Form) -> None:
    with gradio.Group():
        gradio.Markdown("## How they are sampled", elem_classes="heading")
        with gradio.Row():
            form.named["count"] = gradio.Slider(1, MOST_TEXTS, value=4, step=1, label="Texts", min_width=120, elem_id="count")
            form.named["seed"] = _number(gradio, "Seed", "0", "seed")
        if model.has_evaluations:
            form.named["evaluations"] = gradio.Dropdown(
                [OWN, *EVALUATIONS], value=OWN, label="Network evaluations per text", elem_id="evaluations"
            )
        with gradio.Row():
            if model.has_temperature:
                usual = f"{model.pipeline.sampling.temperature:g}"
                form.named["temperature"] = _number(gradio, "Temperature", usual, "temperature")
            if model.fields:
                usual = f"{getattr(model.pipeline.sampling.guidance, 'strength', 1):g}"
                form.named["strength"] = _number(gradio, "Strength of guidance", usual, "strength")
            if model.has_length:
                form.named["length"] = _number(gradio, "Tokens", "as in the training texts", "length")


def _number(gradio: Any, label: str, usual: str, name: str) -> Any:
    """Return a field for a number, which may be empty: gradio's own number cannot be."""
    return gradio.Textbox(label=label, placeholder=usual, max_lines=1, max_length=20, min_width=120, elem_id=name)
