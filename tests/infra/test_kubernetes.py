"""Manifests as kustomize builds them, against the rules of Kubernetes and KubeRay."""

from __future__ import annotations

import datetime
import functools
import importlib.util
import json
import re
import shlex
import shutil
import string
import subprocess
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml

from jobs import nightly
from pipeline.config import Config, Execution, load_config
from pipeline.distributed.resources import share_out

ROOT = Path(__file__).parents[2]
CRDS = ROOT.parent / "shared" / "kuberay-crds"
GUIDE = ROOT / "infra" / "guides" / "kubernetes.md"
DS = "2026-01-31"
MOUNT = "/etc/dec-pipeline"
KUBERNETES = "1.31"  # the oldest version with podFailurePolicy

OVERLAYS = ["cpu", "gpu", "spot", "kueue", "minio-dev"]
SCHEDULES = ["cronjob", "raycronjob"]
PATHS = [f"overlays/{overlay}" for overlay in OVERLAYS]
NIGHTLIES = [f"nightly-{overlay}-{schedule}" for overlay in OVERLAYS for schedule in SCHEDULES]

# KubeRay's own rules, which its CRD can't express (ray-operator: validation.go).
MAX_RAYJOB_NAME = 47
RANDOM_SUFFIX = "-xxxxx"  # what a RayCronJob appends to its name
DNS_1035_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")

Document = dict[str, Any]
Build = Callable[[str], list[Document]]

