"""The training program: `python -m tools.box.train --out DIR` starts a run there, or goes on with the one it finds.

Loss on answers only, steps of several batches of different lengths, a constant rate that `--decay-steps N` brings down
to nothing at any time one likes. Held-out questions are judged on the way: an answer is right where every one of its
tokens is the likeliest, which is what greedy decoding would write. This file knows nothing of what the text says.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from tokenizers import Tokenizer
from torch import Tensor

from tools.box import corpus, heldout, state
from tools.box.corpus import Batch, Corpus
from tools.box.model import Decoder, Shape
from tools.box.optimizer import Optimizer, Rates, share_at
from tools.box.tokenizer import encode_document, learn, write
from tools.box.world.turn import Conversation

DEFAULT_OUT = Path("~/.cache/kvik/box").expanduser()
QUICK_ITEMS = 40
QUICK_BATCH = 8192


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="where state, log and tokenizer lie")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start-from", type=Path, help="an exported model whose weights a new run starts from")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=0, help="compute threads; 0: torch's choice")
    parser.add_argument("--workers", type=int, default=1, help="processes that make text")
    parser.add_argument("--documents", type=int, default=16_000, help="documents to a chunk of text")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="places in one batch")
    parser.add_argument("--batches", type=int, default=2, help="batches to a step")
    parser.add_argument("--steps", type=int, default=10**9, help="stop after this step")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many minutes of this sitting")
    parser.add_argument("--decay-steps", type=int, default=0, help="bring the rate down to 0 over so many steps, end")
    parser.add_argument("--save-seconds", type=float, default=240)
    parser.add_argument("--judge-seconds", type=float, default=1500)
    parser.add_argument("--compile", action="store_true", help="compile the layers")
    return parser.parse_args(arguments)


class Run:
    """A run: model, optimizer, text, and where it stands."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        args.out.mkdir(parents=True, exist_ok=True)
        self.tokenizer = open_tokenizer(args.out, args.seed, args.start_from)
        self.device = torch.device(args.device)
        self.model = Decoder(Shape(vocab_size=self.tokenizer.get_vocab_size()), args.seed).to(self.device)
        self.rates = Rates()
        self.optimizer = Optimizer(self.model, self.rates)
        self.progress = state.Progress()
        self.stopping = False
        self._weights = dict(self.model.named_parameters())
        self.path, self.log = args.out / "state.safetensors", args.out / "log.jsonl"
        if self.path.exists():
            self.progress = state.load(self.path, self._tensors())
        elif args.start_from:
            weights = {f"model.{name}": p for name, p in self._weights.items()}
            self.progress = state.load_shipped(args.start_from / "model.safetensors", weights)
        if args.decay_steps and self.progress.decay_from is None:
            self.progress.decay_from, self.progress.decay_steps = self.progress.step, args.decay_steps
        if args.compile:
            compile_layers(self.model)

    def _tensors(self) -> dict[str, Tensor]:
        return {**{f"model.{name}": p for name, p in self._weights.items()}, **self.optimizer.state}

    def stop(self, *_: object) -> None:
        """Save and end after the step in progress."""
        self.stopping = True

    def save(self) -> None:
        """The whole state, replacing the one before."""
        state.save(self.path, self._tensors(), self.progress)

    def batches(self) -> Iterator[Batch]:
        """The training text from where the run stands."""
        a, p = self.args, self.progress
        source = Corpus(
            a.out / "tokenizer.json", a.seed, documents=a.documents, batch_tokens=a.batch_tokens, workers=a.workers
        )
        try:
            while True:
                for batch in source.batches(p.chunk, corpus.stage_at(p.tokens))[p.batch :]:
                    p.batch += 1
                    yield batch
                p.chunk, p.batch = p.chunk + 1, 0
        finally:
            source.close()

    def step(self, some: list[Batch]) -> float:
        """One step of the optimizer over some batches. Returns the mean loss per weighted token, in nats."""
        total = sum(float(batch.weights[:, 1:].sum()) for batch in some)
        loss = torch.zeros((), device=self.device)
        for batch in some:
            part = batch_loss(self.model, batch, self.device) / total
            part.backward()
            loss += part.detach()
            self.progress.tokens += batch.tokens
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.progress.step += 1
        p = self.progress
        share = share_at(p.step, self.rates.warmup, p.decay_from, p.decay_steps)
        self.optimizer.step(p.step, share)
        self.model.zero_grad(set_to_none=True)
        return float(loss)

    @property
    def finished(self) -> bool:
        """Whether the decay has ended or the last step was made."""
        p = self.progress
        decayed = p.decay_from is not None and p.step >= p.decay_from + p.decay_steps
        return decayed or p.step >= self.args.steps


