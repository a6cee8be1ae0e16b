"""The console before a server without an engine: any policies, answers made of the policies' words.

A policy's share of the weights is its share of the words, spread evenly and always in one order, so
that a change of the weights changes some words and leaves others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from prefmix.server.console import routes
from prefmix.server.console.settings import ConsoleSettings
from support.console.stand_in_policies import StandInPolicies

_TEXT = (
    "the room was bright and quiet with a view over the park while breakfast came late but "
    "everybody at the desk stayed kind patient and quick so we would gladly return in spring"
)
WORDS = _TEXT.split()


def stand_in(
    policies: Sequence[str],
    *,
    reference: str | None = None,
    profiles: dict[str, dict[str, float]] | None = None,
    model: str = "mixture",
    weight_space: str = "simplex",
    ways_to_mix: Sequence[str] = ("logits",),
    mixings: Mapping[str, str] | None = None,
    num_words: int = 40,
    most_candidates: int = 0,
    ess: float = 5.31,
    request_prompts: bool = False,
    prompted: Sequence[str] = (),
    slots: int = 0,
    slots_without_kv: int = 0,
    dormant: Mapping[str, dict[str, Any]] | None = None,
    **settings: Any,
) -> FastAPI:
    """An application of the console's pages and of what they ask.

    Args:
      policies: names, in their order.
      reference: the reference's name.
      profiles: weights by profile, the default first; one even profile if left out.
      ways_to_mix: those that the server has, its default first.
      mixings: the ways to mix of profiles that have their own.
      num_words: the length of each answer.
      most_candidates: the limit of candidates for an answer.
      ess: the effective number of any.
      request_prompts: requests may give policies prompts.
      prompted: the members that have one of their own.
      slots: number of adapters that can be added over the admin routes.
      slots_without_kv: those of them that have no KV cache.
      dormant: the dormant profiles.
      settings: of ConsoleSettings.
    """
    references = [] if reference is None else [reference]
    live = StandInPolicies(policies, references, num_slots=slots, num_without_kv=slots_without_kv)
    even = {name: 1 / len(policies) for name in policies}
    table = {"balanced": even} if profiles is None else profiles
    own = mixings or {}
    app = FastAPI()
    asked: list[dict[str, Any]] = []
    app.state.asked, app.state.policies = asked, live
    routes.attach(app, ConsoleSettings(**({"is_on": True} | settings)))
    app.include_router(live.router())

    def about(name: str, place: str) -> dict[str, Any]:
        return {"name": name, "model": place, "has_prompt": name in prompted}

    @app.get("/v1/mixture")
    def mixture() -> dict[str, Any]:
        return {
            "model": model,
            "weight_space": weight_space,
            "mixing": ways_to_mix[0],
            "ways_to_mix": list(ways_to_mix),
            "candidates": {"most": most_candidates, "max_tokens": 512},
            "policies": [about(name, f"org/{name}") for name in live.policies],
            "reference": None if reference is None else about(reference, "org/base"),
            "request_prompts": request_prompts,
            "default_profile": next(iter(table)),
            "dormant_profiles": dormant or {},
            "version": live.version,
            "profiles": {
                name: {"weights": dict.fromkeys(live.members, 0.0) | weights}
                | ({"mixing": own[name]} if name in own else {})
                for name, weights in table.items()
            },
        }

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: Request) -> StreamingResponse | JSONResponse:
        body = await request.json()
        asked.append(body)
        profile = body.get("preference_profile")
        named = body.get("preference_weights") or table[profile]
        mixing = body.get("preference_mixing") or own.get(profile, ways_to_mix[0])
        if mixing == "parameters" and body.get("preference_attribution"):
            message = {"message": "preference_attribution cannot be measured"}
            return JSONResponse({"error": message}, status_code=400)
        weights = {name: named.get(name, 0.0) for name in live.members}
        used = ",".join(f"{name}={value:g}" for name, value in weights.items())
        headers = {"x-prefmix-weights-version": str(live.version), "x-prefmix-weights": used}
        # Mixed parameters say other words, and nobody measures the policies.
        seed = int(body.get("seed") or 0) + (3 if mixing == "parameters" else 0)
        number = body.get("preference_candidates")
        if number and (body.get("stream") or mixing == "parameters"):
            message = {"message": "preference_candidates cannot be picked"}
            return JSONResponse({"error": message}, status_code=400)
        events = _events(weights, num_words=num_words, seed=seed, is_attributed=mixing == "logits")
        if number:
            picked: dict[str, Any] = {"num_candidates": number, "ess": ess, "log_partition": -2.0}
            if ess < 1 + (number - 1) / 4:
                picked["warning"] = f"the {number} candidates count as {ess}"
            choice = _whole(list(events)) | {"preference_candidates": picked}
            return JSONResponse({"choices": [choice]}, headers=headers)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    return app


def make_report(folder: Path, name: str) -> None:
    """Writes a small report."""
    (folder / name).mkdir(parents=True)
    (folder / name / "report.html").write_text(f"<!doctype html><h1>{name}</h1>")


def _events(
    weights: dict[str, float], *, num_words: int, seed: int, is_attributed: bool
) -> Iterator[str]:
    names = [name for name, value in weights.items() if value > 0]
    tokens: list[dict[str, Any]] = []
    for place in range(num_words):
        # A sequence that fills the unit interval evenly, and is the same for all weights.
        draw, winner = (0.5 + 0.618034 * (place + 1)) % 1, names[-1]
        for name in names:
            draw -= weights[name]
            if draw < 0:
                winner = name
                break
        at = list(weights).index(winner)
        word = WORDS[(place * 7 + at * 11 + seed) % len(WORDS)]
        token = word.capitalize() if place == 0 else f" {word}"
        tokens.append({"logprobs": {n: -0.4 if n == winner else -1.5 - place % 4 for n in names}})
        yield _event({"delta": {"content": token}, "logprobs": {"content": [{"token": token}]}})
    measured = {
        name: {"mean_kl": 0.04 + 0.3 * (1 - weights[name]), "agreement": 0.5 + weights[name] / 2}
        if weights[name] > 0
        else {"mean_kl": None, "agreement": None}
        for name in weights
    }
    attribution = {"num_tokens": num_words, "policies": measured, "tokens": tokens}
    yield _event(
        {"delta": {}, **({"preference_attribution": attribution} if is_attributed else {})}
    )
    yield "data: [DONE]\n\n"


def _whole(events: Sequence[str]) -> dict[str, Any]:
    """The choice of an answer that is no stream."""
    chunks = [json.loads(each.removeprefix("data: "))["choices"][0] for each in events[:-1]]
    said = [chunk["logprobs"]["content"][0] for chunk in chunks if "logprobs" in chunk]
    return {
        "message": {"content": "".join(each["token"] for each in said)},
        "logprobs": {"content": said},
        **{name: value for name, value in chunks[-1].items() if name == "preference_attribution"},
    }


def _event(choice: dict[str, Any]) -> str:
    return f"data: {json.dumps({'choices': [choice]})}\n\n"
