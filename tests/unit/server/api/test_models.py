"""The models that are served, in a list and one by one."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from prefmix.mixing.vocabulary import CommonVocabulary
from prefmix.server.api.state import STATE_KEY
from prefmix.server.slots.policy_set import CurrentPolicies, PolicySet
from support.text_requests import mixture_state

pytestmark = pytest.mark.usefixtures("vllm")


class Listing:
    """vLLM's list of one model, whose name has a slash."""

    async def show_available_models(self) -> Any:
        cards = [{"id": "org/m", "object": "model", "owned_by": "vllm", "root": "/models/a"}]
        return SimpleNamespace(model_dump=lambda: {"object": "list", "data": cards})


@pytest.fixture
def client(vllm: None) -> TestClient:
    from prefmix.server.api import models

    app = FastAPI()
    app.include_router(models.router)
    state = dataclasses.replace(mixture_state(), model_names=("org/m",))
    setattr(app.state, STATE_KEY, state)
    app.state.openai_serving_models = Listing()
    return TestClient(app)


def test_each_model_of_the_list_has_an_address(client: TestClient) -> None:
    cards = client.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["org/m", "org/m@even"]
    assert [card["root"] for card in cards] == ["org/m"] * 2, "not the path of a policy"
    for card in cards:
        for name in (card["id"], card["id"].replace("/", "%2F").replace("@", "%40")):
            answer = client.get(f"/v1/models/{name}")
            assert (answer.status_code, answer.json()) == (200, card)
    assert client.get("/v1/models/").json()["data"] == cards


@pytest.mark.parametrize("name", ["m", "org/m@nobody", "org/m/", "org", "x" * 5000])
def test_others_are_not_found(client: TestClient, name: str) -> None:
    answer = client.get(f"/v1/models/{name}")
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (404, "NotFoundError", "model")
    assert "does not exist" in error["message"]
    assert len(error["message"]) < 400


def test_the_mixture_tells_which_tokens_are_drawn(client: TestClient) -> None:
    mixture = client.get("/v1/mixture").json()
    assert (mixture["vocabulary"], mixture["defaults_from"]) == (None, None)
    assert mixture["candidates"] == {"most": 4, "max_tokens": 64}
    state = getattr(client.app.state, STATE_KEY)  # type: ignore[attr-defined]
    vocabulary = CommonVocabulary(num_rows=10, differing=frozenset({3}), num_never_drawn=6)
    spec = dataclasses.replace(state.spec, defaults_from=state.spec.policy_names[-1])
    changed = dataclasses.replace(
        state, vocabulary=vocabulary, policies=CurrentPolicies(PolicySet.of(spec))
    )
    setattr(client.app.state, STATE_KEY, changed)  # type: ignore[attr-defined]
    mixture = client.get("/v1/mixture").json()
    assert (mixture["mixing"], mixture["ways_to_mix"]) == ("logits", ["logits"])
    assert mixture["vocabulary"] == {"size": 9, "never_drawn": 6}
    assert mixture["defaults_from"] == spec.policy_names[-1]
