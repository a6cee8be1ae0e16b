"""The grammar that writes reviews, the only source of the demo policies' training text.

A review is an opening, some sentences about aspects, perhaps advice, perhaps a courteous close.
Its register (casual, plain, formal), level (-2 .. 2) and number of sentences (1 .. 7) are drawn
independently, so that the corpus holds every combination for the objectives to choose from.
"""

import itertools
import random
import re
from dataclasses import dataclass
from functools import cache

from prefmix.policies.demo.reviews.domains import DOMAINS, Domain
from prefmix.policies.demo.reviews.prompts import TRAINING_PROMPTS, item_of
from prefmix.policies.demo.reviews.templates import (
    ADVICE,
    AUDIENCES,
    BODIES,
    CLOSINGS,
    DAYS,
    LEVELS,
    OPENINGS,
    REGISTERS,
    VERDICTS,
    Register,
)

_NUM_SENTENCES = (1, 2, 3, 4, 5, 6, 7)
_NUM_SENTENCES_ODDS = (22, 20, 20, 16, 12, 6, 4)
_ADJECTIVE_SLOTS = (("adjective",), ("another", "contrary", "adjective"))
"""Slots that may hold the adjective of a sentence's first and second aspect."""
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, kw_only=True)
class Review:
    """One prompt with the review written for it."""

    prompt: str
    text: str
    register: Register
    level: int
    """-2 (very bad) .. 2 (very good)."""
    num_sentences: int
    findings: tuple[tuple[str, str], ...]
    """(aspect, adjective) in the text's order."""


def with_article(phrase: str) -> str:
    """Puts "a" or "an" before a phrase, by its first letter (the lexicon has no "hour", "unit")."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def domain_of(item: str) -> Domain:
    """Returns the domain that holds the item.

    Raises: ValueError if none does.
    """
    for domain in DOMAINS:
        if item in domain.items:
            return domain
    raise ValueError(
        f"unknown item {item!r}; the items are listed in prefmix.policies.demo.reviews.domains"
    )


def adjectives(domain: Domain, aspect: str, register: Register, level: int) -> tuple[str, ...]:
    """The adjectives of an aspect: the domain's own words, and verdicts at the extreme levels."""
    praise, blame = domain.aspects[aspect]
    own = praise if level > 0 else blame if level < 0 else ()
    return own + (VERDICTS[register][level] if level in (-2, 0, 2) else ())


def write_review(rng: random.Random, prompt: str) -> Review:
    """Answers one prompt with a random review of the item that it names."""
    item = item_of(prompt)
    domain = domain_of(item)
    register = rng.choice(REGISTERS)
    level = rng.choice(LEVELS)
    num_sentences = rng.choices(_NUM_SENTENCES, _NUM_SENTENCES_ODDS)[0]
    aspects = rng.sample(sorted(domain.aspects), k=len(domain.aspects))

    has_close = register == "formal" and num_sentences >= 2 and rng.random() < 0.6
    has_advice = num_sentences >= 2 + has_close and rng.random() < 0.5
    templates = [(rng.choice(OPENINGS[register][level]), level)]
    for _ in range(num_sentences - 1 - has_advice - has_close):
        # one aspect in four is one level better or worse than the review
        shift = rng.choice((-1, 1)) if rng.random() < 0.25 else 0
        body_level = max(-2, min(2, level + shift))
        templates.append((rng.choice(BODIES[register][body_level]), body_level))
    if has_advice:
        templates.append((rng.choice(ADVICE[register][level]), level))
    if has_close:
        templates.append((rng.choice(CLOSINGS), level))

    sentences: list[str] = []
    findings: list[tuple[str, str]] = []
    for template, its_level in templates:
        num_aspects = ("{aspect}" in template) + ("{other}" in template)
        if num_aspects > len(aspects):
            break
        chosen, aspects = aspects[:num_aspects], aspects[num_aspects:]
        values = _values(rng, item, domain, chosen, register, its_level)
        sentence = template.format_map(values)
        sentences.append(sentence[0].upper() + sentence[1:])
        for aspect, slots in zip(chosen, _ADJECTIVE_SLOTS, strict=False):
            words = [values[slot] for slot in slots if f"{{{slot}}}" in template]
            findings += [(aspect, words[0])] if words else []
    return Review(
        prompt=prompt,
        text=" ".join(sentences),
        register=register,
        level=level,
        num_sentences=len(sentences),
        findings=tuple(findings),
    )


