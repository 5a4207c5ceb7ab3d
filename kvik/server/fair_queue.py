"""FairQueue: whose request is next, when those of several callers wait.

The caller that has been served the least is next; what it is served, prompt and answer tokens alike, is charged to its
counter (virtual token counters: Sheng et al., Fairness in Serving Large Language Models, OSDI 2024). Whoever comes
back after a while starts level with the others, neither owed for the time away nor able to shed what was served. So a
thousand waiting requests of one caller delay a single one of another by one request at most.

Pure bookkeeping: knows nothing of time, of engines or of asyncio.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

PROMPT_WEIGHT = 1
ANSWER_WEIGHT = 2
"""An answer token occupies the engine about as long as two of a prompt, as in the paper."""
MAX_KNOWN = 4096
"""Callers whose counters are kept while they have nothing here."""


@dataclass(eq=False)
class Ticket:
    """A request's place in the queue, then in the engine."""

    caller: str
    tokens: int
    """Of its prompt."""
    seats: int = 1
    """Choices that it computes side by side."""
    rank: int = 0
    """The caller's own order: lower is served first, equals in order of arrival."""
    number: int = field(default=0, init=False)
    """Order of arrival."""
    start: int = field(default=0, init=False)
    """The caller's counter when its turn came."""

    @property
    def order(self) -> tuple[int, int]:
        """Its place among the caller's own."""
        return self.rank, self.number


class _Account:
    """One caller."""

    __slots__ = ("inside", "served", "tokens", "waiting")

    def __init__(self, served: int) -> None:
        self.served = served
        self.waiting: list[Ticket] = []
        """In their order."""
        self.tokens = 0
        """Prompt tokens that wait."""
        self.inside = 0
        """Requests whose turn has come and that have not ended."""

    @property
    def active(self) -> bool:
        return bool(self.waiting) or self.inside > 0


class FairQueue:
    """Tickets of all callers."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._arrivals = 0
        self._level = 0
        """The least that an active caller has been served; never falls."""
        self.tokens = 0
        """Prompt tokens that wait."""
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def waiting(self, caller: str) -> int:
        """Requests of one caller that wait."""
        account = self._accounts.get(caller)
        return len(account.waiting) if account else 0

    def present(self, caller: str) -> int:
        """Requests of one caller that wait or whose turn has come."""
        account = self._accounts.get(caller)
        return len(account.waiting) + account.inside if account else 0

    def add(self, ticket: Ticket) -> None:
        """The ticket waits from now on."""
        account = self._accounts.get(ticket.caller)
        if account is None:
            account = self._accounts[ticket.caller] = _Account(self._level)
        if not account.active:
            account.served = max(account.served, self._level)
        self._arrivals += 1
        ticket.number = self._arrivals
        insort(account.waiting, ticket, key=lambda waiting: waiting.order)
        account.tokens += ticket.tokens
        self.tokens += ticket.tokens
        self._length += 1

    def next(self) -> Ticket | None:
        """The ticket whose turn it is, which stays in the queue; None if nothing waits."""
        waiting = [account for account in self._accounts.values() if account.waiting]
        if not waiting:
            return None
        return min(waiting, key=lambda account: (account.served, account.waiting[0].number)).waiting[0]

    def admit(self, ticket: Ticket) -> None:
        """The turn of a waiting ticket has come; its prompt is charged."""
        account = self._accounts[ticket.caller]
        self._take(account, ticket)
        account.inside += 1
        ticket.start = account.served
        account.served += PROMPT_WEIGHT * ticket.tokens
        self._raise_level()

    def charge(self, ticket: Ticket, answer_tokens: int) -> None:
        """Tokens were generated for a ticket whose turn has come."""
        self._accounts[ticket.caller].served += ANSWER_WEIGHT * answer_tokens

    def remove(self, ticket: Ticket) -> None:
        """A waiting ticket is given up."""
        self._take(self._accounts[ticket.caller], ticket)
        self._forget(ticket.caller)

    def leave(self, ticket: Ticket) -> None:
        """A ticket whose turn had come has ended."""
        self._accounts[ticket.caller].inside -= 1
        self._raise_level()
        self._forget(ticket.caller)

    def ahead(self, caller: str, tokens: int) -> tuple[int, int]:
        """Requests and prompt tokens that would be served before a new ticket of this caller and size: of each other
        caller no more than this one has waiting itself, and its own.
        """
        account = self._accounts.get(caller)
        own_requests = len(account.waiting) if account else 0
        own_tokens = (account.tokens if account else 0) + tokens
        requests, waiting = 0, 0
        for other in self._accounts.values():
            requests += min(len(other.waiting), own_requests + 1)
            waiting += min(other.tokens, own_tokens)
        return requests, waiting

    def last_of_most(self) -> Ticket | None:
        """The last ticket of the caller that has the most waiting."""
        account = max(self._accounts.values(), key=lambda account: len(account.waiting), default=None)
        return account.waiting[-1] if account is not None and account.waiting else None

    def _take(self, account: _Account, ticket: Ticket) -> None:
        del account.waiting[bisect_left(account.waiting, ticket.order, key=lambda waiting: waiting.order)]
        account.tokens -= ticket.tokens
        self.tokens -= ticket.tokens
        self._length -= 1

    def _raise_level(self) -> None:
        active = [account.served for account in self._accounts.values() if account.active]
        if active:
            self._level = max(self._level, min(active))

    def _forget(self, caller: str) -> None:
        """Drop what is not needed: a counter at or below the level is where its caller would start anyway."""
        account = self._accounts[caller]
        if not account.active and account.served <= self._level:
            del self._accounts[caller]
        elif not account.active and len(self._accounts) > MAX_KNOWN:
            idle = [name for name, account in self._accounts.items() if not account.active]
            del self._accounts[min(idle, key=lambda name: self._accounts[name].served)]
