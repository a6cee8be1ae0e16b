"""`prefmix.Mixture` on real engines: both layouts, against transformers."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import itertools
import os
import pickle
import select
import signal
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefmix import Mixture
from prefmix.mixing.candidates import pick
from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.config.errors import ConfigError
from prefmix.server.http.errors import RequestError
from prefmix.weights.engines.errors import EngineError
from prefmix.weights.engines.prompts import Prompt
from prefmix.weights.store.format import dump
from prefmix.weights.store.profiles import build_profile_set
from support.checkpoints.tiny_policies import VOCAB_SIZE
from support.engines import AdaptedBase, model_of, worker_of
from support.exactness import TOLERANCE_NATS, Job, Oracle, random_jobs

ENGINE: dict[str, Any] = {"dtype": torch.float32, "enforce_eager": True, "max_num_seqs": 48}
CHAT = [{"role": "user", "content": "the weights"}]
TEMPLATE = "{% if loud %}the {% endif %}{% for each in messages %}{{ each.content }}>{% endfor %}"
"""A chat template that an option changes, which the configuration sets."""


@dataclass(frozen=True)
class Served:
    """A mixture, and the full checkpoints that its members must equal."""

    mix: Mixture
    folders: list[Path]

    def oracle(self) -> Oracle:
        """The members in transformers, in weight order."""
        return Oracle(self.folders)


def full_checkpoints(folder: Path, policies: list[Path]) -> Served:
    """A mixture from a file that a store and two keywords override."""
    one, two, three = policies
    config = folder / "serve.yaml"
    config.write_text(
        f"policies: {{one: {one}, two: {two}}}\n"
        f"reference: {{three: {three}}}\n"
        "profiles: {lost: {one: 1}}\n"
        "engine:\n"
        "  max-model-len: 64\n"
        "  dtype: bfloat16\n"
        "  default-chat-template-kwargs: {loud: true}\n"
    )
    spec = MixtureSpec(
        policies=(Policy(name="one", model=str(one)), Policy(name="two", model=str(two))),
        reference=Policy(name="three", model=str(three)),
    )
    profiles = {"kind": {"one": 1, "two": 3}, "own": {"two": 1}}
    store = folder / "weights.json"
    store.write_text(dump(build_profile_set(profiles, spec, version=4)))
    mix = Mixture(
        config=config, weights_store=store, max_model_len=256, chat_template=TEMPLATE, **ENGINE
    )
    assert mix.spec == spec
    return Served(mix=mix, folders=policies)


def shared_trunk(adapted: AdaptedBase) -> Served:
    """An affine mixture from keywords only."""
    first, second = adapted.adapters[:2]
    mix = Mixture(
        base=adapted.base,
        adapters={first.name: first, second.name: {"model": str(second)}},
        reference={"reference": str(adapted.base)},
        weight_space="affine",
        profiles={"away": {first.name: 1.5, second.name: -0.25}},
        max_model_len=256,
        **ENGINE,
    )
    return Served(mix=mix, folders=[*adapted.merged[:2], adapted.base])


@pytest.fixture(scope="module", params=["full checkpoints", "shared trunk"])
def served(
    request: pytest.FixtureRequest,
    policies: list[Path],
    adapted: AdaptedBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    """Both layouts in turn: the second starts in the process in which the first was closed."""
    if request.param == "shared trunk":
        made = shared_trunk(adapted)
    else:
        made = full_checkpoints(tmp_path_factory.mktemp("python"), policies)
    llm = weakref.ref(made.mix.llm)
    with made.mix:
        yield made
    gc.collect()
    assert llm() is None, "a closed mixture keeps its engine"
    made.mix.close()
    assert "closed" in repr(made.mix)
    for use in (lambda: made.mix.generate("the"), lambda: made.mix.score("a", "b")):
        with pytest.raises(ValueError, match="this Mixture is closed"):
            use()


def sampling(**settings: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**{"temperature": 1.0, "logprobs": 0, "ignore_eos": True, **settings})


@pytest.mark.parametrize(
    ("engine", "error", "message"),
    [
        ({"max_model_length": 9}, TypeError, "'max_model_length' (did you mean 'max_model_len'?)"),
        ({"polices": {}}, TypeError, "'polices' (did you mean 'policies'?); a Mixture takes"),
        ({"system": {}}, TypeError, "'system' (did you mean 'systems'?)"),
        ({"prompts": {}}, TypeError, "unknown keyword 'prompts'"),
        ({"mixing": "parameters"}, ConfigError, "mixing: full checkpoints have no parameters"),
        ({"mixing": "means"}, ConfigError, "mixing"),
        ({"port": 8001}, TypeError, "unknown keyword 'port'"),
        ({"max_model_len": "long"}, ConfigError, "vLLM's flags: argument --max-model-len"),
        ({"model": "org/x"}, ConfigError, "vLLM's argument --model is not accepted"),
        ({"load_format": "pt"}, ConfigError, "--load-format is 'pt', which reads files other"),
        ({"hf_overrides": {"prefmix": {}}}, ConfigError, "--hf-overrides sets 'prefmix'"),
        ({"hf_overrides": print}, ConfigError, "hf_overrides is no mapping"),
        ({"trust_remote_code": True}, ConfigError, "--trust-remote-code runs code from a model's"),
        ({"logits_processors": ["m:C"]}, ConfigError, "--allow-unsafe-engine-flags"),
        ({"logits_processors": [object]}, ConfigError, "--logits-processors imports and runs"),
        ({"worker_cls": object}, ConfigError, "--worker-cls imports and runs"),
        ({"skip_tokenizer_init": True}, ConfigError, "--skip-tokenizer-init is not accepted"),
        ({"model_impl": "transformers"}, ConfigError, "look for the mixture itself"),
        ({"pooler_config": {"task": "embed"}}, ConfigError, "pooling runs no mixture"),
    ],
)
def test_engine_arguments_are_checked_before_anything_starts(
    engine: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as refused:
        Mixture(policies={"one": "org/one"}, **engine)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def beyond(first: float, second: float) -> tuple[float, ...]:
    """Affine weights; the reference takes the rest."""
    return (1.5 * first, -0.5 * second, 1 - 1.5 * first + 0.5 * second)


def jobs_of(served: Served) -> tuple[list[Job], list[dict[str, float]]]:
    """Requests with weights of their own, on the simplex or beyond."""
    names = served.mix.spec.member_names
    jobs = random_jobs(12, num_members=len(names), vocab_size=VOCAB_SIZE, seed=1, longest=60)
    if served.mix.spec.weight_space == "affine":
        jobs = [replace(job, weights=beyond(*job.weights[:2])) for job in jobs]
    return jobs, [dict(zip(names, job.weights, strict=True)) for job in jobs]


def test_each_prompt_is_drawn_from_its_own_mixture(served: Served) -> None:
    """Prompts have own weights and parameters, such as n > 1; the caller's objects are kept."""
    jobs, weights = jobs_of(served)
    params = [sampling(max_tokens=job.max_tokens, seed=job.seed, n=2) for job in jobs]
    before = copy.deepcopy(params)
    outputs = served.mix.generate([list(job.prompt) for job in jobs], params, weights=weights)
    assert params == before
    assert {len(output.outputs) for output in outputs} == {2}
    assert served.oracle().worst_error(jobs, outputs) < TOLERANCE_NATS
    for output, job in zip(outputs, jobs, strict=True):
        assert tuple(output.preference_weights.values()) == pytest.approx(job.weights)
        assert output.preference_profile == "custom"
        assert output.outputs[0].preference_attribution is None