# ---------------------------------------------------------------------------------- the builds


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the manifests, with the files that each user adds: credentials and a schedule."""
    root = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "configs", root / "configs")
    kubernetes = root / "infra" / "kubernetes"
    shutil.copytree(ROOT / "infra" / "kubernetes", kubernetes)
    (kubernetes / "overlays" / "minio-dev" / "credentials.env").write_text(
        "AWS_ACCESS_KEY_ID=dev\nAWS_SECRET_ACCESS_KEY=of-this-test\n"
    )
    text = (kubernetes / "nightly" / "kustomization.yaml").read_text()
    for overlay in OVERLAYS:
        for schedule in SCHEDULES:
            folder = kubernetes / f"nightly-{overlay}-{schedule}"
            folder.mkdir()
            chosen = text.replace("overlays/cpu", f"overlays/{overlay}")
            chosen = chosen.replace("[../components/cronjob]", f"[../components/{schedule}]")
            (folder / "kustomization.yaml").write_text(chosen)
    return kubernetes


@pytest.fixture(scope="module")
def text_of(tree: Path) -> Callable[[str], str]:
    """Output of kustomize for a folder of infra/kubernetes."""
    if shutil.which("kustomize"):
        command = ["kustomize", "build"]
    elif shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    else:
        pytest.skip("neither kustomize nor kubectl is on the PATH: overlays cannot be built")

    @functools.cache
    def built(path: str) -> str:
        done = subprocess.run([*command, tree / path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return built


@pytest.fixture(scope="module")
def build(text_of: Callable[[str], str]) -> Build:
    """Output of kustomize as documents; for one night, where there is a date to fill in."""

    def documents(path: str) -> list[Document]:
        text = text_of(path)
        if path.startswith("overlays/"):
            text = string.Template(text).substitute(DS=DS)
        return list(yaml.safe_load_all(text))

    return documents


def one(documents: list[Document], kind: str, name: str | None = None) -> Document:
    (found,) = (d for d in documents if d["kind"] == kind and name in (None, d["metadata"]["name"]))
    return found


def spec_of(documents: list[Document]) -> Document:
    """The spec of the RayJob, also where it waits in a RayCronJob."""
    if any(d["kind"] == "RayCronJob" for d in documents):
        return one(documents, "RayCronJob")["spec"]["jobTemplate"]  # type: ignore[no-any-return]
    return one(documents, "RayJob")["spec"]  # type: ignore[no-any-return]


def ray_templates(spec: Document) -> list[tuple[str, int, Document]]:
    """(group, number, template) of all pods that a RayJob has."""
    cluster = spec["rayClusterSpec"]
    return [
        ("submitter", 1, spec["submitterPodTemplate"]),
        ("head", 1, cluster["headGroupSpec"]["template"]),
        *((g["groupName"], g["replicas"], g["template"]) for g in cluster["workerGroupSpecs"]),
    ]


def pod_templates(documents: list[Document]) -> list[Document]:
    """Templates of all pods that these documents create."""
    templates = [template for _, _, template in ray_templates(spec_of(documents))]
    for document in documents:
        if document["kind"] in ("Deployment", "Job"):
            templates.append(document["spec"]["template"])
        if document["kind"] == "CronJob":
            templates.append(document["spec"]["jobTemplate"]["spec"]["template"])
    return templates


def given_to(spec: Document) -> tuple[str, list[str]]:
    """The config and the overrides of an entrypoint, as our command line takes them."""
    python, option, module, *arguments = shlex.split(spec["entrypoint"])
    assert (python, option, module) == ("python", "-m", nightly.__name__)
    given = nightly.parser().parse_args(arguments)
    return given.config, given.set


def night_of(documents: list[Document], tmp_path: Path) -> Config:
    """The config that a run in these pods has, overrides included."""
    spec = spec_of(documents)
    template = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,) = (m for m in template["containers"][0]["volumeMounts"] if m["mountPath"] == MOUNT)
    assert mount["readOnly"] is True
    (volume,) = (v for v in template["volumes"] if v["name"] == mount["name"])
    data = one(documents, "ConfigMap", volume["configMap"]["name"])["data"]
    config, overrides = given_to(spec)
    assert config == f"{MOUNT}/night.yaml"
    assert set(data) == {"night.yaml"}
    path = tmp_path / "night.yaml"
    path.write_text(data["night.yaml"])
    return load_config(str(path), overrides)


# --------------------------------------------------------------------------------- the schemas

# The CRD leaves the top-level metadata open: the API server knows what belongs there.
OBJECT_META = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def closed(schema: Document) -> Document:
    """The schema as the API server enforces it: an unknown field is an error."""
    schema = dict(schema)
    if "properties" in schema:
        schema["properties"] = {n: closed(inner) for n, inner in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            schema[name] = closed(schema[name])
    return schema


@pytest.fixture(scope="module")
def kuberay() -> Callable[[str], jsonschema.Draft202012Validator]:
    """Schema of one of KubeRay's kinds."""
    if not CRDS.exists():
        pytest.skip(f"KubeRay's CRDs are not at {CRDS}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a megabyte: C takes a tenth

    @functools.cache
    def schema_of(kind: str) -> jsonschema.Draft202012Validator:
        text = (CRDS / f"ray.io_{kind.lower()}s.yaml").read_text()
        crd = yaml.load(text, Loader=loader)
        (version,) = (v for v in crd["spec"]["versions"] if v["name"] == "v1")
        schema = version["schema"]["openAPIV3Schema"]
        schema["properties"]["metadata"] = OBJECT_META
        return jsonschema.Draft202012Validator(closed(schema))

    return schema_of


@pytest.mark.parametrize("path", PATHS + NIGHTLIES)
def test_kinds_of_kubernetes_are_valid(path: str, build: Build) -> None:
    plain = [d for d in build(path) if not d["apiVersion"].startswith("ray.io/")]
    assert {d["kind"] for d in plain} >= {"ConfigMap", "NetworkPolicy", "PodDisruptionBudget"}
    for document in plain:
        for version in (KUBERNETES, kubernetes_validate.latest_version()):
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("path", PATHS + NIGHTLIES)
def test_kinds_of_kuberay_are_valid(
    path: str, build: Build, kuberay: Callable[[str], jsonschema.Draft202012Validator]
) -> None:
    (document,) = (d for d in build(path) if d["apiVersion"] == "ray.io/v1")
    errors = kuberay(document["kind"]).iter_errors(document)
    assert [(e.json_path, e.message) for e in errors] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "backofLimit"], 2),
        (["spec", "backoffLimit"], "2"),
        (["metadata", "label"], {}),
        (["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "serviceAcount"], "x"),
        (["spec", "rayClusterSpec", "authOptions", "mode"], "tokens"),
        (["spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"], 0),
    ],
)
def test_mistake_in_rayjob_is_found(
    build: Build,
    kuberay: Callable[[str], jsonschema.Draft202012Validator],
    path: list[str],
    value: Any,
) -> None:
    rayjob = one(build("overlays/cpu"), "RayJob")
    inner = rayjob
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    (error,) = kuberay("RayJob").iter_errors(rayjob)
    assert path[-1] in error.message or path[-1] in error.json_path


