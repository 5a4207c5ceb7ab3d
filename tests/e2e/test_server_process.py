"""`kvik serve` as a process: how it starts, how it says what is wrong, how it ends, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from cli_process import COMMAND, environment, run_kvik, start_kvik

WAIT_S = 60.0
SLOW = "fake:length=100000,step_ms=10,max_model_len=20000"


class Server:
    """A running `kvik serve` on a port of its own."""

    def __init__(self, *args: str, files: int | None = None) -> None:
        command = ["serve", "--model", SLOW, "--port", "0", "--served-model-name", "fake", *args]
        self.process = start_kvik(*command) if files is None else start_limited(files, *command)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.port = int(re.search(r":(\d+)$", self.line("listening"))[1])  # type: ignore[index]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def line(self, event: str) -> str:
        """The first log line of an event."""
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            found = [line for line in self.lines if line.split()[2:3] == [event]]
            if found:
                return found[0]
            assert self.process.poll() is None, self.lines
            time.sleep(0.005)
        raise AssertionError(self.lines)

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"content-type": "application/json"} | headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def ready(self) -> int:
        return self.request("GET", "/health/ready")[0]

    def wait_ready(self) -> None:
        until = time.monotonic() + WAIT_S
        while self.ready() != 200:
            assert time.monotonic() < until, self.lines
            time.sleep(0.01)

    def begin_stream(self, max_tokens: int = 10_000) -> socket.socket:
        """A stream that is under way."""
        sock = socket.create_connection(("127.0.0.1", self.port), WAIT_S)
        body = json.dumps({"model": "fake", "prompt": "a", "max_tokens": max_tokens, "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        sock.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        assert sock.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200"
        return sock

    def engine_pid(self) -> int:
        """The child process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        if not children.exists():
            pytest.skip("this system does not list a process's children")
        return int(children.read_text().split()[0])

    def end(self) -> int:
        """Its exit status; the log is whole after that."""
        status = self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        if self._reader.is_alive() or not self.process.stdout.closed:  # type: ignore[union-attr]
            self.end()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server("--drain-timeout", "1")
    try:
        yield running
    finally:
        running.close()


def start_limited(files: int, *args: str) -> subprocess.Popen[str]:
    """The same as `start_kvik` with so many open files at most."""
    return subprocess.Popen(
        ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *COMMAND, *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env=environment(),
    )


def seconds(pid: int) -> float:
    """Processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rest_of(sock: socket.socket) -> bytes:
    with sock:
        data = b""
        while piece := sock.recv(65536):
            data += piece
        return data


def is_gone(pid: int) -> bool:
    """Whether a process has ended, within a moment."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def failing(*args: str) -> str:
    """What a server that cannot start says: one line, soon."""
    done = run_kvik("serve", *args)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if not re.match(r"\d{4}-\d\d-\d\dT", line)]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("kvik: error: ")
    assert "Traceback" not in done.stderr
    assert not done.stdout
    return errors[0]


def test_it_listens_while_it_loads_and_tells_the_truth(server: Server) -> None:
    """Live from the first moment; ready when a request would be answered, and not before."""
    assert server.request("GET", "/health/live")[0] == 200
    seen = [server.ready()]
    while seen[-1] != 200:
        seen.append(server.ready())
    assert set(seen) <= {503, 200}
    status, _ = server.request("POST", "/v1/completions", {"model": "fake", "prompt": "a", "max_tokens": 1})
    assert status == 200
    assert "model=fake" in server.line("ready")


def test_sigterm_with_nothing_to_do_ends_at_once(server: Server) -> None:
    server.wait_ready()
    child = server.engine_pid()
    start = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == 0
    assert time.monotonic() - start < 5
    assert is_gone(child)
    assert server.lines[-1].endswith("info stopped")


def test_sigterm_lets_a_stream_finish(server: Server) -> None:
    server.wait_ready()
    stream = server.begin_stream(max_tokens=30)
    server.process.send_signal(signal.SIGTERM)
    data = rest_of(stream)
    assert server.end() == 0
    assert b'"finish_reason":"length"' in data
    assert data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_sigterm_ends_a_stream_that_takes_too_long_with_an_error_event(server: Server) -> None:
    server.wait_ready()
    stream = server.begin_stream()
    server.process.send_signal(signal.SIGTERM)
    server.line("draining")
    assert server.ready() == 503
    status, body = server.request("POST", "/v1/completions", {"model": "fake", "prompt": "a"})
    assert (status, json.loads(body)["error"]["code"]) == (503, "overloaded")
    data = rest_of(stream)
    assert server.end() == 0
    assert b'"code":"aborted"' in data
    assert b'"finish_reason":"stop"' not in data
    assert data.endswith(b"0\r\n\r\n")