def open_tokenizer(out: Path, seed: int, start_from: Path | None = None) -> Tokenizer:
    """The run's tokenizer; if there is none, first that of the model it starts from, or a new one, is written."""
    if not (out / "tokenizer.json").exists():
        write(Tokenizer.from_file(str(start_from / "tokenizer.json")) if start_from else learn(seed), out)
    return Tokenizer.from_file(str(out / "tokenizer.json"))


def compile_layers(model: Decoder) -> None:
    """Compiled code for every padded length; the layers share it."""
    torch._dynamo.config.recompile_limit = 64
    for layer in model.layers:
        layer.compile(dynamic=False)


def predictions(model: Decoder, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the places that count: logits, [n, vocab]; targets, weights and rows, [n] each."""
    ids = torch.from_numpy(batch.ids).to(device)
    weights = torch.from_numpy(batch.weights).to(device)
    hidden = model(ids)[:, :-1]
    counts = weights[:, 1:] > 0
    rows = counts.nonzero()[:, 0]
    return model.logits(hidden[counts]), ids[:, 1:][counts], weights[:, 1:][counts], rows


def batch_loss(model: Decoder, batch: Batch, device: torch.device) -> Tensor:
    """Sum of the weighted cross-entropies, in nats."""
    logits, targets, weights, _ = predictions(model, batch, device)
    return (F.cross_entropy(logits, targets, reduction="none") * weights).sum()


def last_only(conversation: Conversation) -> Conversation:
    """The same conversation with only its last answer counting."""
    before, last = conversation.turns[:-1], conversation.turns[-1]
    return Conversation((*(replace(turn, weight=0.0) for turn in before), last))


@torch.no_grad()
def judge(run: Run, count: int = QUICK_ITEMS) -> dict[str, float]:
    """Share of held-out questions whose whole answer greedy decoding would write, by task."""
    torch.compiler.set_stance("force_eager")  # compiled code is for the shapes of training
    found = {}
    for task in (task for task in heldout.MAKERS if task != "needle_long"):
        encoded = [encode_document(run.tokenizer, last_only(each)) for each in heldout.conversations(task, count, 1)]
        length = corpus.padded_length(max(len(each.ids) for each in encoded))
        size, right = max(1, QUICK_BATCH // length), 0
        for begin in range(0, len(encoded), size):
            batch = corpus.pack(encoded[begin : begin + size], length)
            logits, targets, _, rows = predictions(run.model, batch, run.device)
            wrong = rows[logits.argmax(-1) != targets].unique()
            right += len(batch.ids) - len(wrong)
        found[task] = right / len(encoded)
    torch.compiler.set_stance("default")
    return found


def train(run: Run) -> None:
    """Step until the end, saving and judging now and then."""
    started = last_save = last_judge = time.monotonic()
    spent_before = run.progress.seconds - time.process_time()
    losses, tokens_before = [], run.progress.tokens
    waiting: list[Batch] = []
    for batch in run.batches():
        waiting.append(batch)
        if len(waiting) < run.args.batches:
            continue
        losses.append(run.step(waiting))
        waiting = []
        now = time.monotonic()
        run.progress.seconds = spent_before + time.process_time()
        if run.progress.step % 20 == 0:
            speed = (run.progress.tokens - tokens_before) / (now - started)
            report(run, {"loss": sum(losses) / len(losses), "tokens_per_s": round(speed)})
            losses = []
        ending = run.finished or run.stopping or now - started > 60 * run.args.minutes
        if ending or now - last_save > run.args.save_seconds:
            run.save()
            last_save = now
        if not run.stopping and (ending or now - last_judge > run.args.judge_seconds):
            report(run, {"held_out": judge(run)})
            last_judge = time.monotonic()
        if ending:
            break


def report(run: Run, record: dict[str, Any]) -> None:
    """A line for the log and one for whoever is watching."""
    p = run.progress
    record = {"step": p.step, "tokens": p.tokens, "seconds": round(p.seconds), **record}
    state.append_log(run.log, record)
    print(record, flush=True)


def main() -> None:
    """Start or go on."""
    args = parse()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if args.threads:
        torch.set_num_threads(args.threads)
    run = Run(args)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, run.stop)
    train(run)


if __name__ == "__main__":
    main()
