"""The table that `prefmix serve` prints when it is ready."""

from __future__ import annotations

from collections.abc import Sequence

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.launch.parameter_count import human_count, local_folder, num_parameters
from prefmix.weights.store.profiles import ProfileSet


def ready_table(
    spec: MixtureSpec, profiles: ProfileSet, *, url: str, model_name: str, surfaces: Sequence[str]
) -> str:
    """What is served, as aligned text.

    Args:
      spec: the mixture.
      profiles: the profiles in force.
      url: base URL of the server.
      model_name: what clients put in `model`.
      surfaces: one phrase for each surface that is open.
    """
    weights = dict(zip(spec.member_names, profiles.profiles[profiles.default], strict=True))
    rows = [("policy", "parameters", "weight", "model")]
    for member in spec.members:
        name = member.name + (" (reference)" if member is spec.reference else "")
        count = human_count(_parameters(member))
        rows.append((name, count, f"{weights[member.name]:.3g}", _model(member)))
    facts = [
        ("model", f"{model_name} ({spec.weight_space} weights)"),
        ("profiles", ", ".join(_profile_name(name, profiles) for name in profiles.profiles)),
        ("url", url),
        ("open", ", ".join(surfaces)),
    ]
    if spec.base is not None:
        base = spec.checkpoints[0]
        size = human_count(_parameters(base))
        facts.insert(1, ("base", f"{_model(base)} ({size} parameters, shared by all)"))
    return "\n".join([*_align(rows), "", *_align(facts)])


def _parameters(member: Policy) -> int | None:
    folder = local_folder(member.model, member.revision)
    return None if folder is None else num_parameters(folder)


def _model(member: Policy) -> str:
    return member.model if member.revision is None else f"{member.model} @ {member.revision}"


def _profile_name(name: str, profiles: ProfileSet) -> str:
    return f"{name} (default)" if name == profiles.default else name


def _align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
