"""vLLM's endpoint plugin: it replaces vLLM's routes by this server's and adds the middleware."""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
import sys
from argparse import Namespace
from collections.abc import Coroutine
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import State
from starlette.exceptions import HTTPException

from prefmix.mixing.spec import CONFIG_KEY, MixtureSpec
from prefmix.mixing.start_stages import SERVER, announce
from prefmix.mixing.vocabulary import CommonVocabulary
from prefmix.server import failed_engine, port_holder, remote_engines
from prefmix.server.admin import policy_routes
from prefmix.server.admin import routes as admin_routes
from prefmix.server.admin.listener import HOST, admin_app, listen, serve_admin
from prefmix.server.admin.live_weights import LiveWeights
from prefmix.server.admin.policies_manifest import PoliciesManifest
from prefmix.server.admin.policy_changes import PolicyChanges
from prefmix.server.admin.store_watch import watch
from prefmix.server.api import generate, models, vllm_handlers
from prefmix.server.api.candidates.wish import CandidateLimits
from prefmix.server.api.prompts.added_texts import AddedTexts
from prefmix.server.api.prompts.hidden_texts import hide_in_log
from prefmix.server.api.prompts.rendering import render_own_prompts
from prefmix.server.api.prompts.start_check import check_system_texts
from prefmix.server.api.state import STATE_KEY, MixtureState
from prefmix.server.auth import failed_logins
from prefmix.server.auth.access_levels import check_levels
from prefmix.server.auth.admin_tokens import admin_tokens
from prefmix.server.auth.api_keys import api_keys, as_tokens
from prefmix.server.auth.hosts import AllowedHosts, HostMiddleware
from prefmix.server.auth.middleware import AccessMiddleware
from prefmix.server.auth.tokens import Tokens
from prefmix.server.config.addresses import HOSTS_ATTRIBUTE
from prefmix.server.config.limits import LIMITS_ATTRIBUTE, Limits
from prefmix.server.config.live_settings import LIVE_ATTRIBUTE, LiveSettings
from prefmix.server.config.prompt_settings import PROMPTS_ATTRIBUTE, PromptSettings
from prefmix.server.config.telemetry_settings import TELEMETRY_ATTRIBUTE, TelemetrySettings
from prefmix.server.console import routes as console_routes
from prefmix.server.console.settings import CONSOLE_ATTRIBUTE
from prefmix.server.engine_check import check_engines
from prefmix.server.http.errors import http_exception
from prefmix.server.http.openapi import (
    attach_description,
    attach_docs_page,
    describe_refusals,
)
from prefmix.server.served_routes import check_own_routes, keep_allowed_routes
from prefmix.server.slots.adapter_tokens import AdapterTokens
from prefmix.server.slots.engine_slots import EngineSlots
from prefmix.server.slots.policies_folder import PoliciesFolder
from prefmix.server.slots.policy_set import CurrentPolicies, PolicySet, configured
from prefmix.server.telemetry import (
    audit_log,
    event_loop_metrics,
    failed_policies,
    policy_metrics,
    request_log,
    vllm_log,
)
from prefmix.server.telemetry.engine_statistics import EngineStatistics
from prefmix.server.telemetry.metrics import MixtureMetrics
from prefmix.server.traffic import readiness
from prefmix.server.traffic.engine_load import num_engines
from prefmix.server.traffic.setup import TrafficSetup
from prefmix.weights.store.profiles import CurrentProfiles, ProfileSet, build_profile_set

PROFILES_ATTRIBUTE = "prefmix_profiles"
"""The attribute of vLLM's parsed arguments in which `prefmix serve` passes the ProfileSet."""


