"""Meter: what the server tells whoever counts.

A meter that counts nothing; metrics.py has one that does. Labels are of fixed sets: routes as they are in the route
table, statuses, and reasons named here. Knows nothing of how anything is shown.
"""

from __future__ import annotations

SERVER_FULL, CALLER_FULL, DRAINING, NOT_READY, GUARD = "full", "caller_full", "draining", "not_ready", "guard"
"""Why a request was turned away."""
CLIENT_GONE = 499
"""Stands for the status of a reply that was never begun, because the client had left."""


class Meter:
    """Every method is called on the event loop and must return at once. Times are in seconds."""

    def request_started(self, route: str) -> None:
        """A request has come; `route` is a path of the route table, or `other`."""

    def request_ended(self, route: str, status: int, duration: float) -> None:
        """Its reply is complete or given up."""

    def queued(self, duration: float) -> None:
        """A request's turn has come after so long."""

    def first_token(self, duration: float) -> None:
        """The first token of a request, so long after it came."""

    def rejected(self, reason: str) -> None:
        """A request was turned away."""

    def refused(self, status: int) -> None:
        """A connection was told so by the guard and closed."""

    def cut(self) -> None:
        """A client that did not read was cut."""

    def gone(self) -> None:
        """A client left before its answer was complete."""
