"""The mixture board: weights in force and in use, and their effect on each policy."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as dashboards

from deploy.grafana.panels import SELECTED, SOURCE, board, lines, number, rows, selection, shares

RATE = "[$__rate_interval]"
OF_POLICY = f'{SELECTED}, policy=~"$policy"'
VERSION = f"prefmix_weights_version{{{SELECTED}}}"


def _by_policy(counter: str) -> str:
    """The mean of a policy's counter over the measured tokens at which it ran."""
    tokens = f"sum by (policy) (rate(prefmix_policy_tokens_total{{{OF_POLICY}}}{RATE}))"
    return f"sum by (policy) (rate({counter}{{{OF_POLICY}}}{RATE})) / ({tokens} > 0)"


ENTROPY = (
    f"sum(rate(prefmix_entropy_nats_total{{{SELECTED}}}{RATE}))"
    f" / sum(rate(prefmix_statistics_tokens_total{{{SELECTED}}}{RATE}))"
)
STEP_TIME = (
    f"sum by (part) (rate(prefmix_step_seconds_total{{{SELECTED}}}{RATE}))"
    f" / scalar(sum(rate(prefmix_step_samples_total{{{SELECTED}}}{RATE})))"
)


def mixture() -> dashboards.Dashboard:
    """Builds the board."""
    made = board(
        "prefmix-mixture",
        "prefmix: mixture",
        "Weights in force and in use, their effect on each policy, and their changes.",
    )
    made = made.with_variable(
        selection("policy", f"label_values(prefmix_profile_weight{{{SELECTED}}}, policy)")
    ).annotation(
        dashboards.AnnotationQuery()
        .name("weights version")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("purple")
        .expr(
            f'count_values("version", {VERSION})'
            f' unless count_values("version", {VERSION} offset 1m)'
        )
    )
    for panel in (
        number(
            "Weights version",
            "Newest version in force at any instance: prefmix_weights_version.",
            f"max({VERSION})",
            no_value="?",
        ),
        number(
            "Default profile",
            "The profile of requests that name none: prefmix_default_profile.",
            f"max by (profile) (prefmix_default_profile{{{SELECTED}}}) == 1",
            no_value="?",
            label="profile",
        ),
        number(
            "Last reload",
            "refused: an instance could not use its store and keeps the profiles before.",
            f"min(prefmix_weights_last_reload_successful{{{SELECTED}}})",
            words={0: "refused", 1: "good"},
            limits=(0.5, 1),
            low_is_bad=True,
            no_value="?",
        ),
        number(
            "Since last good reload",
            "Time at the instance where it was longest ago.",
            f"max(time() - prefmix_weights_last_reload_success_timestamp_seconds{{{SELECTED}}})",
            unit="s",
            no_value="?",
        ),
        number(
            "Different weights",
            "Sets of weights in force; more than 1 for minutes means that replicas disagree.",
            f"count(count by (sha256) (prefmix_weights_info{{{SELECTED}}} == 1))",
            limits=(2, 2),
            no_value="?",
        ),
        number(
            "Refused weights/s",
            "Requests refused for their weights: prefmix_weights_rejected_total.",
            f"sum(rate(prefmix_weights_rejected_total{{{SELECTED}}}{RATE}))",
            unit="reqps",
            limits=(0.1, 1),
        ),
        number(
            "Entropy",
            "Nats a token: the mixture's uncertainty. Near 0 answers hardly vary.",
            ENTROPY,
        ),
        number(
            "Measured tokens",
            "Share of generated tokens on which KL, entropy and agreement were measured.",
            f"sum(rate(prefmix_statistics_tokens_total{{{SELECTED}}}{RATE}))"
            f" / sum(rate(vllm:generation_tokens_total{{{SELECTED}}}{RATE}))",
            unit="percentunit",
        ),
    ):
        made = made.with_panel(panel)
    return (
        made.with_row(dashboards.Row("Weights"))
        .with_panel(
            lines(
                "Weights in force",
                "Weights of each selected profile; a purple line is a new version.",
                {
                    "{{profile}}: {{policy}}": "max by (profile, policy) "
                    f'(prefmix_profile_weight{{{OF_POLICY}, profile=~"$profile"}})'
                },
            )
        )
        .with_panel(
            lines(
                "Weights as used",
                "Mean over measured tokens of all requests, with profiles or weights of their own.",
                {
                    "{{policy}}": "sum by (policy) "
                    f"(rate(prefmix_token_weight_sum{{{OF_POLICY}}}{RATE}))"
                    f" / sum by (policy) (rate(prefmix_token_weight_count{{{OF_POLICY}}}{RATE}))"
                },
                top=1,
            )
        )
        .with_panel(
            shares(
                "Weights as used, spread",
                "Measured tokens by the weight of the selected policies: choose one policy.",
                f"sum by (le) (increase(prefmix_token_weight_bucket{{{OF_POLICY}}}{RATE}))",
            )
        )
        .with_row(dashboards.Row("Effect of the mixture"))
        .with_panel(
            lines(
                "Distance of each policy",
                "KL(mixture || policy), nats a token. Fitted weights make active policies equal.",
                {"{{policy}}": _by_policy("prefmix_kl_nats_total")},
            )
        )
        .with_panel(
            lines(
                "Agreement",
                "Share of measured tokens that were the policy's own first choice.",
                {"{{policy}}": _by_policy("prefmix_agreement_tokens_total")},
                unit="percentunit",
                top=1,
            )
        )
        .with_panel(
            lines(
                "Entropy",
                "Entropy of the mixture, nats a token.",
                {"entropy": ENTROPY},
            )
        )
        .with_panel(
            lines(
                "Rewards",
                "Mean rewards that were pushed: prefmix_reward; docs/deploying.md shows how.",
                {
                    "{{objective}}, {{profile}}": "avg by (objective, profile) "
                    '(prefmix_reward{profile=~"$profile"})'
                },
            )
        )
        .with_panel(
            lines(
                "Candidates",
                "Effective share of candidates, and share of picked answers with too few of them.",
                {
                    "effective share": f"sum(rate(prefmix_candidates_effective_total{{{SELECTED}}}"
                    f"{RATE})) / sum(rate(prefmix_candidates_total{{{SELECTED}}}{RATE}))",
                    "answers with too few": f"sum(rate(prefmix_candidates_low_total{{{SELECTED}}}"
                    f"{RATE})) / sum(rate(prefmix_candidate_answers_total{{{SELECTED}}}{RATE}))",
                },
                unit="percentunit",
                top=1,
            )
        )
        .with_panel(
            lines(
                "Refused weights by reason",
                "The same reasons as in the clients' error messages.",
                {
                    "{{reason}}": "sum by (reason) "
                    f"(rate(prefmix_weights_rejected_total{{{SELECTED}}}{RATE}))"
                },
                unit="reqps",
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Reloads and changes",
                "By trigger (admin, signal, watch) and result, in 10 minutes.",
                {
                    "reload by {{trigger}}: {{result}}": "sum by (trigger, result) "
                    f"(increase(prefmix_weights_reloads_total{{{SELECTED}}}[10m]))",
                    "change: {{result}}": "sum by (result) "
                    f"(increase(prefmix_weights_changes_total{{{SELECTED}}}[10m]))",
                },
            )
        )
        .with_panel(
            lines(
                "Policies that come and go",
                "Added policies in force, and changes of them by trigger and result in 10 minutes.",
                {
                    "added": f'max(prefmix_policies{{{SELECTED}, origin="added"}})',
                    "{{trigger}}: {{result}}": "sum by (trigger, result) "
                    f"(increase(prefmix_policy_changes_total{{{SELECTED}}}[10m]))",
                },
            )
        )
        .with_row(dashboards.Row("Cost"))
        .with_panel(
            lines(
                "Time of a step",
                "forward: policies' passes (unseen in full CUDA graphs); mix: LM heads and mixing.",
                {"{{part}}": STEP_TIME},
                unit="s",
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Memory of parameters",
                "Bytes that only this policy uses; shared: those that several use. One instance.",
                {"{{policy}}": f"max by (policy) (prefmix_parameter_bytes{{{SELECTED}}})"},
                unit="bytes",
                stacked=True,
                width=6,
            )
        )
        .with_panel(
            lines(
                "KV cache a token",
                "Bytes of one token of context in each policy's cache. One instance.",
                {"{{policy}}": f"max by (policy) (prefmix_kv_bytes_per_token{{{SELECTED}}})"},
                unit="bytes",
                stacked=True,
                width=6,
            )
        )
        .with_panel(
            rows(
                "Builds",
                "Versions of the software: prefmix_build_info.",
                f"count by (version, vllm, torch, layout) (prefmix_build_info{{{SELECTED}}})",
                width=4,
            )
        )
    )