class PrefmixEndpoints:
    """The plugin of vLLM's entry point group `vllm.endpoint_plugins`."""

    name = "prefmix"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._app: FastAPI | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def attach_router(self, app: FastAPI) -> None:
        """Removes routes that are not allowed and adds ours, which vLLM prefers to its own."""
        app.title = "prefmix"
        app.version = importlib.metadata.version("prefmix")
        describe_refusals(app)
        vllm_handlers.bound_messages()
        keep_allowed_routes(app)
        app.include_router(generate.router)
        app.include_router(models.router)
        app.include_router(readiness.router)
        app.add_exception_handler(HTTPException, http_exception)
        self._app = app

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Makes what the routes need, starts the background tasks and adds the middleware.

        Raises: RuntimeError if the model served is no mixture, another plugin has taken a route or
          the engine dies.
        """
        work = self._init_state(engine_client, state, args)
        await failed_engine.await_while_alive(engine_client, work)

    async def _init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        assert self._app is not None, "attach_router() comes before init_state()"
        engine = mixture_spec(engine_client)
        prompts: PromptSettings = getattr(args, PROMPTS_ATTRIBUTE, PromptSettings())
        policies = CurrentPolicies(PolicySet.of(engine, prompts=prompts))
        slots = EngineSlots(engine_client, engine)
        profiles: ProfileSet | None = getattr(args, PROFILES_ATTRIBUTE, None)
        if profiles is None:
            profiles = build_profile_set({}, policies.current.spec)
        vllm_handlers.repeat_asked_model(state.openai_serving_models)
        paths = state.openai_serving_models.base_model_paths
        live: LiveSettings | None = getattr(args, LIVE_ATTRIBUTE, None)
        limits: Limits = getattr(args, LIMITS_ATTRIBUTE, Limits())
        traffic = TrafficSetup(
            engine_client,
            limits,
            folder=None if live is None else live.folder,
            num_processes=args.api_server_count or 1,
        )
        failed_engine.end_with_error(engine_client)
        port_holder.look_for_none()
        telemetry: TelemetrySettings = getattr(args, TELEMETRY_ATTRIBUTE, TelemetrySettings())
        statistics = EngineStatistics(
            engine_client,
            MixtureMetrics(engine, lambda: policies.current.engine_names()),
            every=telemetry.statistics_every,
        )
        mixture = MixtureState(
            policies=policies,
            model_names=tuple(path.name for path in paths),
            profiles=CurrentProfiles(profiles),
            statistics=statistics,
            admission=traffic.admission,
            max_model_len=engine_client.vllm_config.model_config.max_model_len,
            candidates=candidate_limits(engine_client, limits),
            vocabulary=CommonVocabulary.of_config(engine_client.vllm_config.model_config.hf_config),
            unread_fields=unread_fields(engine_client.vllm_config),
        )
        setattr(state, STATE_KEY, mixture)
        request_log.set_up(telemetry.request_log)
        audit_log.set_up(is_json=telemetry.request_log == "json")
        failed_logins.set_up()
        vllm_log.set_up()
        readiness.set_up()
        if engine.has_prompts:
            await self._render_prompts(state, mixture)
        await check_engines(engine_client, None if live is None else live.folder)
        announce(SERVER, "opening the server")
        await statistics.start()
        failed_policies.set_up()
        policy_metrics.set_up()
        watched = failed_policies.FailedPolicies(
            engine_client.generate, engine.member_names, named=policies.name_of
        )
        engine_client.generate = watched.generate
        self._start(statistics.follow(), "the engine's statistics")
        self._start(event_loop_metrics.follow(), "the measurement of the event loop")
        # Again, as vLLM has added routes of its own since attach_router.
        keep_allowed_routes(self._app)
        check_own_routes(self._app)
        attach_description(self._app)
        attach_docs_page(self._app)
        console_routes.attach(self._app, getattr(args, CONSOLE_ATTRIBUTE, None))
        keys = api_keys(args.api_key)
        self._start(traffic.set_up_http_server(state), "the set-up of the HTTP server")
        self._start(traffic.readiness.follow(), "the watch on the engine")
        self._start(remote_engines.follow(engine_client), "the watch on other machines' engines")
        tokens = await self._open_admin(mixture, slots, state, args, keys)
        check_levels(self._app.router.routes, admin_route=admin_routes.AdminRoute)
        traffic.add_middleware(self._app)
        add_access_middleware(self._app, keys, tokens)
        add_host_middleware(self._app, allowed_hosts(args))

    async def _render_prompts(self, state: State, mixture: MixtureState) -> None:
        """Makes vLLM render each policy's prompt. Raises: SystemTextError."""
        chat = getattr(state, "openai_serving_chat", None)
        if chat is not None:
            hide_in_log(lambda: mixture.prompts.systems.values())
            await check_system_texts(chat.online_renderer.render_chat, mixture.prompts)
        render_own_prompts(chat, getattr(state, "openai_serving_completion", None))

    async def _open_admin(
        self,
        mixture: MixtureState,
        slots: EngineSlots,
        state: State,
        args: Namespace,
        keys: list[str],
    ) -> Tokens:
        """Opens the ways to change the profiles: the admin routes and the watch on the store.

        Returns: the tokens that open the main port's admin routes; empty if it has none.
        """
        assert self._app is not None
        settings: LiveSettings | None = getattr(args, LIVE_ATTRIBUTE, None)
        if settings is None:  # vLLM's own `serve` with this plugin: the profiles stay as they are
            return Tokens([])
        adapters = None if settings.policies is None else PoliciesFolder(settings.policies)
        live = LiveWeights(
            spec=configured(mixture.policies.current.engine),
            profiles=mixture.profiles,
            store=settings.store,
            folder=settings.folder,
            num_processes=args.api_server_count or 1,
            max_profiles=settings.max_profiles,
            keeps_dormant=settings.dormant_profiles,
            policies=PolicyChanges(
                mixture.policies,
                slots,
                adapters,
                check_texts=AddedTexts(
                    mixture.policies,
                    getattr(state, "openai_serving_chat", None),
                    logs_requests=args.enable_log_requests,
                ).check,
                check_adapter=AdapterTokens(mixture.policies.current.engine).check,
                manifest=settings.manifest,
            ),
        )
        await live.restore_policies()
        await live.start()
        if settings.store is not None:
            reload = functools.partial(
                live.reload, who="file-watch", trigger="watch", is_quiet=True
            )
            self._start(watch(settings.store, reload), "the watch on the weights store")
        if settings.manifest is not None:
            manifest = PoliciesManifest(
                settings.manifest, live, adapters, run_folder=settings.folder
            )
            await manifest.begin()
            self._start(manifest.follow(), "the watch on the manifest of policies")
        tokens = admin_tokens(api_keys=keys)
        if not tokens:
            return tokens
        admin_state = admin_routes.AdminState(tokens=tokens, live=live)
        if settings.admin_port is not None:
            listener = listen(settings.admin_port)
            allowed = AllowedHosts(getattr(args, HOSTS_ATTRIBUTE, ()), bound=HOST)
            self._start(serve_admin(admin_app(admin_state), listener, allowed), "the admin port")
            return Tokens([])
        setattr(state, admin_routes.ADMIN_KEY, admin_state)
        self._app.include_router(admin_routes.router)
        self._app.include_router(policy_routes.router)
        self._app.openapi_schema = None
        return tokens

    def _start(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Runs `work` in the background; prints a line if it ends by an error."""

        def report(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                print(f"prefmix: {what} has ended: {error}", file=sys.stderr, flush=True)

        task = asyncio.create_task(work)
        task.add_done_callback(report)
        self._tasks.append(task)


def mixture_spec(engine_client: Any) -> MixtureSpec:
    """The mixture that the engine was started with. Raises: RuntimeError if it serves none."""
    data = getattr(engine_client.vllm_config.model_config.hf_config, CONFIG_KEY, None)
    if data is None:
        raise RuntimeError(
            "the prefmix plugin is active but the model served is no mixture; start it with "
            "'prefmix serve', or leave prefmix out of VLLM_PLUGINS"
        )
    return MixtureSpec.from_dict(data)


def candidate_limits(engine_client: Any, limits: Limits) -> CandidateLimits:
    """The limits on candidates, which only one engine can serve: it alone is asked for figures."""
    if num_engines(engine_client) > 1:
        return CandidateLimits(most=0, refusal="it needs one engine, and several answer here")
    return CandidateLimits(most=limits.max_candidates, max_tokens=limits.max_candidate_tokens)


def unread_fields(vllm_config: Any) -> frozenset[str]:
    """The fields for connectors that this server has not been started with."""
    connectors = {
        "kv_transfer_params": vllm_config.kv_transfer_config,
        "ec_transfer_params": vllm_config.ec_transfer_config,
    }
    return frozenset(field for field, config in connectors.items() if config is None)


def add_access_middleware(app: FastAPI, keys: list[str], tokens: Tokens) -> None:
    """Puts the check of keys and tokens around all other middleware, vLLM's own check included.

    vLLM has built the middleware stack by now, so `app.add_middleware` would raise.
    """
    inner = app.middleware_stack or app.build_middleware_stack()
    app.middleware_stack = AccessMiddleware(inner, keys=as_tokens(keys), admin=tokens)


def allowed_hosts(args: Namespace) -> AllowedHosts:
    """The names under which the main port may be asked."""
    bound = None if args.uds else args.host or "0.0.0.0"
    return AllowedHosts(getattr(args, HOSTS_ATTRIBUTE, ()), bound=bound)


def add_host_middleware(app: FastAPI, allowed: AllowedHosts) -> None:
    """Puts the check of the Host field around everything."""
    inner = app.middleware_stack or app.build_middleware_stack()
    app.middleware_stack = HostMiddleware(inner, allowed=allowed)
