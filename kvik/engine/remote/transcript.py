"""All that the updates of one request have brought so far, as the output its user sees.

This file knows nothing of where updates come from.
"""

from __future__ import annotations

from kvik.engine.prompts import Prompt
from kvik.engine.remote.frames import Update
from kvik.request import CompletionOutput, RequestOutput, SamplingParams, TokenLogprobs


class _Choice:
    def __init__(self, logprobs: bool) -> None:
        self.text = ""
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] | None = [] if logprobs else None
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None

    def add(self, update: Update) -> None:
        self.text += update.text
        self.token_ids += update.token_ids
        if self.logprobs is not None and update.logprobs:
            self.logprobs += update.logprobs
        self.finish_reason, self.stop_reason = update.finish_reason, update.stop_reason

    def output(self, index: int) -> CompletionOutput:
        logprobs = None if self.logprobs is None else list(self.logprobs)
        return CompletionOutput(
            index, self.text, list(self.token_ids), self.finish_reason, self.stop_reason, logprobs=logprobs
        )


class Transcript:
    """One request and what has come of each of its choices."""

    def __init__(self, request_id: str, prompt: Prompt, params: SamplingParams) -> None:
        self._request_id, self._prompt = request_id, prompt
        self._choices = [_Choice(params.logprobs is not None) for _ in range(params.n)]
        self._num_cached_tokens = 0
        self._prompt_logprobs: list[TokenLogprobs | None] | None = None

    def add(self, update: Update) -> None:
        """Take in what is new in one choice."""
        self._choices[update.index].add(update)
        self._num_cached_tokens = update.num_cached_tokens
        self._prompt_logprobs = update.prompt_logprobs or self._prompt_logprobs

    def output(self) -> RequestOutput:
        """A snapshot."""
        return RequestOutput(
            request_id=self._request_id,
            prompt=self._prompt.text,
            prompt_token_ids=self._prompt.token_ids,
            outputs=[choice.output(index) for index, choice in enumerate(self._choices)],
            finished=all(choice.finish_reason is not None for choice in self._choices),
            num_cached_tokens=self._num_cached_tokens,
            prompt_logprobs=self._prompt_logprobs,
        )
