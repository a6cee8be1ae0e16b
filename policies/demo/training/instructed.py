"""Training text of the instructed demo policy: reviews with system messages that describe them."""

import random

from tokenizers import Tokenizer

from prefmix.policies.demo.reviews.grammar import Review, domain_of
from prefmix.policies.demo.reviews.prompts import item_of
from prefmix.policies.demo.reviews.styles import STYLES, notes
from prefmix.policies.demo.training.reference import SYSTEM_MESSAGES, Example, encode
from prefmix.policies.demo.training.tokenizer import chat_text

_MAX_NOTES = 3
_SHARE_OF_WRONG_NOTES = 0.2


def make_instructed_examples(
    reviews: list[Review], tokenizer: Tokenizer, *, seed: int
) -> list[Example]:
    """Encodes reviews as training examples; only the review itself is learned.

    Of ten examples about three have instructions that their review obeys, four have notes, one both
    and one neither, all as a chat of one turn; one has instructions for two turns. A fifth of the
    notes are about another review of the same domain, so that the policy believes its notes only
    in part, as large models do: something is left for a mixture to strengthen.
    """
    rng = random.Random(seed)
    by_style: dict[str, list[Review]] = {name: [] for name in STYLES}
    by_domain: dict[str, list[Review]] = {}
    for review in reviews:
        for name, style in STYLES.items():
            if style.is_obeyed_by(review):
                by_style[name].append(review)
        if review.findings:
            by_domain.setdefault(domain_of(item_of(review.prompt)).noun, []).append(review)
    examples = []
    for review in reviews:
        form = rng.random()
        if form < 0.1:
            turns = [(chat_text(review.prompt), review.text)]
        elif form < 0.9:
            has_instructions, has_notes = form < 0.5, form > 0.4
            sentences = [rng.choice(SYSTEM_MESSAGES)] if rng.random() < 0.2 else []
            sentences += _instructions(rng, review) if has_instructions else []
            sentences += _notes(rng, review, by_domain) if has_notes else []
            turns = [(chat_text(review.prompt, system=" ".join(sentences)), review.text)]
        else:
            name = rng.choice([name for name in STYLES if STYLES[name].is_obeyed_by(review)])
            earlier = rng.choice(by_style[name])
            system = rng.choice(STYLES[name].wordings)
            turns = [
                (chat_text(earlier.prompt, system=system), earlier.text),
                (chat_text(review.prompt).removeprefix("<s>"), review.text),
            ]
        examples.append(encode(turns, tokenizer))
    return examples


def _instructions(rng: random.Random, review: Review) -> list[str]:
    """One instruction or more that a review obeys, in random order and wording."""
    names = [name for name, style in STYLES.items() if style.is_obeyed_by(review)]
    chosen = rng.sample(names, k=rng.choices((1, 2, 3), (6, 3, 1))[0] if len(names) > 2 else 1)
    return [rng.choice(STYLES[name].wordings) for name in chosen]


def _notes(rng: random.Random, review: Review, by_domain: dict[str, list[Review]]) -> list[str]:
    """A note of the review's own findings, or as often of another review's."""
    noted = review
    if not review.findings or rng.random() < _SHARE_OF_WRONG_NOTES:
        noted = rng.choice(by_domain[domain_of(item_of(review.prompt)).noun])
    count = min(len(noted.findings), rng.randint(1, _MAX_NOTES))
    return [notes(tuple(rng.sample(noted.findings, k=count)))]
