"""Short invented stories: somebody wants something, something is in the way, and it ends well or oddly.

Five or six sentences that belong together, from grammars; the hero, the thing and the place run through all of them.
This file knows nothing of the other tasks.
"""

from __future__ import annotations

from random import Random

from tools.box.world.sheets import grammars
from tools.box.world.split import Side, choose, fill
from tools.box.world.turn import Turn
from tools.box.world.words import ANIMALS, NAMES, PLACES, QUALITIES, thing, with_articles

ASK = grammars("story")
ASK_FREE = grammars("story_free")

BEGIN = grammars("story_begin")
WISH = grammars("story_wish")
TROUBLE = grammars("story_trouble")
TURN = grammars("story_turn")
END = grammars("story_end")
MORAL = grammars("story_moral")


def story_text(rng: Random, animal: str, item: str) -> str:
    """A story about an animal and a thing."""
    name, name2 = rng.sample(NAMES, 2)
    place, place2 = rng.sample(PLACES, 2)
    q, q2, q3 = rng.sample(QUALITIES[: QUALITIES.index("wooden")], 3)
    other = rng.choice([each for each in ANIMALS if each != animal])
    parts = [choose(rng, rng.choice(part)) for part in (BEGIN, WISH, TROUBLE, TURN, END)]
    text = " ".join(parts) + choose(rng, rng.choice(MORAL))
    return with_articles(
        fill(text, animal=animal, thing=item, name=name, name2=name2, place=place, place2=place2, q=q, q2=q2, q3=q3,
             other=other)
    )  # fmt: skip


def story(rng: Random, side: Side) -> Turn:
    """A story that was asked for, about what was asked for."""
    while True:
        animal, item = rng.choice(ANIMALS), thing(rng)
        if side.owns("story", animal, item):
            break
    if rng.random() < 0.3:
        question = side.phrasing(rng, "story_free", ASK_FREE)
    else:
        question = with_articles(fill(side.phrasing(rng, "story", ASK), animal=animal, thing=item))
    return Turn("story", question, story_text(rng, animal, item), weight=0.3)
