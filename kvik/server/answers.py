"""The two routes that generate text: /v1/chat/completions and /v1/completions.

A request is read and checked, its text made into tokens, its job put through the queue and the engine, and what comes
back is written. From the moment the body is read, the client's leaving or the server's end stops all of that wherever
it is. Knows nothing of how any of these steps is done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from kvik.engine.admission import no_room
from kvik.errors import ContextLengthError
from kvik.request import SamplingParams
from kvik.server.body import BodyHold
from kvik.server.exchange import Exchange
from kvik.server.generation import FAILURES, Generation, Job
from kvik.server.protocol.answer import Reading
from kvik.server.protocol.chat import ChatCall, read_chat
from kvik.server.protocol.chat_reply import ChatReply
from kvik.server.protocol.chat_stream import ChatStream
from kvik.server.protocol.completion_reply import CompletionReply, EncodedPrompt
from kvik.server.protocol.completion_stream import CompletionStream
from kvik.server.protocol.completions import CompletionCall, read_completion
from kvik.server.protocol.decode import decode_body
from kvik.server.protocol.errors import from_exception
from kvik.server.protocol.models import find_model
from kvik.server.protocol.sse import ReplyHead
from kvik.server.protocol.structure import Structure
from kvik.server.protocol.terms import Terms
from kvik.server.service import Loaded, Service
from kvik.server.texts import Thoughts
from kvik.server.writers import EventWriter, ReplyWriter, Writer

Prepared = tuple[Job, Writer]
Call = TypeVar("Call")


async def chat(service: Service, exchange: Exchange) -> None:
    """POST /v1/chat/completions."""
    loaded = service.ready()
    call = await read(service, loaded, exchange, read_chat)
    begin(loaded, exchange, call)
    deadline = deadline_of(service, exchange, call.params)
    await answer(service, loaded, exchange, call.param_names, lambda: prepare_chat(loaded, exchange, call, deadline))


async def completion(service: Service, exchange: Exchange) -> None:
    """POST /v1/completions."""
    loaded = service.ready()
    call = await read(service, loaded, exchange, read_completion)
    begin(loaded, exchange, call)
    deadline = deadline_of(service, exchange, call.params)
    prepare = lambda: prepare_completion(loaded, exchange, call, deadline)  # noqa: E731
    await answer(service, loaded, exchange, call.param_names, prepare)


async def read(
    service: Service, loaded: Loaded, exchange: Exchange, reader: Callable[[dict[str, Any], Terms], Call]
) -> Call:
    """The body as the call that a reader makes of it. Raises ApiError, OverloadedError, ClientGoneError."""
    with BodyHold(service.budget) as hold:
        data = await exchange.body(service.options.connection.max_body_bytes, hold)
        return await loaded.texts.parse(lambda: reader(decode_body(data), loaded.terms), len(data))


def begin(loaded: Loaded, exchange: Exchange, call: ChatCall | CompletionCall) -> None:
    """What can be refused before any text is looked at. Raises ApiError, OverloadedError."""
    find_model(loaded.models, call.model)
    loaded.admission.check(exchange.caller.name)
    exchange.notes |= {"stream": call.stream or None, "n": call.params.n if call.params.n > 1 else None}
    if call.ignored:
        exchange.notes["ignored"] = ",".join(call.ignored)


def deadline_of(service: Service, exchange: Exchange, params: SamplingParams) -> float | None:
    """When the answer must have ended, by the service's clock: the earliest that the server, a header or a field of
    the body asks for. Raises ApiError.
    """
    limits = [exchange.timeout(service.options.flow.request_timeout), params.deadline_s]
    known = [limit for limit in limits if limit is not None]
    return exchange.started_at + min(known) if known else None


async def answer(
    service: Service,
    loaded: Loaded,
    exchange: Exchange,
    names: Mapping[str, str],
    prepare: Callable[[], Awaitable[Prepared]],
) -> None:
    """Generate and write. Raises ApiError if nothing was written yet, ClientGoneError."""
    writer: Writer | None = None
    try:
        async with exchange.watched():
            job, writer = await prepare()
            exchange.notes["prompt_tokens"] = sum(map(len, job.prompts))
            await Generation(service, loaded, exchange, job).run(writer)
    except FAILURES as error:
        told = from_exception(error, names)
        exchange.notes["error"] = told.code or type(error).__name__
        service.failed(exchange, told)
        if writer is None:
            raise told from error
        await writer.fail(told)
    else:
        await writer.finish()


async def prepare_chat(loaded: Loaded, exchange: Exchange, call: ChatCall, deadline: float | None) -> Prepared:
    """The job of a conversation, and what writes its answer."""
    prompt = await loaded.texts.chat(call.conversation)
    params = await with_grammar(loaded, call.params, call.structure, prompt.thoughts)
    call = replace(call, params=params)
    certain = call.structure is not None and call.structure.kind == "tools"
    given = (
        ReplyHead.new("chatcmpl", call.model, loaded.fingerprint),
        call,
        len(prompt.token_ids),
        loaded.texts.token_bytes,
        Reading(prompt.thinking, certain),
    )
    check_length(loaded, prompt.token_ids)
    job = Job([prompt.token_ids], params, call.priority, deadline)
    if call.stream:
        stream = ChatStream(*given)
        return job, EventWriter(exchange, stream, lambda _, update: stream.push(update))
    reply = ChatReply(*given)
    return job, ReplyWriter(exchange, reply, lambda _, update: reply.push(update))


async def prepare_completion(
    loaded: Loaded, exchange: Exchange, call: CompletionCall, deadline: float | None
) -> Prepared:
    """The job of one or many prompts, and what writes the answers."""
    prompts = await loaded.texts.prompts(call.prompts, call.add_special_tokens)
    for token_ids in prompts:
        check_length(loaded, token_ids)
    params = await with_grammar(loaded, call.params, call.structure)
    call = replace(call, params=params)
    encoded = [
        EncodedPrompt(token_ids, await echoed(loaded, prompt, token_ids) if call.echo else "")
        for prompt, token_ids in zip(call.prompts, prompts, strict=True)
    ]
    head = ReplyHead.new("cmpl", call.model, loaded.fingerprint)
    job = Job(prompts, params, call.priority, deadline)
    if call.stream:
        stream = CompletionStream(head, call, encoded, loaded.texts.token_bytes)
        return job, EventWriter(exchange, stream, stream.push)
    reply = CompletionReply(head, call, encoded, loaded.texts.token_bytes)
    return job, ReplyWriter(exchange, reply, reply.push)


def check_length(loaded: Loaded, token_ids: list[int]) -> None:
    """What can never fit must not wait. Raises ContextLengthError."""
    if len(token_ids) >= loaded.info.max_model_len:
        raise ContextLengthError(no_room(len(token_ids), loaded.info.max_model_len), param="prompt")


async def echoed(loaded: Loaded, prompt: str | list[int], token_ids: list[int]) -> str:
    """A prompt as text: as it was given, or what its tokens spell."""
    return prompt if isinstance(prompt, str) else await loaded.texts.decode(token_ids, skip_special_tokens=False)


async def with_grammar(
    loaded: Loaded, params: SamplingParams, structure: Structure | None, thoughts: Thoughts = "none"
) -> SamplingParams:
    """The parameters with the grammar that a structure asks for."""
    return params if structure is None else replace(params, grammar=await loaded.texts.grammar(structure, thoughts))
