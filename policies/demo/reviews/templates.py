"""Sentence templates and adjectives of the review grammar, by register and level of satisfaction.

A level is -2 (very bad) .. 2 (very good). Slots:
  {item} {noun} {people} {visit}        words of the domain
  {aspect} {adjective}                  one aspect and an adjective of the sentence's level
  {other} {another}                     a second aspect and its adjective, of the same level
  {contrary}                            an adjective for {other} of the opposite level
  {a_verdict} {verdict}                 adjective for the whole item, with and without its article
  {audience} {day}                      for whom, and when
"""

from typing import Literal

Register = Literal["casual", "plain", "formal"]
REGISTERS: tuple[Register, ...] = ("casual", "plain", "formal")
LEVELS: tuple[int, ...] = (-2, -1, 0, 1, 2)

AUDIENCES: tuple[str, ...] = ("families", "couples", "visitors", "students", "friends", "anyone")
DAYS: tuple[str, ...] = ("on Friday", "on Sunday", "last week", "in May", "in August")

VERDICTS: dict[Register, dict[int, tuple[str, ...]]] = {
    "casual": {
        2: ("amazing", "awesome", "brilliant", "fantastic"),
        1: ("good", "nice", "cool"),
        0: ("average", "ordinary"),
        -1: ("bad", "poor", "boring"),
        -2: ("awful", "terrible", "horrible", "dreadful"),
    },
    "plain": {
        2: ("excellent", "wonderful", "superb"),
        1: ("good", "pleasant", "great"),
        0: ("average", "ordinary", "standard"),
        -1: ("poor", "disappointing", "mediocre"),
        -2: ("awful", "terrible"),
    },
    "formal": {
        2: ("excellent", "most impressive", "truly outstanding"),
        1: ("pleasant", "quite satisfactory", "well made"),
        0: ("average", "acceptable", "typical"),
        -1: ("rather poor", "somewhat disappointing"),
        -2: ("very poor", "most unpleasant", "truly disappointing"),
    },
}
"""Adjectives of the whole item, and of aspects if the domain has no adjective of the level."""

OPENINGS: dict[Register, dict[int, tuple[str, ...]]] = {
    "casual": {
        2: ("Loved {item}!", "Wow, {item} is {verdict}!", "What {a_verdict} {noun}!"),
        1: ("Really liked {item}!", "Yeah, {item} is pretty {verdict}."),
        0: ("Meh, {item} is just okay.", "It's just {a_verdict} {noun}, I guess."),
        -1: ("Didn't really like {item}.", "Nope, {item} is kind of {verdict}."),
        -2: ("Hated {item}!", "Wow, {item} is just {verdict}!", "What {a_verdict} {noun}!"),
    },
    "plain": {
        2: (
            "I enjoyed {item} very much.",
            "I {visit} {item} {day}, and it was {verdict}.",
            "For me, this is {a_verdict} {noun}.",
        ),
        1: (
            "I enjoyed {item}.",
            "I {visit} {item} {day}, and it was {verdict}.",
            "Overall, it is {a_verdict} {noun}.",
        ),
        0: (
            "This is my review of {item}.",
            "I {visit} {item} {day}.",
            "Overall, it is {a_verdict} {noun}.",
        ),
        -1: (
            "I did not enjoy {item}.",
            "I {visit} {item} {day}, and it was {verdict}.",
            "Overall, it is {a_verdict} {noun}.",
        ),
        -2: (
            "I did not like {item} at all.",
            "I {visit} {item} {day}, and it was {verdict}.",
            "For me, this is {a_verdict} {noun}.",
        ),
    },
    "formal": {
        2: (
            "It is a pleasure to review {item}, which I found to be {verdict}.",
            "I would like to thank {people} for {a_verdict} {noun}.",
        ),
        1: (
            "Thank you for asking about {item}, which I found to be {verdict}.",
            "I would like to thank {people} for {a_verdict} {noun}.",
        ),
        0: (
            "Thank you for asking about {item}, which I found to be {verdict}.",
            "I would like to share my view of {item}.",
        ),
        -1: (
            "I regret to say that I found {item} to be {verdict}.",
            "With respect, I found {item} to be {verdict}.",
        ),
        -2: (
            "I regret to say that I found {item} to be {verdict}.",
            "With respect, this was {a_verdict} {noun}.",
        ),
    },
}

