"""User prompts: 32 items x 6 question forms, a third of them held out for evaluation.

Every item and every form occurs in training. The held-out combinations of item and form occur
neither in the reference policy's text nor in the preference data.
"""

from prefmix.policies.demo.reviews.domains import DOMAINS

PROMPT_FORMS: tuple[str, ...] = (
    "Review {item}.",
    "Write a review of {item}.",
    "What did you think of {item}?",
    "Tell me about {item}.",
    "How was {item}?",
    "Would you recommend {item}?",
)

ITEMS: tuple[str, ...] = tuple(item for domain in DOMAINS for item in domain.items)


def is_held_out(item_index: int, form_index: int) -> bool:
    """Holds out two forms of each item; the two forms shift from item to item."""
    return (form_index - item_index) % 3 == 0


def _prompts(*, held_out: bool) -> tuple[str, ...]:
    return tuple(
        form.format(item=item)
        for i, item in enumerate(ITEMS)
        for j, form in enumerate(PROMPT_FORMS)
        if is_held_out(i, j) == held_out
    )


TRAINING_PROMPTS: tuple[str, ...] = _prompts(held_out=False)
"""128 prompts that the policies were trained on."""

EVALUATION_PROMPTS: tuple[str, ...] = _prompts(held_out=True)
"""64 prompts in the same forms that no policy has seen."""


def item_of(prompt: str) -> str:
    """Returns the item that a prompt asks about.

    Raises: ValueError if the prompt names no known item.
    """
    for item in ITEMS:
        if item in prompt:
            return item
    raise ValueError(
        f"prompt {prompt!r} names no known item; the items are ITEMS in "
        "prefmix.policies.demo.reviews.prompts"
    )
