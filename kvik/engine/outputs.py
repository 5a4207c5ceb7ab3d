"""What the engine keeps for each request until it ends: its choices, their text, its times, its error.

An `Answer` is one request as its user sees it; each of its n choices follows one scheduler `Request`. Text is made
token by token only when somebody reads it so (a stream, or stop strings to look for); otherwise once, at the end.
This file knows nothing of scheduling or of when a step happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kvik.engine.metrics import RequestTimes
from kvik.request import CompletionOutput, FinishReason, Request, RequestOutput, SamplingParams


class TextStream(Protocol):
    """What the engine needs from a detokenizer."""

    @property
    def stop_string(self) -> str | None:
        """The stop string that was met; the text is cut before it."""

    @property
    def text(self) -> str:
        """All text emitted so far."""

    def push(self, token_ids: Sequence[int]) -> str:
        """New text that is safe to show."""

    def finish(self) -> str:
        """The rest of the text."""


class Choice:
    """One of a request's n choices."""

    __slots__ = ("_consumed", "_detokenizer", "_pieces", "answer", "eager", "finish_reason", "index", "request")

    def __init__(self, answer: Answer, index: int, detokenizer: TextStream | None, eager: bool) -> None:
        self.answer = answer
        self.index = index
        self.request: Request | None = None
        """None until the prompt is computed, for choices after the first."""
        self.finish_reason: FinishReason | None = None
        self.eager = eager and detokenizer is not None
        """Whether text is made token by token."""
        self._detokenizer = detokenizer
        self._consumed = len(answer.prompt_token_ids)
        self._pieces: list[str] = []

    @property
    def stop_string(self) -> str | None:
        return self._detokenizer.stop_string if self._detokenizer else None

    @property
    def num_tokens(self) -> int:
        """Output tokens so far."""
        return self.request.num_output_tokens if self.request else 0

    def advance(self) -> bool:
        """Make text of the tokens that are new; whether a stop string was met. A stop token has no text."""
        request, detokenizer = self.request, self._detokenizer
        if request is None or detokenizer is None:
            return False
        tokens = request.tokens
        end = len(tokens) - (request.stop_token is not None)
        if end > self._consumed:
            piece = detokenizer.push(tokens[self._consumed : end])
            self._consumed = end
            if piece:
                self._pieces.append(piece)
        return detokenizer.stop_string is not None

    def end(self, reason: FinishReason) -> None:
        """No token follows: give out what text was held back. A stop string in it wins over any other reason."""
        met = self.advance()
        if self._detokenizer and not met:
            piece = self._detokenizer.finish()
            if piece:
                self._pieces.append(piece)
        self.finish_reason = FinishReason.STOP if self.stop_string is not None else reason

    def take_text(self) -> str:
        """Text that is new since the last call."""
        text = "".join(self._pieces)
        self._pieces.clear()
        return text

    def output(self) -> CompletionOutput:
        """A snapshot for the user."""
        request = self.request
        reason = self.finish_reason
        return CompletionOutput(
            index=self.index,
            text=self._detokenizer.text if self._detokenizer else "",
            token_ids=request.output_token_ids if request else [],
            finish_reason=reason.value if reason else None,
            stop_reason=self.stop_string or (request.stop_token if request else None),
            logprobs=list(request.logprobs) if request and request.params.logprobs is not None else None,
        )


class Answer:
    """One request from its arrival to the end of its last choice."""

    def __init__(
        self,
        request: Request,
        *,
        request_id: str,
        prompt_text: str | None,
        times: RequestTimes,
        stream: bool,
        detokenizers: Sequence[TextStream | None],
    ) -> None:
        self.request_id = request_id
        self.prompt_text = prompt_text
        self.prompt_token_ids = request.tokens[: request.num_prompt_tokens]
        self.params: SamplingParams = request.params
        self.times = times
        self.error: Exception | None = None
        self.keys = range(request.key, request.key + request.params.n)
        eager = stream or bool(request.params.stop)
        self.choices = [Choice(self, index, detokenizer, eager) for index, detokenizer in enumerate(detokenizers)]
        self.choices[0].request = request
        self.num_unfinished = len(self.choices)

    @property
    def is_finished(self) -> bool:
        return self.num_unfinished == 0

    @property
    def first(self) -> Request:
        """The choice that computes the prompt."""
        request = self.choices[0].request
        assert request is not None
        return request

    @property
    def finish_reason(self) -> FinishReason | None:
        """How the request as a whole ended: an error in any choice counts for all; otherwise as the first choice."""
        reasons = [choice.finish_reason for choice in self.choices]
        return FinishReason.ERROR if FinishReason.ERROR in reasons else reasons[0]

    def output(self) -> RequestOutput:
        """A snapshot for the user; text is complete up to here only for streams and at the end."""
        request = self.first
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt_text,
            prompt_token_ids=self.prompt_token_ids,
            outputs=[choice.output() for choice in self.choices],
            finished=self.is_finished,
            num_cached_tokens=request.num_cached_tokens,
            prompt_logprobs=list(request.prompt_logprobs) if self.params.prompt_logprobs is not None else None,
            error=self.error,
        )
