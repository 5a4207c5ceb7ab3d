"""The decoder is Qwen3; a run goes on where it stopped; an export is read alike by transformers and Kvik."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tools.box import corpus, export, heldout, state, train  # noqa: E402
from tools.box.evaluate import measure, missed  # noqa: E402
from tools.box.model import Decoder, Shape  # noqa: E402
from tools.box.optimizer import Adam, Muon, orthogonalized, share_at  # noqa: E402
from tools.box.tokenizer import Encoded  # noqa: E402

SMALL = Shape(
    vocab_size=768, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_tokenizer_dir: Path) -> Path:
    """A folder for a run of a small shape, with a tokenizer in it."""
    monkeypatch.setattr(train, "Shape", lambda vocab_size: SMALL)
    monkeypatch.setattr(export, "Shape", lambda vocab_size: SMALL)
    shutil.copytree(small_tokenizer_dir, tmp_path / "run")
    return tmp_path / "run"


def options(out: Path, *more: str) -> list[str]:
    return ["--out", str(out), "--documents", "60", "--batch-tokens", "512", "--batches", "2", *more]


def trained(out: Path, steps: int, *more: str) -> train.Run:
    run = train.Run(train.parse(options(out, "--steps", str(steps), *more)))
    source = run.batches()
    while not run.finished:
        run.step([next(source), next(source)])
    source.close()
    run.save()
    return run


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "whole")
    whole = trained(tmp_path / "whole", 6)
    trained(small, 3)
    resumed = trained(small, 6)
    assert resumed.progress == whole.progress
    for (name, a), (_, b) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_loss_falls(small: Path) -> None:
    run = train.Run(train.parse(options(small)))
    source = run.batches()
    batches = [next(source) for _ in range(4)]
    losses = [run.step(batches) for _ in range(20)]
    source.close()
    assert losses[-1] < 0.95 * losses[0]


def test_a_decay_begins_where_the_run_stands_and_ends_it(small: Path) -> None:
    trained(small, 2)
    run = trained(small, 10**9, "--decay-steps", "3")
    assert run.progress.step == 5
    assert run.finished


def test_an_export_is_read_alike_by_transformers_and_kvik(small: Path, tmp_path: Path) -> None:
    trained(small, 4)
    export.export(small, tmp_path / "model")
    assert export.largest_difference(tmp_path / "model", ("follow_up", "json"), count=2) < export.TOLERANCE
    judged, result = measure(tmp_path / "model", ["addition_2", "refusal"], 3, {"threads": 1})
    assert {task: accuracy.count for task, accuracy in judged.by_task.items()} == {"addition_2": 3, "refusal": 3}
    assert result["tasks"]["refusal"]["count"] == 3
    assert [line.split(":")[0] for line in missed(judged)] == ["addition_2", "refusal"]


def test_the_shape_that_ships_is_under_the_limit() -> None:
    size = sum(p.numel() for p in Decoder(Shape()).parameters())
    assert 5e6 < size < 10e6
    assert 2 * size <= export.MAX_BYTES
    assert all(getattr(Shape(), name) % 256 == 0 for name in ("hidden_size", "intermediate_size", "vocab_size"))


def test_a_row_does_not_depend_on_what_pads_it() -> None:
    model = Decoder(SMALL)
    ids = torch.randint(0, 768, (1, 20))
    padded = torch.cat((ids, torch.zeros(1, 12, dtype=torch.long)), 1)
    torch.testing.assert_close(model(padded)[:, :20], model(ids), atol=0.05, rtol=0.02)


def test_batches_have_the_documents_whole_and_weights_beside_them() -> None:
    rng = Random(0)
    documents = [
        Encoded([rng.randint(1, 700) for _ in range(length)], [1.0] * length, "t")
        for length in [rng.randint(1, 200) for _ in range(200)]
    ]
    made = list(corpus.cut(documents, 512))
    rows = [tuple(row[row > 0]) for batch in made for row in batch.ids]
    assert set(rows) <= {tuple(each.ids) for each in documents}
    assert len(rows) > 150
    assert all(batch.ids.shape[1] in corpus.LENGTHS for batch in made)
    assert all(np.array_equal(batch.ids > 0, batch.weights > 0) for batch in made)
    assert sum(batch.tokens for batch in made) == sum(map(len, rows))


def test_the_curriculum_grows_longer() -> None:
    lengths = [corpus.stage_at(tokens).longest for tokens in (0, 1e7, 1e9)]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1] <= corpus.LENGTHS[-1]


def test_a_run_starts_from_an_exported_model(small: Path, tmp_path: Path) -> None:
    before = trained(small, 3)
    export.export(small, tmp_path / "box")
    run = train.Run(train.parse(options(tmp_path / "next", "--start-from", str(tmp_path / "box"))))
    assert (run.progress.step, run.progress.tokens) == (0, before.progress.tokens)
    assert run.progress.chunk > before.progress.chunk
    for mine, theirs in zip(run.model.parameters(), before.model.parameters(), strict=True):
        assert torch.equal(mine, theirs.bfloat16().float())


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    for shape in ((3, 16, 48), (3, 48, 16)):
        values = torch.linalg.svdvals(orthogonalized(torch.randn(shape)))
        assert 0.5 < float(values.min()) <= float(values.max()) < 1.5


def test_both_optimizers_find_a_minimum() -> None:
    target = torch.randn(8, 8)
    for optimizer, rate in ((Muon, 0.05), (Adam, 0.05)):
        p = torch.nn.Parameter(torch.zeros(8, 8))
        made = optimizer([("p", p)])
        for number in range(1, 301):
            p.grad = 2 * (p.detach() - target)
            arguments = (rate * (1 - number / 300),) + ((number,) if optimizer is Adam else ())
            made.step(*arguments)
        assert float((p - target).abs().mean()) < 0.2


def test_the_schedule_rises_stays_and_falls() -> None:
    assert share_at(1, 100, None, 0) == 0.01
    assert share_at(5000, 100, None, 0) == 1.0
    assert share_at(1050, 100, 1000, 100) == pytest.approx(0.5)
    assert share_at(1100, 100, 1000, 100) == 0.0


def test_a_state_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    for step in (1, 2):
        state.save(path, {"a": torch.full((3,), float(step))}, state.Progress(step=step))
    a = torch.zeros(3)
    assert state.load(path, {"a": a}).step == 2
    assert a.tolist() == [2.0] * 3
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_only_the_last_answer_is_judged() -> None:
    conversation = heldout.conversations("follow_up", 1)[0]
    weights = [turn.weight for turn in train.last_only(conversation).turns]
    assert weights[:-1] == [0.0] * (len(weights) - 1)
    assert weights[-1] > 0
