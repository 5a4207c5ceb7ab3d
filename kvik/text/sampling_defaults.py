"""How a model's makers want it sampled where a request does not say: generation_config.json, as far as we follow it.

`do_sample: false` is temperature 0, whatever else the file says; a temperature, top_p, top_k, min_p or
repetition_penalty in it is the default for that parameter. A file that is silent changes nothing. Knows nothing of who
uses the defaults; whoever gives a parameter has the last word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvik.errors import CheckpointError, InvalidRequestError
from kvik.request import SamplingParams

FOLLOWED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling_defaults(config: Mapping[str, Any], file: str) -> dict[str, float]:
    """The defaults in a generation_config.json, by the names of SamplingParams. `file` is its name for errors.

    Raises CheckpointError for a value that the parameter cannot have.
    """
    found = {name: config[name] for name in FOLLOWED if config.get(name) is not None}
    do_sample = config.get("do_sample")
    if not isinstance(do_sample, bool | None):
        raise CheckpointError(f"{file}: do_sample is {do_sample!r:.60}; expected true or false")
    if do_sample is False:
        found["temperature"] = 0.0
    try:
        SamplingParams(**found)
    except InvalidRequestError as error:
        raise CheckpointError(f"{file}: {error}") from None
    return found
