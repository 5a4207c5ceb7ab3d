"""Keys, names and origins: nothing but the public list is answered without a key, however a path is spelled."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from live_server import LiveServer, head_of, post, prompt

from kvik.server.auth import PUBLIC, Caller, Door, Hosts, KeyRing, Origins
from kvik.server.protocol.errors import ApiError

KEY, OTHER = "correct-horse-battery", "second-key-of-ours"
BEARER = f"Bearer {KEY}"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer("fake:length=2", api_key=(KEY, OTHER)) as running:
        yield running


@pytest.fixture(scope="module")
def shared() -> Iterator[LiveServer]:
    with LiveServer("fake:length=2", cors_origin=("https://app.example",), allowed_host=("Gateway",)) as running:
        yield running


def filled(path: str) -> str:
    return path.replace("{id:path}", "fake")


def test_every_route_but_the_public_ones_needs_a_key(server: LiveServer) -> None:
    seen = set()
    for entry in server.app.entries:
        path, method = filled(entry.path), entry.method
        for wrong in (None, "", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY):
            request = head_of(method, path, **({} if wrong is None else {"authorization": wrong}))
            reply = server.send(request, method)
            if entry.public:
                assert reply.status != 401, path
            else:
                assert reply.status == 401, path
                assert reply.error["code"] == "invalid_api_key"
                assert reply.headers["www-authenticate"] == "Bearer"
        seen.add(entry.public)
    assert seen == {True, False}
    assert {entry.path for entry in server.app.entries if entry.public} >= PUBLIC


@pytest.mark.parametrize("authorization", [BEARER, f"bearer {KEY}", f"BEARER   {KEY} ", f"Bearer {OTHER}"])
def test_each_key_opens(server: LiveServer, authorization: str) -> None:
    assert server.get("/v1/models", authorization=authorization).status == 200
    assert server.post("/v1/completions", prompt(), authorization=authorization).status == 200


TRICKS = [
    "//v1/models",
    "/v1//models",
    "/v1/../v1/models",
    "/./v1/models",
    "/health/../v1/models",
    "/health/live/../../stats",
    "/%76%31/models",
    "/v1%2fmodels",
    "/%2e%2e/v1/models",
    "/health%2f..%2fv1%2fmodels",
    "/v1/models/",
    "/v1/models%00",
    "/health/live/",
    "/health;/v1/models",
    "/V1/models",
    "/stats/",
    "/stats?x=/health",
    "/stats#/health",
    "/page/../stats",
    "http://localhost/v1/models",
    "http://localhost/health/../stats",
    "/v1/models/%2e%2e/health",
    "/\\stats",
    "/page/../v1/models",
    "/page/%2e%2e/stats",
    "/page//../stats",
    "/metrics",
    "/events",
    "/docs",
    "/openapi.json",
]


@pytest.mark.parametrize("path", TRICKS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x_forwarded_for": "127.0.0.1", "x_forwarded_proto": "https", "x_real_ip": "127.0.0.1"},
        {"x_original_url": "/health", "x_rewrite_url": "/health", "x_forwarded_prefix": "/health"},
        {"authorization": "Bearer null", "cookie": f"key={KEY}", "x_api_key": KEY},
        {"x_http_method_override": "OPTIONS"},
    ],
)
def test_no_spelling_of_a_path_leads_around_the_door(server: LiveServer, path: str, headers: dict[str, str]) -> None:
    assert server.get(path, **headers).status in (401, 400)
    assert server.send(head_of("POST", path, content_length=0, **headers)).status in (401, 400)


def test_random_paths_are_refused_as_well(server: LiveServer) -> None:
    rng = random.Random(2)
    parts = ["health", "live", "v1", "models", "..", ".", "", "%2e", "%2f", "stats", "page", "ready", "%00", "a"]
    for _ in range(200):
        path = "/" + "/".join(rng.choice(parts) for _ in range(rng.randint(1, 6)))
        status = server.get(path).status
        assert status == 401 or path in PUBLIC or path == "/" or path.startswith("/page/"), path


def test_a_wrong_key_is_refused_before_the_body_is_read(server: LiveServer) -> None:
    reply = server.send(head_of("POST", "/v1/completions", content_type="application/json", content_length=10**7))
    assert reply.status == 401
    assert reply.headers["connection"] == "close"


def test_a_wrong_key_is_told_from_a_missing_one_in_words_that_clients_look_for(server: LiveServer) -> None:
    wrong = server.get("/v1/models", authorization="Bearer the-key-of-nobody").error
    assert wrong["message"].startswith("Incorrect API key provided")
    assert "the-key-of-nobody" not in wrong["message"]
    missing = server.get("/v1/models").error
    assert missing["message"].startswith("the API key is missing")
    assert wrong["code"] == missing["code"] == "invalid_api_key"


def test_keys_are_neither_logged_nor_shown(server: LiveServer) -> None:
    server.post("/v1/completions", prompt(), authorization=BEARER)
    shown = server.get("/stats", authorization=BEARER).body.decode() + "\n".join(server.lines)
    assert KEY not in shown
    assert OTHER not in shown


def test_each_key_is_a_caller_of_its_own_with_its_own_salt() -> None:
    door = Door(KeyRing([KEY, OTHER]))
    first, second = (door.caller("/stats", f"Bearer {key}".encode(), "1.2.3.4") for key in (KEY, OTHER))
    assert first.name != second.name
    assert first.salt != second.salt
    assert KEY not in first.name
    assert door.caller("/stats", BEARER.encode(), "4.3.2.1") == first


def test_without_keys_a_caller_is_an_address() -> None:
    assert Door(KeyRing([])).caller("/stats", None, "1.2.3.4") == Caller("1.2.3.4")


def test_all_keys_are_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time says nothing about which key it was, or how much of one."""
    compared: list[int] = []

    def count(ours: bytes, given: bytes) -> bool:
        compared.append(len(given))
        return ours == given

    monkeypatch.setattr("kvik.server.auth.hmac.compare_digest", count)
    ring = KeyRing([KEY, OTHER, "a-third-one"])
    for header in (BEARER.encode(), b"Bearer x", None, b"Basic " + KEY.encode()):
        compared.clear()
        ring.find(header)
        assert compared == [32, 32, 32]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:80", "[::1]:1", "gateway:9"])
