"""A real transcript for the README: `python -m tools.box.transcript` asks held-out questions through `kvik generate`.

Which questions is a rule and no choice: of each task named here the first one that ships and fits on a line. Every
answer is what the command printed, with long lines broken; one that is wrong makes the exit status 1 and is named, but
stays in the transcript. This file knows nothing of how answers are made.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import textwrap

from kvik.bench.tasks import Item, read_items

TASKS = (
    *("definition", "reason", "option", "difference", "advice"),
    *("refusal", "addition_3", "comparison", "sorting", "reversing"),
)
"""Tasks with one question each."""
WIDTH = 110
LONGEST_QUESTION = WIDTH - len('$ kvik generate ""')


def chosen(tasks: tuple[str, ...] = TASKS) -> list[Item]:
    """The first question of each task that fits."""
    return [next(item for item in read_items(tasks=[task]) if fits(item)) for task in tasks]


def fits(item: Item) -> bool:
    """Whether a question stands alone, on one line, and cannot be taken for a flag."""
    text = item.messages[-1]["content"]
    return len(item.messages) == 1 and "\n" not in text and len(text) <= LONGEST_QUESTION and not text.startswith("-")


def ask(question: str) -> str:
    """What the command prints, without the last line break. Raises CalledProcessError."""
    command = [sys.executable, "-m", "kvik", "generate", question]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.removesuffix("\n")


def shown(question: str, answer: str) -> str:
    """One exchange as a terminal shows it."""
    quoted = f'"{question}"' if not set(question) & set('"$`\\!') else shlex.quote(question)
    lines = [line for part in answer.split("\n") for line in textwrap.wrap(part, WIDTH) or [""]]
    return "\n".join([f"$ kvik generate {quoted}", *lines])


def main() -> None:
    """Print the block."""
    argparse.ArgumentParser(description="Print the README's transcript of held-out questions.").parse_args()
    wrong = []
    print("```console")
    for item in chosen():
        question = item.messages[-1]["content"]
        answer = ask(question)
        print(shown(question, answer), flush=True)
        wrong += [] if item.is_right(answer) else [f"{item.task}: {question!r} has {answer!r}, not {item.answer!r}"]
    print("```")
    if wrong:
        raise SystemExit("\n".join(["wrong answers:", *wrong]))


if __name__ == "__main__":
    main()
