"""Applies a fitted profile to a running server; the headers of an answer show the change."""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI, OpenAIError

from prefmix.policies.demo.tour.questions import EXAMPLE_PROMPT, EXAMPLE_SEED, MAX_TOKENS, MODEL
from prefmix.policies.demo.tour.server import TourError, prefmix_command, serving

_HEADERS = ("x-prefmix-profile", "x-prefmix-weights", "x-prefmix-weights-version")
_TOKEN_VARIABLE = "PREFMIX_ADMIN_TOKEN"


def apply_to_running_server(store: Path, *, profile: str) -> None:
    """Serves the demo policies, applies the store's profile, and asks before and after.

    Args:
      store: a file that a fit wrote.
      profile: the profile in it.
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
            raise TourError(f"the server refused the profile: {done.stderr.strip()}")
        print(done.stdout.strip())
        print(f"\nAfter, as model {MODEL}@{profile}, from the same process:")
        _ask(client, f"{MODEL}@{profile}")


def _ask(client: OpenAI, model: str) -> None:
    try:
        answer = client.chat.completions.with_raw_response.create(
            model=model,
            messages=[{"role": "user", "content": EXAMPLE_PROMPT}],
            max_tokens=MAX_TOKENS,
            seed=EXAMPLE_SEED,
        )
    except OpenAIError as error:
        raise TourError(f"a request failed: {error}") from None
    for name in _HEADERS:
        print(f"  {name}: {answer.headers[name]}")


@contextmanager
def _server(environment: dict[str, str]) -> Iterator[str]:
    """`prefmix serve` with a store of its own; yields the URL, stops the server after."""
    with (
        tempfile.TemporaryDirectory(prefix="prefmix-store-") as folder,
        tempfile.TemporaryFile("w+") as log,
        serving(log, "--weights-store", f"{folder}/weights.json", environment=environment) as url,
    ):
        yield url