def test_mistake_in_a_kind_of_kubernetes_is_found(build: Build) -> None:
    cronjob = one(build("nightly-cpu-cronjob"), "CronJob")
    cronjob["spec"]["startingDeadline"] = 1
    with pytest.raises(jsonschema.ValidationError, match="startingDeadline"):
        kubernetes_validate.validate(cronjob, KUBERNETES, strict=True)


@pytest.mark.parametrize("path", PATHS + NIGHTLIES)
def test_rayjob_keeps_the_rules_that_kuberay_enforces_itself(path: str, build: Build) -> None:
    documents = build(path)
    spec = spec_of(documents)
    cluster = spec["rayClusterSpec"]
    assert (
        cluster["authOptions"]["mode"] == "token"
    )  # Ray executes the code of anyone who can reach it
    rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
    # Kueue's way or the rules: one excludes the other.
    assert spec.get("shutdownAfterJobFinishes", False) is not bool(rules)
    assert "suspend" not in spec or spec["shutdownAfterJobFinishes"]
    assert "ttlSecondsAfterFinished" not in spec or spec["shutdownAfterJobFinishes"]
    later = ["DeleteWorkers", "DeleteCluster", "DeleteSelf"]
    for status in ("SUCCEEDED", "FAILED", "Failed"):
        seconds = {
            rule["policy"]: rule["condition"].get("ttlSeconds", 0)
            for rule in rules
            if status in rule["condition"].values()
        }
        in_order = [seconds[policy] for policy in later if policy in seconds]
        assert in_order == sorted(in_order)
        assert not rules or "DeleteCluster" in seconds  # no cluster stays for ever


def test_ray_is_the_one_that_the_project_pins(build: Build) -> None:
    pin = re.search(r'"ray\[.*\]==([\d.]+)\.\*"', (ROOT / "pyproject.toml").read_text())
    assert pin
    assert spec_of(build("overlays/cpu"))["rayClusterSpec"]["rayVersion"].startswith(f"{pin[1]}.")


# ------------------------------------------------------------------------------- which night


@pytest.mark.parametrize("path", PATHS)
def test_date_is_all_that_is_left_to_substitute(
    path: str, text_of: Callable[[str], str], build: Build
) -> None:
    text = text_of(path)
    assert set(string.Template(text).get_identifiers()) == {"DS"}
    # Without it the API server refuses the name.
    rayjob = one(list(yaml.safe_load_all(text)), "RayJob")
    assert not DNS_1035_LABEL.fullmatch(rayjob["metadata"]["name"])
    substituted = one(build(path), "RayJob")
    name = substituted["metadata"]["name"]
    assert DNS_1035_LABEL.fullmatch(name)
    assert len(name) <= MAX_RAYJOB_NAME
    assert f"--ds {DS}" in substituted["spec"]["entrypoint"]


