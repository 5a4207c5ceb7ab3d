"""The report: everything in one file, drawn from sound results only, in light and dark, and nothing executed."""

from __future__ import annotations

import copy
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made_result import made_result

from kvik.bench.checks import EvidenceError, compare_engines, run_checks
from kvik.bench.evidence import compose
from kvik.bench.report import charts
from kvik.bench.report.charts import MARKS, Bar, Point
from kvik.bench.report.page import load_results, render
from kvik.bench.report.parts import drawings
from kvik.bench.report.points import machine_of, points_of
from kvik.cli.bench import command
from kvik.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
MACHINE = {"cpu": "a processor", "cores": 2, "read_bandwidth": 20e9, "matrix_peak": {"bf16": 1e12, "f32": 5e11}}
MODEL = {"name": "a model", "weights": "bf16", "kv_dtype": "bf16", "parameters": 10**9}


def decode_result() -> dict[str, Any]:
    samples = [
        {"tokens": 8, "seconds": 1.0, "tokens_per_s": 8.0, "read_bandwidth": 20e9, "matrix_peak": {"bf16": 1e12}}
    ]
    return compose(
        kind="decode",
        metric="tokens_per_s",
        unit="tokens/s",
        machine=MACHINE,
        model=MODEL,
        samples=samples,
        limits={"capacity_metric": "read_bandwidth", "cost": 2e9, "does_not_bind": None},
        how_obtained="by hand",
        workload={"output_tokens": 8},
        options={"engine": "kvik"},
    )


def compare_result() -> dict[str, Any]:
    result = decode_result()
    for sample in result["samples"]:
        sample["output_tokens"] = 8
        sample["peers"] = {
            "other": {"tokens": 8, "output_tokens": 8, "seconds": 2.0, "tokens_per_s": 4.0},
        }
    result["comparison"] = compare_engines(result["samples"], "tokens_per_s", "tokens/s")
    result["checks"] = run_checks(result)
    return result


def put(folder: Path, name: str, data: dict[str, Any]) -> Path:
    path = folder / name
    path.write_text(json.dumps(data))
    return path


