"""`kvik chat` from outside, on a tiny model with a tokenizer and a chat template made here."""

from __future__ import annotations

import json

import pytest
from cli_process import SMALL, STORIES, run_kvik
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from kvik.checkpoint import DummyCheckpoint, write_checkpoint

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights, every byte a token."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    write_checkpoint(DummyCheckpoint("tiny-llama"), folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return str(folder)


def test_answers_are_streamed_in_order_and_repeat(model: str) -> None:
    flags = ["--model", model, "--max-tokens", "8", "--temperature", "0", *SMALL]
    done = run_kvik("chat", *flags, stdin="hello\n/reset\nhello\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) > 2
    half = len(done.stdout) // 2
    assert done.stdout[:half] == done.stdout[half:], "the same message after /reset has the same answer"


def test_a_conversation_too_long_goes_on(model: str) -> None:
    done = run_kvik("chat", "--model", model, "--max-tokens", "2", *SMALL, stdin="x" * 2000 + "\nhi\n")
    assert done.returncode == 0
    assert done.stderr.startswith("kvik: error: ")
    assert "/reset starts over" in done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    ("name", "said"), [("dummy:tiny-llama", "no tokenizer"), (str(STORIES / "hf"), "no chat template")]
)
def test_a_model_that_cannot_chat_is_refused(name: str, said: str) -> None:
    if not name.startswith("dummy:") and not STORIES.exists():
        pytest.skip(f"no model at {STORIES}")
    done = run_kvik("chat", "--model", name, *SMALL, stdin="hi\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
