"""Tasks with records: one field out of a text, and a text turned into JSON.

A record is a few facts about a person, written as lines, prose, a table row or JSON. This file knows nothing of the
other tasks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tools.box.world.sheets import grammars, words
from tools.box.world.split import Side, choose, fill
from tools.box.world.turn import Turn
from tools.box.world.words import ANIMALS, CITIES, NAMES, code, tag, thing

Value = str | int
Record = dict[str, Value]

MONTHS = words("month")
COLORS = words("color")
JOBS = words("job")


@dataclass(frozen=True)
class Field:
    """One kind of fact: how it is drawn, what it is called, and how prose says it."""

    draw: Callable[[Random], Value]
    called: str
    clause: str


FIELDS = {
    "age": Field(lambda r: r.randint(18, 90), "[age|age in years]", "is {v} years old"),
    "city": Field(lambda r: r.choice(CITIES), "[city|home city|town]", "[lives|works] in {v}"),
    "color": Field(lambda r: r.choice(COLORS), "[color|favorite color]", "likes the color {v}"),
    "item": Field(thing, "[item|item ordered]", "[ordered|bought] a {v}"),
    "job": Field(lambda r: r.choice(JOBS), "[job|profession|occupation]", "works as a {v}"),
    "phone": Field(lambda r: f"{code(r, 3)}-{code(r, 4)}", "[phone|phone number]", "can be called at {v}"),
    "room": Field(lambda r: r.randint(1, 999), "[room|room number]", "[sits|stays] in room {v}"),
    "born": Field(lambda r: f"{r.randint(1, 28)} {r.choice(MONTHS)} {r.randint(1940, 2009)}", "date of birth",
                  "was born on {v}"),
    "order": Field(tag, "[order|order number|order code]", "has the order number {v}"),
    "pet": Field(lambda r: r.choice(ANIMALS), "[pet|kind of pet]", "has a {v} as a pet"),
    "quantity": Field(lambda r: r.randint(2, 99), "[quantity|number of pieces]", "wants {v} pieces"),
    "email": Field(lambda r: f"{thing(r)}{r.randint(1, 99)}@{thing(r)}.org", "[email|email address]",
                   "writes from {v}"),
}  # fmt: skip

ASK = grammars("extract")
ASK_OF = grammars("extract_of")
TO_JSON = grammars("json")


def record(rng: Random, low: int = 2, high: int = 6) -> Record:
    """A name and some other facts, in any order."""
    chosen = rng.sample(list(FIELDS), rng.randint(low, high))
    return {"name": rng.choice(NAMES), **{key: FIELDS[key].draw(rng) for key in chosen}}


def as_lines(rng: Random, facts: Record) -> str:
    """`key: value`, a line or a stretch each."""
    mark = rng.choice((": ", " = ", ": "))
    title = rng.random() < 0.4
    pairs = [f"{key.title() if title else key}{mark}{value}" for key, value in facts.items()]
    return rng.choice(("\n", "\n", "; ", ", ", " | ")).join(pairs)


def as_prose(rng: Random, facts: Record) -> str:
    """Sentences about the named person."""
    clauses = [fill(choose(rng, FIELDS[key].clause), v=value) for key, value in facts.items() if key != "name"]
    name = str(facts["name"])
    if rng.random() < 0.5 and len(clauses) > 1:
        return f"{name} {', '.join(clauses[:-1])} and {clauses[-1]}."
    return " ".join(f"{name if i == 0 else rng.choice((name, 'This person'))} {c}." for i, c in enumerate(clauses))


def as_table(rng: Random, facts: Record) -> str:
    """A header row and the row of values, with commas."""
    return ",".join(facts) + "\n" + ",".join(map(str, facts.values()))


def as_json(rng: Random, facts: Record) -> str:
    """A JSON object on one line."""
    return json.dumps(facts)


def written(rng: Random, facts: Record) -> str:
    """The record in one of the forms."""
    form = rng.choices((as_lines, as_prose, as_table, as_json), (4, 4, 1, 1))[0]
    return form(rng, facts)


def placed(rng: Random, text: str, question: str) -> str:
    """The question before or after the text."""
    question = question.strip()
    if rng.random() < 0.4:
        return f"{question}\n{rng.choice(('', chr(10)))}{text}"
    return f"{text}\n{rng.choice(('', chr(10)))}{question}"


def owned_record(rng: Random, side: Side) -> Record:
    """A record of this side."""
    while True:
        facts = record(rng)
        if side.owns("record", *facts.items()):
            return facts


def extraction_among(rng: Random, side: Side) -> Turn:
    """The value of one field of one of several records: two steps, from the name to the record and on to the field. It
    is learned last, so training asks for it more often than `extraction` does by itself.
    """
    facts = owned_record(rng, side)
    key = rng.choice(list(facts)[1:])
    field = choose(rng, FIELDS[key].called) if rng.random() < 0.6 else key
    question = fill(side.phrasing(rng, "extract_of", ASK_OF), name=facts["name"], field=field)
    return Turn("extraction", placed(rng, "\n".join(_among(rng, facts)), question), str(facts[key]))


def extraction(rng: Random, side: Side) -> Turn:
    """The value of one field of a record; sometimes of one of several records."""
    facts = owned_record(rng, side)
    key = rng.choice(list(facts)[1:] if rng.random() < 0.85 else ["name"])
    field = choose(rng, FIELDS[key].called) if key in FIELDS and rng.random() < 0.6 else key
    if key != "name" and rng.random() < 0.4:
        question = fill(side.phrasing(rng, "extract_of", ASK_OF), name=facts["name"], field=field)
        text = "\n".join(_among(rng, facts)) if rng.random() < 0.5 else written(rng, facts)
    else:
        question, text = fill(side.phrasing(rng, "extract", ASK), field=field), written(rng, facts)
    return Turn("extraction", placed(rng, text, question), str(facts[key]))


def _among(rng: Random, facts: Record) -> list[str]:
    """The record among others of the same fields, all in one form."""
    form = rng.choice((as_lines, as_prose))
    others = rng.sample([name for name in NAMES if name != facts["name"]], rng.randint(1, 3))
    all_of_them = [facts] + [
        {"name": name, **{key: FIELDS[key].draw(rng) for key in facts if key != "name"}} for name in others
    ]
    rng.shuffle(all_of_them)
    return [form(rng, each).replace("\n", "; ").replace("This person", str(each["name"])) for each in all_of_them]


def to_json(rng: Random, side: Side) -> Turn:
    """Some fields of a record as a JSON object, keys in the order asked for."""
    while True:
        facts = record(rng, 1, 5)
        keys = rng.sample(list(facts), rng.randint(1, min(5, len(facts))))
        if side.owns("record", *facts.items()):
            break
    phrasing = side.phrasing(rng, "json", TO_JSON)
    kinds = {key: "number" if isinstance(facts[key], int) else "string" for key in keys}
    question = fill(phrasing, keys=", ".join(keys), schema=json.dumps(kinds))
    answer = json.dumps({key: facts[key] for key in keys})
    return Turn("json", placed(rng, written(rng, facts), question), answer, score="json")
