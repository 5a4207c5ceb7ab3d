"""GGUF models in several files: opened as one, or refused with the file at fault."""

from __future__ import annotations

from pathlib import Path

import gguf_images as g
import numpy as np
import pytest

from kvik.checkpoint.formats.gguf.parts import open_parts
from kvik.errors import CheckpointError


def part(
    directory: Path, number: int, count: int = 3, *, total: int | None = 3, name: str = "", said: int | None = None
) -> Path:
    """Part `number`, from 1, with one tensor of its number."""
    keys = [
        g.text("split.no") + g.value(g.U16, (said or number) - 1),
        g.text("split.count") + g.value(g.U16, count),
    ]
    if total is not None:
        keys.append(g.text("split.tensors.count") + g.value(g.I32, total))
    row = g.tensor(name or f"t{number}", [2], 0, 0)
    data = np.array([number, -number], "<f4").tobytes()
    return g.write(directory, g.image(keys, [row], data), f"model-{number:05}-of-{count:05}.gguf")


def test_parts_are_one_model(tmp_path: Path) -> None:
    first, *_ = [part(tmp_path, number) for number in (1, 2, 3)]
    parts = open_parts(first)
    assert parts.names() == ["t1", "t2", "t3"]
    assert [parts.blocks(name).tolist() for name in parts.names()] == [[1, -1], [2, -2], [3, -3]]
    assert parts.path("t2").name == "model-00002-of-00003.gguf"
    assert parts.metadata["split.count"] == 3
    parts.release("t3")


def test_a_single_file_needs_no_split(tmp_path: Path) -> None:
    path = g.write(tmp_path, g.image([], [g.tensor("t", [2], 0, 0)], bytes(8)))
    assert open_parts(path).names() == ["t"]


def test_another_part_than_the_first_names_the_first(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is part 2 of 3; open model-00001-of-00003\.gguf"):
        open_parts(part(tmp_path, 2))


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first = part(tmp_path, 1)
    part(tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"model-00003-of-00003\.gguf: no such file"):
        open_parts(first)


def test_a_name_that_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    other = part(tmp_path, 1).rename(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match="part 1 of 3; expected a name that says so"):
        open_parts(other)


def test_a_part_of_another_model_is_refused(tmp_path: Path) -> None:
    first = part(tmp_path, 1)
    part(tmp_path, 2, said=3)
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.gguf says that it is part 3 of 3; expected 2 of 3"):
        open_parts(first)


def test_a_total_that_lies_is_refused(tmp_path: Path) -> None:
    first, *_ = [part(tmp_path, number, total=9) for number in (1, 2, 3)]
    with pytest.raises(CheckpointError, match="count is 9; its 3 parts hold 3"):
        open_parts(first)


def test_one_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    first, *_ = [part(tmp_path, number, name="same") for number in (1, 2, 3)]
    with pytest.raises(CheckpointError, match=r"tensor 'same' is in model-00001-of-00003\.gguf too"):
        open_parts(first)


@pytest.mark.parametrize("count", [10_000, 65_535])
def test_too_many_parts_are_refused_before_any_is_looked_for(tmp_path: Path, count: int) -> None:
    with pytest.raises(CheckpointError, match=f"split.count is {count}; expected a whole number from 0 to 9999"):
        open_parts(part(tmp_path, 1, count))
