"""Who takes part in a comparison: an engine's program, the form of its weights, and what it is asked to load.

A directory of converted weights (`tools/peers/convert.py`) says in converted.json which engine reads which form from
where. An engine without the form that is asked of all takes the next wider one, and the result says so. This file
starts nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvik.bench.peers import PeerProgram, find_peer
from kvik.errors import ConfigError

MANIFEST = "converted.json"
ENGINES = ("kvik", "transformers", "vllm", "llamacpp", "openvino")
WIDER = ("int4", "int8", "bf16")
"""Forms from narrow to wide."""
KVIK = "kvik"


@dataclass(frozen=True)
class Contender:
    """One engine on one form of the weights. `label` is what it was asked for as, such as `vllm` or `vllm:bf16`."""

    label: str
    program: PeerProgram
    form: str
    model: Path

    @property
    def is_kvik(self) -> bool:
        """Whether it takes Kvik's own options."""
        return engine_of(self.program.name) == KVIK


def engine_of(name: str) -> str:
    """`llamacpp` for `llamacpp-avx2`: an environment of an engine may be built in several ways."""
    return name.partition("-")[0]


def read_manifest(directory: Path) -> dict[str, dict[str, str]]:
    """Which engine finds which form where. Raises ConfigError naming what is wrong."""
    path = directory / MANIFEST
    expected = "expected a directory that `python tools/peers/convert.py` in a checkout has written"
    try:
        forms = json.loads(path.read_text(encoding="utf-8"))["forms"]
        return {str(name): {str(k): str(v) for k, v in its.items()} for name, its in forms.items()}
    except OSError as error:
        raise ConfigError(f"converted is {directory}: {path} cannot be read: {error.strerror}; {expected}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"converted is {directory}: {path} is damaged; {expected}") from error


def choose_contenders(
    asked: Sequence[str], weights: str, root: Path, converted: Path
) -> tuple[list[Contender], dict[str, str]]:
    """Those who can take part, in the order asked for, and for each of the others why not.

    Each of `asked` is NAME or NAME:FORM. Raises ConfigError for an unknown engine or form, for one named twice, or if
    fewer than one is left.
    """
    if weights not in WIDER:
        raise ConfigError(f"weights is {weights!r}; engines are compared on one of {', '.join(WIDER)}")
    manifest = read_manifest(converted)
    found: list[Contender] = []
    skipped: dict[str, str] = {}
    for label in asked:
        if list(asked).count(label) > 1:
            raise ConfigError(f"engines names {label!r} twice; expected each once")
        name, _, form = label.partition(":")
        if engine_of(name) not in ENGINES:
            raise ConfigError(f"engines names {label!r}; expected NAME or NAME:FORM with NAME of {', '.join(ENGINES)}")
        program = find_peer(root, name)
        forms = manifest.get(engine_of(name), {})
        chosen = _explicit(label, form, forms) if form else _closest(weights, forms)
        if isinstance(program, str):
            skipped[label] = program
        elif chosen is None:
            skipped[label] = f"no weights for it in {converted}; convert.py writes them once it is installed"
        else:
            found.append(Contender(label, program, chosen, converted / forms[chosen]))
    if not found:
        raise ConfigError("no engine is left: " + "; ".join(f"{label}: {why}" for label, why in skipped.items()))
    return found, skipped


def _explicit(label: str, form: str, forms: Mapping[str, str]) -> str | None:
    if forms and form not in forms:
        raise ConfigError(f"engines names {label!r}; expected a form of {', '.join(forms)}")
    return form if forms else None


def _closest(weights: str, forms: Mapping[str, str]) -> str | None:
    """The form itself, or the next wider one there is."""
    return next((form for form in WIDER[WIDER.index(weights) :] if form in forms), None)


@dataclass(frozen=True)
class Room:
    """The largest requests of all cases: what an engine must have room for."""

    max_len: int
    max_seqs: int
    kv_tokens: int
    """Held at the same time, with what blocks waste."""


def load_message(contender: Contender, room: Room, kv_bytes: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the driver is asked to load, with `kv_bytes` for its KV cache.

    `options` are Kvik's, of which the others get the number of threads.
    """
    message: dict[str, Any] = {
        "op": "load",
        "model": str(contender.model),
        "threads": options.get("threads"),
        "max_len": room.max_len,
        "max_seqs": room.max_seqs,
        "kv_bytes": kv_bytes,
        "options": {},
    }
    if not contender.is_kvik:
        return message
    own = {name: value for name, value in options.items() if value is not None and name not in ("model", "threads")}
    own |= {
        "weights": contender.form,
        "prefix_caching": False,
        "max_num_seqs": max(room.max_seqs, options.get("max_num_seqs") or 1),
        "kv_cache_memory": options.get("kv_cache_memory") or kv_bytes,
    }
    return message | {"options": own}
