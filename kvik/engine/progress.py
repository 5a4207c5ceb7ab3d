"""The progress bar of a batch: requests done, and tokens per second in and out.

Drawn on stderr, and only where that is a terminal. It reads answers and changes nothing.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from kvik.engine.outputs import Answer


class Progress:
    """Follows a batch of `total` requests. Tokens are counted when a request ends: its prompt once, all its choices."""

    def __init__(self, total: int, show: bool) -> None:
        self._total, self._show = total, show
        self._bar: Any = None
        self._started = time.monotonic()
        self._tokens_in = self._tokens_out = 0

    def __enter__(self) -> Progress:
        if self._show:
            from tqdm import tqdm  # imported here: it is most of the import time of this room

            self._bar = tqdm(total=self._total, desc="Requests", unit="req", dynamic_ncols=True, disable=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, ended: list[Answer]) -> None:
        """Count requests that have ended since the last call."""
        if self._bar is None or not ended:
            return
        self._tokens_in += sum(len(answer.prompt_token_ids) for answer in ended)
        self._tokens_out += sum(choice.num_tokens for answer in ended for choice in answer.choices)
        seconds = max(time.monotonic() - self._started, 1e-9)
        rates = f"in {self._tokens_in / seconds:.0f} tok/s, out {self._tokens_out / seconds:.0f} tok/s"
        self._bar.set_postfix_str(rates, refresh=False)
        self._bar.update(len(ended))
