"""Applies fitted profiles to a running server; the headers of answers show the change."""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import OpenAI, OpenAIError

from examples.comparison import NUM_CANDIDATES
from prefmix.policies.demo.tour.questions import EXAMPLE_PROMPT, EXAMPLE_SEED, MAX_TOKENS
from prefmix.policies.demo.tour.server import CONFIG, TourError, prefmix_command, serving

MODEL = "sharp"
_HEADERS = ("profile", "weights", "weights-version", "mixing", "ess")
_AFTER: tuple[tuple[str, dict[str, Any]], ...] = (
    ("max-min", {}),
    ("max-min-parameters", {}),
    ("sequence", {"preference_candidates": NUM_CANDIDATES}),
)
"""Profiles that are asked for at the end, with further fields of the request."""
_TOKEN_VARIABLE = "PREFMIX_ADMIN_TOKEN"


def apply_to_running_server(store: Path) -> None:
    """Serves the sharp policies, applies the store's profiles, and asks before and after.

    Args:
      store: a file that the fits wrote.
    Raises: TourError if the server does not start or refuses.
    """
    token = secrets.token_urlsafe(24)
    environment = {**os.environ, _TOKEN_VARIABLE: token}
    with _server(environment) as url, OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        print("\nBefore, under the default profile:")
        _ask(client, MODEL)
        print(f"\n$ prefmix weights apply {store} --url {url}", flush=True)
        command = [str(prefmix_command()), "weights", "apply", str(store), "--url", url]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode:
            raise TourError(f"the server refused the profiles: {done.stderr.strip()}")
        print(done.stdout.strip())
        for profile, fields in _AFTER:
            told = "".join(f", {name} {value}" for name, value in fields.items())
            print(f"\nAfter, as model {MODEL}@{profile}{told}, from the same process:")
            _ask(client, f"{MODEL}@{profile}", fields)


def _ask(client: OpenAI, model: str, fields: Mapping[str, Any] | None = None) -> None:
    try:
        answer = client.chat.completions.with_raw_response.create(
            model=model,
            messages=[{"role": "user", "content": EXAMPLE_PROMPT}],
            max_tokens=MAX_TOKENS,
            seed=EXAMPLE_SEED,
            extra_body=dict(fields or {}),
        )
    except OpenAIError as error:
        raise TourError(f"a request failed: {error}") from None
    for name in (f"x-prefmix-{each}" for each in _HEADERS):
        if name in answer.headers:
            print(f"  {name}: {answer.headers[name]}")


@contextmanager
def _server(environment: dict[str, str]) -> Iterator[str]:
    """`prefmix serve` with a store of its own; yields the URL, stops the server after."""
    with (
        tempfile.TemporaryDirectory(prefix="prefmix-store-") as folder,
        tempfile.TemporaryFile("w+") as log,
        serving(
            log,
            *("--weights-store", f"{folder}/weights.json"),
            config=CONFIG.with_name("sharp.yaml"),
            environment=environment,
        ) as url,
    ):
        yield url