def test_profiles_come_from_the_store_or_the_keywords(served: Served) -> None:
    mix = served.mix
    first, second = mix.policies
    if mix.spec.base is None:
        assert mix.profiles["kind"] == {first: 0.25, second: 0.75, mix.reference: 0.0}
        assert mix.default_profile == "kind"
        asked: list[str | None] = ["own", None]
    else:
        assert mix.profiles["away"] == {first: 1.5, second: -0.25, mix.reference: -0.25}
        asked = ["away", None]
    params = sampling(max_tokens=5, seed=3)
    prompts = ["the weights are", {"prompt": "the"}]
    outputs = mix.generate(prompts, params, profile=asked)
    for output, name in zip(outputs, asked, strict=True):
        name = name or mix.default_profile
        assert output.preference_profile == name
        assert output.preference_weights == mix.profiles[name]
    by_hand = [mix.profiles[name or mix.default_profile] for name in asked]
    same = mix.generate(prompts, [params, params], weights=by_hand)
    assert [each.outputs[0].token_ids for each in outputs] == [
        each.outputs[0].token_ids for each in same
    ]


def logprob(completion: Any) -> float:
    return float(completion.cumulative_logprob)


def test_scores_are_what_each_policy_alone_gives(served: Served) -> None:
    """Scores equal those of transformers, of `fit` and of one-hot mixtures."""
    mix, oracle = served.mix, served.oracle()
    names = mix.spec.member_names
    prompt = [5, 7, 11]
    alone = [{name: 1.0} for name in names]
    drawn = mix.generate([prompt] * 3, sampling(max_tokens=6, seed=1), weights=alone)
    completions = [output.outputs[0] for output in drawn]
    scores = mix.score(prompt, completions)
    by_token = mix.score([prompt] * len(names), [c.token_ids for c in completions], by_token=True)
    for own, completion, row, rows in zip(names, completions, scores, by_token, strict=True):
        tokens = tuple(completion.token_ids)
        assert row[own] == pytest.approx(logprob(completion), abs=1e-3)
        assert list(row) == list(names)
        for index, name in enumerate(names):
            weights = np.eye(len(names))[index]
            after = oracle.logprobs((*prompt, *tokens), weights)[len(prompt) - 1 :]
            truth = [after[step, token].item() for step, token in enumerate(tokens)]
            assert rows[name] == pytest.approx(truth, abs=1e-3)
            assert row[name] == pytest.approx(sum(truth), abs=1e-3)
            pair = (tuple(prompt), tokens)
            assert mix.engine.score([pair], weights.tolist()) == pytest.approx([row[name]])


