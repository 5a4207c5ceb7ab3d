"""Writes one model in every form that the compared engines read, and converted.json that says which is whose.

The model is a dummy or a directory in Hugging Face layout; every engine gets the same bf16 weights, converted by its
own tools in its own environment. Engines that are not set up are left out and named. Needs the Python that has kvik.
Usage: python tools/peers/convert.py [--model dummy:qwen3-0.6b] [--root DIR] [--out DIR] [--tokenizer DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from setup import DEFAULT_ROOT

from kvik.checkpoint import open_checkpoint
from kvik.checkpoint.write import write_checkpoint

HERE = Path(__file__).resolve().parent
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
OPENVINO_FORMS = {"bf16": "fp16", "int8": "int8", "int4": "int4"}
"""optimum's names of them. fp16 is how it stores weights that the plugin computes with in bf16."""


def byte_alphabet() -> dict[str, int]:
    """A character for each byte, as byte-level tokenizers have it, with the byte's place in their order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [*map(chr, printable), *(chr(256 + place) for place in range(len(others)))]
    return {character: place for place, character in enumerate(characters)}


def write_trivial_tokenizer(folder: Path) -> None:
    """A tokenizer of single bytes: some engines will not load a model without one, though prompts are token ids."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": byte_alphabet(), "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}\n', encoding="utf-8")


def write_plain(model: str, tokenizer: Path | None, out: Path) -> None:
    """bf16 weights in Hugging Face layout, in one file, with a tokenizer."""
    write_checkpoint(open_checkpoint(model, seed=0), out)
    if tokenizer is None:
        write_trivial_tokenizer(out)
        return
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, out / name)


def run(python: Path, *args: str) -> None:
    """A program in a peer's environment, offline."""
    command = [str(python), *args]
    print("$", " ".join(command), file=sys.stderr)
    offline = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PATH": f"{python.parent}:{os.environ['PATH']}"}
    subprocess.run(command, check=True, env={**os.environ, **offline})


def convert_kvik(python: Path, out: Path) -> dict[str, str]:
    """Quantizes on load."""
    return {"bf16": "hf", "int8": "hf", "int4": "hf"}


def convert_transformers(python: Path, out: Path) -> dict[str, str]:
    """Reads the plain weights."""
    return {"bf16": "hf"}


def convert_vllm(python: Path, out: Path) -> dict[str, str]:
    """The plain weights, and int8 and int4 in the layout that vLLM's kernels for them read."""
    for form in ("int8", "int4"):
        run(python, str(HERE / "convert_vllm.py"), str(out / "hf"), str(out / f"vllm-{form}"), form)
    return {"bf16": "hf", "int8": "vllm-int8", "int4": "vllm-int4"}


def convert_llamacpp(python: Path, out: Path) -> dict[str, str]:
    """GGUF."""
    run(python, str(HERE / "convert_gguf.py"), str(out / "hf"), str(out / "gguf"))
    files = {"bf16": "bf16", "int8": "q8_0", "int4": "q4_k_m", "q4_0": "q4_0"}
    return {form: f"gguf/{file}.gguf" for form, file in files.items()}


def convert_openvino(python: Path, out: Path) -> dict[str, str]:
    """optimum's export, with its own defaults for int8 and int4."""
    for form, theirs in OPENVINO_FORMS.items():
        export = ["export", "openvino", "--task", "text-generation-with-past", "--weight-format", theirs]
        run(
            python,
            str(python.parent / "optimum-cli"),
            *export,
            "--model",
            str(out / "hf"),
            str(out / f"openvino-{form}"),
        )
    return {form: f"openvino-{form}" for form in OPENVINO_FORMS}


CONVERTERS: dict[str, Callable[[Path, Path], dict[str, str]]] = {
    "kvik": convert_kvik,
    "transformers": convert_transformers,
    "vllm": convert_vllm,
    "llamacpp": convert_llamacpp,
    "openvino": convert_openvino,
}


def convert_all(root: Path, out: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Forms by engine, and what went wrong."""
    forms, problems = {}, []
    for name, convert in CONVERTERS.items():
        python = root / name / "env" / "bin" / "python"
        if not python.exists() and name != "kvik":
            problems.append(f"{name} is left out: not set up under {root}")
            continue
        try:
            forms[name] = convert(python, out)
        except (OSError, subprocess.CalledProcessError) as error:
            problems.append(f"{name} is left out: {error}")
    return forms, problems


def main() -> int:
    """Convert, and say what was left out."""
    parser = argparse.ArgumentParser(description="Write a model in every form that the compared engines read.")
    parser.add_argument("--model", default="dummy:qwen3-0.6b", help="dummy:NAME or a directory in Hugging Face layout")
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help="where setup.py put the engines")
    parser.add_argument("--out", type=Path, help="default: ROOT/models/NAME")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer's directory; default: one of single bytes")
    args = parser.parse_args()
    root = args.root.expanduser().resolve()
    out = (args.out or root / "models" / Path(args.model.removeprefix("dummy:")).name).expanduser().resolve()
    if out.exists():
        parser.error(f"{out} is there already; remove it to convert again")
    write_plain(args.model, args.tokenizer, out / "hf")
    forms, problems = convert_all(root, out)
    manifest = {"model": args.model, "forms": forms}
    (out / "converted.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    print("\n".join([*problems, f"wrote {out}"]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