def sample_reviews(num_reviews: int, *, seed: int) -> list[Review]:
    """Writes reviews for training prompts drawn at random; equal seeds give equal reviews."""
    rng = random.Random(seed)
    return [write_review(rng, rng.choice(TRAINING_PROMPTS)) for _ in range(num_reviews)]


def is_grammatical(text: str) -> bool:
    """True if a whole text is a sequence of this grammar's sentences within one domain.

    Words, levels and articles must be exact; sentences may differ in register.
    """
    return any(_text_pattern(index).fullmatch(text) for index in range(len(DOMAINS)))


def _values(
    rng: random.Random,
    item: str,
    domain: Domain,
    aspects: list[str],
    register: Register,
    level: int,
) -> dict[str, str]:
    """A word for every slot of a sentence."""
    values = {name: rng.choice(options) for name, options in _whole(domain, register, level)}
    values["item"] = item
    return values | {
        name: rng.choice(options) for name, options in _parts(domain, aspects, register, level)
    }


def _whole(domain: Domain, register: Register, level: int) -> list[tuple[str, tuple[str, ...]]]:
    """Options of every slot that does not depend on an aspect."""
    verdicts = VERDICTS[register][level]
    return [
        ("item", domain.items),
        ("noun", (domain.noun,)),
        ("people", (domain.people,)),
        ("visit", (domain.visit,)),
        ("verdict", verdicts),
        ("a_verdict", tuple(with_article(verdict) for verdict in verdicts)),
        ("audience", AUDIENCES),
        ("day", DAYS),
    ]


def _parts(
    domain: Domain, aspects: list[str], register: Register, level: int
) -> list[tuple[str, tuple[str, ...]]]:
    """Options of the slots of one aspect, or of two."""
    options: list[tuple[str, tuple[str, ...]]] = []
    if aspects:
        options += [
            ("aspect", (aspects[0],)),
            ("adjective", adjectives(domain, aspects[0], register, level)),
        ]
    if len(aspects) > 1:
        options += [
            ("other", (aspects[1],)),
            ("another", adjectives(domain, aspects[1], register, level)),
            ("contrary", adjectives(domain, aspects[1], register, -level)),
        ]
    return options


@cache
def _text_pattern(domain_index: int) -> re.Pattern[str]:
    """All sentences of one domain as a regular expression over whole texts."""
    domain = DOMAINS[domain_index]
    sentences: dict[str, None] = {re.escape(closing): None for closing in CLOSINGS}
    for bank, register, level in itertools.product((OPENINGS, BODIES, ADVICE), REGISTERS, LEVELS):
        for template in bank[register][level]:
            num_aspects = ("{aspect}" in template) + ("{other}" in template)
            for aspects in itertools.permutations(domain.aspects, num_aspects):
                options = dict(_whole(domain, register, level))
                options |= dict(_parts(domain, list(aspects), register, level))
                sentences[_sentence_pattern(template, options)] = None
    sentence = "(?:" + "|".join(sentences) + ")"
    return re.compile(f"{sentence}(?: {sentence})*")


def _sentence_pattern(template: str, options: dict[str, tuple[str, ...]]) -> str:
    pieces = _SLOT.split(template)
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            pieces[index] = re.escape(piece)
        else:
            pieces[index] = "(?:" + "|".join(map(re.escape, options[piece])) + ")"
    return "".join(pieces)
