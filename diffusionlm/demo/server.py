"""The server of the demo: gradio's, on this machine alone unless another address is given, and without the internet."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from diffusionlm.config import UserError, build, nearest
from diffusionlm.demo.models import DemoModel
from diffusionlm.demo.page import Page
from diffusionlm.demo.requests import BOUNDS, DemoRequest
from diffusionlm.demo.sampling import sampled

KEYS = [field.name for field in fields(DemoRequest)]
WAITING = 32  # requests that may wait for the one that is sampled
POLICY = "; ".join(
    [
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    ]
)
CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def load_gradio() -> Any:
    """Return gradio, with its telemetry and its look for newer versions turned off. Raises UserError without it."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError:
        raise UserError("demo needs gradio: pip install 'diffusion-lm[demo]'") from None
    return gradio


class Headers:
    """Sends a content security policy with every answer: a browser then loads nothing from elsewhere."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self.app(scope, receive, sent)


def free_port(host: str, port: int) -> int:
    """Return ``port``, or a free one where it is 0. Raises UserError where the server cannot listen there."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port: expected 0 to 65535, got {port}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((host, port), family=family) as tried:
            return int(tried.getsockname()[1])
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: cannot listen there: {error.strerror or error}") from None


def app_of(gradio: Any, models: Sequence[DemoModel], folder: Path) -> Any:
    """Return the page with its API: one request is sampled at a time, and a number of others wait in a queue."""

    def sample(request: dict, model: int = 1) -> list[dict]:  # type: ignore[type-arg]
        """Sample texts: rows as `diffusionlm generate` or `edit` print them, each with the checks of the page.

        The keys of the request are the arguments of `diffusionlm.demo.requests.DemoRequest`; model is the model's number.
        """
        try:
            if model not in range(1, len(models) + 1):
                raise UserError(f"model: expected 1 to {len(models)}, got {model}")
            if unknown := [key for key in request if key not in KEYS]:
                raise UserError(f"request: there is no key {unknown[0]!r}{nearest(unknown[0], KEYS)}")
            found = sampled(models[model - 1], build(DemoRequest, request, "request"))
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from None
        return [
            {**row.row(), "checks": [asdict(check) for check in checks]}
            for row, checks in zip(found.rows, found.checks, strict=True)
        ]

    def describe() -> list[dict]:  # type: ignore[type-arg]
        """Describe each model: its name, its labels of texts, its conditions, and the bounds of a request's numbers."""
        return [described(model) for model in models]

    page = Page(gradio, models, folder)
    with (blocks := page.build()):
        gradio.api(sample, api_name="sample", concurrency_id="model", concurrency_limit=1)
        gradio.api(describe, api_name="describe", queue=False)
    return blocks.queue(max_size=WAITING)


def described(model: DemoModel) -> dict[str, Any]:
    """Return what the API says about a model."""
    conditions = {name: [*values] for name, values in model.conditions.items()} | ({"source": []} if model.has_source else {})
    return {
        "model": model.name,
        "summary": model.summary,
        "labels": {each.label: [*each.values] for each in model.fields},
        "conditions": conditions,
        "controls": model.controls,
        "edits": model.edits,
        "longest": model.longest,
        "bounds": {name: [*bounds] for name, bounds in BOUNDS.items()},
    }


def serve(models: Sequence[DemoModel], host: str, port: int) -> None:
    """Show the page at ``host`` and ``port`` until Ctrl-C.

    Raises:
        UserError: gradio is not installed; the server cannot listen there.
    """
    gradio = load_gradio()
    port = free_port(host, port)
    with tempfile.TemporaryDirectory(prefix="diffusionlm-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # where gradio copies the files to download
        blocks = app_of(gradio, models, Path(folder))
        blocks.launch(
            server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, theme=theme_of(gradio),
            css=CSS, footer_links=["api"], app_kwargs={"middleware": [(Headers, (), {})]}, ssr_mode=False, pwa=False,
            mcp_server=False, run_history=False, enable_monitoring=False, show_error=True,
        )  # fmt: skip
        try:
            print(f"http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
            if host not in ("127.0.0.1", "::1", "localhost"):
                print(f"--host {host}: everyone who reaches this address can sample from the model", file=sys.stderr)
            print("Ctrl-C ends the demo", file=sys.stderr)
            threading.Event().wait()
        except KeyboardInterrupt:
            blocks.close(verbose=False)


def theme_of(gradio: Any) -> Any:
    """Return a theme with the fonts of the system."""
    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    return gradio.themes.Default(primary_hue="blue", **fonts).set(  # contrasts of at least 4.5
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700", button_primary_background_fill_hover_dark="*primary_600",
        block_label_text_color="*neutral_700", block_title_text_color="*neutral_700", block_info_text_color="*neutral_600",
        body_text_color_subdued="*neutral_600", input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400", block_info_text_color_dark="*neutral_300",
        body_text_color_subdued_dark="*neutral_300",
    )  # fmt: skip
