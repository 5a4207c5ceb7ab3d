"""What the scheduler remembers of a request beside the request itself.

A `Sequence` lives from add() to the request's end. It does not know blocks' reference counts, other requests or policy.
"""

from __future__ import annotations

from array import array

from kvik.request import Request
from kvik.scheduler.prefix_cache import Prefix


class Sequence:
    """One request with its place in the scheduler's books."""

    __slots__ = (
        "chain",
        "history",
        "in_flight",
        "is_plain",
        "num_choices",
        "num_registered",
        "num_scored",
        "num_seen",
        "order",
        "request",
        "slot",
    )

    def __init__(self, request: Request) -> None:
        params = request.params
        self.request = request
        self.order = (request.priority, request.arrival, request.key)
        """Lower is served first and preempted last."""
        self.num_choices = params.n if request.parent is None else 1
        """Choices that are still this one sequence; 1 once it has forked."""
        self.slot = -1
        """Its row in the persistent arrays while it runs."""
        self.in_flight = False
        """Whether it has a row in a plan that is not committed yet."""
        self.chain: list[Prefix] = []
        """Prefixes of its full blocks, as far as they were needed."""
        self.num_registered = 0
        """Leading blocks of its table that were offered to the prefix cache."""
        self.num_seen = 0
        """Most tokens it ever had in the KV cache; computing those again is recomputation."""
        self.num_scored = 0
        """Prompt tokens but the first whose log-probability is known."""
        self.is_plain = not (params.has_penalties or params.logit_bias or (params.min_tokens and request.stop_ids))
        """Whether drawing needs neither bias nor history."""
        self.history = array("i")
        """The tokens as int32, kept only for penalties."""

    @property
    def num_missing(self) -> int:
        """Tokens known and not computed: what it has to catch up."""
        return len(self.request.tokens) - self.request.num_computed_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether all it lacks is the token it drew last."""
        return self.num_missing == 1 and self.request.num_output_tokens > 0

    @property
    def num_to_score(self) -> int:
        """Entries of prompt_logprobs still to come."""
        if self.request.params.prompt_logprobs is None:
            return 0
        return self.request.num_prompt_tokens - 1 - self.num_scored

    @property
    def keys(self) -> range:
        """The keys of all choices that are still this sequence."""
        return range(self.request.key, self.request.key + self.num_choices)
