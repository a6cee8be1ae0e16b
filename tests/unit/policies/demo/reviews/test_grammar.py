"""The review grammar: deterministic, free of article bugs, and true to its own recogniser."""

import re

import pytest

from prefmix.policies.demo import EVALUATION_PROMPTS
from prefmix.policies.demo.reviews.domains import DOMAINS
from prefmix.policies.demo.reviews.grammar import (
    domain_of,
    is_grammatical,
    sample_reviews,
    with_article,
)
from prefmix.policies.demo.reviews.prompts import ITEMS, PROMPT_FORMS, TRAINING_PROMPTS, item_of
from prefmix.policies.demo.reviews.templates import LEVELS, REGISTERS


@pytest.fixture(scope="module")
def reviews():
    return sample_reviews(3000, seed=7)


def test_reviews_are_fixed_by_the_seed(reviews) -> None:
    assert sample_reviews(50, seed=7) == reviews[:50]
    assert sample_reviews(50, seed=8) != reviews[:50]


def test_reviews_have_no_article_bugs(reviews) -> None:
    wrong = re.compile(r"\b(?:a [aeiou]|an [^aeiou])", re.IGNORECASE)
    # an item may be called "A Quiet Street"; only the text's articles are checked
    assert not [r.text for r in reviews if wrong.search(r.text)]


def test_reviews_are_clean_english_text(reviews) -> None:
    for review in reviews:
        assert re.fullmatch(r"[A-Z][ -~]*[.!]", review.text), review.text
        assert "{" not in review.text
        assert "  " not in review.text
        assert not re.search(r"[.!?] [a-z]", review.text), review.text


def test_reviews_keep_to_the_domain_of_their_prompt(reviews) -> None:
    for review in reviews:
        own = domain_of(item_of(review.prompt))
        named = {item for item in ITEMS if item.lower() in review.text.lower()}
        assert named <= {item_of(review.prompt)}
        assert not any(d.people in review.text for d in DOMAINS if d is not own)


def test_reviews_cover_every_prompt_register_and_level(reviews) -> None:
    assert {r.prompt for r in reviews} == set(TRAINING_PROMPTS)
    assert {(r.register, r.level) for r in reviews} == {(g, n) for g in REGISTERS for n in LEVELS}


def test_recogniser_accepts_every_review_and_no_broken_one(reviews) -> None:
    assert all(is_grammatical(r.text) for r in reviews)
    assert is_grammatical("What an amazing hotel!")
    for broken in (
        "",
        "What a amazing hotel!",
        "What an amazing hotel! The soup was okay.",
        "I enjoyed the Park Hotel. The bed was rude.",
        "I enjoyed the Park Hotel. The bed was soft",
    ):
        assert not is_grammatical(broken), broken


def test_prompts_hold_out_a_third_and_use_every_form_and_item_on_both_sides() -> None:
    assert len(EVALUATION_PROMPTS) == 64
    assert len(TRAINING_PROMPTS) == 128
    assert not set(EVALUATION_PROMPTS) & set(TRAINING_PROMPTS)
    for prompts in (EVALUATION_PROMPTS, TRAINING_PROMPTS):
        assert {item_of(prompt) for prompt in prompts} == set(ITEMS)
        for form in PROMPT_FORMS:
            assert any(form.format(item=item_of(prompt)) == prompt for prompt in prompts), form


def test_unknown_items_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="the Moon"):
        item_of("Review the Moon.")
    with pytest.raises(ValueError, match="the Moon"):
        domain_of("the Moon")


@pytest.mark.parametrize(("phrase", "expected"), [("awful", "an awful"), ("good", "a good")])
def test_article_follows_the_first_letter(phrase: str, expected: str) -> None:
    assert with_article(phrase) == expected
