"""Peers are processes: they answer, they are frozen between answers, and every way of failing has its own words."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kvik.bench.peers import Peer, PeerError, PeerProgram, find_peer

FAKE = Path(__file__).parent / "fake_peer.py"
LOAD = {"op": "load", "model": "m", "threads": 1, "max_len": 9, "max_seqs": 2, "kv_bytes": 1, "options": {}}
RUN = {"op": "run", "prompts": [[1, 2], [3], [4]], "output_lens": [2, 4, 3], "concurrency": 2}


@pytest.fixture
def starts(tmp_path: Path) -> Iterator[Any]:
    """Starts a fake peer of a given manner."""
    with ExitStack() as stack:

        def start(manner: str) -> Peer:
            program = PeerProgram("fake", (sys.executable, str(FAKE), str(tmp_path / "diary"), manner))
            return stack.enter_context(Peer(program))

        yield start


def state(peer: Peer) -> str:
    """The letter Linux has for what a process does; T is stopped."""
    return Path(f"/proc/{peer.pid}/stat").read_text().rpartition(")")[2].split()[0]


def comes_to(peer: Peer, letter: str) -> bool:
    """Whether the process is in this state soon; a signal takes a moment to arrive."""
    deadline = time.monotonic() + 5
    while state(peer) != letter and time.monotonic() < deadline:
        time.sleep(0.01)
    return state(peer) == letter


def test_a_peer_answers_with_its_tokens_and_their_times(starts: Any) -> None:
    peer = starts("good")
    loaded = peer.ask(LOAD, timeout=20)
    assert loaded["versions"] == {"fake": "1"}
    assert loaded["resident_bytes"] > 0
    reply = peer.ask(RUN, timeout=20)
    assert reply["output_tokens"] == [2, 4, 3]
    assert reply["first_token_ids"] == [7, 7, 7]
    assert [event[1:] for event in reply["events"]] == [[2, 2, 0], [4, 2, 1], [6, 3, 1], [8, 3, 2], [9, 3, 3]]
    assert reply["seconds"] >= reply["events"][-1][0]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the state of a process from /proc")
def test_a_peer_is_frozen_until_it_is_asked_again(starts: Any) -> None:
    peer = starts("good")
    for message in (LOAD, RUN):
        peer.ask(message, timeout=20)
        assert comes_to(peer, "T")
    assert peer.ask(RUN, timeout=20)["ok"]


def test_what_an_engine_prints_is_no_answer(starts: Any) -> None:
    """The fake engine echoes a line to standard output before every run."""
    peer = starts("good")
    assert peer.ask(RUN, timeout=20)["ok"]
    assert peer.ask(RUN, timeout=20)["ok"]


def test_a_peer_that_fails_says_why_and_lives_on(starts: Any) -> None:
    peer = starts("no-load")
    with pytest.raises(PeerError, match="fake failed: OSError: m cannot be loaded"):
        peer.ask(LOAD, timeout=20)
    with pytest.raises(PeerError, match="op is 'dance'; expected load, run or quit"):
        peer.ask({"op": "dance"}, timeout=20)
    assert peer.ask(RUN, timeout=20)["ok"]


def test_a_peer_that_ends_leaves_its_last_words(starts: Any) -> None:
    with pytest.raises(PeerError, match=r"fake ended with status 3; its last words: .*the engine caught fire"):
        starts("crash").ask(RUN, timeout=20)


def test_a_peer_that_does_not_answer_is_given_up(starts: Any) -> None:
    peer = starts("hang")
    with pytest.raises(PeerError, match=r"fake did not answer within 0\.3 s"):
        peer.ask(RUN, timeout=0.3)
    started = time.monotonic()
    peer.close(patience=0.1)
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(peer.pid, 0)


@pytest.mark.parametrize(
    ("code", "words"),
    [("print('hello')", "not JSON"), ("print(3)", "expected a JSON object"), ("print('{}')", "did not say why")],
)
def test_an_answer_that_is_none_is_refused(code: str, words: str) -> None:
    program = PeerProgram("odd", (sys.executable, "-c", f"input(); {code}; input()"))
    with Peer(program) as peer, pytest.raises(PeerError, match=words):
        peer.ask(LOAD, timeout=20)


def test_a_program_that_is_not_there_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"gone cannot be started: .*No such file"):
        Peer(PeerProgram("gone", (str(tmp_path / "nothing"),)))


def test_closing_twice_is_closing_once(starts: Any) -> None:
    peer = starts("good")
    peer.close()
    peer.close()


def record(root: Path, name: str, text: str) -> None:
    (root / name).mkdir(parents=True)
    (root / name / "peer.json").write_text(text)


def test_an_engine_that_is_not_installed_is_told_how(tmp_path: Path) -> None:
    assert "setup.py vllm --root" in str(find_peer(tmp_path, "vllm"))
    record(tmp_path, "openvino", json.dumps({"command": [str(tmp_path / "env/bin/python"), "drive.py"]}))
    assert "has gone" in str(find_peer(tmp_path, "openvino"))
    record(tmp_path, "kvik", json.dumps({"command": [sys.executable, str(FAKE)]}))
    assert find_peer(tmp_path, "kvik") == PeerProgram("kvik", (sys.executable, str(FAKE)))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"command": []}', '{"command": "python"}', '{"command": [1]}'])
def test_a_damaged_record_is_named(text: str, tmp_path: Path) -> None:
    record(tmp_path, "vllm", text)
    with pytest.raises(PeerError, match=r"peer\.json is damaged"):
        find_peer(tmp_path, "vllm")
