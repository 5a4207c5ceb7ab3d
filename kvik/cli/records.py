"""Outputs as plain data, the same for one prompt with --json and for each line of a file of prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvik.request import CompletionOutput, RequestOutput, TokenLogprobs


def output_record(output: RequestOutput) -> dict[str, Any]:
    """One request and its choices."""
    return {
        "prompt": output.prompt,
        "prompt_token_ids": output.prompt_token_ids,
        "outputs": [choice_record(choice) for choice in output.outputs],
        "num_cached_tokens": output.num_cached_tokens,
        "error": str(output.error) if output.error else None,
    }


def choice_record(choice: CompletionOutput) -> dict[str, Any]:
    """One choice; `logprobs` only where they were asked for."""
    record: dict[str, Any] = {
        "index": choice.index,
        "text": choice.text,
        "token_ids": choice.token_ids,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
    }
    if choice.logprobs is not None:
        record["logprobs"] = [logprob_record(entry) for entry in choice.logprobs]
    return record


def logprob_record(entry: TokenLogprobs) -> dict[str, Any]:
    """One token and the likeliest ones at its place."""
    top = [{"token_id": other.token_id, "logprob": finite(other.logprob)} for other in entry.top]
    return {"token_id": entry.token_id, "logprob": finite(entry.logprob), "top": top}


def finite(logprob: float) -> float:
    """JSON has no infinity: -9999.0 stands for it, as OpenAI's API has it."""
    return max(logprob, -9999.0)
