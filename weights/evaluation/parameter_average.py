"""Parameter averages of full checkpoints as further policies, so that one engine measures them.

Adapters of one base need none: the engine mixes their parameters by request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.weights.averages.checkpoint_average import write_average


def with_averages(
    spec: MixtureSpec, averages: Mapping[str, Mapping[str, float]], folder: Path
) -> MixtureSpec:
    """The mixture with parameter averages as further policies, after its own.

    Args:
      spec: the mixture of full checkpoints; its members are folders or hub ids.
      averages: new policy's name -> member -> share. A share of the reference counts too.
      folder: where the averages are written, one folder each; these must not exist.
    Raises: ParameterAverageError.
    """
    assert spec.base is None or not averages, "adapters are averaged by the engine"
    members = {member.name: member for member in spec.members}
    added = []
    for name, shares in averages.items():
        path = folder / name
        path.mkdir(parents=True)
        write_average(path, {members[key]: share for key, share in shares.items()})
        overrides = members[next(iter(shares))].hf_overrides
        added.append(Policy(name=name, model=str(path), hf_overrides=overrides))
    return replace(spec, policies=(*spec.policies, *added))
