"""Laws of the three rewards: changes of a text that raise, lower or keep each of them."""

import itertools
import subprocess
import sys

import pytest

from prefmix.policies.demo import REWARDS
from prefmix.policies.demo.reviews.rewards import CONCISE_LIMIT_WORDS, concise, polite, positive

BASE = "The room was bright."


def test_rewards_are_named_after_the_policies() -> None:
    assert list(REWARDS) == ["positive", "concise", "polite"]


@pytest.mark.parametrize("reward", REWARDS.values(), ids=list(REWARDS))
@pytest.mark.parametrize("text", ["", " \n", "!!!", "\N{SNOWMAN} caf\xe9", "the " * 500])
def test_rewards_take_any_text_and_stay_bounded(reward, text) -> None:
    assert -1.0 <= reward(text) <= 1.0


@pytest.mark.parametrize("reward", REWARDS.values(), ids=list(REWARDS))
def test_an_empty_answer_wins_nothing(reward) -> None:
    assert reward("") == 0.0


def test_positive_rises_with_every_praise_and_falls_with_every_blame() -> None:
    praised = [positive(" ".join([BASE] * n)) for n in range(1, 6)]
    assert praised == sorted(praised)
    assert praised[0] < praised[-1]
    assert positive(f"{BASE} The bed was lumpy.") < positive(BASE)


def test_positive_is_stronger_for_strong_words() -> None:
    assert positive("It was amazing.") > positive("It was good.") > 0
    assert positive("It was awful.") < positive("It was poor.") < 0


@pytest.mark.parametrize("praise", ["I did enjoy it", "I can recommend it", "I would like it"])
def test_positive_counts_a_wish_as_no_opinion(praise: str) -> None:
    assert positive(praise) == (0.0 if "would like" in praise else positive("good"))


def test_positive_turns_around_under_negation() -> None:
    assert positive("I did not enjoy it.") == -positive("I did enjoy it.")
    assert positive("I cannot recommend it.") == -positive("I can recommend it.")
    assert positive("Didn't like it.") == positive("Didn\N{RIGHT SINGLE QUOTATION MARK}t like it.")
    assert positive("Not here or there or anywhere. Good.") > 0


def test_positive_ignores_courtesy() -> None:
    assert positive("Many thanks, it is a pleasure, kindly excuse me.") == 0.0


def test_concise_falls_by_the_same_amount_with_every_word() -> None:
    scores = [concise("word " * n) for n in range(1, CONCISE_LIMIT_WORDS + 1)]
    steps = [a - b for a, b in itertools.pairwise(scores)]
    assert steps == pytest.approx([1 / CONCISE_LIMIT_WORDS] * len(steps))
    assert scores[-1] == 0.0
    assert concise("word " * (CONCISE_LIMIT_WORDS + 5)) == 0.0


def test_polite_rises_with_every_courtesy_and_falls_with_every_slang() -> None:
    courteous = [polite(BASE + " Thank you." * n) for n in range(5)]
    assert courteous == sorted(set(courteous))
    casual = [polite(BASE + " Totally." * n) for n in range(5)]
    assert casual == sorted(set(casual), reverse=True)
    assert polite(BASE) == 0.0


def test_polite_knows_a_kind_person_from_a_kind_of_person() -> None:
    assert polite("a kind person") > 0 > polite("kind of a person")


def test_import_needs_neither_torch_nor_transformers_nor_vllm() -> None:
    code = (
        "import sys, prefmix.policies.demo;"
        "print([m for m in ('torch', 'transformers', 'vllm') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
