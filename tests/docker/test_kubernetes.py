"""docker/kubernetes: every object against the published schemas, and what schemas do not say (D13)."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml

from harness import product

KUBERNETES = product.ROOT / "docker" / "kubernetes"
VERSIONS = ("1.29", "1.37")


def objects(overlay: str) -> list[dict]:
    """What kubectl makes of an overlay; without it the files of the base as they are."""
    kubectl = shutil.which("kubectl")
    if not kubectl:
        if overlay != "base":
            pytest.skip("kubectl is not installed: overlays cannot be built")
        files = [p for p in pathlib.Path(KUBERNETES / overlay).glob("*.yaml") if p.name != "kustomization.yaml"]
        return [d for p in files for d in yaml.safe_load_all(p.read_text())]
    done = subprocess.run([kubectl, "kustomize", str(KUBERNETES / overlay)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("overlay", ["base", "overlays/try", "overlays/production"])
def test_schemas(overlay: str) -> None:
    """D13: strictly valid (no unknown field) for the oldest and the newest version."""
    found = objects(overlay)
    kinds = {o["kind"] for o in found}
    assert {"Deployment", "Service", "NetworkPolicy"} <= kinds
    assert ({"HorizontalPodAutoscaler", "PodDisruptionBudget"} <= kinds) == (overlay != "overlays/try")
    for o in found:
        for version in VERSIONS:
            kubernetes_validate.validate(o, version, strict=True)


@pytest.mark.parametrize("overlay", ["base", "overlays/production"])
def test_what_schemas_do_not_say(overlay: str) -> None:
    """D13: selectors meet the pods, ports the names, probes and grace periods each other. D10: readiness is turned on and asked."""
    found = objects(overlay)
    deployment = next(o for o in found if o["kind"] == "Deployment")["spec"]
    pod = deployment["template"]
    labels = {"app.kubernetes.io/name": "site"}
    if overlay != "base":
        assert labels.items() <= pod["metadata"]["labels"].items()
    assert deployment["selector"]["matchLabels"] == labels
    for o in found:
        if o["kind"] == "Service":
            assert o["spec"]["selector"] == labels
        if o["kind"] == "PodDisruptionBudget":
            assert o["spec"]["selector"]["matchLabels"] == labels
        if o["kind"] == "NetworkPolicy":
            assert o["spec"]["podSelector"]["matchLabels"] == labels
            for rule in o["spec"].get("egress", []):
                for to in rule["to"]:
                    assert "app.kubernetes.io/name" not in to["podSelector"]["matchLabels"] or (
                        to["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "postgresql"}
                    )
    spec = pod["spec"]
    web = spec["containers"][0]
    assert [p["name"] for p in web["ports"]] == ["http"] and web["ports"][0]["containerPort"] == 8000
    assert spec["enableServiceLinks"] is False
    ready = web["readinessProbe"]["httpGet"]
    assert ready == {"path": "/-/mod-wsgi-rs/ready", "port": "http"}
    assert {"name": "MOD_WSGI_RS_READINESS", "value": "1"} in web["env"]
    assert all(web[p]["exec"]["command"][1:] == ["ctl", "live"] for p in ("livenessProbe", "startupProbe"))
    delay = int(web["lifecycle"]["preStop"]["exec"]["command"][-1].split("sleep ")[1])
    assert spec["terminationGracePeriodSeconds"] > delay + 5 + 5
    mounts = {m["mountPath"] for m in web["volumeMounts"]}
    assert {"/run/mod-wsgi-rs", "/var/tmp"} <= mounts
    assert {m["name"] for m in web["volumeMounts"]} == {v["name"] for v in spec["volumes"]}