@pytest.mark.parametrize("path", PATHS)
def test_envsubst_substitutes_it(path: str, text_of: Callable[[str], str], build: Build) -> None:
    if shutil.which("envsubst") is None:
        pytest.skip("envsubst (gettext) is not on the PATH")
    done = subprocess.run(
        ["envsubst", "$DS"],
        input=text_of(path),
        env={"DS": DS, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert list(yaml.safe_load_all(done.stdout)) == build(path)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_scheduled_is_what_the_overlay_says(overlay: str, build: Build) -> None:
    rayjob = one(build(f"overlays/{overlay}"), "RayJob")
    for schedule in SCHEDULES:
        documents = build(f"nightly-{overlay}-{schedule}")
        assert not [d for d in documents if d["kind"] == "RayJob"]
        held = one(documents, "RayCronJob")
        assert held["spec"].get("suspend", False) is (schedule == "cronjob")
        template = json.loads(json.dumps(held["spec"]["jobTemplate"]).replace("${DS}", DS))
        if schedule == "raycronjob":
            expression = held["metadata"]["annotations"]["dec-ds"]
            assert f" --ds {expression}" in template["entrypoint"]
            template["entrypoint"] = template["entrypoint"].replace(expression, DS)
            name = held["metadata"]["name"] + RANDOM_SUFFIX
            assert len(name) <= MAX_RAYJOB_NAME
        else:
            assert held["metadata"]["labels"] == rayjob["metadata"]["labels"]
        assert template == rayjob["spec"]


def test_date_that_a_raycronjob_computes_is_yesterday(build: Build) -> None:
    held = one(build("nightly-cpu-raycronjob"), "RayCronJob")
    before = datetime.datetime.now(datetime.UTC).date()
    entrypoint = held["spec"]["jobTemplate"]["entrypoint"]
    # Ray runs it in a shell.
    said = subprocess.run(f"echo {entrypoint}", shell=True, capture_output=True, text=True).stdout
    given = nightly.parser().parse_args(shlex.split(said)[3:])
    after = datetime.datetime.now(datetime.UTC).date()
    day = datetime.timedelta(days=1)
    assert given.ds in {(before - day).isoformat(), (after - day).isoformat()}


# ------------------------------------------------------------------------------- the config


@pytest.mark.parametrize("path", PATHS + NIGHTLIES)
def test_entrypoint_is_a_command_of_ours_and_finds_its_config(
    path: str, build: Build, tmp_path: Path
) -> None:
    documents = build(path)
    if "raycronjob" in path:
        spec = spec_of(documents)
        spec["entrypoint"] = re.sub(r"\$\(.*\)", DS, spec["entrypoint"])
    night = night_of(documents, tmp_path)
    if "minio-dev" in path:
        return
    _, overrides = given_to(spec_of(documents))
    assert night == load_config(str(ROOT / "configs" / "nightly.yaml"), overrides)


def test_minio_is_where_the_config_of_minio_dev_looks(build: Build, tmp_path: Path) -> None:
    documents = build("overlays/minio-dev")
    night = night_of(documents, tmp_path)
    service = one(documents, "Service")
    (port,) = service["spec"]["ports"]
    endpoint = f"http://{service['metadata']['name']}:{port['port']}"
    assert night.storage.endpoint == endpoint
    (container,) = one(documents, "Job")["spec"]["template"]["spec"]["containers"]
    assert f'endpoint_url="{endpoint}"' in container["command"][-1]
    for location in (night.output, night.source.path):
        assert str(location).startswith("s3://dec-dev/")
    deployment = one(documents, "Deployment")["spec"]
    assert service["spec"]["selector"].items() <= deployment["selector"]["matchLabels"].items()
    compose = yaml.safe_load((ROOT / "infra" / "minio" / "compose.yaml").read_text())
    (image,) = {c["image"] for c in deployment["template"]["spec"]["containers"]}
    assert image == compose["services"]["minio"]["image"]


def test_minio_dev_makes_its_bucket(
    build: Build, s3_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command, on a real endpoint under another name."""
    (container,) = one(build("overlays/minio-dev"), "Job")["spec"]["template"]["spec"]["containers"]
    python, option, program = container["command"]
    assert (python, option) == ("python", "-c")
    from pipeline.storage import s3

    program = program.replace("http://minio:9000", s3_env["AWS_ENDPOINT_URL"])
    for _ in range(2):  # the second time it is there already
        exec(compile(program, "minio.yaml", "exec"), {})
    store = s3.client("s3://dec-dev")
    assert store.exists("dec-dev")
    store.rmdir("dec-dev")


def test_without_credentials_minio_dev_does_not_build(tree: Path, build: Build) -> None:
    build("overlays/minio-dev")
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not on the PATH")
    credentials = tree / "overlays" / "minio-dev" / "credentials.env"
    text = credentials.read_text()
    credentials.unlink()
    done = subprocess.run(
        ["kubectl", "kustomize", credentials.parent], capture_output=True, text=True
    )
    credentials.write_text(text)
    assert done.returncode != 0
    assert "credentials.env" in done.stderr
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/infra/kubernetes/overlays/minio-dev/credentials.env" in ignored


# ----------------------------------------------------------------------------- the resources


def amount(quantity: str) -> float:
    """A quantity of Kubernetes as a number."""
    units = {"m": 1e-3, "Mi": 2**20, "Gi": 2**30}
    for unit, factor in units.items():
        if quantity.endswith(unit):
            return float(quantity.removesuffix(unit)) * factor
    return float(quantity)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_cluster_holds_the_workers(
    overlay: str, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = build(f"overlays/{overlay}")
    night = night_of(documents, tmp_path)
    cluster = spec_of(documents)["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    nodes: list[Document] = [{"Alive": True, "Resources": {}, "NodeID": "head"}]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]  # KubeRay passes them on to `ray start`
        resources = {"CPU": amount(limits["cpu"])}
        if gpus := limits.get("nvidia.com/gpu"):
            resources["GPU"] = amount(gpus)
        for _ in range(group["replicas"]):
            nodes.append({"Alive": True, "Resources": resources, "NodeID": f"node-{len(nodes)}"})
        if night.execution.gpus_per_worker > resources.get("GPU", 0):
            continue
        # Ray's object store is 30 %; training caches its rows in the rest.
        here = night.execution.workers / group["replicas"]
        assert 0.7 * amount(limits["memory"]) >= here * (night.execution.cache_mib + 450) * 2**20
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert share_out(night.execution).workers == night.execution.workers


def test_requests_add_up_to_what_the_guide_says(build: Build) -> None:
    rows = re.findall(
        r"^\| `([\w-]+)` \| (\d+) \| ([\d.]+) \| ([\d.]+) GiB \| (\d+) \|$",
        GUIDE.read_text(),
        flags=re.MULTILINE,
    )
    said = {name: tuple(map(float, numbers)) for name, *numbers in rows}
    computed = {}
    for overlay in OVERLAYS:
        pods, sums = 0, {"cpu": 0.0, "memory": 0.0, "nvidia.com/gpu": 0.0}
        for _, number, template in ray_templates(spec_of(build(f"overlays/{overlay}"))):
            pods += number
            for container in template["spec"]["containers"]:
                for name in sums:
                    requested = container["resources"]["requests"].get(name, "0")
                    sums[name] += number * amount(requested)
        cpus, memory, gpus = sums.values()
        computed[overlay] = (pods, round(cpus, 3), round(memory / 2**30, 3), gpus)
    assert said == computed


@pytest.mark.parametrize("path", PATHS + NIGHTLIES)
def test_every_container_has_requests_and_a_bound_on_memory(path: str, build: Build) -> None:
    for template in pod_templates(build(path)):
        for container in template["spec"]["containers"]:
            resources = container["resources"]
            assert set(resources["requests"]) >= {"cpu", "memory"}
            # Above its request, memory may be taken away when the node has none left.
            assert resources["limits"]["memory"] == resources["requests"]["memory"]


# -------------------------------------------------------------------------------- privileges


@pytest.mark.parametrize("path", PATHS + NIGHTLIES)
def test_every_pod_is_unprivileged(path: str, build: Build) -> None:
    """Kubernetes' Pod Security Standard `restricted`, and no token where none is needed."""
    for template in pod_templates(build(path)):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert not context.get("privileged")
        starts_nights = pod.get("serviceAccountName") == "dec-nightly"
        assert starts_nights or pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("path", PATHS + NIGHTLIES)
def test_every_pod_runs_the_same_tagged_image(path: str, build: Build) -> None:
    images = {c["image"] for t in pod_templates(build(path)) for c in t["spec"]["containers"]}
    ours = {image for image in images if not image.startswith("minio/")}
    assert len(ours) == 1
    name, _, tag = ours.pop().partition(":")
    assert name == "dec-pipeline"
    assert tag not in ("", "latest")
    assert tag.endswith("-gpu") is ("gpu" in path)


@pytest.mark.parametrize("path", PATHS + NIGHTLIES)
def test_no_value_is_a_credential(path: str, build: Build) -> None:
    documents = build(path)
    containers = [c for t in pod_templates(documents) for c in t["spec"]["containers"]]
    named = [variable for container in containers for variable in container.get("env", [])]
    assert all("value" not in v for v in named if re.search("KEY|SECRET|TOKEN|PASS", v["name"]))
    assert not re.search(r"AKIA[0-9A-Z]{16}", json.dumps(documents))
    secrets = [d for d in documents if d["kind"] == "Secret"]
    assert bool(secrets) is ("minio-dev" in path)


@pytest.mark.parametrize("path", PATHS + NIGHTLIES)
def test_policies_are_about_the_pods(path: str, build: Build) -> None:
    documents = build(path)
    selectors = [
        d["spec"]["podSelector"]["matchLabels"] for d in documents if d["kind"] == "NetworkPolicy"
    ]
    for template in pod_templates(documents):
        labels = template["metadata"]["labels"]
        assert sum(selector.items() <= labels.items() for selector in selectors) == 1
    budget = one(documents, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    head = spec_of(documents)["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"]["labels"]
    assert budget.items() <= (head | {"ray.io/node-type": "head"}).items()  # KubeRay adds it


@pytest.mark.parametrize("path", PATHS + NIGHTLIES)
def test_references_name_what_is_built(path: str, build: Build) -> None:
    documents = build(path)
    there = {(d["kind"], d["metadata"]["name"]) for d in documents}
    for template in pod_templates(documents):
        pod = template["spec"]
        if account := pod.get("serviceAccountName"):
            assert ("ServiceAccount", account) in there
        for volume in pod.get("volumes", []):
            assert "emptyDir" in volume or ("ConfigMap", volume["configMap"]["name"]) in there
        for source in (s for c in pod["containers"] for s in c.get("envFrom", [])):
            reference = source["secretRef"]
            assert reference.get("optional") or ("Secret", reference["name"]) in there
            if "minio-dev" in path:
                assert ("Secret", reference["name"]) in there


@pytest.mark.parametrize("path", PATHS + NIGHTLIES)
def test_pods_of_ray_have_the_time_that_a_run_takes_to_leave(path: str, build: Build) -> None:
    for group, _, template in ray_templates(spec_of(build(path))):
        if group != "submitter":
            seconds = template["spec"]["terminationGracePeriodSeconds"]
            assert seconds >= 2 * Execution().grace_seconds
        if group == "head":  # the driver's: Ray kills it three seconds after SIGTERM
            env = {v["name"]: v["value"] for v in template["spec"]["containers"][0]["env"]}
            assert Execution().grace_seconds < int(env["RAY_JOB_STOP_WAIT_TIME_S"]) < seconds


def test_spot_takes_the_workers_and_not_the_head(build: Build) -> None:
    cluster = spec_of(build("overlays/spot"))["rayClusterSpec"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert head["nodeSelector"] == {"karpenter.sh/capacity-type": "on-demand"}
    assert "tolerations" not in head
    for group in cluster["workerGroupSpecs"]:
        worker = group["template"]["spec"]
        assert worker["nodeSelector"] == {"karpenter.sh/capacity-type": "spot"}
        assert worker["tolerations"]


def test_kueue_finds_its_queue(build: Build) -> None:
    label = "kueue.x-k8s.io/queue-name"
    rayjob = one(build("overlays/kueue"), "RayJob")
    assert rayjob["metadata"]["labels"][label] == "dec-pipeline"
    assert rayjob["spec"]["suspend"] is True
    template = one(build("nightly-kueue-cronjob"), "RayCronJob")
    assert template["metadata"]["labels"][label] == "dec-pipeline"


# ------------------------------------------------------------------------------- every night


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_schedule_keeps_nights_apart_and_waits_for_all_attempts(overlay: str, build: Build) -> None:
    documents = build(f"nightly-{overlay}-cronjob")
    cronjob = one(documents, "CronJob")["spec"]
    assert cronjob["concurrencyPolicy"] == "Forbid"
    assert cronjob["timeZone"] == "Etc/UTC"
    rayjob = spec_of(documents)
    attempt = rayjob["activeDeadlineSeconds"] + rayjob["preRunningDeadlineSeconds"]
    all_attempts = (rayjob["backoffLimit"] + 1) * attempt
    assert cronjob["jobTemplate"]["spec"]["activeDeadlineSeconds"] > all_attempts


@pytest.fixture(scope="module")
def start_night() -> Any:
    """The program in the CronJob's pod."""
    path = ROOT / "infra" / "kubernetes" / "components" / "cronjob" / "start_night.py"
    spec = importlib.util.spec_from_file_location("start_night", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ApiServer(ThreadingHTTPServer):
    """Objects by path over HTTP; allows what the built Role allows: get and create, no more."""

    def __init__(self, rules: list[Document]) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.rules = rules
        self.objects: dict[str, Document] = {}
        self.tokens: set[str] = set()

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self.server_address)

    def allows(self, verb: str, group: str, plural: str, name: str) -> bool:
        return any(
            group in rule["apiGroups"]
            and plural in rule["resources"]
            and verb in rule["verbs"]
            and (not rule.get("resourceNames") or name in rule["resourceNames"])
            for rule in self.rules
        )


class _Requests(BaseHTTPRequestHandler):
    server: ApiServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("get", 200 if self.path in self.server.objects else 404, self.path)

    def do_POST(self) -> None:
        created = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = f"{self.path}/{created['metadata']['name']}"
        status = 409 if path in self.server.objects else 201
        if self._answer("create", status, path, created) == 201:
            self.server.objects[path] = created

    def _answer(self, verb: str, status: int, path: str, created: Document | None = None) -> int:
        self.server.tokens.add(self.headers["Authorization"])
        _, _, group, _, _, _, plural, name = path.split("/")
        if not self.server.allows(verb, group, plural, "" if verb == "create" else name):
            status = 403
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(created or self.server.objects.get(path, {})).encode())
        return status


@pytest.fixture
def server(build: Build) -> Iterator[ApiServer]:
    """An API server with the template of `nightly-kueue-cronjob`, as its Role has it."""
    documents = build("nightly-kueue-cronjob")
    account = one(documents, "ServiceAccount", "dec-nightly")["metadata"]
    (subject,) = one(documents, "RoleBinding")["subjects"]
    assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
    made = ApiServer(one(documents, "Role")["rules"])
    template = one(documents, "RayCronJob")
    made.objects[f"{RAY}/raycronjobs/{template['metadata']['name']}"] = template
    Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


RAY = "/apis/ray.io/v1/namespaces/dec-pipeline"
JOBS = "/apis/batch/v1/namespaces/dec-pipeline/jobs"


@pytest.fixture
def api(server: ApiServer, start_night: Any, tmp_path: Path) -> Any:
    (tmp_path / "token").write_text("of-this-pod")
    (tmp_path / "namespace").write_text("dec-pipeline")
    return start_night.Api(server.url, tmp_path)


def test_night_is_the_one_that_was_scheduled(
    server: ApiServer, api: Any, start_night: Any, build: Build
) -> None:
    # Due on the first at two; it has the same date whenever its pod starts.
    scheduled = {"batch.kubernetes.io/cronjob-scheduled-timestamp": "2026-02-01T02:00:00Z"}
    server.objects[f"{JOBS}/dec-nightly-29498520"] = {
        "metadata": {"name": "dec-nightly-29498520", "annotations": scheduled}
    }
    night = functools.partial(start_night.start, api, "dec-nightly-29498520", "dec-nightly", 1)
    assert night() == f"dec-nightly-{DS}"
    created = server.objects[f"{RAY}/rayjobs/dec-nightly-{DS}"]
    expected = one(build("overlays/kueue"), "RayJob")
    assert created["spec"] == expected["spec"]
    assert created["metadata"]["labels"] == expected["metadata"]["labels"]
    assert server.tokens == {"Bearer of-this-pod"}
    # Its pod restarts, or the same night is started by hand: one RayJob.
    created["status"] = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    assert night() == f"dec-nightly-{DS}"
    assert server.objects[f"{RAY}/rayjobs/dec-nightly-{DS}"] is created
    assert start_night.wait(api, f"dec-nightly-{DS}") is True
    created["status"] = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED"}
    assert start_night.wait(api, f"dec-nightly-{DS}") is False
    # A RayJob that was deleted to end the night does not come back.
    del server.objects[f"{RAY}/rayjobs/dec-nightly-{DS}"]
    assert start_night.wait(api, f"dec-nightly-{DS}") is False


@pytest.mark.parametrize(
    ("name", "night"),
    [("start-2026-01-31", DS), ("start-31", None), ("dec-nightly-2026-01-31", None)],
)
def test_job_made_by_hand_has_the_date_in_its_name(
    name: str, night: str | None, server: ApiServer, api: Any, start_night: Any
) -> None:
    manual = {"cronjob.kubernetes.io/instantiate": "manual"}
    server.objects[f"{JOBS}/{name}"] = {"metadata": {"name": name, "annotations": manual}}
    created = start_night.start(api, name, "dec-nightly", 1)
    assert created == (night and f"dec-nightly-{night}")


def test_the_account_that_starts_nights_may_do_nothing_else(server: ApiServer) -> None:
    assert server.allows("create", "ray.io", "rayjobs", "")
    for verb in ("delete", "update", "patch", "list", "watch", "deletecollection", "*"):
        assert not server.allows(verb, "ray.io", "rayjobs", f"dec-nightly-{DS}")
    assert not server.allows("get", "", "secrets", "dec-pipeline-s3")


def test_pod_of_the_schedule_has_what_its_program_takes(build: Build, start_night: Any) -> None:
    documents = build("nightly-cpu-cronjob")
    pod = one(documents, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    program = Path(start_night.__file__)
    assert container["command"][0] == "python"
    (mount,) = container["volumeMounts"]
    assert container["command"][1] == f"{mount['mountPath']}/{program.name}"
    (volume,) = pod["volumes"]
    data = one(documents, "ConfigMap", volume["configMap"]["name"])["data"]
    assert data == {program.name: program.read_text()}
    taken = set(re.findall(r'os\.environ\["(\w+)"\]', program.read_text()))
    assert {variable["name"] for variable in container["env"]} == taken
    values = {v["name"]: v.get("value") for v in container["env"]}
    assert values["TEMPLATE"] == one(documents, "RayCronJob")["metadata"]["name"]
