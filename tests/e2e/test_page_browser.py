"""The page in a browser, in front of `kvik serve` with the fake model: a chat streams, the engine shows, keys work.

Needs Chromium and playwright and is skipped where they are not installed. Nothing here waits for a fixed time.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cli_process import start_kvik
from fakes import NAN, fake_engine

from kvik.engine.events import Event, StepWatcher
from kvik.request import SamplingParams
from kvik.scheduler.view import block_states

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("Chromium is not installed", allow_module_level=True)

KEY = "a-key-for-the-page"
WAIT_MS = 60_000
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
SERVE = ("serve", "--port", "0", "--served-model-name", "fake", "--max-num-seqs", "4", "--drain-timeout", "0")


class Served:
    """A `kvik serve` of its own."""

    def __init__(self, *args: str) -> None:
        self._process = start_kvik(*SERVE, "--model", "fake:length=3000,step_ms=20", *args)
        assert self._process.stderr is not None
        seen = []
        for line in self._process.stderr:
            seen.append(line)
            found = re.search(r"url=(http://\S+)", line)
            if found:
                self.url = found[1]
            if " ready " in line:
                return
        raise AssertionError(seen)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    running = Served("--kv-cache-memory", "64KiB")
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, served: Served) -> Iterator[Open]:
    """Opens pages. Whatever complained on them, or asked anyone but the server, fails the test at its end."""
    pages, wrong = [], []

    def open_one(url: str | None = None, *, expected: str = "^$", script: str = "", **options: Any) -> Any:
        page = browser.new_page(**{"viewport": WIDE, "reduced_motion": "reduce", **options})
        page.add_init_script(script)
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console", lambda said: said.type != "error" or re.search(expected, said.text) or wrong.append(said.text)
        )
        page.on("request", lambda asked: asked.url.startswith(url or served.url) or wrong.append(asked.url))
        page.goto(url or served.url)
        pages.append(page)
        return page

    yield open_one
    for page in pages:
        page.close()
    assert wrong == []


def say(page: Any, text: str, tokens: int = 40) -> None:
    """Send a message that is answered with so many tokens."""
    page.evaluate("(n) => { document.getElementById('max-tokens').value = n; }", tokens)
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def wait(page: Any, script: str, argument: Any = None) -> Any:
    """Wait until an expression is true."""
    return page.wait_for_function(script, arg=argument)


def told(page: Any, element: str, pattern: str) -> None:
    """Wait until what an element says matches."""
    wait(page, "([id, p]) => new RegExp(p).test(document.getElementById(id).textContent)", [element, pattern])


def finished(page: Any) -> None:
    wait(
        page,
        "() => !document.querySelector('.said.busy') && document.querySelector('.said.assistant .text')?.textContent",
    )


def test_a_chat_streams(open_page: Open) -> None:
    page = open_page()
    told(page, "health", "ready")
    assert page.text_content("#model") == "fake"
    say(page, "hello")
    answer = page.locator(".said.assistant .text")
    answer.first.wait_for()
    page.evaluate(
        """() => { window.lengths = new Set(); new MutationObserver(() =>
        window.lengths.add(document.querySelector('.said.assistant .text').textContent.length)).observe(
        document.querySelector('#talk'), {subtree: true, childList: true, characterData: true}); }"""
    )
    assert page.text_content("#send") == "Stop"
    finished(page)
    assert page.evaluate("window.lengths.size") > 5
    told(page, "talk", r"first token after .*4\d tokens")
    assert page.text_content("#send") == "Send"
    assert page.text_content("#tabs [role=tab]") == "hello"


def test_an_answer_can_be_stopped_and_the_engine_lets_go(open_page: Open) -> None:
    page = open_page()
    told(page, "pool-told", "free")
    say(page, "hello again", tokens=1000)
    told(page, "pool-told", "[1-9]\\d* held")
    page.click("#send")
    told(page, "talk", "was stopped")
    told(page, "pool-told", "^0 held")


def test_conversations_run_side_by_side_and_share_steps(open_page: Open) -> None:
    page = open_page()
    for text in ("one", "two", "three"):
        say(page, text)
        page.click("#new-chat")
    told(page, "step-told", "3 decodes")
    assert page.locator("#tabs [role=tab] i").count() == 3
    told(page, "step-told", "^(?!.*3 decodes)")
    page.focus("#tabs [aria-selected=true]")
    page.keyboard.press("ArrowLeft")
    assert page.text_content("#tabs [aria-selected=true]") == "three"
    finished(page)


def test_the_block_map_changes_with_a_request(open_page: Open) -> None:
    page = open_page()
    told(page, "pool-told", "^0 held")
    picture = "() => document.getElementById('blocks').toDataURL()"
    before = page.evaluate(picture)
    say(page, "x" * 200)
    told(page, "pool-told", "[1-9]\\d* held")
    wait(page, f"(before) => ({picture})() !== before", before)
    finished(page)
    told(page, "pool-told", "^0 held · [1-9]\\d* cached")
    assert page.evaluate(picture) != before


def test_the_demo_load_shows_sharing_hits_and_who_waits(open_page: Open) -> None:
    page = open_page()
    told(page, "pool-told", "free")
    page.click("#demo")
    told(page, "pool-told", r"\([1-9]\d* shared\)")
    told(page, "aside", "is next; all 4 seats are taken")
    told(page, "aside", "at the server's door")
    wait(page, "() => /Prefix hits[1-9]/.test(document.getElementById('readouts').textContent)")
    wait(page, "() => document.querySelectorAll('.card-answer:not(.busy)').length >= 8")
    assert page.locator(".card-answer .wrong").count() == 0


def test_pause_and_scrub_by_keyboard(open_page: Open) -> None:
    page = open_page()
    told(page, "health", "ready")
    say(page, "to look at")
    told(page, "when", r"live, step")
    finished(page)
    page.focus("#blocks")
    page.keyboard.press("Space")
    told(page, "when", "before the newest")
    shown = page.text_content("#when")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Shift+ArrowLeft")
    wait(page, "(shown) => document.getElementById('when').textContent !== shown", shown)
    told(page, "pool-told", "[1-9]\\d* held")
    assert page.text_content("#pause") == "Resume"
    page.keyboard.press("End")
    told(page, "when", "^live")
    told(page, "pool-told", "^0 held")
    page.keyboard.press("Home")
    told(page, "when", "before the newest")
    page.keyboard.press("Space")
    told(page, "when", "^live")


def test_the_canvases_speak_to_who_cannot_see_them(open_page: Open) -> None:
    page = open_page()
    told(page, "health", "ready")
    say(page, "hello", tokens=1000)
    told(page, "step-told", "1 decode")
    page.focus("#timeline")
    page.keyboard.press("ArrowDown")
    told(page, "spoken", r"#\d+: token \d+ of its answer")
    page.keyboard.press("Enter")
    told(page, "aside", r"#\d+.*marked.*Prompt")
    page.focus("#blocks")
    page.keyboard.press("ArrowRight")
    told(page, "spoken", r"block \d+: (held|cached|free)")
    page.keyboard.press("Escape")
    wait(page, "() => !/marked/.test(document.getElementById('aside').textContent)")


def test_events_are_asked_for_only_while_the_engine_can_be_seen(open_page: Open) -> None:
    page = open_page(viewport=NARROW)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.rsplit("/", 1)[-1]))
    told(page, "health", "ready")
    say(page, "hello")
    finished(page)
    assert "events" not in asked
    with page.expect_request("**/events"):
        page.click("#show-engine")
    told(page, "pool-told", "free")
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/events")):
        page.click("#show-chat")
    assert asked.count("events") == 1


def test_nothing_is_drawn_while_nothing_happens(open_page: Open) -> None:
    count = """const clear = CanvasRenderingContext2D.prototype.clearRect; window.draws = 0;
    CanvasRenderingContext2D.prototype.clearRect = function (...a) { window.draws++; return clear.apply(this, a); };"""
    page = open_page(script=count)
    told(page, "health", "ready")
    say(page, "hello")
    told(page, "step-told", "decode")
    finished(page)
    told(page, "pool-told", "^0 held")
    assert page.evaluate("window.draws") > 0
    page.evaluate("() => new Promise((drawn) => requestAnimationFrame(() => { window.draws = 0; drawn(); }))")
    page.wait_for_event("requestfinished", lambda asked: asked.url.endswith("/health/ready"))
    assert page.evaluate("window.draws") == 0


def test_nothing_is_wider_than_a_phone(open_page: Open) -> None:
    page = open_page(viewport=NARROW)
    for side in ("#show-chat", "#show-engine"):
        page.click(side)
        assert page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]
    told(page, "pool-told", "free")


def test_the_theme_goes_round_and_the_canvases_follow(open_page: Open) -> None:
    page = open_page(color_scheme="light")
    told(page, "pool-told", "free")
    ground, picture = (
        "() => getComputedStyle(document.body).backgroundColor",
        "() => document.getElementById('blocks').toDataURL()",
    )
    light, drawn = page.evaluate(ground), page.evaluate(picture)
    page.emulate_media(color_scheme="dark")
    wait(page, f"(light) => ({ground})() !== light", light)
    wait(page, f"(drawn) => ({picture})() !== drawn", drawn)
    page.click("#theme")
    wait(page, f"(light) => ({ground})() === light", light)
    wait(page, f"(drawn) => ({picture})() === drawn", drawn)
    assert "light" in page.get_attribute("#theme", "aria-label")


def test_a_key_is_asked_for_and_kept_in_memory_only(open_page: Open) -> None:
    running = Served("--api-key", KEY)
    try:
        page = open_page(running.url, expected="401")
        page.wait_for_selector("#key:not([hidden])")
        page.fill("#key-field", "not-the-right-key")
        page.press("#key-field", "Enter")
        page.wait_for_selector("text=The server does not know this API key.")
        page.fill("#key-field", KEY)
        page.press("#key-field", "Enter")
        page.wait_for_selector("#key", state="hidden")
        told(page, "pool-told", "free")
        say(page, "hello")
        finished(page)
        kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
        assert KEY not in kept
        assert KEY not in page.content()
        page.reload()
        page.wait_for_selector("#key:not([hidden])")
    finally:
        running.close()


def test_an_error_is_said_and_the_chat_goes_on(open_page: Open) -> None:
    page = open_page(expected="400")
    told(page, "health", "ready")
    say(page, "z" * 6000)
    page.wait_for_selector(".said .wrong")
    assert "tokens" in page.text_content(".said .wrong")
    say(page, "short")
    told(page, "talk", "first token after .*40 tokens")


def test_what_a_model_writes_is_text_whatever_it_is(open_page: Open) -> None:
    page = open_page()
    hostile = (
        "<img src=x onerror=alert(1)> **<b>bold</b>** `</code><script>1</script>`\n- [a](javascript:1)\n```\n<svg/>"
    )
    script = """async (text) => {
      const {render} = await import('/page/markdown.js');
      const box = document.createElement('div');
      box.append(...render(text));
      return [box.textContent, [...box.querySelectorAll('*')].map((element) => element.localName)];
    }"""
    made = page.evaluate(script, hostile)
    assert "<img src=x onerror=alert(1)>" in made[0]
    assert "</code><script>1</script>" in made[0]
    assert set(made[1]) == {"p", "strong", "code", "ul", "li", "pre"}


def eventful_run() -> tuple[list[Event], list[list[Any]]]:
    """Events of an engine under pressure, and its blocks and tables after each of them."""
    engine = fake_engine(num_blocks=9, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=180)
    events: list[Event] = []
    books: list[list[Any]] = []
    clock = iter(range(10**6))

    def emit(event: Event) -> None:
        scheduler = engine.scheduler
        events.append(event)
        held = {str(s.request.key): list(s.request.block_table) for s in scheduler.seats.running}
        books.append([list(block_states(scheduler.tables.pool)), held])

    watcher = StepWatcher(engine, emit, clock=lambda: next(clock) * 0.013)
    for number in range(40):
        prompt = [*range(1 + 37 * number % 90)] if number % 3 else [number] * 50
        if number % 11 == 5:
            prompt[0] = NAN
        params = SamplingParams(max_tokens=1 + 11 * (number % 5), n=1 + number % 3, seed=1)
        engine.add(prompt, params, request_id=f"r{number}")
        if number in (8, 20):
            watcher.attach()
        engine.step()
        if number % 9 == 4:
            engine.abort(f"r{number - 2}")
    while engine.has_unfinished():
        engine.step()
    watcher.flush()
    assert engine.scheduler.counters.preemptions > 0
    return events, books


def test_the_record_is_the_engine_s_books_forwards_and_backwards(open_page: Open) -> None:
    """What the page keeps of the events is what the scheduler held, at the newest moment and at every earlier one."""
    page = open_page()
    events, books = eventful_run()
    script = """async (events) => {
      const {Record} = await import('/page/record.js');
      const record = new Record(), plain = (pool) => [[...pool.blocks], Object.fromEntries(pool.tables)];
      const take = (event) => { if (!record.apply(event)) throw new Error(event.seq); return plain(record.head); };
      const heads = events.map(take);
      const views = {}, numbers = record.steps.map(({number}) => number);
      for (const number of [...numbers, ...numbers.reverse(), ...numbers.filter((n) => n % 7 === 3)]) {
        const frame = record.show(number), view = plain(record.view);
        (views[frame.number] ??= []).push(JSON.stringify(view));
      }
      record.show();
      return [heads, views, plain(record.view), record.lastStep + 1, [...record.alive]];
    }"""
    heads, views, newest, steps, alive = page.evaluate(script, json.loads(json.dumps(events)))
    assert heads == books
    assert newest == books[-1]
    assert alive == []
    assert steps == sum(len(event.get("steps", ())) for event in events)
    assert len(views) > 10
    for number, seen in views.items():
        assert {json.dumps(json.loads(text)) for text in seen} == {json.dumps(books[int(number)])}