def test_text_and_messages_are_scored_as_they_are_served(served: Served) -> None:
    """Completions are strings after a string, or after a conversation as `chat` writes it."""
    mix = served.mix
    params = sampling(max_tokens=4, seed=2)
    output = mix.chat(CHAT, params, attribution="tokens")[0]
    (as_chat,) = mix.score(CHAT, output.outputs[0])
    ids = list(output.prompt_token_ids)
    assert mix.score([CHAT], [list(output.outputs[0].token_ids)]) == [as_chat]
    assert mix.score(ids, output.outputs[0]) == [as_chat]
    parts = [{"role": "user", "content": [{"type": "text", "text": CHAT[0]["content"]}]}]
    assert mix.score(parts, output.outputs[0]) == [as_chat]
    prompt = Prompt(id="1", messages=tuple(parts))
    assert mix.engine.tokenize([prompt]) == [tuple(ids)]
    text = mix.generate("the weights", params)[0]
    spelt = mix.llm.get_tokenizer().encode("the weights are")[len(text.prompt_token_ids) :]
    assert mix.score("the weights", " are") == mix.score(list(text.prompt_token_ids), [spelt])
    turn = mix.score([CHAT], [{"role": "assistant", "content": "are"}], by_token=True)[0]
    assert len(turn[mix.policies[0]]) >= 1


def test_attribution_has_the_figures_of_each_policy(served: Served) -> None:
    """Log-probabilities by policy, measured while sampling, are those that scoring gives."""
    mix = served.mix
    first, second = mix.policies
    weights = {first: 0.3, second: 0.7}
    params = sampling(max_tokens=7, seed=4, n=3)
    outputs = mix.generate(["the", "weights are"], params, weights=weights, attribution="tokens")
    for output in outputs:
        ids = list(output.prompt_token_ids)
        scored = mix.score(ids, output.outputs, by_token=True)
        for completion, rows in zip(output.outputs, scored, strict=True):
            found = completion.preference_attribution
            assert found["num_tokens"] == 7
            assert found["mean_logprob"] == pytest.approx(logprob(completion) / 7, abs=1e-3)
            for name in (first, second):
                means = found["policies"][name]
                assert means["mean_logprob"] == pytest.approx(np.mean(rows[name]), abs=1e-3)
                tokens = [token["logprobs"][name] for token in found["tokens"]]
                assert tokens == pytest.approx(rows[name], abs=1e-3)
            assert found["policies"][mix.reference]["mean_kl"] is None
    plain = mix.generate("the", params, weights=weights, attribution=True)[0].outputs[0]
    assert "tokens" not in plain.preference_attribution


