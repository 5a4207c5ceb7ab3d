"""LLM: the offline face. Prompts in, finished texts out, in the order given; or text as it comes.

It turns prompts into token ids, keeps the engine stepping, and draws the progress bar. It knows nothing of scheduling,
of KV blocks or of servers. Not thread-safe: one caller at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from kvik.config import EngineConfig
from kvik.engine.build import build_engine
from kvik.engine.engine import Engine
from kvik.engine.interrupt import interrupts_held
from kvik.engine.outputs import Answer
from kvik.engine.progress import Progress
from kvik.engine.prompts import Prompt, as_conversations, as_params, as_prompts, encode_prompt
from kvik.errors import InvalidRequestError, KvikError
from kvik.request import CompletionOutput, FinishReason, RequestOutput, SamplingParams
from kvik.text.tokenizer import Tokenizer

Params = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A loaded model.

    `model` is a directory in Hugging Face layout, a hub id or `dummy:NAME`; `options` are the fields of
    `kvik.config` by name. SamplingParams that are not given are the defaults of that class; a checkpoint's
    generation_config.json is not consulted, so that a call means the same on every model.

    Raises TypeError for an unknown option, ConfigError for a bad value, CheckpointError, NotEnoughMemoryError,
    BackendError.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        self._start(build_engine(EngineConfig.from_options(model=model, **options)))

    @classmethod
    def from_engine(cls, engine: Engine) -> LLM:
        """The same face on an engine that was built elsewhere."""
        llm = cls.__new__(cls)
        llm._start(engine)
        return llm

    def _start(self, engine: Engine) -> None:
        self._engine: Engine | None = engine
        self._next_id = 0
        self._added: set[str] = set()
        self._moved: dict[str, Answer] = {}

    @property
    def engine(self) -> Engine:
        """The engine underneath. Raises KvikError after close()."""
        if self._engine is None:
            raise KvikError("this LLM is closed; make a new one")
        return self._engine

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None for a model without text."""
        return self.engine.tokenizer

    def generate(self, prompts: Any, sampling_params: Params = None, use_tqdm: bool = True) -> list[RequestOutput]:
        """Complete one prompt or many; the outputs are in the order of the prompts.

        Of many, one that cannot be served fails alone: its output has `error` set and the finish reason "error". A
        single prompt that cannot be served raises that error instead. Ctrl-C aborts what is unfinished and is raised;
        the LLM can be used again.
        """
        tokenizer = self.tokenizer
        encoded = [_attempt(encode_prompt, prompt, tokenizer) for prompt in as_prompts(prompts)]
        return self._complete(encoded, sampling_params, use_tqdm)

    def chat(
        self,
        messages: Any,
        sampling_params: Params = None,
        use_tqdm: bool = True,
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **template_variables: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation (a list of messages) or many, through the model's chat template. Errors as in
        `generate`.
        """

        def encode(conversation: Any) -> Prompt:
            return Prompt(
                self._chat_tokenizer().encode_chat(
                    conversation, tools=tools, add_generation_prompt=add_generation_prompt, **template_variables
                )
            )

        encoded = [_attempt(encode, conversation) for conversation in as_conversations(messages)]
        return self._complete(encoded, sampling_params, use_tqdm)

    def generate_stream(self, prompt: Any, sampling_params: SamplingParams | None = None) -> Iterator[str]:
        """The text of one answer, in pieces as they come; leaving the loop early aborts the request.

        Raises InvalidRequestError, and whatever made the request fail, at the point where the text ends.
        """
        params = sampling_params or SamplingParams()
        if params.n != 1:
            raise InvalidRequestError(f"n is {params.n}; expected 1 for a stream", param="n")
        answer = self._add(encode_prompt(prompt, self.tokenizer), params, stream=True)
        return self._pieces(answer)

    def add_request(
        self,
        prompt: Any,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
    ) -> str:
        """Queue one prompt and return its request id; `step` brings its outputs. Raises InvalidRequestError."""
        encoded = encode_prompt(prompt, self.tokenizer)
        params = sampling_params or SamplingParams()
        answer = self._add(encoded, params, stream=True, request_id=request_id, priority=priority)
        self._added.add(answer.request_id)
        return answer.request_id

    def step(self) -> list[RequestOutput]:
        """Advance everything by one step. Returns the requests of `add_request` that moved or ended since the last
        call, each with all it has so far.
        """
        if self.engine.has_unfinished():
            self._step()
        moved = list(self._moved.values())
        self._moved.clear()
        self._added.difference_update(answer.request_id for answer in moved if answer.is_finished)
        return [answer.output() for answer in moved]

    def has_unfinished(self) -> bool:
        """Whether `step` still has something to bring."""
        return self.engine.has_unfinished() or bool(self._moved)

    def abort(self, request_id: str) -> bool:
        """End a request with what it has; the next `step` brings its output. False if it is not unfinished."""
        answer = self.engine.abort(request_id)
        if answer is not None and request_id in self._added:
            self._moved[request_id] = answer
        return answer is not None

    def stats(self) -> dict[str, Any]:
        """One snapshot as plain data: queue, blocks, hit rates, tokens/s, memory by component (`EngineStats`)."""
        return self.engine.stats().as_dict()

    def close(self) -> None:
        """Abort what is unfinished and free the model. Idempotent."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _chat_tokenizer(self) -> Tokenizer:
        tokenizer = self.tokenizer
        if tokenizer is None or not tokenizer.has_chat_template:
            raise InvalidRequestError("messages are given; this model has no chat template", param="messages")
        return tokenizer

    def _complete(self, prompts: list[Prompt | KvikError], params: Params, use_tqdm: bool) -> list[RequestOutput]:
        each = as_params(params, len(prompts))
        jobs: list[Answer | RequestOutput] = []
        try:
            for prompt, its_params in zip(prompts, each, strict=True):
                jobs.append(self._submit(prompt, its_params))
            self._finish([job for job in jobs if isinstance(job, Answer)], use_tqdm and len(jobs) > 1)
        except BaseException:
            for job in jobs:
                self.engine.abort(job.request_id)
            raise
        outputs = [job.output() if isinstance(job, Answer) else job for job in jobs]
        if len(outputs) == 1 and outputs[0].error is not None:
            raise outputs[0].error
        return outputs

    def _submit(self, prompt: Prompt | KvikError, params: SamplingParams) -> Answer | RequestOutput:
        """An accepted request, or the output of one that was refused."""
        if isinstance(prompt, KvikError):
            return self._refused(Prompt([]), prompt)
        try:
            return self._add(prompt, params)
        except KvikError as error:
            return self._refused(prompt, error)

    def _refused(self, prompt: Prompt, error: KvikError) -> RequestOutput:
        nothing = CompletionOutput(0, "", [], finish_reason=FinishReason.ERROR.value)
        return RequestOutput(self._new_id(), prompt.text, prompt.token_ids, [nothing], error=error)

    def _finish(self, answers: list[Answer], show: bool) -> None:
        """Step until all of these have ended."""
        waiting = set(answers)
        with Progress(len(waiting), show) as progress:
            while waiting and self.engine.has_unfinished():
                ended = [answer for answer in self._step() if answer.is_finished and answer in waiting]
                waiting.difference_update(ended)
                progress.update(ended)

    def _pieces(self, answer: Answer) -> Iterator[str]:
        choice = answer.choices[0]
        try:
            while True:
                piece = choice.take_text()
                if piece:
                    yield piece
                elif answer.is_finished:
                    break
                else:
                    self._step()
        finally:
            if self._engine is not None:
                self._engine.abort(answer.request_id)
        if answer.error is not None:
            raise answer.error

    def _step(self) -> list[Answer]:
        """One step of the engine, noting what belongs to `step`, even if Ctrl-C came meanwhile."""
        answers: list[Answer] = []
        try:
            with interrupts_held():
                answers = self.engine.step()
        finally:
            self._moved.update({each.request_id: each for each in answers if each.request_id in self._added})
        return answers

    def _add(self, prompt: Prompt, params: SamplingParams, *, request_id: str | None = None, **options: Any) -> Answer:
        return self.engine.add(
            prompt.token_ids, params, request_id=request_id or self._new_id(), prompt_text=prompt.text, **options
        )

    def _new_id(self) -> str:
        self._next_id += 1
        return f"request-{self._next_id}"


def _attempt(encode: Callable[..., Prompt], *args: Any) -> Prompt | KvikError:
    """The prompt, or why there is none."""
    try:
        return encode(*args)
    except KvikError as error:
        return error
