"""The judges, called in TRL's form, return the demo's rewards."""

from prefmix.policies.demo import judges
from prefmix.policies.demo.reviews import rewards


def test_judges_score_texts_and_messages_alike() -> None:
    text = "Thank you, the Park Hotel was lovely!"
    for name, reward in rewards.REWARDS.items():
        judge = getattr(judges, name)
        chat = [{"role": "assistant", "content": text}]
        assert judge(["p", "p"], [text, chat]) == [reward(text)] * 2
