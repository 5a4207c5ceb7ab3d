"""docs/ladder: every link leads somewhere, every rung has its page, and figures come from files and nowhere else."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from made_result import made_result

from kvik.bench.ladder.presets import PRESETS
from kvik.bench.ladder.rungs import NAMES, RUNGS

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted((ROOT / "docs" / "ladder").glob("*.md"))


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_ladder_pages", ROOT / "tools" / "make_ladder_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_rung_has_its_page_and_is_in_the_index() -> None:
    assert {page.stem for page in PAGES} == {"README", *(name.lower() for name in NAMES)}
    index = (ROOT / "docs/ladder/README.md").read_text()
    for rung in RUNGS:
        assert f"| [{rung.name}]({rung.name.lower()}.md) | {rung.title} | `{rung.flag}`" in index


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_to_a_file_and_every_named_function_is_in_it(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    for name, target in re.findall(r"`(\w+)` in\s+\[[\w.]+\]\(([^)]+)\)", text):
        assert re.search(rf"\b{name}\b", (page.parent / target).read_text()), f"{name} is not in {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "README"], ids=lambda page: page.stem)
def test_a_page_has_its_parts_and_its_toggle(page: Path) -> None:
    text = page.read_text()
    rung = next(rung for rung in RUNGS if rung.name.lower() == page.stem)
    for part in ("**The problem.**", "**The idea.**", "**Where it lives.**", "**The toggle.**", "## Questions"):
        assert text.count(part) == 1, part
    toggle = text.split("**The toggle.**")[1].split("\n\n")[0]
    assert rung.flag in toggle
    places = re.findall(r"<!-- measured ([\w-]+) (M\d) -->", text)
    assert [rung_named for _, rung_named in places] == [rung.name]
    assert places[0][0] in PRESETS


def test_pages_are_up_to_date_with_the_results(tool: ModuleType) -> None:
    found = tool.newest(tool.RESULTS)
    stale = [page.name for page in PAGES if tool.filled(page.read_text(), found) != page.read_text()]
    assert not stale, "run python tools/make_ladder_pages.py"


PLACE = "before\n<!-- measured rungs M2 -->\n12345 tokens/s, typed by hand\n<!-- end -->\nafter\n"


def placed(tool: ModuleType, results: Path, *made: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    results.mkdir(parents=True)
    for index, result in enumerate(made):
        (results / f"ladder-{index}.json").write_text(json.dumps(result))
    monkeypatch.setattr(tool, "RESULTS", results)
    text: str = tool.filled(PLACE, tool.newest(results))
    return text


def test_figures_come_from_the_newest_result(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older, newer = made_result() | {"date": "2026-01-01"}, made_result() | {"date": "2026-02-01"}
    text = placed(tool, tmp_path / "docs" / "results", newer, older, monkeypatch=monkeypatch)
    assert "typed by hand" not in text
    assert "2026-02-01 ([ladder-0.json](../results/ladder-0.json))" in text
    median = newer["sides"]["M2"]["metrics"]["tokens_per_s"]["median"]
    assert f"| M2 | {median:.1f} |" in text
    ours = next(claim["ours"] for claim in newer["claims"] if claim["metric"] == "tokens_per_s")
    said = f'"3 to 5 times the tokens/s of static batches": **differs**, {ours:.2f} times here. A static batch'
    assert said in text
    assert tool.filled(text, tool.newest(tool.RESULTS)) == text, "filling a page twice changes nothing"


def test_the_page_of_4_bit_weights_has_quality_beside_speed(tool: ModuleType) -> None:
    found = {"rungs": (tool.RESULTS / "ladder.json", made_result())}
    text = tool.measured(found, "rungs", "M7")
    assert "M2: perplexity 1.000 +- 0.100, 1 of 2 held-out questions right." in text
    assert "perplexity" not in tool.measured(found, "rungs", "M2")


def test_without_a_result_a_page_says_so(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = made_result() | {"quick": True}
    text = placed(tool, tmp_path / "results", quick, {"kind": "decode"}, monkeypatch=monkeypatch)
    assert "*Not measured yet.* `kvik bench ladder --preset rungs -o FILE` measures it." in text


def test_a_result_that_fails_its_checks_reaches_no_page(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doctored = made_result()
    doctored["sides"]["M2"]["metrics"]["tokens_per_s"]["median"] = 1e6
    with pytest.raises(SystemExit, match="does not pass its checks"):
        placed(tool, tmp_path / "results", doctored, monkeypatch=monkeypatch)


def test_the_tool_runs_as_a_program(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_ladder_pages.py", "--check"])
    assert tool.main() == 0
