"""The manifests against Kubernetes' own schemas, against the daemon's settings, and against what they promise."""

import os
import pathlib
import subprocess

import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MANIFESTS = sorted((ROOT / "tools/deploy/kubernetes").glob("*.yaml"))
DOCUMENTS = [d for path in MANIFESTS for d in yaml.safe_load_all(path.read_text())]
STATEFUL_SET = next(d for d in DOCUMENTS if d["kind"] == "StatefulSet")
CONTAINER = STATEFUL_SET["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: f"{d['kind']}-{d['metadata']['name']}")
def test_every_object_fits_its_schema(document):
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_a_wrong_field_would_be_found():
    broken = {**STATEFUL_SET, "spec": {**STATEFUL_SET["spec"], "replica": 3}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


def test_the_daemon_takes_the_arguments_and_the_environment(tmp_path):
    values = {"POD_IP": "10.1.2.3", "POD_NAMESPACE": "shop", "CAIRN_NAME": "cairn-0", "CAIRN_ZONE": ""}
    arguments = [a for a in CONTAINER["args"]]
    for name, value in values.items():
        arguments = [a.replace(f"$({name})", value) for a in arguments]
    assert {e["name"] for e in CONTAINER["env"]} == set(values)
    done = subprocess.run([ROOT / "build/release/bin/cairnd", *arguments, "--check-config"], capture_output=True,
                          text=True, env={**os.environ, **values})
    assert done.returncode == 0, done.stderr
    settings = yaml.safe_load(done.stdout)
    assert settings["name"] == "cairn-0" and settings["bootstrap_expect"] == STATEFUL_SET["spec"]["replicas"]
    assert settings["discover"] == ["dns:cairn-peers.shop.svc.cluster.local"]


def test_what_goes_together_fits_together():
    services = {d["metadata"]["name"]: d["spec"] for d in DOCUMENTS if d["kind"] == "Service"}
    spec = STATEFUL_SET["spec"]
    labels = spec["template"]["metadata"]["labels"]
    peers = services[spec["serviceName"]]
    assert peers["clusterIP"] == "None" and peers["publishNotReadyAddresses"] is True
    ports = {p["name"] for p in CONTAINER["ports"]}
    for service in services.values():
        assert service["selector"] == labels and all(p["targetPort"] in ports for p in service["ports"])
    budget = next(d for d in DOCUMENTS if d["kind"] == "PodDisruptionBudget")["spec"]
    assert budget["selector"]["matchLabels"] == labels and budget["maxUnavailable"] == 1
    pod = spec["template"]["spec"]
    pause = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= pause + 10 + 5  # --drain-timeout, and a margin
    assert CONTAINER["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert CONTAINER["livenessProbe"]["httpGet"]["path"] == CONTAINER["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert pod["affinity"]["podAntiAffinity"] and pod["topologySpreadConstraints"]
    assert CONTAINER["resources"]["requests"] and CONTAINER["resources"]["limits"]["memory"]
