"""The rows of an evaluation: their order, names and weights."""

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.mixing.ways_to_mix import MIXINGS
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


def test_each_mixture_has_a_row_for_each_way_to_mix() -> None:
    spec = MixtureSpec(policies=tuple(Policy(name=name, model=name) for name in "pq"), base="b")
    rows = evaluation_rows(spec, {"only": (1.0, 0.0)}, averages={}, grid=3, ways=MIXINGS)
    assert [(row.name, row.mixing) for row in rows] == [
        ("p = @only", "logits"),
        ("q", "logits"),
        ("uniform", "logits"),
        ("uniform, parameters", "parameters"),
        ("0.333 0.667", "logits"),
        ("0.333 0.667, parameters", "parameters"),
        ("0.667 0.333", "logits"),
        ("0.667 0.333, parameters", "parameters"),
    ]
    assert [row.averaged for row in rows[2:4]] == [None, {"p": 0.5, "q": 0.5}]
    assert rows[-1].of_grid
    alone = evaluation_rows(spec, {}, averages={}, grid=None, ways=("parameters",))
    assert [row.name for row in alone] == ["p", "q", "uniform, parameters"]
