"""The recipes of prompts: what each row asks for, and the tables."""

from examples.prompt_recipes import RECIPES, Question, questions, table
from prefmix.policies.demo import CHECKPOINTS, EVALUATION_PROMPTS
from prefmix.server.config.config_file import load_config

QUESTION = Question(prompt="Review the Park Hotel.", aspect="bed", word="lumpy")


def test_every_recipe_is_of_a_demo_configuration_and_weighs_its_policies() -> None:
    configs = {"prompts": "prompts.yaml", "both": "prompt_and_adapter.yaml"}
    assert set(configs) == set(RECIPES)
    for name, file in configs.items():
        config = load_config(CHECKPOINTS.with_name(file), {})
        assert config.name == name
        spec = config.spec()
        members = {*spec.policy_names, "plain"}
        for recipe in RECIPES[name]:
            for row in recipe.rows:
                fields = row.fields(QUESTION)
                assert fields["preference_weights"].keys() <= members
                assert set(fields.get("preference_prompts", {})) <= members
                assert config.prompts().request_prompts or "preference_prompts" not in fields


def test_a_document_weighs_against_its_absence() -> None:
    informed = next(recipe for recipe in RECIPES["prompts"] if recipe.states_fact)
    assert [row.fields(QUESTION)["preference_weights"] for row in informed.rows] == [
        {"positive": scale} for scale in (0, 1, 2, 3)
    ]
    prompts = informed.rows[1].fields(QUESTION)["preference_prompts"]
    assert prompts == {"positive": "Notes: the bed was lumpy."}


def test_a_table_counts_answers_that_say_the_fact_and_is_aligned() -> None:
    informed = next(recipe for recipe in RECIPES["prompts"] if recipe.states_fact)
    said = [(QUESTION, "The bed was lumpy."), (QUESTION, "The bed was soft.")]
    text = table(informed, {row.name: said for row in informed.rows})
    title, *lines = text.splitlines()
    assert title.endswith(", 2 answers a row")
    assert {len(line) for line in lines} == {len(lines[0])}
    assert all(line.endswith("50%") for line in lines[1:])


def test_each_question_states_a_fact_about_its_own_item() -> None:
    found = questions()
    assert [question.prompt for question in found] == list(EVALUATION_PROMPTS)
    assert found == questions()
    assert found != questions(seed=1)
