"""The subjects of the reviews: four domains with eight invented items each, six aspects an item.

All names are made up. Aspects are singular, so that every sentence of the grammar agrees in number.
Their adjectives are plain praise or plain blame.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One kind of thing that can be reviewed."""

    noun: str
    """Noun for an item, such as "hotel"."""
    people: str
    """The people who are thanked or advised, such as "the hotel staff"."""
    visit: str
    """Past tense of a visit to an item, such as "stayed at"."""
    items: tuple[str, ...]
    """Noun phrases that start with "the"."""
    aspects: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
    """Aspect -> (praising adjectives, blaming adjectives)."""


HOTELS = Domain(
    noun="hotel",
    people="the hotel staff",
    visit="stayed at",
    items=(
        "the Park Hotel",
        "the Harbour Inn",
        "the Old Mill Lodge",
        "the Station Hotel",
        "the Lakeside Inn",
        "the Garden Lodge",
        "the Hilltop Hotel",
        "the River House",
    ),
    aspects={
        "room": (("bright", "spacious"), ("cramped", "dark")),
        "bed": (("comfortable", "soft"), ("lumpy", "hard")),
        "breakfast": (("fresh", "generous"), ("cold", "stale")),
        "pool": (("clean", "warm"), ("dirty", "crowded")),
        "view": (("lovely", "charming"), ("gloomy", "ugly")),
        "service": (("friendly", "prompt"), ("rude", "slow")),
    },
)

RESTAURANTS = Domain(
    noun="restaurant",
    people="the kitchen team",
    visit="ate at",
    items=(
        "the Blue Door Bistro",
        "the Olive Tree",
        "the Green Lantern",
        "the Copper Kettle",
        "the Noodle Bar",
        "the Sunday Kitchen",
        "the Market Table",
        "the Bridge Cafe",
    ),
    aspects={
        "soup": (("tasty", "rich"), ("bland", "salty")),
        "bread": (("fresh", "crisp"), ("stale", "dry")),
        "fish": (("tender", "delicate"), ("dry", "greasy")),
        "dessert": (("delicious", "light"), ("soggy", "heavy")),
        "wine": (("smooth", "elegant"), ("sour", "thin")),
        "service": (("friendly", "prompt"), ("rude", "slow")),
    },
)

FILMS = Domain(
    noun="film",
    people="the film makers",
    visit="watched",
    items=(
        "the film Home by Noon",
        "the film Paper Moons",
        "the film The Last Ferry",
        "the film Seven Letters",
        "the film North of Here",
        "the film A Quiet Street",
        "the film Winter Orchard",
        "the film Two Maps",
    ),
    aspects={
        "story": (("moving", "clever"), ("predictable", "confusing")),
        "acting": (("natural", "convincing"), ("wooden", "clumsy")),
        "music": (("beautiful", "subtle"), ("loud", "dull")),
        "ending": (("satisfying", "powerful"), ("weak", "silly")),
        "camera work": (("graceful", "sharp"), ("shaky", "blurred")),
        "dialogue": (("witty", "warm"), ("flat", "tedious")),
    },
)

DEVICES = Domain(
    noun="device",
    people="the design team",
    visit="bought",
    items=(
        "the Orbit phone",
        "the Maple laptop",
        "the Comet camera",
        "the Delta tablet",
        "the Ember watch",
        "the Lark player",
        "the Cedar phone",
        "the Onyx laptop",
    ),
    aspects={
        "battery": (("reliable", "powerful"), ("weak", "faulty")),
        "screen": (("sharp", "vivid"), ("dim", "blurred")),
        "sound": (("clear", "rich"), ("harsh", "tinny")),
        "case": (("sturdy", "elegant"), ("flimsy", "ugly")),
        "menu": (("simple", "clever"), ("confusing", "slow")),
        "manual": (("helpful", "clear"), ("useless", "vague")),
    },
)

DOMAINS: tuple[Domain, ...] = (HOTELS, RESTAURANTS, FILMS, DEVICES)
