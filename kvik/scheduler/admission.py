"""What is refused on arrival, so that everything accepted can finish.

The rule that makes the scheduler free of deadlock starts here: any accepted sequence, alone with the whole pool, fits.
The choices of one request may need more than the pool together; they then run one after another.
"""

from __future__ import annotations

from kvik.errors import ContextLengthError, InvalidRequestError
from kvik.request import Request


def check_request(request: Request, *, max_model_len: int, num_blocks: int, block_size: int, max_num_seqs: int) -> None:
    """Refuse what can never run, and lower max_total_tokens to what model and pool hold.

    Raises ContextLengthError or InvalidRequestError.
    """
    prompt, pool_tokens = request.num_prompt_tokens, num_blocks * block_size
    if not 1 <= prompt <= len(request.tokens):
        raise InvalidRequestError(f"prompt has {prompt} tokens; expected at least 1", param="prompt")
    if len(request.tokens) >= max_model_len:
        raise ContextLengthError(
            f"prompt has {len(request.tokens)} tokens; expected at most {max_model_len - 1}, "
            f"so that an answer fits max_model_len, which is {max_model_len}",
            param="prompt",
        )
    if len(request.tokens) >= pool_tokens:
        raise ContextLengthError(
            f"prompt has {len(request.tokens)} tokens; expected at most {pool_tokens - 1}, so that an answer fits the "
            f"KV cache, which has {num_blocks} blocks of {block_size} tokens; raise kv_cache_memory",
            param="prompt",
        )
    if request.params.n > max_num_seqs:
        raise InvalidRequestError(
            f"n is {request.params.n}; expected at most max_num_seqs, which is {max_num_seqs}", param="n"
        )
    if request.max_total_tokens <= len(request.tokens):
        raise InvalidRequestError(
            f"max_total_tokens is {request.max_total_tokens}; expected more than the {len(request.tokens)} known tokens"
        )
    request.max_total_tokens = min(request.max_total_tokens, max_model_len, pool_tokens)
