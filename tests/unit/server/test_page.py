"""The page as it is sent: whole, from here alone, safe by its policy, and legible in both themes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from live_server import LiveServer

from kvik.server.app import Entry
from kvik.server.page import FOLDER, POLICY, page_files, routes

TEXTS = {path: file.body.decode() for path, file in page_files().items()}
SCRIPTS = {path: text for path, text in TEXTS.items() if path.endswith(".js")}
OPEN_KEY = "a-key-for-tests"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer(api_key=(OPEN_KEY,)) as running:
        yield running


@pytest.mark.parametrize("route", routes(), ids=lambda entry: entry.path)
def test_every_file_is_public_typed_and_guarded(server: LiveServer, route: Entry) -> None:
    path = route.path
    assert route.public
    reply = server.get(path)
    assert reply.status == 200
    assert reply.body.decode() == TEXTS[path]
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    expected = next((kind for end, kind in kinds.items() if path.endswith(end)), "text/html")
    assert reply.headers["content-type"].startswith(expected)
    assert reply.headers["content-security-policy"] == POLICY
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_data_stays_behind_the_key(server: LiveServer) -> None:
    assert server.get("/").status == 200
    assert server.get("/events").status == 401
    assert server.get("/metrics").status == 401


def test_a_browser_that_has_a_file_is_told_so(server: LiveServer) -> None:
    first = server.get("/page/app.js")
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for given in (tag, f'W/{tag}, "other"'):
        again = server.get("/page/app.js", if_none_match=given)
        assert (again.status, again.body) == (304, b"")
        assert again.headers["etag"] == tag
    assert server.get("/page/app.js", if_none_match='"other"').status == 200
    assert server.get("/page/chat.js").headers["etag"] != tag


@pytest.mark.parametrize("path", ["/page/index.html", "/page/__init__.py", "/page/../app.py", "/page/%2e%2e/app.py"])
def test_nothing_else_of_the_folder_is_served(server: LiveServer, path: str) -> None:
    assert server.get(path, authorization=f"Bearer {OPEN_KEY}").status == 404


def test_the_page_can_be_left_out() -> None:
    with LiveServer(page=False) as running:
        assert running.get("/").status == 404
        assert running.get("/health/ready").status == 200


def test_every_file_that_is_asked_for_is_there() -> None:
    asked = set(re.findall(r'(?:href|src)="(/[^"]*)"', TEXTS["/"]))
    for text in SCRIPTS.values():
        asked |= {f"/page/{name}" for name in re.findall(r'from "\./([\w.]+)"', text)}
    assert asked <= TEXTS.keys()
    assert TEXTS.keys() - asked == {"/"}, "and no file lies here for nothing"


def test_every_name_that_is_imported_is_exported() -> None:
    for path, text in SCRIPTS.items():
        for names, source in re.findall(r'import \{([^}]*)\} from "\./([\w.]+)"', text):
            exports = re.findall(
                r"^export (?:const|class|(?:async )?function\*?) ([^(={]+)", SCRIPTS[f"/page/{source}"], re.M
            )
            exported = {name.strip() for name in exports} | several_at_once(SCRIPTS[f"/page/{source}"])
            assert {name.strip() for name in names.split(",")} <= exported, (path, source)


def several_at_once(text: str) -> set[str]:
    """Names of `export const A = 0, B = 1;`."""
    lines = re.findall(r"^export const ([^;(]*);", text, re.M)
    return {name for line in lines for name in re.findall(r"([\w$]+) =", line)}


def test_every_element_that_is_looked_up_is_in_the_page() -> None:
    there = set(re.findall(r'\bid="([\w-]+)"', TEXTS["/"]))
    for path, text in SCRIPTS.items():
        assert set(re.findall(r'\$\("([\w-]+)"\)', text)) <= there, path
    for target in re.findall(r'(?:for|aria-labelledby|aria-controls)="([\w-]+)"', TEXTS["/"]):
        assert target in there


def test_nothing_comes_from_anywhere_else() -> None:
    for path, text in TEXTS.items():
        found = set(re.findall(r"(?:https?:)?//[\w-]+\.[\w./-]+", text))
        assert found <= {"http://www.w3.org/2000/svg"}, path


def test_text_never_becomes_markup_or_code() -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|\.srcdoc|\.cssText"
    )
    for path, text in SCRIPTS.items():
        assert not re.findall(forbidden, text), path


def test_the_policy_has_nothing_to_refuse() -> None:
    """No inline script, style or handler: the policy allows none."""
    page = TEXTS["/"]
    assert re.findall(r"<script[^>]*>([^<]*)</script>", page) == [""]
    assert not re.findall(r"<style|\sstyle=|\son\w+=|javascript:", page)
    assert "unsafe" not in POLICY


def test_every_file_says_what_it_is_for() -> None:
    for path, text in SCRIPTS.items():
        assert text.startswith("// "), path
    assert TEXTS["/page/style.css"].startswith("/* ")


def test_nothing_but_the_theme_is_kept_in_the_browser() -> None:
    for path, text in SCRIPTS.items():
        kept = re.findall(r"localStorage|sessionStorage|indexedDB|document\.cookie", text)
        assert not kept or path == "/page/theme.js", path


def test_files_are_read_in_one_sitting() -> None:
    for path in FOLDER.iterdir():
        if path.suffix in (".js", ".html"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 330, path.name


def colours() -> dict[str, tuple[str, str]]:
    """The light and the dark value of each."""
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", TEXTS["/page/style.css"])
    return {name: (light, dark) for name, light, dark in found}


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("least", "marks", "grounds"),
    [
        (4.5, "ink soft accent", "ground card well"),
        (4.5, "bad waiting", "card"),
        (4.5, "good", "ground"),
        (4.5, "on-accent", "accent"),
        (4.5, "on-shared", "shared"),
        (4.5, "card", "ink"),
        (3.0, "prefill decode waiting preempted edge", "card well"),
        (3.0, "held shared", "card free"),
    ],
)
def test_text_and_marks_stand_out_from_their_ground(theme: int, least: float, marks: str, grounds: str) -> None:
    values = colours()
    for mark in marks.split():
        for ground in grounds.split():
            assert contrast(values[mark][theme], values[ground][theme]) >= least, (mark, ground)


def test_contrast_is_measured_as_wcag_says() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
