"""What we ship for running it elsewhere is checked against what it will meet there."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shlex
import string
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from jobs import nightly
from pipeline import errors
from pipeline.config import Config, load_config
from pipeline.distributed.resources import share_out

ROOT = Path(__file__).parents[2]
CRDS = ROOT.parent / "shared" / "kuberay-crds"
MANIFESTS = sorted((ROOT / "infra" / "kubernetes").rglob("*.yaml"))
DS = "2026-01-31"
MOUNT = "/etc/dec-pipeline"

# KubeRay's own rules, which its CRD can't express (ray-operator: ValidateRayJobMetadata).
MAX_RAYJOB_NAME = 47
DNS_1035_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")

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


def documents() -> list[dict[str, Any]]:
    """Every document of every manifest, for one night."""
    texts = (string.Template(path.read_text()).substitute(DS=DS) for path in MANIFESTS)
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def of_kind(kind: str) -> list[dict[str, Any]]:
    found = [document for document in documents() if document["kind"] == kind]
    assert found, f"no {kind} in {[str(path) for path in MANIFESTS]}"
    return found


@pytest.fixture
def rayjob() -> dict[str, Any]:
    (job,) = of_kind("RayJob")
    return job


@pytest.fixture
def night(tmp_path: Path) -> Config:
    """The config that the RayJob's pods find."""
    (configs,) = of_kind("ConfigMap")
    path = tmp_path / "night.yaml"
    path.write_text(configs["data"]["night.yaml"])
    return load_config(str(path))


# ------------------------------------------------------------------------------------ the CRD


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as the API server enforces it: a field that it does not know is an error."""
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
def rayjob_schema() -> jsonschema.Draft202012Validator:
    path = CRDS / "ray.io_rayjobs.yaml"
    if not path.exists():
        pytest.skip(f"KubeRay's CRDs are not at {path.parent}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a megabyte: C takes a tenth
    crd = yaml.load(path.read_text(), Loader=loader)
    (version,) = (v for v in crd["spec"]["versions"] if v["name"] == "v1")
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = OBJECT_META
    return jsonschema.Draft202012Validator(closed(schema))


def test_rayjob_is_valid(
    rayjob: dict[str, Any], rayjob_schema: jsonschema.Draft202012Validator
) -> None:
    assert rayjob["apiVersion"] == "ray.io/v1"
    assert [(e.json_path, e.message) for e in rayjob_schema.iter_errors(rayjob)] == []


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
    rayjob: dict[str, Any],
    rayjob_schema: jsonschema.Draft202012Validator,
    path: list[str],
    value: Any,
) -> None:
    inner = rayjob
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    (error,) = rayjob_schema.iter_errors(rayjob)
    assert path[-1] in error.message or path[-1] in error.json_path


# ------------------------------------------------------------------------------ the manifests


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_only_ds_is_left_to_substitute(path: Path) -> None:
    assert set(string.Template(path.read_text()).get_identifiers()) <= {"DS"}


def test_rayjob_name_is_one_that_kuberay_accepts(rayjob: dict[str, Any]) -> None:
    name = rayjob["metadata"]["name"]
    assert DNS_1035_LABEL.fullmatch(name)
    assert len(name) <= MAX_RAYJOB_NAME


def test_rayjob_without_ds_has_no_valid_name() -> None:
    names = [
        document["metadata"]["name"]
        for path in MANIFESTS
        for document in yaml.safe_load_all(path.read_text())
        if document["kind"] == "RayJob"
    ]
    assert names
    assert not any(DNS_1035_LABEL.fullmatch(name) for name in names)


def test_entrypoint_is_a_command_of_ours(rayjob: dict[str, Any]) -> None:
    python, option, module, *arguments = shlex.split(rayjob["spec"]["entrypoint"])
    assert (python, option, module) == ("python", "-m", nightly.__name__)
    given = nightly.parser().parse_args(arguments)
    assert given.ds == DS
    assert given.config == f"{MOUNT}/night.yaml"


def test_config_is_where_the_entrypoint_looks(rayjob: dict[str, Any]) -> None:
    (configs,) = of_kind("ConfigMap")
    pod = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,) = (m for m in pod["containers"][0]["volumeMounts"] if m["mountPath"] == MOUNT)
    (volume,) = (v for v in pod["volumes"] if v["name"] == mount["name"])
    assert volume["configMap"]["name"] == configs["metadata"]["name"]
    assert set(configs["data"]) == {"night.yaml"}


def test_ray_is_the_one_that_the_project_pins(rayjob: dict[str, Any]) -> None:
    pin = re.search(r'"ray\[.*\]==([\d.]+)\.\*"', (ROOT / "pyproject.toml").read_text())
    assert pin
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"].startswith(f"{pin[1]}.")


def test_every_pod_is_unprivileged(rayjob: dict[str, Any]) -> None:
    for pod in _pods(rayjob):
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_every_pod_runs_the_same_tagged_image(rayjob: dict[str, Any]) -> None:
    (image,) = {c["image"] for pod in _pods(rayjob) for c in pod["containers"]}
    name, _, tag = image.partition(":")
    assert name == "dec-pipeline"
    assert tag not in ("", "latest")


def test_no_value_is_a_credential(rayjob: dict[str, Any]) -> None:
    containers = [c for pod in _pods(rayjob) for c in pod["containers"]]
    named = [variable for container in containers for variable in container.get("env", [])]
    assert all("value" not in v for v in named if re.search("KEY|SECRET|TOKEN", v["name"]))
    assert not re.search(r"AKIA[0-9A-Z]{16}", json.dumps(documents()))


def test_cluster_holds_the_workers(
    rayjob: dict[str, Any], night: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = rayjob["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = cluster["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    cpus = float(container["resources"]["limits"]["cpu"])  # KubeRay passes it on as num-cpus
    nodes = [{"Alive": True, "Resources": {"CPU": cpus}}] * group["replicas"]
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {}}, *nodes])
    assert share_out(night.execution).workers == night.execution.workers


def _pods(rayjob: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = rayjob["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    templates = [rayjob["spec"]["submitterPodTemplate"], *(group["template"] for group in groups)]
    return [template["spec"] for template in templates]


# -------------------------------------------------------------------------------- the configs


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_config_loads(path: Path) -> None:
    load_config(str(path))


def test_manifest_says_what_the_commented_config_says(night: Config) -> None:
    assert night == load_config(str(ROOT / "configs" / "nightly.yaml"))


# ---------------------------------------------------------------------------------- the image


@pytest.fixture
def dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments."""
    text = (ROOT / "infra" / "docker" / "Dockerfile").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    return [
        (name.upper(), rest.strip())
        for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def _let_in(path: str) -> bool:
    """Whether .dockerignore, which begins by leaving out everything, lets this path in."""
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in patterns if line and not line.startswith("#")) == "*"
    return f"!{path}" in patterns


