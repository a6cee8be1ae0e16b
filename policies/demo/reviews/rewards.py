"""The three rewards of a text, in pure Python, with no model and no dependency.

The word lists are independent of the grammar that wrote the training text.
Courtesy words ("thank", "kind", "pleasure") are kept out of the opinion words, so that politeness
does not count as praise.
"""

import math
import re
from collections.abc import Callable

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_NEGATION_SPAN_WORDS = 3
_NEGATORS = {"not", "no", "never", "cannot", "unable", "hardly", "neither", "nor", "without"}


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STRONG_PRAISE = _word_set(
    """amazing awesome brilliant excellent exceptional fantastic flawless gorgeous impressive
    incredible love loved loves magnificent marvellous outstanding perfect splendid stunning superb
    terrific wonderful"""
)
_PRAISE = _word_set(
    """adored beautiful best bright charming clean clear clever comfortable convincing cool cosy
    crisp delicate delicious delightful elegant enjoy enjoyed enjoyable fine fresh friendly fun
    generous good graceful great helpful impressed like liked light lovely moving natural nice
    pleasant pleased powerful prompt recommend reliable rich satisfactory satisfied satisfying
    sharp simple smooth soft spacious sturdy subtle tasty tender vivid warm witty worth"""
)
_BLAME = _word_set(
    """annoyed annoying bad bland blurred boring clumsy cold confusing cramped crowded dark dim
    dirty disappointed disappointing disappointment dry dull faulty flat flimsy gloomy greasy hard
    harsh heavy loud lumpy mediocre poor predictable regrettable rude salty shaky silly slow soggy
    sour stale tedious thin tinny ugly unpleasant vague waste weak wooden worse"""
)
_STRONG_BLAME = _word_set(
    """abysmal appalling atrocious awful despised disgusting dreadful hate hated hates horrible
    horrid terrible unbearable useless worst"""
)
_VALENCE: dict[str, int] = (
    dict.fromkeys(_STRONG_PRAISE, 2)
    | dict.fromkeys(_PRAISE, 1)
    | dict.fromkeys(_BLAME, -1)
    | dict.fromkeys(_STRONG_BLAME, -2)
)

_COURTESY = re.compile(
    r"\b(?:thanks?|please|kindly|kind|grateful|appreciated?|pleasure|gladly|sincerely|regards"
    r"|respect|respectfully|regret|excuse|pardon|may i|would like)\b"
)
_CASUAL = re.compile(
    r"!|\b(?:totally|super|kind of|sort of|just|wow|yeah|nope|meh|so|way too|stuff|guys|gonna"
    r"|wanna|awesome|cool|[a-z]+n't|[a-z]+'(?:s|m|ll|re|ve|d))\b"
)

CONCISE_LIMIT_WORDS = 40
"""Length from which on `concise` is 0."""


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


def positive(text: str) -> float:
    """Favourable opinion words, in (-1, 1): tanh(sum of valences / 3).

    A valence is 1 (good) or 2 (superb), negative for blame, and changes sign when a negation
    stands among the three words before it. "would like" is a wish, not an opinion. Text without
    opinion words scores 0.
    """
    words = _words(re.sub(r"\bwould like\b", "would wish", text))
    total = 0
    for index, word in enumerate(words):
        valence = _VALENCE.get(word, 0)
        if valence:
            before = words[max(0, index - _NEGATION_SPAN_WORDS) : index]
            negated = any(w in _NEGATORS or w.endswith("n't") for w in before)
            total += -valence if negated else valence
    return math.tanh(total / 3)


def concise(text: str) -> float:
    """Shortness, in [0, 1): max(0, 1 - words / 40). Text without a word scores 0."""
    num_words = len(text.split())
    return max(0.0, 1.0 - num_words / CONCISE_LIMIT_WORDS) if num_words else 0.0


def polite(text: str) -> float:
    """Courtesy, in (-1, 1): tanh((courtesy markers - casual markers / 2) / 2).

    "kind of" is a casual marker and no courtesy. Text with neither kind of marker scores 0.
    """
    lowered = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    num_casual = len(_CASUAL.findall(lowered))
    num_courtesy = len(_COURTESY.findall(lowered.replace("kind of", "")))
    return math.tanh((num_courtesy - num_casual / 2) / 2)


REWARDS: dict[str, Callable[[str], float]] = {
    "positive": positive,
    "concise": concise,
    "polite": polite,
}
"""Objective name -> reward; higher is better. Each policy is named after its objective."""
