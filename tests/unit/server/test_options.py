"""Server options: what is refused before anything starts."""

from __future__ import annotations

import dataclasses
import resource
import socket
from typing import Any

import pytest

from kvik.config import CONCERNS
from kvik.errors import ConfigError
from kvik.server.options import SERVER_CONCERNS, ConnectionOptions, ListenOptions, ServerOptions
from kvik.server.run import SPARE_FILES, bind, connection_capacity

KEY = ("a-key-of-ours",)


def test_defaults_are_safe() -> None:
    options = ServerOptions()
    assert options.listen.host == "127.0.0.1"
    assert options.listen.on_loopback
    assert not options.listen.cors_origin
    assert options.connection.keep_alive >= 75


def test_every_field_says_what_it_is_for_and_no_name_is_taken_twice() -> None:
    fields = [f for kind in SERVER_CONCERNS.values() for f in dataclasses.fields(kind)]
    assert all(f.metadata["help"].endswith(".") for f in fields)
    engine = {f.name for kind in CONCERNS.values() for f in dataclasses.fields(kind)}
    names = [f.name for f in fields]
    assert len(set(names)) == len(names)
    assert not engine & set(names)


@pytest.mark.parametrize("url", ["", "localhost:4318", "ftp://a", "http://", "http://a b", "http://a/?q", "http://a#b"])
def test_an_otlp_endpoint_is_a_url(url: str) -> None:
    with pytest.raises(ConfigError, match="otlp_endpoint is"):
        ServerOptions.from_options(otlp_endpoint=url)
    assert ServerOptions.from_options(otlp_endpoint="https://a:1/b").traces.otlp_endpoint == "https://a:1/b"
    assert ServerOptions().traces.otlp_endpoint is None


def test_flat_options_are_sorted_into_their_concerns() -> None:
    options = ServerOptions.from_options(port=1, max_connections=2, target_ttft=3.0)
    assert (options.listen.port, options.connection.max_connections, options.flow.target_ttft) == (1, 2, 3.0)
    with pytest.raises(TypeError, match="no_such"):
        ServerOptions.from_options(no_such=1)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_others_are_let_in_only_with_a_key_or_on_demand(host: str) -> None:
    with pytest.raises(ConfigError, match="api_key"):
        ListenOptions(host=host)
    assert not ListenOptions(host=host, api_key=KEY).on_loopback
    assert not ListenOptions(host=host, insecure=True).on_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_is_let_in(host: str) -> None:
    assert ListenOptions(host=host).on_loopback


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("header_timeout", -1.0),
        ("header_timeout", float("nan")),
        ("max_connections", 0),
        ("max_body_bytes", 2**40),
        ("max_concurrent", 0),
        ("log_level", "loud"),
        ("api_key", ("short",)),
        ("api_key", ("with a space",)),
        ("api_key", ("kläßlich-key",)),
        ("drain_timeout", -0.5),
    ],
)
def test_bad_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name if name != "max_body_bytes" else "max_body"):
        ServerOptions.from_options(**{name: value})


def test_a_key_is_not_quoted_when_it_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        ListenOptions(api_key=("geheim!",))
    assert "geheim" not in str(refused.value)


def test_binding_names_the_address_at_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} is in use"):
            bind(ListenOptions(port=port))
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        bind(ListenOptions(host="192.0.2.1", insecure=True))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_binding_takes_a_free_port(host: str) -> None:
    with bind(ListenOptions(host=host, port=0)) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"
        assert sock.getsockname()[1] > 0


def test_connections_leave_room_for_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = [256, 256]
    monkeypatch.setattr(resource, "getrlimit", lambda which: tuple(limit))
    monkeypatch.setattr(resource, "setrlimit", lambda which, new: limit.__setitem__(slice(None), new))
    assert connection_capacity(ConnectionOptions()) == 256 - SPARE_FILES
    limit[:] = [1024, 1 << 20]
    assert connection_capacity(ConnectionOptions()) == 4096
    assert limit == [4096 + SPARE_FILES, 1 << 20]
    limit[:] = [resource.RLIM_INFINITY, resource.RLIM_INFINITY]
    assert connection_capacity(ConnectionOptions()) == 4096
