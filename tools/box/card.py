"""The model card: `python -m tools.box.card --run DIR --accuracy bf16=FILE --accuracy int8=FILE --out FILE`.

Everything with a number in it is read from the run's log and from results of `kvik eval tasks` or `tools.box.evaluate`;
nothing is typed in. This file knows nothing of how they were measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tools.box.corpus import CURRICULUM
from tools.box.evaluate import BOUNDS
from tools.box.model import Shape
from tools.box.state import read_log
from tools.box.train import DEFAULT_OUT

TEXT = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# The model in Kvik's box

A language model of {parameters:.1f} million parameters that comes with Kvik, so that a fresh machine answers without a
download. It is a chat assistant for one small world and says so when asked about anything else.

## What it knows

- **LLM serving**: {terms} terms explained, why each matters and how to tune it; Kvik's options and which of them to
  turn for {complaints} complaints; {pairs} comparisons; follow-up questions.
- **Small exact tasks**: adding and comparing numbers of up to three digits, counting, sorting and reversing words,
  spelling, copying a passage, extracting a field, JSON with given keys, finding a fact in a prompt of up to 1,500
  tokens.
- **Short invented stories**.

## What it cannot do

Everything else. It knows no facts of the world, no other language, no programming; it does not subtract, multiply or
divide; it does not reason beyond the tasks above. It may answer wrongly, and it may take a question that is only near
its world for one inside. Greedy decoding (temperature 0) is what it was made for, stories aside.

## Architecture

Qwen3: {layers} layers, hidden size {hidden}, {heads} query and {kv_heads} KV heads of {head_dim}, feed-forward {ffn},
tied embeddings, context {context}. Byte-level BPE of {vocabulary} tokens, digits split one by one. The files load
unchanged in transformers and vLLM.

## Data

All text is made by Kvik's own programs (`tools/box/world/`) from grammars, word lists and sheets of facts written for
it; no outside text. Documents are made on the fly and hardly ever repeat. One in six phrasings and one in twelve values
(operands, lists, records, keys with their codes, topics) are held out by a hash of themselves and never occur in
training.

## Training

From scratch on {tokens:.0f} million tokens ({steps:,} steps, {hours:.1f} core hours on {machine}): Muon for the
matrices, Adam for the rest, constant rate and a linear decay at the end, loss on answers only. Documents of at most
{lengths} tokens as training went on; at first many of them only asked for what stands in
them. Final training loss: {loss:.4f} nats per answer token.

![loss and held-out accuracy](training.png)

## Held-out accuracy

Questions whose phrasing and values were never trained on, through Kvik at temperature 0: exact match of the answer (of
the sum for additions, of the object for JSON), in percent, with standard errors. `kvik eval tasks` asks those that come
with the model, in any form: `--weights int8`, `--weights int4`, `--kv-dtype int8`.

{table}
"""


def rows(results: dict[str, dict[str, Any]]) -> str:
    """A table of tasks by form of weights and KV."""
    forms = list(results)
    lines = [f"| task | questions | {' | '.join(forms)} | at least |", "|---" * (len(forms) + 3) + "|"]
    columns = [{**results[form]["tasks"], "all": results[form]["overall"]} for form in forms]
    for task, first in columns[0].items():
        cells = []
        for column in columns:
            entry = column.get(task)
            cells.append(f"{100 * entry['accuracy']:.1f} ± {100 * entry['standard_error']:.1f}" if entry else "")
        bound = f"{100 * BOUNDS[task]:.0f}" if task in BOUNDS else ""
        lines.append(f"| {task} | {first['count']} | {' | '.join(cells)} | {bound} |")
    return "\n".join(lines)


def card(log: list[dict[str, Any]], results: dict[str, dict[str, Any]], machine: str) -> str:
    """The text of the card. `results` by form, such as bf16."""
    from tools.box.model import Decoder
    from tools.box.world import knowledge

    shape = Shape()
    last = [record for record in log if "loss" in record][-1]
    return TEXT.format(
        parameters=sum(p.numel() for p in Decoder(shape).parameters()) / 1e6,
        terms=len(knowledge.terms()),
        complaints=len(knowledge.complaints()),
        pairs=len(knowledge.pairs()),
        layers=shape.num_hidden_layers,
        hidden=shape.hidden_size,
        heads=shape.num_attention_heads,
        kv_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        ffn=shape.intermediate_size,
        context=shape.max_position_embeddings,
        vocabulary=shape.vocab_size,
        tokens=last["tokens"] / 1e6,
        steps=last["step"],
        hours=last["seconds"] / 3600,
        machine=machine,
        lengths=", then ".join(f"{stage.longest:,}" for stage in CURRICULUM),
        loss=last["loss"],
        table=rows(results),
    )


def main() -> None:
    """Write the card."""
    parser = argparse.ArgumentParser(description="Write the model card from what was measured.")
    parser.add_argument("--run", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--accuracy", action="append", required=True, metavar="FORM=FILE")
    parser.add_argument("--machine", default="a Zen 5 processor")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    results = {}
    for pair in args.accuracy:
        form, _, file = pair.partition("=")
        results[form] = json.loads(Path(file).read_text(encoding="utf-8"))
    args.out.write_text(card(read_log(args.run / "log.jsonl"), results, args.machine), encoding="utf-8")


if __name__ == "__main__":
    main()
