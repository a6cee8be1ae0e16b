"""The kinds of panel, variable and dashboard in the boards."""

from __future__ import annotations

from collections.abc import Mapping

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SELECTED = 'job=~"$job", instance=~"$instance"'
"""Label matchers for the selected jobs and instances."""

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")

GREEN, YELLOW, RED = "green", "#EAB839", "red"


def board(uid: str, title: str, description: str) -> dashboards.Dashboard:
    """Makes an empty board with the variables datasource, job, instance and profile."""
    made = (
        dashboards.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["prefmix"])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboards.DashboardLink("prefmix")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["prefmix"])
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(
            dashboards.DatasourceVariable("datasource").label("source").type("prometheus")
        )
    )
    for name, query in (
        ("job", "label_values(vllm:num_requests_running, job)"),
        ("instance", 'label_values(vllm:num_requests_running{job=~"$job"}, instance)'),
        ("profile", f"label_values(prefmix_profile_weight{{{SELECTED}}}, profile)"),
    ):
        made = made.with_variable(selection(name, query))
    return made


def selection(name: str, query: str) -> dashboards.QueryVariable:
    """Makes a variable with any number of chosen values; at first all."""
    return (
        dashboards.QueryVariable(name)
        .query(query)
        .datasource(SOURCE)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )


def number(
    title: str,
    description: str,
    expr: str,
    *,
    unit: str = "none",
    limits: tuple[float, float] | None = None,
    low_is_bad: bool = False,
    no_value: str = "no traffic",
    label: str | None = None,
    words: Mapping[int, str] | None = None,
) -> stat.Panel:
    """Makes a panel of one number and its recent course.

    Args:
      limits: the values from which it is yellow and red.
      low_is_bad: it is red below the first limit and green from the second on, instead.
      label: the label whose value is shown in place of the number.
      words: value -> the word shown in its place.
    """
    graph = common_models.BigValueGraphMode
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .no_value(no_value)
        .height(4)
        .span(3)
        .graph_mode(graph.AREA if label is None else graph.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_steps(limits, low_is_bad))
        .with_target(_query(expr, f"{{{{{label}}}}}" if label else "", instant=label is not None))
    )
    if words:
        shown = {str(value): models.ValueMappingResult(text=word) for value, word in words.items()}
        panel = panel.mappings([models.ValueMap(options=shown)])
    return panel if label is None else panel.text_mode(common_models.BigValueTextMode.NAME)


def _steps(limits: tuple[float, float] | None, low_is_bad: bool) -> dashboards.ThresholdsConfig:
    colors = [RED, YELLOW, GREEN] if low_is_bad else [GREEN, YELLOW, RED]
    values = [None, *(limits or ())]
    colors = colors if limits else [GREEN]
    return (
        dashboards.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps(
            [
                models.Threshold(value=value, color=color)
                for value, color in zip(values, colors, strict=True)
            ]
        )
    )


def lines(
    title: str,
    description: str,
    queries: Mapping[str, str],
    *,
    unit: str = "none",
    stacked: bool = False,
    width: int = 8,
    top: float | None = None,
) -> timeseries.Panel:
    """Makes a panel of lines over time.

    Args:
      queries: legend -> expression; a legend may name labels as `{{profile}}`.
      stacked: draws areas on top of each other.
      top: the axis reaches at least from 0 to this value.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .axis_soft_min(0)
        .height(8)
        .span(width)
        .fill_opacity(25 if stacked else 5)
        .show_points(common_models.VisibilityMode.NEVER)
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
        )
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if top is not None:
        panel = panel.axis_soft_max(top)
    for index, (legend, expr) in enumerate(queries.items()):
        panel = panel.with_target(_query(expr, legend, ref_id="ABCDEFGH"[index]))
    return panel


def quantiles(
    title: str, description: str, histogram: str, *, unit: str = "s", width: int = 8
) -> timeseries.Panel:
    """Makes a panel of a histogram's p50, p95 and p99, over all selected instances."""
    buckets = f"sum by (le) (rate({histogram}_bucket{{{SELECTED}}}[$__rate_interval]))"
    queries = {
        f"p{percent}": f"histogram_quantile({percent / 100:g}, {buckets})"
        for percent in (50, 95, 99)
    }
    return lines(title, description, queries, unit=unit, width=width)


def shares(title: str, description: str, expr: str, *, width: int = 8) -> heatmap.Panel:
    """Makes a panel of a histogram's buckets over time; darker means more."""
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .height(8)
        .span(width)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_models.HeatmapColorMode.SCHEME)
            .scheme("Blues")
            .steps(64)
        )
        .with_target(_query(expr, "{{le}}").format(PromQueryFormat.HEATMAP))
    )


def rows(title: str, description: str, expr: str, *, width: int = 8) -> table.Panel:
    """Makes a table of the latest value of every series, with its labels."""
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .height(8)
        .span(width)
        .with_target(_query(expr, "", instant=True).format(PromQueryFormat.TABLE))
    )


def _query(
    expr: str, legend: str, *, ref_id: str = "A", instant: bool = False
) -> prometheus.Dataquery:
    query = prometheus.Dataquery().datasource(SOURCE).expr(expr).ref_id(ref_id)
    if legend:
        query = query.legend_format(legend)
    return query.instant() if instant else query.range()
