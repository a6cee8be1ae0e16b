"""Content hashes of models: they identify the parameters that a fit was made for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from prefmix.mixing.spec import MixtureSpec, Policy


def content_hashes(spec: MixtureSpec) -> dict[str, str]:
    """The content hash of each member by name; for an adapter, together with its base's hash.

    Where `defaults_from` decides what the prompts' tokens are and where a response ends, its name
    is part of every hash.
    """
    given = f", defaults from {spec.defaults_from}" if spec.defaults_from else ""
    if spec.base is None:
        return {member.name: content_hash(member) + given for member in spec.members}
    base = content_hash(spec.checkpoints[0])
    adapted = {policy.name: f"{base} + {content_hash(policy)}{given}" for policy in spec.adapters}
    return {name: adapted.get(name, base + given) for name in spec.member_names}


def content_hash(member: Policy) -> str:
    """The sha256 of a local folder's config and parameters, or a hub id with its revision; with the
    overrides of the config, if there are any.

    A hub id is not read. Without a revision it stands for the content of the default branch, which
    may change.
    """
    own = json.dumps(dict(member.hf_overrides), sort_keys=True)
    overridden = f" with {own}" if member.hf_overrides else ""
    folder = Path(member.model)
    if not folder.is_dir():
        return f"hub:{member.model}@{member.revision or 'main'}{overridden}"
    whole = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*config.json")):
        with path.open("rb") as file:
            whole.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{whole.hexdigest()}{overridden}"