def test_a_second_sigterm_ends_now(server: Server) -> None:
    server.wait_ready()
    child = server.engine_pid()
    stream = server.begin_stream()
    server.process.send_signal(signal.SIGTERM)
    server.line("draining")
    start = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    data = rest_of(stream)
    assert server.end() == 0
    assert time.monotonic() - start < 2.0
    assert b'"code":"aborted"' in data
    assert is_gone(child)


def test_ctrl_c_ends_it_as_commands_end(server: Server) -> None:
    server.wait_ready()
    server.process.send_signal(signal.SIGINT)
    assert server.end() == 130


def test_sigterm_while_it_loads(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == 0


def test_killed_it_leaves_no_engine_and_no_port_behind(server: Server) -> None:
    server.wait_ready()
    child = server.engine_pid()
    server.process.kill()
    server.end()
    assert is_gone(child)
    again = Server("--port", str(server.port))
    again.wait_ready()
    again.close()


def test_an_engine_that_dies_is_replaced_and_its_requests_are_told(server: Server) -> None:
    server.wait_ready()
    stream = server.begin_stream()
    os.kill(server.engine_pid(), signal.SIGKILL)
    data = rest_of_stream(stream)
    assert b'"error":{' in data
    assert b'"finish_reason":"stop"' not in data
    server.wait_ready()
    status, _ = server.request("POST", "/v1/completions", {"model": "fake", "prompt": "a", "max_tokens": 1})
    assert status == 200
    assert json.loads(server.request("GET", "/health")[1])["restarts"] == 1


def rest_of_stream(sock: socket.socket) -> bytes:
    data = b""
    with sock:
        while not data.endswith(b"0\r\n\r\n"):
            piece = sock.recv(65536)
            assert piece
            data += piece
    return data


def test_idle_it_takes_no_time(server: Server) -> None:
    server.wait_ready()

    both = (server.process.pid, server.engine_pid())
    before, start = sum(map(seconds, both)), time.monotonic()
    threading.Event().wait(2.0)
    used = sum(map(seconds, both)) - before
    assert used <= 0.03 * (time.monotonic() - start)


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        start = time.monotonic()
        assert f"127.0.0.1:{port} is in use" in failing("--model", "fake:", "--port", str(port))
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--model", "fake:nonsense=1"], "nonsense"),
        (["--model", "fake:", "--host", "0.0.0.0"], "api_key"),
        (["--model", "fake:", "--host", "256.1.1.1", "--insecure"], "256.1.1.1"),
        (["--model", "fake:", "--port", "70000"], "70000"),
        (["--model", "fake:", "--max-num-seqs", "0"], "max-num-seqs"),
        (["--model", "fake:", "--target-ttft", "soon"], "target-ttft"),
        (["--model", "fake:", "--no-such-flag"], "no-such-flag"),
        (["--model", "fake:", "--api-key", "short"], "api_key"),
        (["--model", "fake:", "--api-key-file", "/no/such/file"], "/no/such/file"),
        (["--model", "fake:", "--otlp-endpoint", "localhost"], "otlp_endpoint is 'localhost'"),
    ],
)
def test_what_cannot_be_started_is_one_line(args: list[str], said: str) -> None:
    assert said in failing(*args, "--port", "0") if "--port" not in args else failing(*args)


def test_keys_come_from_a_file_and_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nkey-of-the-file\n\n")
    monkeypatch.setenv("KVIK_API_KEY", "key-of-the-environment")
    server = Server("--api-key-file", str(keys), "--host", "0.0.0.0")
    try:
        server.wait_ready()
        statuses = [
            server.request("GET", "/v1/models", **({"authorization": f"Bearer {key}"} if key else {}))[0]
            for key in ("key-of-the-file", "key-of-the-environment", "key-of-nobody", "")
        ]
        assert statuses == [200, 200, 401, 401]
        assert "key-of" not in "\n".join(server.lines)
    finally:
        server.close()


def test_more_connections_than_files_do_no_harm() -> None:
    """256 files and more than twice as many clients: no crash, no busy loop, and well again when they have gone."""
    server = Server(files=256)
    try:
        server.wait_ready()
        socks = []
        for _ in range(700):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", server.port))
            socks.append(sock)
        before, start = seconds(server.process.pid), time.monotonic()
        assert server.ready() == 200, "the longest idle one has made room"
        threading.Event().wait(1.0)
        assert seconds(server.process.pid) - before <= 0.2 * (time.monotonic() - start) + 0.1
        for sock in socks:
            sock.close()
        start = time.monotonic()
        assert server.ready() == 200
        assert time.monotonic() - start < 5
        assert server.process.poll() is None
        assert not [line for line in server.lines if "event_loop" in line], (
            "files are kept back, so that none is missing"
        )
    finally:
        server.close()


def test_help_names_every_option() -> None:
    done: subprocess.CompletedProcess[str] = run_kvik("serve", "--help")
    assert done.returncode == 0
    for flag in ("--host", "--api-key", "--target-ttft", "--drain-timeout", "--max-body-bytes", "--model", "--threads"):
        assert flag in done.stdout
