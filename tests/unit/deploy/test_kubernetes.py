"""The manifests: valid by Kubernetes' own schemas, and they fit each other and the server."""

import argparse
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.cli import serve
from prefmix.server.config.limits import Limits
from prefmix.weights.store.for_mixture import for_mixture
from prefmix.weights.store.format import from_document
from support import tools

KUBERNETES = Path(__file__).resolve().parents[3] / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "gpu")

Manifest = dict[str, Any]


def _base(kind: str) -> Manifest:
    for path in (KUBERNETES / "base").glob("*.yaml"):
        manifest: Manifest = yaml.safe_load(path.read_text())
        if manifest["kind"] == kind:
            return manifest
    raise AssertionError(kind)


def _build(folder: Path) -> list[Manifest]:
    """The manifests that kustomize builds from a folder. Skips if kubectl is not installed."""
    kubectl = shutil.which("kubectl")  # Debian packages none that is new enough to demand it
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    command = [kubectl, "kustomize", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return [manifest for manifest in yaml.safe_load_all(run.stdout) if manifest]


@pytest.fixture
def validate() -> Callable[[Manifest], None]:
    """Raises for a manifest that the API server of 1.31 would refuse."""
    try:
        import kubernetes_validate
    except ImportError:
        tools.miss("kubernetes-validate")
    return lambda manifest: kubernetes_validate.validate(manifest, "1.31", strict=True)


def test_base_is_valid(validate: Callable[[Manifest], None]) -> None:
    for path in (KUBERNETES / "base").glob("*.yaml"):
        manifest = yaml.safe_load(path.read_text())
        if manifest["kind"] == "Deployment":  # kustomize adds labels and selectors
            manifest["spec"]["selector"] = {"matchLabels": {"a": "b"}}
            manifest["spec"]["template"]["metadata"]["labels"] = {"a": "b"}
        if manifest["kind"] != "Kustomization":
            validate(manifest)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_built_overlays_are_valid_and_fit_together(
    overlay: str, validate: Callable[[Manifest], None]
) -> None:
    manifests = _build(KUBERNETES / "overlays" / overlay)
    for manifest in manifests:
        validate(manifest)
    names = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    deployment = next(each for each in manifests if each["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    for volume in pod["volumes"]:
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in names
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    specs = {each["kind"]: each["spec"] for each in manifests if "spec" in each}
    for selector in (
        specs["Service"]["selector"],
        specs["Deployment"]["selector"]["matchLabels"],
        specs["PodDisruptionBudget"]["selector"]["matchLabels"],
        specs["NetworkPolicy"]["podSelector"]["matchLabels"],
    ):
        assert selector == labels, "these pods, and no others of the namespace"
    assert ":" in pod["containers"][0]["image"]


def test_admin_routes_are_added_on_the_loopback_only(tmp_path: Path) -> None:
    copy = shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    (copy / "components" / "admin" / "admin-token").write_text("secret\n")
    overlay = copy / "overlays" / "cpu" / "kustomization.yaml"
    overlay.write_text(overlay.read_text() + "components: [../../components/admin]\n")
    manifests = _build(overlay.parent)
    deployment = next(each for each in manifests if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert "--admin-port=8001" in container["args"]
    assert [port["containerPort"] for port in container["ports"]] == [8000]
    policy = next(each for each in manifests if each["kind"] == "NetworkPolicy")
    ports = [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]]
    assert ports == [8000]
    secret = next(each for each in manifests if each["kind"] == "Secret")
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    assert {"secretName": secret["metadata"]["name"], "defaultMode": 0o440} in [
        volume.get("secret") for volume in volumes
    ]


def test_an_api_key_comes_as_a_file_that_only_the_pods_group_reads(tmp_path: Path) -> None:
    copy = shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    (copy / "components" / "api-key" / "api-key").write_text("secret\n")
    (copy / "components" / "admin" / "admin-token").write_text("another\n")
    overlay = copy / "overlays" / "cpu" / "kustomization.yaml"
    both = "components: [../../components/api-key, ../../components/admin]\n"
    overlay.write_text(overlay.read_text() + both)
    deployment = next(each for each in _build(overlay.parent) if each["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    files = {entry["name"]: entry["value"] for entry in container["env"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    for variable in ("PREFMIX_API_KEY_FILE", "PREFMIX_ADMIN_TOKEN_FILE"):
        name = mounts[str(Path(files[variable]).parent)]
        (volume,) = (each for each in pod["volumes"] if each["name"] == name)
        assert volume["secret"]["defaultMode"] == 0o440
    assert not any("secret" in word or "another" in word for word in container["args"])


def test_policies_come_from_a_mounted_manifest_that_the_server_reads(tmp_path: Path) -> None:
    """The flags name the mounts, and the store is where the server may write."""
    copy = shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    overlay = copy / "overlays" / "gpu" / "kustomization.yaml"
    overlay.write_text(overlay.read_text() + "components: [../../components/policies]\n")
    manifests = _build(overlay.parent)
    deployment = next(each for each in manifests if each["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    _, file, *words = container["args"]
    assert file == "/etc/prefmix/serve.yaml"
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    args = parser.parse_args(words)
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    manifest = Path(args.policies_manifest)
    assert {mounts[str(manifest.parent)]["name"], mounts[args.policies_dir]["name"]} == {
        "policies",
        "adapters",
    }
    assert "subPath" not in mounts[str(manifest.parent)]
    assert not mounts[str(Path(args.weights_store).parent)].get("readOnly")
    (config,) = (each for each in manifests if each["metadata"]["name"] == "prefmix-policies")
    assert config["data"].keys() == {manifest.name}
    assert yaml.safe_load(config["data"][manifest.name]) == {"policies": {}}


def test_monitoring_brings_the_rules_and_both_dashboards() -> None:
    kinds = {each["kind"]: each for each in _build(KUBERNETES / "monitoring")}
    assert set(kinds) == {"ServiceMonitor", "PrometheusRule", "ConfigMap"}
    assert len(kinds["ConfigMap"]["data"]) == 2


def test_pods_run_without_root_on_a_read_only_root() -> None:
    pod = _base("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert "subPath" not in mounts["weights"], "a subPath mount never sees a new ConfigMap"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_requests_under_way_may_end_before_a_pod_is_killed(overlay: str) -> None:
    pod = _base("Deployment")["spec"]["template"]["spec"]
    pause = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    config = yaml.safe_load((KUBERNETES / "overlays" / overlay / "serve.yaml").read_text())
    limits = Limits(drain_timeout=config["drain_timeout"])
    assert pause + limits.shutdown_timeout + 5 <= pod["terminationGracePeriodSeconds"]


def test_budget_and_network_policy_are_for_these_pods_alone() -> None:
    """kustomize adds its labels to selectors of Services and Deployments, not to these."""
    kustomization = yaml.safe_load((KUBERNETES / "base" / "kustomization.yaml").read_text())
    (labels,) = kustomization["labels"]
    assert _base("PodDisruptionBudget")["spec"]["selector"] == {"matchLabels": labels["pairs"]}
    assert _base("NetworkPolicy")["spec"]["podSelector"] == {"matchLabels": labels["pairs"]}


def test_a_pod_that_is_not_ready_is_not_restarted() -> None:
    (container,) = _base("Deployment")["spec"]["template"]["spec"]["containers"]
    paths = {
        name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("liveness", "readiness")
    }
    assert paths == {"liveness": "/health", "readiness": "/ready"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_weights_of_overlays_fit_their_configuration(overlay: str) -> None:
    folder = KUBERNETES / "overlays" / overlay
    config = yaml.safe_load((folder / "serve.yaml").read_text())
    members = {
        role: tuple(Policy(name=name, model=model) for name, model in config.get(role, {}).items())
        for role in ("policies", "reference")
    }
    spec = MixtureSpec(
        policies=members["policies"],
        reference=members["reference"][0] if members["reference"] else None,
    )
    path = folder / "weights.json"
    found = from_document(json.loads(path.read_text()), source=str(path))
    assert for_mixture(found, spec, source=str(path)).version == 1


def test_autoscaler_asks_for_what_the_adapter_offers() -> None:
    adapter = yaml.safe_load((KUBERNETES / "monitoring" / "adapter-values.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    served = rule["seriesQuery"].partition("{")[0].replace("vllm:", "vllm_")
    (metric,) = _base("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == served