def test_candidates_are_picked_by_the_normalisers_that_transformers_computes(
    served: Served,
) -> None:
    """log Z_t = log sum_v prod_k pi_k(v)^w_k of each token, the last one of an answer included."""
    mix, names = served.mix, served.mix.spec.member_names
    weights = dict(zip(names, (0.5, 0.3, 0.2), strict=True))
    oracle, prompts = served.oracle(), [list(map(int, fresh_prompt(seed))) for seed in (31, 32)]
    settings = {"max_tokens": 24, "seed": 9, "stop_token_ids": [*range(2, 30)], "stop": ["e", "a"]}
    drawn = mix.generate(prompts, sampling(n=8, **settings), weights=weights)
    picked = mix.generate(prompts, sampling(n=2, **settings), weights=weights, candidates=4)
    for prompt, all_eight, two in zip(prompts, drawn, picked, strict=True):
        assert [each.index for each in two.outputs] == [0, 1]
        for place, found in enumerate(two.outputs):
            group = all_eight.outputs[4 * place : 4 * place + 4]
            log_partitions = [
                log_partition(oracle, prompt, list(each.token_ids), list(weights.values()))
                for each in group
            ]
            truth = pick(log_partitions, seed=9, place=place)
            assert list(found.token_ids) == list(group[truth.index].token_ids)
            about = found.preference_candidates
            assert about["ess"] == pytest.approx(truth.ess, rel=1e-3)
            assert about["log_partition"] == pytest.approx(truth.log_partition, abs=2e-3)
    lengths = {len(each.token_ids) for output in drawn for each in output.outputs}
    assert len(lengths) > 1, "answers of one length hardly differ in their normalisers"


def log_partition(
    oracle: Oracle, prompt: list[int], answer: list[int], weights: list[float]
) -> float:
    logits_TMV = oracle.logits([*prompt, *answer])[len(prompt) - 1 : -1].double()
    mixed_TV = torch.einsum("tmv,m->tv", logits_TMV.log_softmax(-1), torch.tensor(weights).double())
    return float(mixed_TV.logsumexp(-1).sum())


def test_what_the_server_refuses_is_refused_in_its_words(served: Served) -> None:
    mix = served.mix
    first, _ = mix.policies
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"weights": {"tow": 1}}, "preference_weights: unknown policy 'tow'; this mixture has: "),
        ({"weights": {}}, "no policy is named"),
        ({"weights": {first: 1}, "profile": mix.default_profile}, "were both given"),
        ({"profile": "sly"}, "preference_profile 'sly' does not exist; the profiles are: "),
        ({"weights": [{first: 1}]}, "weights has 1 entries, for 2 prompts"),
        ({"profile": ["x"] * 3}, "profile has 3 entries, for 2 prompts"),
        ({"weights": [{first: 1}, {first: "x"}]}, "prompt 1: .* 'x', expected a number"),
        ({"sampling_params": [sampling()] * 3}, "sampling_params has 3 entries"),
        ({"sampling_params": 7}, "sampling_params is 7"),
        ({"sampling_params": {"max_token": 7}}, "sampling_params: .*max_token"),
        ({"attribution": 2}, "preference_attribution is 2"),
        ({"candidates": 0}, "preference_candidates is 0; expected a number of candidates"),
        ({"candidates": 2, "sampling_params": {"top_p": 0.9}}, "top_p is 0.9, from the request"),
        ({"sampling_params": sampling(extra_args=[1])}, "extra_args is \\[1\\]; expected a dict"),
    ]
    for given, message in refusals:
        with pytest.raises(RequestError, match=message):
            mix.generate(["a", "b"], **given)
    with pytest.raises(TypeError, match="best_of"):
        mix.generate(["a"], best_of=4)
    with pytest.raises(RuntimeError, match="another Mixture is open"):
        Mixture(policies={"one": served.folders[0]})
    assert mix.generate([], weights={first: 1}) == mix.chat([]) == mix.score([], []) == []
    assert not mix.llm.llm_engine.has_unfinished_requests()


def test_weights_may_be_numbers_of_numpy(served: Served) -> None:
    first, second = served.mix.policies
    weights = {first: np.float32(0.25), second: np.float64(0.75)}
    output = served.mix.generate("the", [{"max_tokens": 1}], weights=weights)[0]
    assert len(output.outputs[0].token_ids) == 1
    assert output.preference_weights == {first: 0.25, second: 0.75, served.mix.reference: 0.0}


def test_grammars_and_progress_bars_are_vllms(served: Served) -> None:
    from tqdm import tqdm
    from vllm.sampling_params import StructuredOutputsParams

    params = sampling(
        max_tokens=20,
        ignore_eos=False,
        structured_outputs=StructuredOutputsParams(choice=["weights are", "the"]),
    )
    before = copy.deepcopy(params)
    bars: list[int] = []

    def bar(iterable: Any = None, *, total: int | None = None, **settings: Any) -> Any:
        bars.append(total or 0)
        return tqdm(iterable, total=total, file=io.StringIO(), **settings)

    outputs = served.mix.generate(["a", "b"], params, use_tqdm=bar, priority=[0, 0])
    assert {output.outputs[0].text for output in outputs} <= {"weights are", "the"}
    assert params == before
    assert 2 in bars


