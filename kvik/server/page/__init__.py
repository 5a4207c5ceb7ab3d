"""The page at `/`: a chat, and the engine at work.

Its files lie in this folder as they are sent: no build step, nothing from anywhere else, so it works offline. They are
read once, looked up by name in a table, and sent with a policy under which nothing but them can run and nobody can be
called but this server. They hold no data, so they need no API key; the page asks for one when the server does. This
file knows nothing of what the page shows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from kvik.server.app import Entry, Serve
from kvik.server.exchange import Exchange
from kvik.server.service import Service
from kvik.server.wire import Headers

FOLDER = Path(__file__).parent
START = "index.html"
TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
GUARDS: Headers = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


@dataclass(frozen=True)
class PageFile:
    """One file as it is sent. Browsers ask every time whether it has changed, and mostly hear that it has not."""

    body: bytes
    kind: bytes

    @property
    def etag(self) -> bytes:
        """Changes when the file does."""
        return b'"%s"' % hashlib.sha256(self.body).hexdigest()[:32].encode()

    async def serve(self, exchange: Exchange) -> None:
        """The file, or 304 for who has it."""
        headers = [*GUARDS, (b"etag", self.etag), (b"cache-control", b"no-cache")]
        asked = exchange.headers.get(b"if-none-match", b"")
        if self.etag in [tag.strip().removeprefix(b"W/") for tag in asked.split(b",")]:
            await exchange.send({"type": "http.response.start", "status": 304, "headers": headers})
            await exchange.send({"type": "http.response.body"})
        else:
            await exchange.reply(200, self.body, self.kind, headers)


def page_files() -> dict[str, PageFile]:
    """Every file of the page by the path it is found at."""
    found = sorted(path for path in FOLDER.iterdir() if path.suffix in TYPES)
    files = {f"/page/{path.name}": PageFile(path.read_bytes(), TYPES[path.suffix]) for path in found}
    return {"/": files.pop(f"/page/{START}"), **files}


def routes() -> tuple[Entry, ...]:
    """The routes of the page, all of them public."""
    return tuple(Entry(path, "GET", _serve(file), public=True) for path, file in page_files().items())


def _serve(file: PageFile) -> Serve:
    async def serve(service: Service, exchange: Exchange) -> None:
        await file.serve(exchange)

    return serve
