"""The page of the demo, in gradio: a form, texts that settle step by step, and gaps that are filled."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from diffusionlm.config import UserError
from diffusionlm.data.tokenizers import split_words
from diffusionlm.demo.equivalents import command_line, python_code
from diffusionlm.demo.form import Form, form_of
from diffusionlm.demo.models import DemoModel
from diffusionlm.demo.requests import DemoRequest, gapped
from diffusionlm.demo.sampling import Frame, Sampled, steps
from diffusionlm.demo.words import frame_html, outcome, progress_html, refusal_html, samples_html, status_html

NEW, CHANGE = "new", "change"  # the tabs
KEPT = 3600  # seconds for which the server keeps what a visitor sampled
LEGEND = "While texts are sampled, a word is shaded the more, the lower its predicted probability."
GAP = {"one word or more": False, "as many words as were removed": True}
Requests = Callable[[], DemoRequest]


class Page:
    """The page: its components and what its buttons do.

    Args:
        gradio: the module.
        models: the model, and another one to compare it with.
        folder: where files to download are written.
    """

    def __init__(self, gradio: Any, models: Sequence[DemoModel], folder: Path) -> None:
        self.gradio, self.models, self.folder = gradio, models, folder
        self.model = models[0]
        self.worker = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        self.light = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}

    def build(self) -> Any:
        """Return the ``Blocks`` of the page."""
        title = " and ".join(model.name for model in self.models)
        lines = "\n\n".join(f"**{model.name}**: {model.summary}." for model in self.models)
        with self.gradio.Blocks(title=f"diffusionlm: {title}", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as blocks:
            self.gradio.Markdown(f"# Text diffusion\n\n{lines}")
            with self.gradio.Row():
                with self.gradio.Column(scale=2, min_width=320):
                    self.form: Form = form_of(self.gradio, self.model)
                with self.gradio.Column(scale=3, min_width=320):
                    self._tasks()
                    self._results()
            self._events()
        return blocks

    def _tasks(self) -> None:
        """Add the buttons, and the text to change."""
        gradio = self.gradio
        with gradio.Tabs(selected=NEW) as self.tabs:
            with gradio.Tab("New texts", id=NEW):
                self.generate = gradio.Button("Generate", variant="primary", elem_id="generate")
            with gradio.Tab("Change a text", id=CHANGE, visible=self.model.controls):
                self.text = gradio.Textbox(label="Text", lines=2, max_length=1000, elem_id="text")
                self.words = gradio.CheckboxGroup(label="Click the words to remove", choices=[], elem_id="words")
                self.size = gradio.Radio([*GAP], value=next(iter(GAP)), label="Fill each gap with")
                self.fill = gradio.Button("Fill the gaps", variant="primary", elem_id="fill")
                with gradio.Column(visible=self.model.edits):
                    self.level = gradio.Slider(
                        0, 1, value=0.5, step=0.05, label="Noise of an edit",
                        info="0 leaves the text, 1 is a new text of the same length", elem_id="level",
                    )  # fmt: skip
                    self.edit = gradio.Button("Edit all words", elem_id="edit")
        self.stop = gradio.Button("Stop", elem_id="stop", visible=False)

    def _results(self) -> None:
        """Add the texts, and what can be done with them."""
        gradio = self.gradio
        self.status = gradio.HTML(elem_id="status")
        self.samples = []
        with gradio.Row():
            for number, model in enumerate(self.models, 1):
                with gradio.Column(min_width=280):
                    if len(self.models) > 1:
                        gradio.Markdown(f"### {model.name}")
                    self.samples.append(gradio.HTML(elem_id=f"samples-{number}", elem_classes="texts"))
        self.run = gradio.State(time_to_live=KEPT)
        self.step = gradio.Slider(1, 2, step=1, label="Look at a sampling step", info=LEGEND, visible=False, elem_id="step")
        self.chosen = gradio.Radio(label="Take a text to change", choices=[], visible=False, elem_id="chosen")
        self.download = gradio.DownloadButton("Download as JSON lines", visible=False, elem_id="download")
        self.codes = []
        with gradio.Accordion("The same on the command line and in Python", open=False, visible=False) as self.same:
            for number, model in enumerate(self.models, 1):
                of = f" ({model.name})" if len(self.models) > 1 else ""
                more = {"interactive": False, "show_line_numbers": False, "wrap_lines": True, "lines": 1}
                self.codes += [
                    gradio.Code(label=f"Command line{of}", elem_id=f"command-{number}", **more),
                    gradio.Code(label=f"Python{of}", elem_id=f"python-{number}", **more),
                ]

    @property
    def _outputs(self) -> list[Any]:
        results = [self.status, *self.samples, self.run, self.step, self.chosen, self.download, self.same, *self.codes]
        return [*results, self.stop]

    def _events(self) -> None:
        """Connect the components with what they do."""
        form = self.form.components
        given = {
            self.generate: (self.generated, form),
            self.fill: (self.filled, [self.text, self.words, self.size, *form]),
            self.edit: (self.edited, [self.text, self.level, *form]),
        }
        runs = [
            button.click(run, inputs, self._outputs, show_progress="hidden", **self.worker)
            for button, (run, inputs) in given.items()
        ]
        self.stop.click(lambda: (self._hidden, ""), None, [self.stop, self.status], cancels=runs, **self.light)
        self.text.change(self.words_of, self.text, self.words, **self.light)
        self.step.input(self.at_step, [self.step, self.run], self.samples, trigger_mode="always_last", **self.light)
        self.chosen.input(self.taken, [self.chosen, self.run], [self.text, self.tabs], **self.light)

    @property
    def _hidden(self) -> Any:
        return self.gradio.update(visible=False)

    def generated(self, *values: Any) -> Iterator[dict[Any, Any]]:
        """Generate texts with the ``values`` of the form."""
        yield from self._sampled(partial(self.form.request, values))

    def filled(self, text: str, removed: list[int], size: str, *values: Any) -> Iterator[dict[Any, Any]]:
        """Fill the gaps of ``text`` where words are ``removed``."""

        def request() -> DemoRequest:
            return self.form.request(values, template=gapped(text, removed, GAP[size]))

        yield from self._sampled(request)

    def edited(self, text: str, level: float, *values: Any) -> Iterator[dict[Any, Any]]:
        """Edit ``text``."""

        def request() -> DemoRequest:
            if not text.strip():
                raise UserError("text: expected a text to edit")
            return self.form.request(values, text=text.strip(), level=level)

        yield from self._sampled(request)

    def words_of(self, text: str) -> Any:
        """Return the words of ``text`` as those that can be removed."""
        return self.gradio.update(choices=[(word, number) for number, word in enumerate(split_words(text or ""))], value=[])

    def at_step(self, number: int, run: dict[str, Any] | None) -> dict[Any, str]:
        """Return what each model showed at a step; nothing changes where the server has forgotten the run."""
        shown = run["frames"] if run else [[]] * len(self.models)
        return {
            place: frames[min(int(number), len(frames)) - 1]
            for place, frames in zip(self.samples, shown, strict=True)
            if frames
        }

    def taken(self, number: int, run: dict[str, Any] | None) -> dict[Any, Any]:
        """Make a finished text the text to change; nothing changes where the server has forgotten the run."""
        return {self.text: run["texts"][number], self.tabs: self.gradio.update(selected=CHANGE)} if run else {}

    def _sampled(self, make: Requests) -> Iterator[dict[Any, Any]]:
        """Yield changes of the page while the texts of a request are sampled, one model after the other."""
        hidden = [self.step, self.chosen, self.download, self.same]
        cleared = dict.fromkeys(self.samples, "") | dict.fromkeys(hidden, self._hidden)
        try:
            request = make()
        except UserError as error:
            yield {**cleared, self.status: refusal_html(str(error))}
            return
        yield {**cleared, self.status: progress_html(1.0), self.stop: self.gradio.update(visible=True)}
        frames: list[list[str]] = [[] for _ in self.models]
        found: list[Sampled | None] = [None for _ in self.models]
        for number, (model, place) in enumerate(zip(self.models, self.samples, strict=True)):
            try:
                for each in steps(model, request):
                    frames[number].append(frame_html(each) if isinstance(each, Frame) else samples_html(each))
                    progress = {self.status: progress_html(each.t)} if isinstance(each, Frame) else {}
                    yield {place: frames[number][-1], **progress}
                    found[number] = each if isinstance(each, Sampled) else None
            except UserError as error:
                frames[number] = [refusal_html(str(error))]
                yield {place: frames[number][-1]}
        yield self._finished(request, frames, found)

    def _finished(
        self, request: DemoRequest, frames: Sequence[list[str]], found: Sequence[Sampled | None]
    ) -> dict[Any, Any]:  # fmt: skip
        """Return the changes of the page when all texts are there."""
        update = self.gradio.update
        names = [f"{model.name}: " if len(self.models) > 1 else "" for model in self.models]
        sentences = [name + outcome(each) for name, each in zip(names, found, strict=True) if each is not None]
        done = {self.stop: self._hidden, self.status: status_html(sentences)}
        if not any(found):
            return done
        texts = [row.text for each in found if each is not None for row in each.rows]
        longest = max(map(len, frames))
        codes = [code for model in self.models for code in (command_line(model, request), python_code(model, request))]
        return {
            **done,
            self.run: {"frames": [*frames], "texts": texts},
            self.step: update(visible=longest > 1, maximum=longest, value=longest),
            self.chosen: update(
                visible=self.model.controls, value=None, choices=[(f"{n + 1}", n) for n in range(len(texts))]
            ),
            self.download: update(visible=True, value=self._file(found)),
            self.same: update(visible=True),
            **dict(zip(self.codes, codes, strict=True)),
        }  # fmt: skip

    def _file(self, found: Sequence[Sampled | None]) -> str:
        """Write the rows of all models, as ``generate`` prints them, with several models after the name of each."""
        lines = []
        for model, each in zip(self.models, found, strict=True):
            named = {"model": model.name} if len(self.models) > 1 else {}
            lines += [json.dumps({**named, **row.row()}, ensure_ascii=False) for row in (each.rows if each else ())]
        path = Path(tempfile.mkdtemp(dir=self.folder)) / "texts.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(path)