class Page(HTMLParser):
    """What a browser would fetch, run or be told."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_holds_everything_it_shows(tmp_path: Path) -> None:
    files = [put(tmp_path, "ladder.json", made_result()), put(tmp_path, "compare.json", compare_result())]
    text = render(files)
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert all(address.startswith("#") for address in page.addresses)
    assert "@import" not in text
    assert "url(http" not in text
    assert "prefers-color-scheme: dark" in text
    assert len(page.ids) == len(set(page.ids)), "ids of several drawings do not meet"
    assert {address[1:] for address in page.addresses} <= set(page.ids)


def test_numbers_are_a_click_from_their_evidence(tmp_path: Path) -> None:
    result = made_result()
    page = Page(render([put(tmp_path, "ladder.json", result)]))
    assert page.tags.count("summary") == page.tags.count("details") >= 5
    assert f"The evidence: {len(result['checks'])} of {len(result['checks'])} checks pass" in page.words
    assert json.dumps(result["samples"][0]["sides"]["M1"][0]["requests"], separators=(",", ":")) in page.words
    assert result["how_obtained"] in page.words
    assert "3 to 5 times the tokens/s of static batches" in page.words
    assert "Other programs took 0.20 to 0.20 cores" in page.words


def test_what_fails_its_checks_is_not_drawn(tmp_path: Path) -> None:
    doctored = made_result()
    doctored["summary"]["median"] *= 2
    with pytest.raises(EvidenceError, match="summary follows from the samples"):
        render([put(tmp_path, "r.json", doctored)])
    with pytest.raises(EvidenceError, match="is not a result"):
        render([put(tmp_path, "r.json", {"kind": "decode"})])
    with pytest.raises(EvidenceError, match="no file holds a result"):
        render([put(tmp_path, "r.json", {"parts": {}, "not_applicable": {}})])


def test_text_from_a_file_is_text(tmp_path: Path) -> None:
    evil = made_result()
    evil["machine"]["cpu"] = "<script>alert(1)</script>"
    evil["how_obtained"] = "</details><img src=x onerror=alert(1)>"
    evil["workload"]["scene"] = "<b>&amp;"
    evil["checks"] = run_checks(evil)
    text = render([put(tmp_path, "</title><script>.json".replace("/", "_"), evil)])
    page = Page(text)
    assert not {"script", "img", "b"} & set(page.tags)
    assert "<script>alert(1)</script>" in page.words


def test_a_suite_shows_its_parts_what_does_not_apply_and_the_code(tmp_path: Path) -> None:
    suite = {
        "kind": "suite",
        "date": "2026-01-01",
        "parts": {"one": made_result(), "two": decode_result()},
        "not_applicable": {"graphs": "there are none here"},
        "code": {"files": 3, "total_loc": 1234, "how_obtained": "counted"},
    }
    file = put(tmp_path, "suite.json", suite)
    results, suites = load_results([file, put(tmp_path, "suite-one.json", made_result())])
    assert list(results) == ["r-suite-one", "r-suite-two", "r-suite-one-2"]
    assert len(suites) == 1
    words = Page(render([file])).words
    assert "graphs: there are none here" in words
    assert "1,234" in words


def test_a_quick_result_says_so_and_is_not_under_the_roof(tmp_path: Path) -> None:
    full, quick = made_result(), made_result() | {"quick": True}
    assert "A quick run" not in render([put(tmp_path, "full.json", full)])
    text = render([put(tmp_path, "quick.json", quick)])
    assert "A quick run" in text
    assert "Under the roof" not in text


def test_results_that_are_in_the_repository_can_be_drawn() -> None:
    files = sorted((ROOT / "docs" / "results").rglob("*.json"))
    sample = [file for file in files if file.stem in ("compare-decode-1-bf16", "prefill-512-bf16", "decode-1-int4")]
    if not sample:
        pytest.skip("no results here")
    page = Page(render(sample))
    assert page.tags.count("section") == len(sample) + 1
    assert "AMD EPYC" in page.words


# Charts -----------------------------------------------------------------------------------------------------------


def drawn_of(svg: str) -> str:
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    return " ".join("".join(text.itertext()) for text in root.iter() if text.tag.endswith("text"))


@pytest.mark.parametrize(
    ("svg", "words"),
    [
        (charts.bars("a", [Bar("one", (1.0, 3.0), 2.0, " twice"), Bar("two", (5.0,), 5.0)], "x/s"), "2 x/s twice"),
        (charts.distributions("b", {"M1": [[1.0, 3], [2.0, 1]]}, "gap"), "gap, milliseconds"),
        (charts.stacks("c", {"M1": {"weights": 2.0, "kv": 1.0}}, "MB"), "3 MB"),
        (charts.roofline("d", 1e9, {"bf16": 1e12}, [Point("p", 4.0, 1e9)]), "bf16 peak"),
    ],
)
def test_a_chart_is_sound_svg_in_the_colours_of_the_page(svg: str, words: str) -> None:
    assert words in drawn_of(svg)
    assert not [mark for mark in MARKS.values() if mark in svg]
    assert set(re.findall(r"var\(--(\w+)\)", svg)) <= MARKS.keys()
    assert "var(--s1)" in svg


def test_a_chart_is_the_same_every_time_and_ids_carry_its_name() -> None:
    def draw(name: str) -> str:
        return charts.bars(name, [Bar("one", (1.0,), 1.0)], "x/s")

    assert draw("a") == draw("a")
    assert not set(re.findall(r'id="([^"]+)"', draw("a"))) & set(re.findall(r'id="([^"]+)"', draw("b")))


def test_every_colour_is_there_in_light_and_in_dark() -> None:
    style = (ROOT / "kvik/bench/report/style.css").read_text()
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for variable in MARKS:
        assert f"--{variable}: #" in light
        assert f"--{variable}: #" in dark


def test_stages_are_drawn_as_shares_of_the_bare_step() -> None:
    def stage(rate: float, share: float) -> dict[str, Any]:
        return {"speed": {"median": rate}, "share": {"median": share}}

    rates = {"runner": {"tokens_per_s": 100.0}, "engine": {"tokens_per_s": 96.0}}
    result = {"stages": {"runner": stage(100.0, 1.0), "engine": stage(96.0, 0.96)}, "samples": [{"stages": rates}]}
    ((svg, _),) = drawings("stages", result)
    assert "96 tokens/s   96 % of the bare step" in drawn_of(svg)


# The command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_one_page(tmp_path: Path) -> None:
    file, target = put(tmp_path, "ladder.json", made_result()), tmp_path / "page.html"
    done = CliRunner().invoke(command, ["report", str(file), "-o", str(target)])
    assert done.exit_code == 0, done.output
    assert target.read_text().startswith("<!doctype html>")
    assert f"{target}: " in done.output


def test_without_matplotlib_the_command_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("kvik.bench.report.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    done = CliRunner().invoke(command, ["report", str(put(tmp_path, "ladder.json", made_result()))])
    assert isinstance(done.exception, ConfigError)
    assert "install kvik[report]" in str(done.exception)


class Missing:
    """An importer to whom matplotlib is not installed."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name="matplotlib")


# Points -----------------------------------------------------------------------------------------------------------


def test_points_lie_where_their_arithmetic_says() -> None:
    mine, theirs = points_of("case", compare_result())
    assert (mine.intensity, mine.rate, mine.label) == (1.0, 16e9, "case")
    assert (theirs.intensity, theirs.rate, theirs.label) == (1.0, 8e9, "case, other")
    wider = compare_result()
    wider["options"] |= {"engines": {"other": {"form": "f32"}}}
    assert points_of("case", wider)[1].intensity == 0.5, "twice the bytes for the same operations"
    sides = points_of("ladder", made_result())
    assert [point.label for point in sides] == ["ladder, M1", "ladder, M2"]
    assert sides[0].intensity == 1.0
    assert sides[1].rate == pytest.approx(2 * sides[0].rate, rel=0.05)


def test_a_prompts_bytes_are_its_weights() -> None:
    result = copy.deepcopy(decode_result())
    result["limits"] |= {"capacity_metric": "matrix_rate", "cost": 2e9}
    result["workload"] = {"input_len": 512, "batch": 1}
    (point,) = points_of("prefill", result)
    assert point.intensity == pytest.approx(512.0)


def test_only_limits_of_one_machine_are_drawn_together() -> None:
    other = copy.deepcopy(decode_result())
    other["machine"] |= {"cpu": "another", "read_bandwidth": 1e15}
    faster = copy.deepcopy(decode_result())
    faster["machine"]["read_bandwidth"] = 21e9
    found = machine_of({"a": decode_result(), "b": other, "c": faster})
    assert found == (21e9, {"bf16": 1e12, "f32": 5e11}, "a processor")
