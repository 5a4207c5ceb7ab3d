"""`kvik quantize` as its users meet it: a checkpoint that answers, and one line for whatever is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_process import DATA, SMALL, last_json, run_kvik

from kvik.checkpoint import box_directory
from kvik.cli.main import run

BOX = str(box_directory())
QUESTION = "What is a KV cache?"


def test_a_quantized_model_in_the_box_still_answers(tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = last_json(
        run_kvik("quantize", "box", str(out), "--method", "rtn", "--bits", "8", "--group-size", "64", "--json")
    )
    assert (made["bits"], made["format"], made["layers"]) == (8, "compressed", 8)
    assert made["bytes_after"] < 0.65 * made["bytes_before"]
    assert not (tmp_path / "out.partial").exists()
    words = ["--max-tokens", "4", "--temperature", "0", "--json"]
    said = last_json(run_kvik("generate", QUESTION, "--model", str(out), "--backend", "reference", *SMALL, *words))
    box = last_json(run_kvik("generate", QUESTION, "--model", BOX, "--backend", "reference", *SMALL, *words))
    assert said["outputs"][0]["token_ids"] == box["outputs"][0]["token_ids"]


def test_gptq_calibrates_on_the_text_that_ships(tmp_path: Path) -> None:
    few = ["--num-sequences", "4", "--sequence-length", "64"]
    done = run_kvik("quantize", "box", str(tmp_path / "out"), "--method", "gptq", *few)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'out'}: ")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "gptq"
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["box", "--method", "gptq", "--group-size", "96"], "group_size is 96; expected a divisor of 256"),
        (["box", "--method", "gptq", "--calib", "SHORT"], "tokens; expected at least 2048, 4 sequences of 512"),
        (["box", "--method", "gptq", "--calib", "NONE"], "cannot be read: No such file or directory"),
        (["dummy:tiny-llama", "--method", "gptq", "--group-size", "8"], "has no tokenizer"),
        (["box", "--method", "rtn", "--format", "awq", "--bits", "8"], "bits is 8; format awq holds 4"),
        (["box", "--method", "hqq"], "'hqq' is not one of"),
        (["nowhere", "--method", "rtn"], "no such directory"),
    ],
)
def test_a_bad_wish_is_one_line(args: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "SHORT").write_text("too short")
    args = [str(tmp_path / arg) if arg in ("SHORT", "NONE") else arg for arg in args]
    assert run(["quantize", args[0], str(tmp_path / "out"), *args[1:]]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("kvik: error: ")
    assert said in lines[0]
    assert {path.name for path in tmp_path.iterdir()} == {"SHORT"}


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    command = ["quantize", "dummy:tiny-llama", str(tmp_path / "out"), "--method", "rtn", "--group-size", "8"]
    with monkeypatch.context() as patch:
        patch.setattr("kvik.cli.quantize.show_layers", interrupted)
        assert run(command) == 130
    said = capsys.readouterr().err
    assert f"{tmp_path / 'out.partial'}, and the same command goes on with it" in " ".join(said.split())
    assert run(command) == 0
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.slow
def test_perplexity_of_a_quantized_model_is_close(tmp_path: Path) -> None:
    model, text = DATA / "models" / "babyllama-tok361" / "hf", DATA / "evaltext" / "tinystories_valid_sample.txt"
    if not model.is_dir():
        pytest.skip(f"{model} is not here")
    calib, held_out = tmp_path / "calib.txt", tmp_path / "held-out.txt"
    words = text.read_text().replace("<|endoftext|>", "\n")
    calib.write_text(words[: len(words) // 2])
    held_out.write_text(words[len(words) // 2 :])

    def perplexity(name: str) -> float:
        done = run_kvik("eval", "ppl", name, "--text", str(held_out), "--backend", "reference", *SMALL, "--json")
        return float(last_json(done)["perplexity"])

    def loss(method: str) -> float:
        out = str(tmp_path / method)
        done = run_kvik("quantize", str(model), out, "--method", method, "--group-size", "32", "--calib", str(calib))
        assert done.returncode == 0, done.stderr
        return perplexity(out) / exact - 1

    exact = perplexity(str(model))
    rtn, gptq, int8 = loss("rtn"), loss("gptq"), loss("int8")
    assert gptq < 0.02
    assert gptq < rtn * 2 / 3
    assert int8 < 0.005
