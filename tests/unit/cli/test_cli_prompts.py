"""Prompt files, output records and token ids on the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click
import pytest

from kvik.cli.generate import TokenIds
from kvik.cli.prompt_file import read_prompts
from kvik.cli.records import output_record
from kvik.cli.terminal import human_bytes, human_rate, json_line
from kvik.errors import InvalidRequestError
from kvik.request import CompletionOutput, Logprob, RequestOutput, TokenLogprobs


def written(folder: Path, text: str, name: str = "prompts.txt") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_plain_lines_are_prompts(tmp_path: Path) -> None:
    assert read_prompts(written(tmp_path, "one\n\n two \n[3]\n")) == ["one", " two ", "[3]"]


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.txt"])
def test_json_lines_are_prompts(tmp_path: Path, name: str) -> None:
    text = '{"prompt": "one"}\n\n{"prompt_token_ids": [1, 2]}\n'
    assert read_prompts(written(tmp_path, text, name)) == [{"prompt": "one"}, {"prompt_token_ids": [1, 2]}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', "line 2 is not JSON"),
        ('{"prompt": "a"}\n\n[1]\n', "line 3: expected an object"),
        ('{"prompt": "a"}\n{"text": "b"}\n', "line 2: expected an object"),
        ("\n \n", "holds no prompt"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        read_prompts(written(tmp_path, text))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"nothing\.txt cannot be read"):
        read_prompts(tmp_path / "nothing.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(InvalidRequestError, match=r"latin\.txt is not UTF-8 text: byte 3"):
        read_prompts(tmp_path / "latin.txt")


@pytest.mark.parametrize("text", ["", "1,,2", "1;2", "1.5"])
def test_what_is_no_list_of_token_ids_is_refused(text: str) -> None:
    with pytest.raises(click.UsageError, match="expected numbers such as 1,2,3"):
        TokenIds().convert(text, None, None)


def test_token_ids() -> None:
    assert TokenIds().convert("1, 2,3", None, None) == [1, 2, 3]


def test_a_record_is_json_whatever_the_numbers() -> None:
    entry = TokenLogprobs(7, -0.5, (Logprob(7, -0.5), Logprob(9, -math.inf)))
    choice = CompletionOutput(0, "é", [7], "length", None, [entry])
    record = output_record(RequestOutput("request-1", "p", [1], [choice], error=ValueError("no")))
    back = json.loads(json_line(record))
    assert back["outputs"][0]["logprobs"][0]["top"][1] == {"token_id": 9, "logprob": -9999.0}
    assert (back["prompt"], back["error"], back["outputs"][0]["finish_reason"]) == ("p", "no", "length")
    assert "é" in json_line(record)


def test_figures_for_people() -> None:
    assert [human_bytes(n) for n in (12, 1500, 1.192e9)] == ["12 B", "1.50 kB", "1.19 GB"]
    assert [human_rate(n, "B/s") for n in (3.74e10, 6.29e12, 5)] == ["37.40 GB/s", "6.29 TB/s", "5.00 B/s"]
