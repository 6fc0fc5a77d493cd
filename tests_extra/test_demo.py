"""The demo in a browser: the form, texts and checks, gaps, refusals, downloads, and its API."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio
import pytest
from demo_pages import ENVIRONMENT, browsing, chromium, generated, serving
from documents import blocks, commands
from gradio_client import Client
from gradio_client.exceptions import AppError
from tiny_demo import make_models
from tiny_runs import ROOT

from diffusionlm.demo.models import open_model
from diffusionlm.demo.page import Page
from diffusionlm.demo.requests import DemoRequest
from diffusionlm.demo.sampling import sampled
from diffusionlm.demo.server import app_of, load_gradio


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of the restaurants corpus, and tiny models of other families."""
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    with serving(str(home / "run")) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        chromium()
    except FileNotFoundError as error:
        pytest.fail(str(error))
    with browsing() as browser:
        yield browser


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    yield from opened(browser, address)


def opened(browser: Any, address: str) -> Iterator[Any]:
    """Open the page; it must load nothing from elsewhere, and report no error in the browser."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page, elsewhere, errors = context.new_page(), [], []
    page.on("request", lambda request: elsewhere.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.locator("#generate").wait_for(timeout=60_000)
    yield page
    assert [url for url in elsewhere if not url.startswith((address, "data:", "blob:", address.replace("http", "ws")))] == []
    assert errors == []
    context.close()


def fill(page: Any, **values: str) -> None:
    """Type into fields of the form, by their names."""
    for name, value in values.items():
        page.locator(f"#{name}").get_by_role("textbox").fill(value)


def choose(page: Any, label: str, value: str) -> None:
    """Choose a value of a drop-down."""
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=value, exact=True).click()


def test_texts_their_checks_and_what_gives_the_same(page: Any, home: Path, tmp_path: Path) -> None:
    choose(page, "food", "Thai")
    choose(page, "Network evaluations per text", "8")
    fill(page, shortest="6", longest="9", avoid="cheap, near the castle", seed="3")
    texts = generated(page)
    controls = ('Attribute("food", "Thai")', "Length(6, 9)", '~Words("cheap")', '~Words("near the castle")')
    model = open_model(str(home / "run"))
    expected = sampled(model, DemoRequest(controls=controls, seed=3, evaluations=8))
    assert texts == [row.text for row in expected.rows]
    marks = {True: "✓", False: "✗", None: "?"}
    for number, checks in enumerate(expected.checks):
        shown = page.locator("#samples-1 ol.samples > li").nth(number).locator("ul.checks > li")
        assert [item.split("\n")[0] for item in shown.all_inner_texts()] == [marks[check.passed] for check in checks]
        assert [item.endswith(check.name) for item, check in zip(shown.all_inner_texts(), checks, strict=True)] == [True] * 5
    assert page.locator("#status").inner_text().startswith("4 texts, ")

    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(tmp_path / "texts.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [json.loads(json.dumps(row.row())) for row in expected.rows]

    page.get_by_role("button", name="The same on the command line and in Python").click()
    command, code = (page.locator(f"#{name}-1 .cm-content").inner_text() for name in ("command", "python"))
    shell = f'diffusionlm() {{ "{sys.executable}" -m diffusionlm "$@"; }}\n{command}'
    printed = subprocess.run(["bash", "-c", shell], env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    assert [json.loads(line) for line in printed.splitlines()] == rows
    run = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == texts


def test_a_sampling_step_is_shown_again_with_shades(page: Any) -> None:
    choose(page, "Network evaluations per text", "16")
    texts = generated(page)
    assert page.locator("#samples-1 p.sample span").count() == 0
    step = page.locator("#step").get_by_role("slider")
    step.focus()
    step.press("Home")
    page.locator("#samples-1 .c0").first.wait_for()
    shades = [
        page.locator(f"#samples-1 .c{level}").first.evaluate("e => getComputedStyle(e).backgroundColor")
        for level in (0, 1, 2)
        if page.locator(f"#samples-1 .c{level}").count()
    ]
    assert all(re.fullmatch(r"rgba\(128, 128, 128, 0\.\d+\)", shade) for shade in shades)
    step.press("End")
    page.locator("#samples-1 ul.checks").first.wait_for()
    assert page.locator("#samples-1 p.sample").all_inner_texts() == texts


def test_words_are_clicked_away_and_filled(page: Any) -> None:
    fill(page, shortest="8")
    choose(page, "Network evaluations per text", "8")
    texts = generated(page)
    page.locator("#chosen label").nth(1).click()
    words = page.locator("#words label")
    words.first.wait_for()
    assert page.locator("#text textarea").input_value() == texts[1]
    assert "".join(words.all_inner_texts()) == texts[1].replace(" ", "")
    words.nth(1).click()
    words.nth(2).locator("input").focus()
    page.keyboard.press("Space")
    assert [words.nth(number).locator("input").is_checked() for number in range(4)] == [False, True, True, False]
    page.get_by_label("as many words as were removed").check()
    kept = texts[1].replace(".", "").split()
    filled = generated(page, "#fill")
    assert len(filled) == 4
    for text in filled:
        found = text.replace(".", "").split()
        assert found[0] == kept[0] and found[3] == kept[3] and found[-1] == kept[-1]
    assert page.locator("#samples-1 ul.checks > li", has_text="Infill(").count() == 4
    edited = generated(page, "#edit")
    assert len(edited) == 4 and page.locator("[role=alert]").count() == 0


def test_a_refusal_is_one_sentence(page: Any) -> None:
    fill(page, include="zzz")
    assert generated(page) == []
    assert page.get_by_role("alert").inner_text() == "Not possible: Words(\"zzz\"): the model's vocabulary has no word 'zzz'"
    fill(page, include="", temperature="hot")
    assert generated(page) == []
    page.get_by_text("expected a number from 0.1 to 3 in the demo, got 'hot'").wait_for()
    assert "Traceback" not in page.content()
    page.get_by_role("tab", name="Change a text").click()
    fill(page, temperature="", text="It is a pub.")
    page.locator("#words label").first.wait_for()
    assert generated(page, "#fill") == []
    page.get_by_text("words: expected words of the text to remove, of 5, got none").wait_for()


def test_stopping_ends_the_sampling(page: Any) -> None:
    choose(page, "Network evaluations per text", "256")
    page.locator("#generate").click()
    page.locator("#stop").click()
    page.locator("#stop").wait_for(state="hidden")
    choose(page, "Network evaluations per text", "1")
    assert len(generated(page)) == 4


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_field_has_a_name_and_nothing_overflows(width: int, scheme: str, browser: Any, address: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.goto(address)
    page.locator("#generate").wait_for(timeout=60_000)
    choose(page, "Network evaluations per text", "4")
    generated(page)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('input, textarea, button, select')].filter(e => e.checkVisibility()
        && !(e.labels?.length || e.ariaLabel || e.title || e.innerText.trim() || e.getAttribute('aria-labelledby')))
        .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert unnamed == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    low = page.evaluate(CONTRASTS)
    assert low == [], low
    context.close()


# The texts whose contrast with what is behind them is below 4.5 (WCAG 2.1, 1.4.3), by the first background that is opaque.
CONTRASTS = """() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const over = (top, below) => { const a = top[3] ?? 1; return [0, 1, 2].map(i => a * top[i] + (1 - a) * below[i]); };
  const behind = e => {
    const layers = [];
    for (; e; e = e.parentElement) {
      const found = channels(getComputedStyle(e).backgroundColor);
      layers.unshift(found);
      if ((found[3] ?? 1) === 1) break;
    }
    return layers.reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const low = [];
  const walker = document.createTreeWalker(document.querySelector('.gradio-container'), NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const e = node.parentElement;
    if (!node.textContent.trim() || !e.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    if (e.closest('style, script, footer')) continue;
    const ground = behind(e), ink = over(channels(getComputedStyle(e).color), ground);
    const [a, b] = [light(ground), light(ink)].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) low.push([node.textContent.trim().slice(0, 40), (a + .05) / (b + .05)]);
  }
  return low;
}"""


def test_two_models_side_by_side_and_a_source(browser: Any, home: Path, tmp_path: Path) -> None:
    with serving(str(home / "several"), "--compare", str(home / "masked")) as address:
        for page in opened(browser, address):
            fill(page, source="dog ant bee")
            choose(page, "kind", "low")
            choose(page, "Network evaluations per text", "4")
            texts = generated(page)
            request = DemoRequest(source="dog ant bee", condition={"kind": "low"}, evaluations=4)
            assert texts == [row.text for row in sampled(open_model(str(home / "several")), request).rows]
            alert = page.locator("#samples-2").get_by_role("alert")
            assert "condition: expected the source alone, which is given already" in alert.inner_text()
            choose(page, "kind", "any")
            generated(page)
            assert page.locator("#samples-2 p.sample").count() == 4
            with page.expect_download() as download:
                page.locator("#download").click()
            download.value.save_as(tmp_path / "texts.jsonl")
            rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
            assert [row["model"] for row in rows] == [str(home / "several")] * 4 + [str(home / "masked")] * 4


@pytest.mark.parametrize(
    ("name", "there", "absent"),
    [
        (
            "masked",
            {"source", "temperature", "evaluations", "length", "count", "seed"},
            {"include", "avoid", "shortest", "strength"},
        ),
        ("causal", {"temperature", "count", "seed"}, {"evaluations", "length", "include", "source", "strength"}),
        ("run", {"field-food", "include", "avoid", "expressions", "strength", "evaluations"}, {"source", "length"}),
    ],
)
def test_the_form_shows_only_what_a_model_can_do(
    name: str, there: set[str], absent: set[str], home: Path, tmp_path: Path
) -> None:
    model = open_model(str(home / name))
    blocks = Page(load_gradio(), [model], tmp_path).build()
    parts = [part["props"] for part in blocks.get_config_file()["components"]]
    shown = {str(props.get("elem_id")) for props in parts}
    assert there <= shown and not absent & shown
    tab = next(props for props in parts if props.get("label") == "Change a text")
    assert tab["visible"] is model.controls


def test_one_request_is_sampled_at_a_time_and_events_of_the_page_are_no_api(home: Path, tmp_path: Path) -> None:
    blocks = app_of(load_gradio(), [open_model(str(home / "run"))], tmp_path)
    limited = [each for each in blocks.fns.values() if each.concurrency_id == "model"]
    assert {each.concurrency_limit for each in limited} == {1} and len(limited) == 4
    assert {*blocks.get_api_info()["named_endpoints"]} == {"/sample", "/describe"}
    assert not gradio.analytics.analytics_enabled() and blocks.analytics_enabled is False


def test_the_api_samples_edits_and_refuses(address: str, home: Path) -> None:
    client = Client(address, verbose=False, analytics_enabled=False)
    (about,) = client.predict(api_name="/describe")
    assert about["model"] == str(home / "run") and "Thai" in about["labels"]["food"] and about["bounds"]["count"] == [1, 16]
    given = {"controls": ["food=Thai", "Length(6)"], "count": 2, "seed": 7, "evaluations": 4}
    rows = client.predict(given, api_name="/sample")
    expected = sampled(open_model(str(home / "run")), DemoRequest(**{**given, "controls": tuple(given["controls"])}))  # type: ignore[arg-type]
    assert [row["text"] for row in rows] == [row.text for row in expected.rows]
    assert [check["passed"] for check in rows[0]["checks"]] == [check.passed for check in expected.checks[0]]
    edits = client.predict({"text": "It is a pub.", "level": 0, "count": 1}, api_name="/sample")
    assert [row["text"] for row in edits] == ["It is a pub."]
    for wrong, sentence in [
        ({"count": 99}, "count: expected a whole number from 1 to 16 in the demo, got 99"),
        ({"cuont": 1}, "request: there is no key 'cuont'; did you mean 'count'?"),
        ({"controls": ["os:system(1)"]}, "'os:system' is no control"),
        ({"controls": ["turtle:Turtle()"]}, "code from outside the library"),
    ]:
        with pytest.raises(AppError, match=re.escape(sentence)):
            client.predict(wrong, api_name="/sample")
    with pytest.raises(AppError, match="model: expected 1 to 1, got 2"):
        client.predict(given, 2, api_name="/sample")
    client.close()


def test_the_commands_and_the_program_of_the_page_about_the_demo_run(home: Path, tmp_path: Path) -> None:
    about = ROOT / "docs" / "demo.md"
    for name in ("restaurants", "runs/quickstart", "runs/other"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(home / "run")
    (program,) = re.findall(r"```\n(from gradio_client.*?)```", about.read_text(), re.DOTALL)
    found = [words for words in commands(about) if words[0] == "demo"]
    assert len(found) == len(commands(about)) == len(blocks(about, "bash")) == 3
    for _, *words in found:
        words = words[: words.index("--port")] if "--port" in words else words
        with serving(*words, folder=tmp_path) as address:
            if not words:
                shown = subprocess.run(
                    [sys.executable, "-c", program.replace("http://127.0.0.1:7860", address)],
                    env=ENVIRONMENT, capture_output=True, text=True, check=True,
                ).stdout  # fmt: skip
                assert "restaurants" in shown


def test_a_classifier_is_refused(home: Path) -> None:
    folder = home / "run" / "model" / "classifiers" / "attributes"
    command = [sys.executable, "-m", "diffusionlm", "demo", str(folder)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2 and "expected a model that generates text, but this is a classifier" in done.stderr
    assert "Traceback" not in done.stderr