def test_a_server_on_this_machine_knows_its_names(shared: LiveServer, host: str) -> None:
    assert shared.get("/health", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "0.0.0.0", "a/b", "x:y", "localhost:999999", ""],
)
def test_and_no_others(shared: LiveServer, host: str) -> None:
    reply = shared.get("/health", host=host)
    assert reply.status == 400
    assert "evil" not in reply.error["message"]


def test_a_server_for_others_takes_any_name() -> None:
    Hosts().check(b"anything.example:80")
    with pytest.raises(ApiError):
        Hosts().check(b"no name")


def test_no_other_page_may_call_unless_it_was_named(server: LiveServer) -> None:
    reply = server.get("/health", origin="https://app.example")
    assert not [name for name in reply.headers if name.startswith("access-control")]
    preflight = {"origin": "https://app.example", "access_control_request_method": "POST"}
    assert server.get("/v1/completions", "OPTIONS", **preflight).status == 401


def test_a_page_that_was_named_may(shared: LiveServer) -> None:
    origin = "https://app.example"
    preflight = {"origin": origin, "access_control_request_method": "POST"}
    reply = shared.get("/v1/completions", "OPTIONS", **preflight)
    assert reply.status == 204
    assert reply.headers["access-control-allow-origin"] == origin
    assert "content-type" in reply.headers["access-control-allow-headers"]
    answered = shared.send(post("/v1/completions", prompt(), origin=origin))
    assert answered.headers["access-control-allow-origin"] == origin
    assert answered.headers["vary"] == "Origin"
    refused = shared.send(post("/v1/completions", b"{", origin=origin))
    assert refused.headers["access-control-allow-origin"] == origin
    assert "access-control-allow-origin" not in shared.get("/health", origin="https://evil.example").headers


def test_a_star_is_every_origin() -> None:
    assert Origins(("*",)).headers(b"https://anywhere.example")[0] == (b"access-control-allow-origin", b"*")
    assert Origins(("*",)).headers(None) == []
