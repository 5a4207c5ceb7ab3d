"""The host: keeps an engine stepping for somebody at the other end of a channel.

    take the commands that have come    waiting for one only while there is nothing to compute
    step, if anything is unfinished
    send what is new, in one piece

Beside that loop a thread makes ready, once, what the first request with a grammar would wait for, and with it all that
run: it is no part of being ready, since that may take a second for a large vocabulary and most never need it.

Whatever a request can get wrong comes back as `Failed`; what the engine itself raises ends the host, for whoever
started it to notice. This file knows nothing of sockets, processes or threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from kvik.engine.engine import Engine
from kvik.engine.events import StepWatcher
from kvik.engine.grammars import Grammars
from kvik.engine.outputs import Answer
from kvik.engine.remote.channel import FrameTooLargeError
from kvik.engine.remote.frames import (
    Abort,
    AskStats,
    Beat,
    Close,
    Command,
    Event,
    LoadFailed,
    ModelInfo,
    Moved,
    Stats,
    Step,
    Submit,
    Update,
    Watch,
    described,
    failed,
)
from kvik.engine.remote.updates import Updates
from kvik.errors import KvikError

BEAT_S = 1.0
logger = logging.getLogger(__name__)


class EngineEnd(Protocol):
    """The engine's end of a channel. Both raise ChannelError when the other end has gone."""

    def receive(self, timeout_s: float | None = None) -> list[Command]:
        """Commands that have come; waits at most so long for the first."""

    def send(self, *events: Event) -> None:
        """Send events in order. Raises FrameTooLargeError, and then sends nothing."""


def model_info(engine: Engine) -> ModelInfo:
    """What a front end must know of an engine."""
    memory, scheduler = engine.memory, engine.config.scheduler
    return ModelInfo(
        name=memory.model,
        max_model_len=memory.max_model_len,
        vocab_size=engine.spec.vocab_size,
        num_blocks=memory.num_blocks,
        block_size=memory.block_size,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        backend=engine.runner.name,
    )


def serve(build: Callable[[], Engine], channel: EngineEnd, *, beat_s: float = BEAT_S) -> None:
    """Make an engine and host it until Close comes; if it cannot be made, tell the other end why, and return.

    Raises ChannelError when the other end has gone, and whatever a step raises.
    """
    try:
        engine = build()
    except Exception as error:
        if not isinstance(error, KvikError):
            logger.exception("the engine cannot be loaded")
        channel.send(LoadFailed(*described(error)))
        return
    try:
        Host(engine, channel, beat_s=beat_s).run()
    finally:
        engine.close()


def prepare_grammars(grammars: Grammars) -> None:
    """Do ahead of time what can be done. Why it cannot be, the first request with a grammar is told."""
    try:
        grammars.prepare()
    except KvikError:
        pass
    except Exception:
        logger.exception("grammars cannot be prepared")


class Host:
    """One engine and the channel it is reached by. `beat_s` is the longest silence while all is well."""

    def __init__(
        self,
        engine: Engine,
        channel: EngineEnd,
        *,
        beat_s: float = BEAT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.turns = 0
        """How often the loop went round; an idle one turns once every `beat_s`."""
        self._engine, self._channel = engine, channel
        self._beat_s, self._clock = beat_s, clock
        self._last_sent = clock()
        self._steps = self._commands = 0
        self._watcher = StepWatcher(engine, self._watched, clock=clock)
        self._told = Updates()
        self._updates: list[Update] = []
        self._others: list[Event] = []

    def run(self) -> None:
        """Serve until Close comes. Raises ChannelError when the other end has gone, and whatever a step raises."""
        self._channel.send(model_info(self._engine))
        preparing = threading.Thread(target=prepare_grammars, args=(self._engine.grammars,), name="kvik-grammars")
        preparing.start()
        try:
            while self._turn():
                pass
        finally:
            preparing.join()

    def _turn(self) -> bool:
        """Once round the loop; False after Close."""
        self.turns += 1
        for command in self._channel.receive(self._patience()):
            if isinstance(command, Close):
                return False
            self._commands += 1
            self._obey(command)
        if self._engine.has_unfinished():
            self._step()
        self._report()
        return True

    def _patience(self) -> float:
        """Seconds to wait for a command: none while there is work, otherwise until the next beat is due."""
        if self._engine.has_unfinished():
            return 0.0
        return max(0.0, self._last_sent + self._beat_s - self._clock())

    def _obey(self, command: Command) -> None:
        if isinstance(command, Submit):
            self._accept(command)
        elif isinstance(command, Abort):
            answer = self._engine.abort(command.request_id)
            if answer is not None:
                self._tell(answer)
        elif isinstance(command, AskStats):
            self._others.append(Stats(command.number, self._engine.stats().as_dict()))
        elif isinstance(command, Watch):
            if command.on:
                self._watcher.attach()
            else:
                self._watcher.detach()

    def _accept(self, submit: Submit) -> None:
        try:
            self._engine.add(
                submit.token_ids,
                submit.params,
                request_id=submit.request_id,
                priority=submit.priority,
                salt=submit.salt,
                stream=True,
            )
        except Exception as error:
            self._others.append(failed(submit.request_id, error))

    def _step(self) -> None:
        for answer in self._engine.step():
            self._tell(answer)
        self._steps += 1

    def _tell(self, answer: Answer) -> None:
        """Note what is new in a request. One with an error ends as a whole, whatever its other choices do."""
        if answer.error is None:
            self._updates += self._told.take(answer)
            return
        self._engine.abort(answer.request_id)
        self._told.forget(answer.request_id)
        self._others.append(failed(answer.request_id, answer.error))

    def _watched(self, values: dict[str, Any]) -> None:
        self._others.append(Step(values))

    def _report(self) -> None:
        """Send what has gathered, or at least a beat after a step or a long silence."""
        busy, now = self._engine.has_unfinished(), self._clock()
        if not busy:
            self._watcher.flush()
        events: list[Event] = [Moved(self._updates)] if self._updates else []
        events += self._others
        if not events and (busy or now - self._last_sent >= self._beat_s):
            events.append(Beat(self._steps, busy, self._commands))
        if events:
            self._updates, self._others = [], []
            self._last_sent = now
            self._send(events)

    def _send(self, events: list[Event]) -> None:
        try:
            self._channel.send(*events)
        except FrameTooLargeError:
            for event in events:
                self._send_in_parts(event)

    def _send_in_parts(self, event: Event) -> None:
        """Each update by itself; a request of which a single one is too large fails."""
        if not isinstance(event, Moved):
            self._channel.send(event)
            return
        for update in event.updates:
            try:
                self._channel.send(Moved([update]))
            except FrameTooLargeError as error:
                self._engine.abort(update.request_id)
                self._told.forget(update.request_id)
                self._channel.send(failed(update.request_id, error))
