"""From answers to updates: what is new in each choice of a request since it was last told.

An engine keeps whole answers; whoever follows one from outside is sent only what was added. Log-probabilities, which
are a hundred times as large as the tokens they belong to, are handed over and not kept. This file knows nothing of
steps, of channels or of how text is made.
"""

from __future__ import annotations

from kvik.engine.outputs import Answer, Choice
from kvik.engine.remote.frames import Update
from kvik.request import TokenLogprobs

_ENDED = -1


class Updates:
    """How much of each unfinished request has been told."""

    def __init__(self) -> None:
        self._told: dict[str, list[int]] = {}

    def take(self, answer: Answer) -> list[Update]:
        """What is new in a request. Choices with nothing new have no update; one that has ended has its last."""
        told = self._told.get(answer.request_id)
        if told is None:
            told = self._told[answer.request_id] = [0] * len(answer.choices)
        updates = []
        for choice in answer.choices:
            index = choice.index
            if told[index] != _ENDED:
                update = _update(answer, choice, told[index])
                if update is not None:
                    updates.append(update)
                    told[index] = _ENDED if update.finish_reason is not None else told[index] + len(update.token_ids)
        if answer.is_finished:
            self.forget(answer.request_id)
        return updates

    def forget(self, request_id: str) -> None:
        """Nothing more will be told of a request."""
        self._told.pop(request_id, None)


def _update(answer: Answer, choice: Choice, told: int) -> Update | None:
    request, reason = choice.request, choice.finish_reason
    text = choice.take_text()
    token_ids = request.tokens[request.num_prompt_tokens + told :] if request else []
    if not text and not token_ids and reason is None:
        return None
    params, first = answer.params, answer.first
    logprobs = None
    if request and params.logprobs is not None:
        logprobs = list(request.logprobs)
        request.logprobs.clear()
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    if told == 0 and choice.index == 0 and params.prompt_logprobs is not None:
        prompt_logprobs = list(first.prompt_logprobs)
    return Update(
        answer.request_id,
        choice.index,
        text,
        token_ids,
        logprobs,
        reason.value if reason else None,
        choice.stop_string or (request.stop_token if request else None),
        first.num_cached_tokens,
        prompt_logprobs,
    )
