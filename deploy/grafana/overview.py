"""The overview board: availability, traffic, latency, errors and saturation."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as dashboards

from deploy.grafana.panels import SELECTED, board, lines, number, quantiles

REQUESTS = f'prefmix_requests_total{{{SELECTED}, profile=~"$profile|none|custom"}}'
RATE = "[$__rate_interval]"


def _p95(histogram: str) -> str:
    return f"histogram_quantile(0.95, sum by (le) (rate({histogram}_bucket{{{SELECTED}}}{RATE})))"


def overview() -> dashboards.Dashboard:
    """Builds the board."""
    made = board("prefmix-overview", "prefmix: overview", "Traffic, latency, errors, saturation.")
    for panel in (
        number(
            "Requests/s",
            "Answered requests, whatever the outcome: prefmix_requests_total.",
            f"sum(rate({REQUESTS}{RATE}))",
            unit="reqps",
        ),
        number(
            "Failed",
            "Share of requests that failed through the server's fault: outcome error.",
            f'sum(rate(prefmix_requests_total{{{SELECTED}, outcome="error"}}{RATE}))'
            f" / sum(rate(prefmix_requests_total{{{SELECTED}}}{RATE}))",
            unit="percentunit",
            limits=(0.001, 0.01),
        ),
        number(
            "First token, p95",
            "95 of 100 requests had their first token sooner: vllm:time_to_first_token_seconds.",
            _p95("vllm:time_to_first_token_seconds"),
            unit="s",
            limits=(2, 10),
        ),
        number(
            "Between tokens, p95",
            "95 of 100 tokens came sooner after the one before: vllm:inter_token_latency_seconds.",
            _p95("vllm:inter_token_latency_seconds"),
            unit="s",
            limits=(0.1, 0.5),
        ),
        number(
            "Tokens/s",
            "Generated tokens: vllm:generation_tokens_total.",
            f"sum(rate(vllm:generation_tokens_total{{{SELECTED}}}{RATE}))",
            unit="short",
        ),
        number(
            "Waiting",
            "Requests that wait for room in the batch: vllm:num_requests_waiting.",
            f"sum(vllm:num_requests_waiting{{{SELECTED}}})",
            limits=(1, 8),
            no_value="?",
        ),
        number(
            "KV cache",
            "The fullest KV cache of the selected instances: vllm:kv_cache_usage_perc.",
            f"max(vllm:kv_cache_usage_perc{{{SELECTED}}})",
            unit="percentunit",
            limits=(0.9, 0.98),
            no_value="?",
        ),
        number(
            "Servers up",
            "Share of the targets that answer Prometheus: up.",
            f"avg(up{{{SELECTED}}})",
            unit="percentunit",
            limits=(0.5, 1),
            low_is_bad=True,
            no_value="none",
        ),
    ):
        made = made.with_panel(panel)
    return (
        made.with_row(dashboards.Row("Traffic"))
        .with_panel(
            lines(
                "Requests by profile",
                "`custom`: weights in the request; `none`: refused before the weights were known.",
                {"{{profile}}": f"sum by (profile) (rate({REQUESTS}{RATE}))"},
                unit="reqps",
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Requests by outcome",
                "rejected: the client's fault; error: the server's; cancelled: the client left; "
                "refused: too many, or the server is ending; timeout: at its time limit; drained: "
                "cut by the server's end.",
                {"{{outcome}}": f"sum by (outcome) (rate({REQUESTS}{RATE}))"},
                unit="reqps",
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Tokens/s",
                "Prompt and generated tokens, with those from the prefix cache.",
                {
                    kind: f"sum(rate(vllm:{kind}_tokens_total{{{SELECTED}}}{RATE}))"
                    for kind in ("prompt", "generation")
                },
                unit="short",
            )
        )
        .with_panel(
            lines(
                "Tokens/s by instance",
                "Generated tokens; a healthy fleet shares them.",
                {
                    "{{instance}}": "sum by (instance) "
                    f"(rate(vllm:generation_tokens_total{{{SELECTED}}}{RATE}))"
                },
                unit="short",
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Why answers ended",
                "length: max_tokens was reached: vllm:request_success_total.",
                {
                    "{{finished_reason}}": "sum by (finished_reason) "
                    f"(rate(vllm:request_success_total{{{SELECTED}}}{RATE}))"
                },
                unit="reqps",
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "HTTP status",
                "All routes, with those for operators: http_requests_total.",
                {"{{status}}": f"sum by (status) (rate(http_requests_total{{{SELECTED}}}{RATE}))"},
                unit="reqps",
                stacked=True,
            )
        )
        .with_row(dashboards.Row("Refused and failed"))
        .with_panel(
            lines(
                "Refused requests",
                "503 if overloaded or draining, 413 and 408 for bodies, 431 for heads, 421 for "
                "hosts: prefmix_refused_total.",
                {
                    "{{reason}}": "sum by (reason) "
                    f"(rate(prefmix_refused_total{{{SELECTED}}}{RATE}))"
                },
                unit="reqps",
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Without a valid credential",
                "key: the API key, admin: the admin token: prefmix_auth_failures_total.",
                {
                    "{{surface}}": "sum by (surface) "
                    f"(rate(prefmix_auth_failures_total{{{SELECTED}}}{RATE}))"
                },
                unit="reqps",
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Failed for a policy",
                "Requests that ended because this policy computed NaN or infinity.",
                {
                    "{{policy}}": "sum by (policy) "
                    f"(rate(prefmix_policy_failures_total{{{SELECTED}}}{RATE}))"
                },
                unit="reqps",
                stacked=True,
            )
        )
        .with_row(dashboards.Row("Latency"))
        .with_panel(
            quantiles(
                "First token", "From arrival to first token.", "vllm:time_to_first_token_seconds"
            )
        )
        .with_panel(
            quantiles(
                "Between tokens",
                "From one token of a request to its next.",
                "vllm:inter_token_latency_seconds",
            )
        )
        .with_panel(
            quantiles(
                "Whole answer",
                "From arrival to last token; grows with the length of answers.",
                "vllm:e2e_request_latency_seconds",
            )
        )
        .with_row(dashboards.Row("Saturation"))
        .with_panel(
            lines(
                "Requests in flight",
                "Running and waiting in the engine, and all that the servers have accepted. "
                "waiting stays near 0 as long as there is capacity.",
                {
                    state: f"sum(vllm:num_requests_{state}{{{SELECTED}}})"
                    for state in ("running", "waiting")
                }
                | {"accepted": f"sum(prefmix_requests_in_flight{{{SELECTED}}})"},
            )
        )
        .with_panel(
            lines(
                "Waiting, and the limit",
                "At the limit further requests are refused with 503: prefmix_max_waiting.",
                {
                    "{{instance}} waiting": f"prefmix_requests_waiting{{{SELECTED}}}",
                    "{{instance}} limit": f"prefmix_max_waiting{{{SELECTED}}}",
                },
            )
        )
        .with_panel(
            quantiles(
                "Time in the queue",
                "From arrival until the engine begins with a request.",
                "vllm:request_queue_time_seconds",
            )
        )
        .with_panel(
            lines(
                "KV cache in use",
                "K policies need K times the KV cache of one.",
                {"{{instance}}": f"max by (instance) (vllm:kv_cache_usage_perc{{{SELECTED}}})"},
                unit="percentunit",
                top=1,
            )
        )
        .with_panel(
            lines(
                "Preemptions/s",
                "Requests put back because the KV cache was full; they are computed again.",
                {
                    "{{instance}}": "sum by (instance) "
                    f"(rate(vllm:num_preemptions_total{{{SELECTED}}}{RATE}))"
                },
            )
        )
        .with_panel(
            lines(
                "Prefix cache hits",
                "Share of prompt tokens whose keys and values were in the cache.",
                {
                    "hits": f"sum(rate(vllm:prefix_cache_hits_total{{{SELECTED}}}{RATE}))"
                    f" / sum(rate(vllm:prefix_cache_queries_total{{{SELECTED}}}{RATE}))"
                },
                unit="percentunit",
                top=1,
            )
        )
        .with_panel(
            lines(
                "Memory of the API process",
                "Resident memory; the engine's processes have their own.",
                {"{{instance}}": f"process_resident_memory_bytes{{{SELECTED}}}"},
                unit="bytes",
            )
        )
        .with_panel(
            quantiles(
                "Event loop delay",
                "Time for which the requests of an API process wait for each other.",
                "prefmix_event_loop_delay_seconds",
            )
        )
        .with_panel(
            lines(
                "Servers",
                "up: servers that answer Prometheus; ending: those that take no new requests.",
                {
                    "up": f"sum(up{{{SELECTED}}})",
                    "ending": f"sum(prefmix_draining{{{SELECTED}}})",
                },
            )
        )
    )
