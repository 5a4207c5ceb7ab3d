"""A StepPlan as bytes and back: arrays in a fixed order, each behind its shape. Nothing else crosses to a rank.

    int64 [3]           step, draws' fields and scores' fields follow the plan's own
    for every array     int64 [2]: rows, columns (-1 for a vector), then its numbers

The reader knows each field's type, so no type crosses, and nothing that is read can run. This file knows nothing of
who sends.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.step import SamplePlan, ScorePlan, StepPlan

PLAN = {
    "keys": np.int64,
    "token_ids": np.int32,
    "positions": np.int32,
    "query_start_loc": np.int32,
    "seq_lens": np.int32,
    "block_tables": np.int32,
    "copies": np.int32,
}
SAMPLE, SCORE = (
    {each.name: getattr(empty, each.name).dtype.type for each in fields(empty)} for empty in (SamplePlan(), ScorePlan())
)
"""Types as the records themselves begin with them."""
VECTOR = -1


def to_bytes(plan: StepPlan) -> bytes:
    """The plan as bytes."""
    parts = [np.int64(plan.step).tobytes()]
    for record, kinds in ((plan, PLAN), (plan.sample, SAMPLE), (plan.score, SCORE)):
        for name, kind in kinds.items():
            array = np.ascontiguousarray(getattr(record, name), kind)
            rows, columns = array.shape if array.ndim == 2 else (len(array), VECTOR)
            parts += [np.array([rows, columns], np.int64).tobytes(), array.tobytes()]
    return b"".join(parts)


def from_bytes(data: bytes) -> StepPlan:
    """The plan that `to_bytes` wrote. Raises ValueError for bytes that are no plan."""
    step, at = int(np.frombuffer(data, np.int64, 1)[0]), 8
    records: list[dict[str, NDArray[Any]]] = []
    for kinds in (PLAN, SAMPLE, SCORE):
        arrays: dict[str, NDArray[Any]] = {}
        for name, kind in kinds.items():
            rows, columns = (int(n) for n in np.frombuffer(data, np.int64, 2, at))
            count = rows * (1 if columns == VECTOR else columns)
            values = np.frombuffer(data, kind, count, at + 16)
            arrays[name] = values if columns == VECTOR else values.reshape(rows, columns)
            at += 16 + values.nbytes
        records.append(arrays)
    if at != len(data):
        raise ValueError(f"a plan of {at} bytes came in {len(data)}")
    plan, sample, score = records
    return StepPlan(step=step, sample=SamplePlan(**sample), score=ScorePlan(**score), **plan)