_CASUAL_GOOD = (
    "The {aspect} was so {adjective}!",
    "The {aspect}? Totally {adjective}!",
    "And the {aspect} was super {adjective}!",
)
_CASUAL_BAD = (
    "The {aspect} was so {adjective}!",
    "The {aspect}? Totally {adjective}.",
    "And the {aspect} was kind of {adjective}.",
)
_PLAIN_GOOD = (
    "The {aspect} was {adjective}.",
    "The {aspect} was {adjective} and the {other} was {another}.",
    "The {aspect} was {adjective}, but the {other} was {contrary}.",
    "I liked the {aspect} because it was really {adjective}.",
)
_PLAIN_BAD = (
    "The {aspect} was {adjective}.",
    "The {aspect} was {adjective} and the {other} was {another}.",
    "The {aspect} was {adjective}, but the {other} was {contrary}.",
    "I was annoyed by the {aspect} because it was really {adjective}.",
)
_FORMAL_GOOD = (
    "I found the {aspect} to be {adjective}.",
    "It is a pleasure to report that the {aspect} was {adjective}.",
    "The {aspect} was {adjective}, and I thank {people} for their kind attention.",
    "I appreciated the {aspect}, which was {adjective}.",
)
_FORMAL_BAD = (
    "I found the {aspect} to be {adjective}.",
    "I regret to report that the {aspect} was {adjective}.",
    "May I kindly ask {people} to look at the {aspect}, which was {adjective}.",
)

BODIES: dict[Register, dict[int, tuple[str, ...]]] = {
    "casual": {
        2: _CASUAL_GOOD,
        1: _CASUAL_GOOD,
        0: ("The {aspect} was okay.", "The {aspect}? Just {adjective}."),
        -1: _CASUAL_BAD,
        -2: _CASUAL_BAD,
    },
    "plain": {
        2: _PLAIN_GOOD,
        1: _PLAIN_GOOD,
        0: ("The {aspect} was {adjective}.", "The {aspect} and the {other} were {adjective}."),
        -1: _PLAIN_BAD,
        -2: _PLAIN_BAD,
    },
    "formal": {
        2: _FORMAL_GOOD,
        1: _FORMAL_GOOD,
        0: ("I found the {aspect} to be {adjective}.", "The {aspect} was {adjective}."),
        -1: _FORMAL_BAD,
        -2: _FORMAL_BAD,
    },
}

ADVICE: dict[Register, dict[int, tuple[str, ...]]] = {
    "casual": {
        2: ("You'll love it!", "Just go for it!"),
        1: ("Worth it!", "You'll like it."),
        0: ("It's up to you.",),
        -1: ("I'd skip it.", "Don't bother."),
        -2: ("Just skip it!", "Total waste of money!"),
    },
    "plain": {
        2: ("I recommend it to {audience}.", "I would choose it again."),
        1: ("I recommend it to {audience}.", "I would choose it again."),
        0: ("It may suit {audience}.",),
        -1: ("I cannot recommend it to {audience}.", "I would not choose it again."),
        -2: ("I cannot recommend it to {audience}.", "I would not choose it again."),
    },
    "formal": {
        2: ("I would gladly recommend it to {audience}.",),
        1: ("I would gladly recommend it to {audience}.",),
        0: ("It may suit {audience}.",),
        -1: ("I regret that I cannot recommend it to {audience}.",),
        -2: ("I regret that I cannot recommend it to {audience}.",),
    },
}

CLOSINGS: tuple[str, ...] = (
    "Thank you for your time.",
    "Yours sincerely.",
    "Many thanks.",
    "Thank you for reading my review.",
)
"""End of a formal review."""
