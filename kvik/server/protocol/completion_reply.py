"""The answer to a completion call, whole: what updates add up to, as one `text_completion`.

Choices are numbered prompt by prompt. `CompletionAnswer` turns updates into parts of choices; the stream in
completion_stream.py gives the same parts out one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvik.engine.remote.frames import Update
from kvik.request import TokenLogprobs
from kvik.server.protocol.completions import CompletionCall
from kvik.server.protocol.finish import Ending, check_failure, ending
from kvik.server.protocol.logprobs import CompletionLogprobs, TextTokens
from kvik.server.protocol.reasoning import TokenBytes
from kvik.server.protocol.sse import ReplyHead, to_json
from kvik.server.protocol.usage import Tally


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the engine got it, and its text: as it was given, or decoded with its special tokens."""

    token_ids: Sequence[int]
    text: str = ""
    """Needed for `echo` only."""


@dataclass(frozen=True)
class Part:
    """What one update adds to one choice."""

    index: int
    text: str
    logprobs: dict[str, list[Any]] | None
    ending: Ending | None


class _Choice:
    """One choice of one prompt."""

    def __init__(self, index: int, call: CompletionCall, prompt: EncodedPrompt, token_bytes: TokenBytes) -> None:
        self._index = index
        self._call = call
        self._prompt = prompt
        self._begun = not call.echo
        wanted = call.params.logprobs is not None
        self._tokens = TextTokens(call.params.stop, token_bytes) if wanted else None
        self._logprobs = CompletionLogprobs(token_bytes)

    def take(self, update: Update, prompt_entries: Sequence[TokenLogprobs | None]) -> Part:
        """The part that an update adds; the first one has the echoed prompt."""
        end = ending(update, self._call.params)
        text = "" if self._call.scoring else update.text
        parts = [] if self._begun else [self._echo(prompt_entries)]
        if not self._begun:
            text = self._prompt.text + text
            self._begun = True
        if self._call.scoring:
            end = Ending("length") if end else None
        elif self._tokens is not None:
            parts.append(self._logprobs.answer(self._tokens.push(update)))
        return Part(self._index, text, merged(parts) if self._tokens is not None else None, end)

    def _echo(self, entries: Sequence[TokenLogprobs | None]) -> dict[str, list[Any]]:
        if self._tokens is None:
            return {}
        return self._logprobs.prompt(self._prompt.token_ids, entries, self._prompt.text)


def merged(parts: Sequence[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """Several parts of log-probabilities, one after another."""
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: [item for part in parts for item in part[name]] for name in names}


class CompletionAnswer:
    """All choices of one call, from updates to parts. `is_finished` once every choice has ended."""

    def __init__(self, call: CompletionCall, prompts: Sequence[EncodedPrompt], token_bytes: TokenBytes) -> None:
        self._call = call
        self._n = call.params.n
        self._choices = [
            _Choice(index, call, prompts[index // self._n], token_bytes) for index in range(len(prompts) * self._n)
        ]
        self._prompt_entries: list[Sequence[TokenLogprobs | None] | None] = [None] * len(prompts)
        self._early: list[tuple[int, Update]] = []
        """Updates of other choices that came before the first one's, which brings the prompt's log-probabilities."""
        self._num_ended = 0
        self.tally = Tally([len(prompt.token_ids) for prompt in prompts])
        self.is_plain = not call.echo and not call.scoring and call.params.logprobs is None
        """Every piece of text is a part of its own and nothing else."""

    @property
    def is_finished(self) -> bool:
        return self._num_ended == len(self._choices)

    def usage(self) -> dict[str, Any]:
        """The `usage` of the call."""
        return self.tally.as_dict(counted=not self._call.scoring)

    def push(self, prompt: int, update: Update) -> list[Part]:
        """The parts that an update for one of the prompts adds. Raises ApiError if it says that it failed."""
        self.tally.count(update, prompt)
        check_failure(update, self.tally.output_tokens)
        if self._call.params.prompt_logprobs is None:
            return [self._take(prompt, update, ())]
        if update.prompt_logprobs is not None:
            self._prompt_entries[prompt] = update.prompt_logprobs
        entries = self._prompt_entries[prompt]
        if entries is None:
            self._early.append((prompt, update))
            return []
        waiting = [early for number, early in self._early if number == prompt]
        self._early = [(number, early) for number, early in self._early if number != prompt]
        return [self._take(prompt, each, entries) for each in [*waiting, update]]

    def _take(self, prompt: int, update: Update, entries: Sequence[TokenLogprobs | None]) -> Part:
        part = self._choices[prompt * self._n + update.index].take(update, entries)
        self._num_ended += part.ending is not None
        return part


class CompletionReply:
    """Collects the updates of one call."""

    def __init__(
        self, head: ReplyHead, call: CompletionCall, prompts: Sequence[EncodedPrompt], token_bytes: TokenBytes
    ) -> None:
        self._head = head
        self._answer = CompletionAnswer(call, prompts, token_bytes)
        self._parts: list[list[Part]] = [[] for _ in range(len(prompts) * call.params.n)]

    @property
    def is_finished(self) -> bool:
        return self._answer.is_finished

    def push(self, prompt: int, update: Update) -> None:
        """Take in an update for one of the prompts. Raises ApiError if it says that the request failed."""
        for part in self._answer.push(prompt, update):
            self._parts[part.index].append(part)

    def body(self) -> bytes:
        """The reply; every choice must have ended."""
        choices = [self._choice(index, parts) for index, parts in enumerate(self._parts)]
        head = self._head.as_dict("text_completion")
        return to_json(head | {"choices": choices, "usage": self._answer.usage()})

    def _choice(self, index: int, parts: list[Part]) -> dict[str, Any]:
        logprobs = [part.logprobs for part in parts if part.logprobs is not None]
        choice = {"index": index, "text": "".join(part.text for part in parts)}
        end = parts[-1].ending
        return choice | {"logprobs": merged(logprobs) if logprobs else None} | (end.as_dict() if end else {})