def test_a_call_that_is_interrupted_leaves_nothing_behind(served: Served) -> None:
    """The next call answers its own prompts only."""

    def interrupted(iterable: Any = None, **_: Any) -> Any:
        if iterable is not None:
            return iterable
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        served.mix.generate(["a", "b"], sampling(max_tokens=3), use_tqdm=interrupted)
    assert len(served.mix.generate("the", sampling(max_tokens=3))) == 1


def test_a_call_inside_a_call_is_refused(served: Served) -> None:
    """It would wait for itself for ever; closing would take the engine from under the call."""
    mix = served.mix
    for use in (lambda: mix.generate("the"), lambda: mix.score("a", "b"), mix.close):

        def bar(*_: Any, use: Any = use, **__: Any) -> Any:
            return use()

        with pytest.raises(RuntimeError, match="this Mixture is in the middle of a call"):
            mix.generate("the", sampling(max_tokens=2), use_tqdm=bar)
    assert len(mix.generate("the", sampling(max_tokens=2))) == 1


def test_a_fork_has_no_engine(served: Served) -> None:
    """A call there would wait for threads that only the first process has, and so would its end."""
    mix = served.mix
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        with contextlib.suppress(BaseException):
            try:
                mix.close()
                mix.generate("the", sampling(max_tokens=2))
            except RuntimeError as error:
                os.write(writing, str(error).encode())
            mix._engine._end()
            os.write(writing, b", ended")
        os._exit(0)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], 20)
    if not ready:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with open(reading, "rb") as said:
        answer = said.read().decode()
    assert answer.startswith(f"this Mixture's engine runs in process {os.getpid()}, and this is a")
    assert answer.endswith(", ended")
    assert len(mix.generate("the", sampling(max_tokens=2))) == 1


def test_an_open_mixture_is_not_copied(served: Served) -> None:
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="can be neither copied nor pickled"):
            duplicate(served.mix)


@pytest.mark.parametrize("method", ["execute_model", "sample_tokens"])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_step_that_ends_early_spoils_no_later_answer(
    served: Served, method: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM has the prompt's blocks in its prefix cache before their step has computed them."""
    mix, runner = served.mix, worker_of(served.mix.llm).model_runner
    jobs = [
        replace(job, prompt=tuple(map(int, fresh_prompt(job.seed))), max_tokens=4)
        for job in jobs_of(served)[0][:2]
    ]
    names = mix.spec.member_names
    weights = [dict(zip(names, job.weights, strict=True)) for job in jobs]
    prompts = [list(job.prompt) for job in jobs]

    def fails(*args: Any, **kwargs: Any) -> Any:
        if error is MemoryError:
            raise MemoryError
        signal.raise_signal(signal.SIGINT)
        return step(*args, **kwargs)

    step = getattr(runner, method)
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of the tests does
    with monkeypatch.context() as patch:
        patch.setattr(runner, method, fails)
        with pytest.raises(error):
            mix.generate(prompts, sampling(max_tokens=4), weights=weights)
    signal.signal(signal.SIGINT, ignored)
    for _ in range(2):
        params = [sampling(max_tokens=4, seed=job.seed) for job in jobs]
        outputs = mix.generate(prompts, params, weights=weights)
        assert served.oracle().worst_error(jobs, outputs) < TOLERANCE_NATS
    assert not mix.llm.llm_engine.has_unfinished_requests()


def fresh_prompt(seed: int) -> Any:
    """A prompt that no other test uses, longer than a block of the KV cache."""
    return np.random.default_rng([next(_prompts), seed]).integers(2, VOCAB_SIZE, size=200)


_prompts = itertools.count()


def test_a_policy_without_numbers_is_named(served: Served) -> None:
    mix = served.mix
    first, second = mix.policies
    if mix.spec.base is not None:
        pytest.skip("its members share their parameters; the faults of adapters: tests/server")
    spoilt = (
        list(model_of(mix.llm).members.values())[1].get_parameter("model.embed_tokens.weight").data
    )
    kept = spoilt.clone()
    try:
        spoilt.fill_(torch.nan)
        with pytest.raises(EngineError, match=f"^{second} computed NaN"):
            mix.generate(["a", "the"], sampling(max_tokens=2), weights={first: 1, second: 1})
        with pytest.raises(EngineError, match=f"^{second} computed NaN"):
            mix.score(["a"], [" the"])
        assert mix.generate("the", sampling(max_tokens=2), weights={first: 1})
    finally:
        spoilt.copy_(kept)
