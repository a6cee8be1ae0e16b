"""`prefmix.Mixture` with prompts of the policies' own: answers, scores, fits and refusals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from prefmix import Mixture
from prefmix.mixing.reference import mixture_logprobs_reference
from prefmix.server.config.errors import ConfigError
from prefmix.server.http.errors import RequestError
from prefmix.weights.engines.errors import EngineError
from prefmix.weights.engines.prompts import Prompt
from support.engines import AdaptedBase
from support.exactness import TOLERANCE_NATS, Oracle, served

CHAT = [{"role": "user", "content": "the weights"}]
TEMPLATE = "{% for each in messages %}{{ each.role[0] }} {{ each.content }}>{% endfor %}"
KIND, TERSE = "you are kind and say why", "be terse"
SAMPLING: dict[str, Any] = {"temperature": 1.0, "logprobs": 0, "max_tokens": 9, "seed": 3}


@dataclass(frozen=True)
class Prompted:
    """Two policies that are the base, one of which has a system text, and an adapter with one."""

    mix: Mixture
    oracle: Oracle

    def ids(self, text: str | list[dict[str, str]]) -> list[int]:
        """The tokens of a text or a conversation."""
        if isinstance(text, str):
            return list(self.mix.llm.get_tokenizer().encode(text))
        written = "".join(f"{each['role'][0]} {each['content']}>" for each in text)
        return list(self.mix.llm.get_tokenizer().encode(written, add_special_tokens=False))

    @torch.no_grad()
    def logprobs(
        self, prompts: Sequence[list[int]], weights: Sequence[float], tokens: Sequence[int]
    ) -> list[float]:
        """Log-probabilities of the tokens, each member after its own prompt."""
        rows = [
            model(torch.tensor([[*prompt, *tokens]])).logits[0, -len(tokens) - 1 : -1].float()
            for model, prompt in zip(self.oracle.models, prompts, strict=True)
        ]
        weights_TM = torch.tensor([list(weights)] * len(tokens), dtype=torch.float64)
        law = mixture_logprobs_reference(torch.stack(rows, dim=1), weights_TM)
        return [law[step, token].item() for step, token in enumerate(tokens)]

    def check(self, output: Any, prompts: Sequence[list[int]], weights: Sequence[float]) -> None:
        """The drawn tokens have the log-probabilities of the mixture of these prompts."""
        for completion in output.outputs:
            tokens, logprobs = served(completion)
            truth = self.logprobs(prompts, weights, tokens)
            assert np.abs(np.array(truth) - logprobs).max() < TOLERANCE_NATS
        names, read = self.mix.spec.member_names, map(len, prompts)
        by_name = zip(names, read, weights, strict=True)
        expected = {name: length for name, length, weight in by_name if weight}
        assert output.preference_prompt_tokens == expected


@pytest.fixture(scope="module")
def prompted(adapted: AdaptedBase) -> Iterator[Prompted]:
    adapter = adapted.adapters[0]
    with Mixture(
        base=adapted.base,
        adapters={"terse": adapter},
        systems={"kind": KIND, "terse": TERSE},
        reference={"plain": {}},
        weight_space="affine",
        request_prompts=True,
        max_model_len=256,
        chat_template=TEMPLATE,
        dtype=torch.float32,
        enforce_eager=True,
        block_size=32,
    ) as mix:
        assert mix.spec.member_names == ("terse", "kind", "plain")
        yield Prompted(mix, Oracle([adapted.merged[0], adapted.base, adapted.base]))


def under(system: str | None, chat: list[dict[str, str]]) -> list[dict[str, str]]:
    return chat if system is None else [{"role": "system", "content": system}, *chat]


WEIGHTS = {"terse": 0.75, "kind": 0.75}
AFFINE = (0.75, 0.75, -0.5)


def test_each_policy_reads_its_own_system_message(prompted: Prompted) -> None:
    longer = [*CHAT, {"role": "assistant", "content": "are"}, {"role": "user", "content": "why"}]
    for _ in range(2):  # the second time blocks are found in the cache
        outputs = prompted.mix.chat(
            [CHAT, longer], SAMPLING, weights=[WEIGHTS, {"kind": 1}], use_tqdm=False
        )
        for output, chat, weights in zip(
            outputs, (CHAT, longer), (AFFINE, (0.0, 1.0, 0.0)), strict=True
        ):
            prompts = [prompted.ids(under(text, chat)) for text in (TERSE, KIND, None)]
            prompted.check(output, prompts, weights)


def test_a_system_text_comes_before_the_conversations_own(prompted: Prompted) -> None:
    chat = [{"role": "system", "content": "are"}, *CHAT]
    (output,) = prompted.mix.chat(chat, SAMPLING, weights=WEIGHTS)
    merged = [under(f"{text}\n\nare", CHAT) for text in (TERSE, KIND)]
    prompted.check(output, [prompted.ids(each) for each in (*merged, chat)], AFFINE)


def test_a_call_gives_prompts_for_all_or_for_each(prompted: Prompted) -> None:
    other = [{"role": "user", "content": "said the weights are"}]
    given = {"plain": "be unkind", "kind": {"messages": other}}
    outputs = prompted.mix.chat(
        [CHAT, CHAT],
        {**SAMPLING, "n": 2},
        weights=WEIGHTS,
        policy_prompts=[given, None],
        attribution=True,
    )
    own = [under(TERSE, CHAT), other, under("be unkind", CHAT)]
    prompted.check(outputs[0], [prompted.ids(each) for each in own], AFFINE)
    plain = [under(TERSE, CHAT), under(KIND, CHAT), CHAT]
    prompted.check(outputs[1], [prompted.ids(each) for each in plain], AFFINE)
    shares = outputs[0].outputs[0].preference_attribution["policies"]
    tokens = list(outputs[0].outputs[0].token_ids)
    for member, name in enumerate(("terse", "kind", "plain")):
        weights = [float(at == member) for at in range(3)]
        alone = prompted.logprobs([prompted.ids(each) for each in own], weights, tokens)
        assert shares[name]["mean_logprob"] == pytest.approx(np.mean(alone), abs=1e-3)


def test_texts_are_whole_prompts(prompted: Prompted) -> None:
    given = {"terse": "the weights are", "kind": prompted.ids("said why the"), "plain": "the"}
    (output,) = prompted.mix.generate("why", SAMPLING, weights=WEIGHTS, policy_prompts=given)
    texts = [prompted.ids("the weights are"), given["kind"], prompted.ids("the")]
    prompted.check(output, texts, AFFINE)
    only = {"kind": "are", "terse": "the"}
    (output,) = prompted.mix.generate(["why"], SAMPLING, weights=WEIGHTS, policy_prompts=only)
    prompted.check(output, [prompted.ids(text) for text in ("the", "are", "why")], AFFINE)


def test_scores_are_those_of_each_policy_under_its_own_prompt(prompted: Prompted) -> None:
    (output,) = prompted.mix.chat(CHAT, SAMPLING, weights=WEIGHTS)
    tokens = list(output.outputs[0].token_ids)
    (found,) = prompted.mix.score(CHAT, output.outputs[0], by_token=True)
    own = [prompted.ids(under(text, CHAT)) for text in (TERSE, KIND, None)]
    for member, name in enumerate(("terse", "kind", "plain")):
        truth = prompted.logprobs(own, [float(at == member) for at in range(3)], tokens)
        assert found[name] == pytest.approx(truth, abs=1e-3)
    given = {"terse": "are", "kind": "the weights"}
    (found,) = prompted.mix.score(["why"], [tokens], policy_prompts=[given], by_token=True)
    texts = [prompted.ids(text) for text in ("are", "the weights", "why")]
    truth = prompted.logprobs(texts, (0.0, 1.0, 0.0), tokens)
    assert found["kind"] == pytest.approx(truth, abs=1e-3)


def test_a_fits_engine_samples_and_scores_each_policy_under_its_own_prompt(
    prompted: Prompted,
) -> None:
    engine = prompted.mix.engine
    prompts = engine.tokenize([Prompt(id="1", messages=tuple(CHAT))])
    ((response,),) = engine.sample(prompts, AFFINE, num_responses=1, max_tokens=7, seed=5)
    own = [prompted.ids(under(text, CHAT)) for text in (TERSE, KIND, None)]
    truth = prompted.logprobs(own, AFFINE, response.tokens)
    assert response.logprob == pytest.approx(sum(truth), abs=1e-3)
    assert response.figures is not None
    for member, weights in enumerate(np.eye(3).tolist()):
        alone = sum(prompted.logprobs(own, weights, response.tokens))
        assert response.figures.logprob_M[member] == pytest.approx(alone, abs=1e-3)
        (score,) = engine.score([(prompts[0], response.tokens)], weights)
        assert score == pytest.approx(alone, abs=1e-3)
    with pytest.raises(EngineError, match="scored under one policy each"):
        engine.score([(prompts[0], response.tokens)], AFFINE)
    with pytest.raises(EngineError, match="prompt '2' is a text, and the policies' system mess"):
        engine.tokenize([Prompt(id="2", text="the")])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda mix: mix.generate("the"), "which only a conversation can carry"),
        (lambda mix: mix.score("the", "why"), "which only a conversation can carry"),
        (lambda mix: mix.chat(CHAT, policy_prompts={"none": "x"}), "'none', which is no policy"),
        (lambda mix: mix.chat(CHAT, policy_prompts={"kind": ""}), "empty"),
        (lambda mix: mix.chat(CHAT, policy_prompts=[{}, {}]), "policy_prompts"),
        (lambda mix: mix.chat(CHAT, mixing="parameters"), "one model, which reads one prompt"),
        (lambda mix: mix.chat(CHAT, {"prompt_logprobs": 0}), "prompt_logprobs"),
    ],
)
def test_refusals_are_the_servers(prompted: Prompted, call: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        call(prompted.mix)


def test_calls_give_prompts_only_where_they_may(
    prompted: Prompted, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    rules = prompted.mix._prompt_rules
    closed = replace(rules, settings=replace(rules.settings, request_prompts=False))
    monkeypatch.setattr(prompted.mix, "_prompt_rules", closed)
    with pytest.raises(RequestError, match="request_prompts: true"):
        prompted.mix.chat(CHAT, policy_prompts={"kind": "be kind"})


def test_texts_of_no_policy_are_refused(adapted: AdaptedBase) -> None:
    models = {"one": str(adapted.base), "two": str(adapted.merged[0])}
    with pytest.raises(ConfigError, match="systems names 'three', which is no policy here"):
        Mixture(policies=models, systems={"three": "be kind"})