def test_image_copies_what_is_there(dockerfile: list[tuple[str, str]]) -> None:
    copied = [rest.split()[:-1] for name, rest in dockerfile if name == "COPY"]
    sources = [path for paths in copied if not paths[0].startswith("--from=") for path in paths]
    assert {"pyproject.toml", "constraints.txt", "pipeline", "jobs"} <= set(sources)
    assert [path for path in sources if not (ROOT / path).exists()] == []
    assert [path for path in sources if not _let_in(path)] == []


def test_image_has_all_packages_of_the_project(dockerfile: list[tuple[str, str]]) -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    copied = {rest.split()[0] for name, rest in dockerfile if name == "COPY"}
    assert packages - {"tests"} <= copied


def test_image_starts_a_module_of_ours(dockerfile: list[tuple[str, str]]) -> None:
    instructions = dict(dockerfile)  # the last of each, as in Docker
    python, option, module = json.loads(instructions["ENTRYPOINT"])
    assert (python, option) == ("python", "-m")
    assert importlib.import_module(module).main is nightly.main
    with pytest.raises(SystemExit) as end:
        nightly.main(json.loads(instructions["CMD"]))
    assert end.value.code == 0


def test_image_does_not_run_as_root(dockerfile: list[tuple[str, str]]) -> None:
    users = [rest for name, rest in dockerfile if name == "USER"]
    assert users
    assert int(users[-1].split(":")[0]) > 0  # a number: runAsNonRoot can't judge a name


def test_image_builds_on_tagged_images(dockerfile: list[tuple[str, str]]) -> None:
    bases = [rest.split()[0] for name, rest in dockerfile if name == "FROM"]
    assert bases
    for base in bases:
        assert base.partition(":")[2] not in ("", "latest")


# ------------------------------------------------------------------------- what people are told


def test_every_exit_code_is_explained() -> None:
    text = (ROOT / "infra" / "README.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `(\w+)`", text, flags=re.MULTILINE)
    kinds = {
        (str(kind.exit_code), name)
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if kind.__module__ == errors.__name__
    }
    assert kinds <= set(rows)
