"""The rows of an evaluation: their order, names and weights."""

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.weights.evaluation.rows import evaluation_rows, uniform_shares


def test_rows_are_reference_policies_profiles_averages_and_grid_each_once() -> None:
    spec = MixtureSpec(
        policies=tuple(Policy(name=name, model=name) for name in "pq"),
        reference=Policy(name="r", model="r"),
    )
    profiles = {"even": (0.5, 0.5, 0.0), "mostly": (0.9, 0.1, 0.0), "shy": (0.5, 0.0, 0.5)}
    averages = {"uniform": uniform_shares(spec)}
    rows = evaluation_rows(spec, profiles, averages=averages, grid=4)
    assert [row.name for row in rows] == [
        "r",
        "p",
        "q",
        "uniform = @even",
        "@mostly",
        "@shy",
        "average uniform",
        "0.25 0.75",
        "0.75 0.25",
    ]
    assert rows[0].weights == {"r": 1.0}
    assert rows[5].weights == {"p": 0.5, "r": 0.5}
    assert (rows[6].weights, rows[6].shares) == ({"average-uniform": 1.0}, {"p": 0.5, "q": 0.5})
    assert rows[-1].weights == {"p": 0.75, "q": 0.25}
    assert [row.of_grid for row in rows] == [False] * 7 + [True] * 2
