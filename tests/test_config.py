"""Settings: everything that is wrong at once, each with its path, in words that help."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import create_model

from jobs.arguments import default_run_id
from pipeline.config import Config, Refine, content_of, load_config
from pipeline.config.reference import reference
from pipeline.config.sections import DefaultVersion, Section, sections_in, settings_in
from pipeline.errors import ConfigError
from pipeline.locations import checked_location
from pipeline.schema import RESERVED_COLUMNS
from pipeline.storage import absolute

CONFIG_FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(CONFIG_FOLDER.glob("**/*.yaml"))
LEAST: dict[str, Any] = {
    "source": {"path": "in", "features": ["x"]},
    "output": "out",
    "clusters": 3,
}


def write(folder: Path, settings: Any) -> str:
    path = folder / "config.yaml"
    path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
    return str(path)


def errors(folder: Path, settings: Any, *overrides: str) -> list[str]:
    """The lines of the error that these settings lead to."""
    with pytest.raises(ConfigError) as error:
        load_config(write(folder, settings), overrides)
    return str(error.value).splitlines()


def load(folder: Path, *overrides: str) -> Config:
    return load_config(write(folder, LEAST), overrides)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_loads(path: Path) -> None:
    assert load_config(str(path)).clusters >= 2


def test_there_are_configs() -> None:
    assert "quickstart.yaml" in [path.name for path in CONFIGS]


def test_defaults_and_keys(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.refine.alpha == 1.0
    assert config.source.key_columns == ("shard", "row_number")
    assert load(tmp_path, "source.keys=[a, b]").source.key_columns == ("a", "b")


def test_resolved_config_reads_back_the_same(tmp_path: Path) -> None:
    config = load(tmp_path, "refine.tol=0.01")
    assert load_config(write(tmp_path, config.to_yaml())) == config


# ----------------------------------------------------------------------- what settings affect


@pytest.mark.parametrize(
    "override",
    [
        "output=elsewhere",
        "execution.workers=7",
        "execution.gpus_per_worker=1",
        "execution.gpus_per_actor=0.25",
        "lake.format=delta",
        "retention.days=1",
        "storage.encryption=AES256",
        "track.tensorboard=a",
        "explain.exemplars=9",
        "explain.columns=[country]",
        "gate.max_churn=0.1",
    ],
)
def test_settings_that_do_not_change_the_result(tmp_path: Path, override: str) -> None:
    assert load(tmp_path, override).result_settings() == load(tmp_path).result_settings()


@pytest.mark.parametrize(
    ("override", "of_the_fit"),
    [
        ("seed=1", True),
        ("clusters=4", True),
        ("source.nulls=drop", True),
        ("refine.tol=0", True),
        ("pretrain.noise=0", True),
        ("source.keys=[id]", False),
        ("evaluate.label=y", False),
        ("execution.target_slice_mib=1", False),
    ],
)
def test_settings_that_change_the_result(tmp_path: Path, override: str, of_the_fit: bool) -> None:
    before, changed = load(tmp_path), load(tmp_path, override)
    assert changed.result_settings() != before.result_settings()
    assert (changed.fit_settings() != before.fit_settings()) == of_the_fit
    assert changed.differences(before.model_dump(mode="json")) == [override.partition("=")[0]]


def test_differences_to_the_settings_of_a_published_run(tmp_path: Path) -> None:
    changes = ["refine.alpha=2", "lake.format=delta", "gate.max_psi=1", "explain.tree_depth=3"]
    config = load(tmp_path, *changes, "explain.exemplars=1", "source.nulls=drop")
    expected = ["explain.exemplars", "refine.alpha", "source.nulls"]
    before = load(tmp_path).model_dump(mode="json")
    assert config.differences(before) == expected
    del before["refine"]["alpha"]  # a setting that did not exist then
    assert config.differences(before) == expected
    with pytest.raises(ValueError, match="removed"):
        config.differences(before | {"removed": 1})


def later(**changes: Any) -> type[Config]:
    """The Config of a later release, in which the section ``refine`` has other fields."""
    refine: Any = create_model("LaterRefine", __base__=Refine, **changes)
    return create_model("LaterConfig", __base__=Config, refine=(refine, refine()))


NEW = {"momentum": (float, 0.9)}
OTHER_VALUE = {"passes": (Annotated[int, DefaultVersion(2)], 30)}
OTHER_MEANING = {"passes": (Annotated[int, DefaultVersion(2)], 20)}


def run_id(config: Config) -> str:
    return default_run_id(config, "2026-01-31", [])


def test_a_new_setting_changes_no_fingerprint() -> None:
    before, after = Config.model_validate(LEAST), later(**NEW).model_validate(LEAST)
    assert after.fit_settings() == before.fit_settings()
    assert run_id(after) == run_id(before)
    assert after.differences(before.model_dump(mode="json")) == []
    used = later(**NEW).model_validate(LEAST | {"refine": {"momentum": 0.5}})
    assert used.fit_settings() != before.fit_settings()
    assert run_id(used) != run_id(before)


@pytest.mark.parametrize("change", [OTHER_VALUE, OTHER_MEANING], ids=["value", "meaning"])
def test_another_default_changes_the_fingerprints_that_rely_on_it(change: Any) -> None:
    before, after = Config.model_validate(LEAST), later(**change).model_validate(LEAST)
    assert after.fit_settings() != before.fit_settings()
    assert run_id(after) != run_id(before)
    chosen = LEAST | {"refine": {"passes": 5}}
    before, after = Config.model_validate(chosen), later(**change).model_validate(chosen)
    assert after.fit_settings() == before.fit_settings()
    assert run_id(after) == run_id(before)


def test_a_default_that_is_set_is_the_default(tmp_path: Path) -> None:
    explicit = load(tmp_path, "refine.alpha=1", "model.hidden=auto", "seed=0")
    assert explicit.fit_settings() == load(tmp_path).fit_settings()


def test_content_of_nested_settings(tmp_path: Path) -> None:
    typed = "source.features=[x, {column: y, weight: 2}]"
    assert load(tmp_path, typed).content("source.features") == {
        "source.features": ["x", {"column": "y", "weight": 2.0}]
    }
    assert load(tmp_path).content("assign") == {}
    assert load(tmp_path, "assign.outliers={}").content("assign") == {"assign.outliers": {}}


def test_content_of_a_section_named_like_what_settings_affect(tmp_path: Path) -> None:
    found = load(tmp_path, "model.embedding=4", "refine.alpha=2").content("model")
    assert found == {"model.embedding": 4, "model.hidden": {"default_version": 2}}


def test_the_settings_reference_is_current() -> None:
    current = (CONFIG_FOLDER / "README.md").read_text(encoding="utf-8")
    assert current == reference(), "run: python -m pipeline.config.reference > configs/README.md"


def test_every_setting_is_described() -> None:
    descriptions = {setting.path: setting.field.description for setting in settings_in(Config)}
    assert all(text and text[0].isupper() for text in descriptions.values()), descriptions


def test_the_section_model_is_not_all_that_affects_the_model(tmp_path: Path) -> None:
    config = load(tmp_path, "model.embedding=5", "refine.tol=0", "source.nulls=mean")
    assert config.content("model", without=("model.hidden",)) == {"model.embedding": 5}
    assert config.content("refine", without=("refine.tol", "refine.select")) == {}
    assert config.fit_settings().keys() >= {"model.embedding", "refine.tol", "source.nulls"}


def test_settings_of_a_stage_are_checked_by_name() -> None:
    with pytest.raises(AssertionError, match="no setting refine"):
        content_of("refine.alpah")


# -------------------------------------------------------------------------------------- overrides


def test_overrides_are_yaml_and_the_last_one_wins(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "refine.alpha=2",
        "refine.alpha=0.5",
        "model.hidden=[8, 4]",
        "source.fit_rows=null",
    )
    assert config.refine.alpha == 0.5
    assert config.model.hidden == [8, 4]
    assert config.source.fit_rows is None


def test_override_keeps_the_rest_of_its_section(tmp_path: Path) -> None:
    source = load(tmp_path, "source.path=a=b").source
    assert (source.path, source.features) == ("a=b", ["x"])


@pytest.mark.parametrize("override", ["refine.alpha", "=1", "refine.=1", ".alpha=1", "a..b=1"])
def test_override_that_is_none(tmp_path: Path, override: str) -> None:
    (line,) = errors(tmp_path, LEAST, override)
    assert line == f"--set {override!r} must look like refine.alpha=1.0"


def test_override_with_broken_yaml(tmp_path: Path) -> None:
    (line,) = errors(tmp_path, LEAST, "model.hidden=[1, 2")
    assert line.startswith("--set model.hidden is not valid YAML")


# --------------------------------------------------------------------------------- clusters: auto


def test_the_number_of_clusters_may_be_left_to_the_data(tmp_path: Path) -> None:
    given, auto = load(tmp_path), load(tmp_path, "clusters=auto")
    assert (given.clusters, given.most_clusters) == (3, 3)
    assert auto == load(tmp_path, "clusters={most: 30}") == load(tmp_path, "clusters.most=30")
    assert auto.most_clusters == 30
    assert load_config(write(tmp_path, auto.to_yaml())) == auto
    fewer = load(tmp_path, "clusters.most=20")
    fitted = [config.fit_settings()["clusters"] for config in (given, auto, fewer)]
    assert fitted == [3, {}, {"most": 20}]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clusters=many", "clusters='many' must be a valid integer, or auto"),
        ("clusters.most=1", "clusters.most=1 must be greater than or equal to 2"),
        ("clusters.mots=3", "clusters.mots is not a setting; did you mean clusters.most?"),
        (
            "clusters={most: 300}",
            "centroids.sample_rows=1000 must be >= 11700 (39 rows for each of clusters.most=300)",
        ),
    ],
)
def test_wrong_ways_to_leave_it(tmp_path: Path, override: str, message: str) -> None:
    assert errors(tmp_path, LEAST, override, "centroids.sample_rows=1000") == [message]


# ----------------------------------------------------------------------------------------- errors


def test_all_errors_at_once_with_their_paths(tmp_path: Path) -> None:
    settings = {
        "source": {"path": "in", "features": ["x"], "nulls": "ignore"},
        "clusters": 0,
        "refine": {"alpha": 0, "pases": 3},
        "model": {"hidden": [8, -1]},
    }
    lines = errors(tmp_path, settings)
    expected = {
        "source.nulls='ignore'": "must be 'error', 'mean' or 'drop'",
        "output": "is missing; the config must set it",
        "clusters=0": "must be greater than or equal to 2",
        "refine.alpha=0": "must be greater than 0",
        "refine.pases": "is not a setting; did you mean refine.passes?",
        "model.hidden.1=-1": "must be greater than or equal to 1",
    }
    assert len(lines) == len(expected)
    for path, message in expected.items():
        assert f"{path} {message}" in lines


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("cluster=3", "cluster is not a setting; did you mean clusters?"),
        ("refine.lr=1", "refine.lr is not a setting; known here: learning_rate, passes, "),
        ("source.features=[]", "source.features=[] must name at least one"),
        ("source.features=[x, '']", "source.features=['x', ''] must name at least one"),
        ("source.path=''", "source.path='' must name at least one"),
        ("source.features=[x, y, x]", "names x more than once; name each column once"),
        ("source.keys=[k, k]", "names k more than once"),
        ("source.fit_rows=0", "source.fit_rows=0 must be greater than or equal to 1"),
        ("refine.alpha=.inf", "refine.alpha=inf must be a finite number"),
        ("refine.alpha=.nan", "refine.alpha=nan must be"),
        ("refine.tol=1.5", "refine.tol=1.5 must be less than or equal to 1"),
        ("pretrain.noise=1", "pretrain.noise=1 must be less than 1"),
        ("refine.select=best", "refine.select='best' must be 'dec' or 'auto'"),
        ("seed=-1", "seed=-1 must be greater than or equal to 0"),
        ("output=''", "output='' "),
        ("clusters=ten", "clusters='ten' must be a valid integer"),
        ("clusters=", "clusters=None must be a valid integer"),
        ("source.keys=[dec_id]", "names dec_id; names that begin with dec_ are"),
        ("refine=3", "refine=3 must be a section with settings"),
        # One setting, one line, although a path may be a string or a list of them.
        ("source.path=5", "source.path=5 must be a valid"),
        ("source.path=[a, 5]", "source.path.1=5 must be a valid string"),
        ("track.mlflow={}", "track.mlflow.uri is missing"),
        ("track.mlflw=x", "did you mean track.mlflow?"),
        ("track.openlineage.to=s3://b/k", "track.openlineage.to='s3://b/k' must be the http(s)://"),
    ],
)
def test_one_wrong_setting_is_one_line(tmp_path: Path, override: str, line: str) -> None:
    (found,) = errors(tmp_path, LEAST, override)
    assert line in found


@pytest.mark.parametrize("name", RESERVED_COLUMNS)
def test_reserved_key_names(tmp_path: Path, name: str) -> None:
    (line,) = errors(tmp_path, LEAST, f"source.keys=[id, {name}]")
    assert f"names {name}, which the assignments table defines itself" in line


@pytest.mark.parametrize(
    "catalog",
    [
        {"type": "rest", "token": "planted-secret"},
        {"type": "rest", "credential": "id:planted-secret"},
        {"type": "glue", "s3.secret-access-key": "planted-secret"},
        {"type": "glue", "client.access-key-id": "planted-secret"},
        {"type": "sql", "uri": "postgresql://me:planted-secret@host/db"},
    ],
    ids=str,
)
def test_catalog_with_a_credential(tmp_path: Path, catalog: dict[str, str]) -> None:
    (line,) = errors(tmp_path, LEAST | {"lake": {"format": "iceberg", "catalog": catalog}})
    assert "planted-secret" not in line
    assert "credential" in line


def test_catalog_of_an_output_on_s3(tmp_path: Path) -> None:
    settings = LEAST | {"output": "s3://bucket/lake", "lake": {"format": "iceberg"}}
    (line,) = errors(tmp_path, settings)
    assert line.startswith("lake.catalog must be set for output=s3://bucket/lake: ")
    settings["lake"]["catalog"] = {"type": "rest", "uri": "https://catalog/"}
    assert load_config(write(tmp_path, settings)).lake.table == "dec.assignments"


def test_sample_feeds_every_cluster(tmp_path: Path) -> None:
    # 39 rows for each of 100 clusters.
    (line,) = errors(tmp_path, LEAST, "clusters=100", "centroids.sample_rows=3899")
    assert line.startswith("centroids.sample_rows=3899 must be >= 3900")
    assert load(tmp_path, "clusters=100", "centroids.sample_rows=3900").clusters == 100


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "is not valid YAML"),
        ("a: b: c", "is not valid YAML"),
        ("clusters: 2026-13-45", "is not valid YAML"),  # a date by its looks, and there is none
        ("", "holds no settings"),
        ("- a", "holds no settings"),
        ("just words", "holds no settings"),
    ],
)
def test_file_that_holds_no_settings(tmp_path: Path, text: str, words: str) -> None:
    (line,) = errors(tmp_path, text)
    assert words in line
    assert "config.yaml" in line


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml cannot be read: No such file"):
        load_config(str(tmp_path / "absent.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="it is not UTF-8 text"):
        load_config(str(tmp_path / "binary.yaml"))


def test_config_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path).clusters = 5  # type: ignore[misc]


# ------------------------------------------------------------------------------------- execution


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("execution.min_workers=3", "execution.min_workers=3 must be <= execution.workers, which"),
        (
            "execution.min_actors=3",
            "execution.min_actors=3 must be <= execution.actors, which is 2",
        ),
        ("execution.gpus_per_worker=2", "execution.gpus_per_worker=2 must be less than or equal"),
        ("execution.gpus_per_actor=1.5", "execution.gpus_per_actor=1.5 must be less than or equal"),
        ("execution.placement=near", "execution.placement='near' must be 'pack' or 'spread'"),
    ],
)
def test_wrong_execution(tmp_path: Path, override: str, message: str) -> None:
    (line,) = errors(tmp_path, LEAST, override)
    assert message in line


# -------------------------------------------------------------------------------------- storage


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("storage.endpoint=s3.example.org", "storage.endpoint='s3.example.org' "),
        ("storage.addressing=subdomain", "storage.addressing='subdomain' must be "),
        ("storage.encryption=aes", "storage.encryption='aes' must be "),
        ("storage.kms_key=a-key", "storage.kms_key is for storage.encryption: aws:kms"),
        ("storage.bucket=b", "storage.bucket is not a setting; known here: endpoint, region"),
    ],
)
def test_wrong_storage(tmp_path: Path, override: str, message: str) -> None:
    (line,) = errors(tmp_path, LEAST, override)
    assert message in line


SECRET = "AKIAPLANTED0F1E2D3C4"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("storage.access_key", SECRET),
        ("storage.AccessKeyId", SECRET),
        ("storage.key", SECRET),
        ("storage.aws_secret_access_key", SECRET),
        ("storage.session_token", SECRET),
        ("storage.options.password", SECRET),
        ("storage.credentials", {"a": SECRET}),
        ("storage.region", SECRET),  # an access key id, whatever its name
        ("storage.endpoint", f"https://user:{SECRET}@s3.example.org"),
        ("source.path", f"s3://key:{SECRET}@bucket/table"),
        ("source.path", ["s3://bucket/a", f"s3://key:{SECRET}@bucket/b"]),
        ("source.path", f"https://host/b/k.parquet?X-Amz-Signature={SECRET}"),
        ("output", f"s3://{SECRET}:x@bucket/lake"),
        ("track.mlflow.uri", f"postgresql://mlflow:{SECRET}@db/mlflow"),
        ("track.openlineage.api_key", SECRET),
        ("explain.api_key", SECRET),
    ],
)
@pytest.mark.parametrize("given", ["in the file", "as --set"])
def test_config_with_a_credential_is_refused_without_repeating_it(
    tmp_path: Path, name: str, value: Any, given: str
) -> None:
    settings: dict[str, Any] = {**LEAST, "source": {**LEAST["source"]}}
    overrides = []
    if given == "as --set":
        overrides = [f"{name}={yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}"]
    else:
        *sections, last = name.split(".")
        inner = settings
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    (line,) = errors(tmp_path, settings, *overrides)
    assert SECRET not in line
    assert "credentials come from the environment" in line
    assert line.startswith(name.rpartition(".")[0] or name)


@pytest.mark.parametrize(
    "text",
    ["storage: {secret_key: " + SECRET + "\nclusters: [", "a: b: " + SECRET, "a: *" + SECRET],
)
def test_broken_yaml_is_not_repeated(tmp_path: Path, text: str) -> None:
    (line,) = errors(tmp_path, text)
    assert "is not valid YAML" in line
    assert "line" in line
    assert SECRET not in line


def test_names_that_only_look_like_credentials(tmp_path: Path) -> None:
    settings = {**LEAST, "source": {"path": "s3://b/user@home/t", "features": ["token", "key"]}}
    assert load_config(write(tmp_path, settings)).source.features == ["token", "key"]


# -------------------------------------------------------------------------------- typed features


def test_features_with_a_type(tmp_path: Path) -> None:
    features = ["x", {"column": "age", "type": "number", "weight": 2}, {"column": "f_*"}]
    config = load_config(write(tmp_path, {**LEAST, "source": {"path": "in", "features": features}}))
    assert config.source.feature_patterns == ("x", "age", "f_*")
    assert config.source.feature("x") is None
    age, by_glob = config.source.feature("age"), config.source.feature("f_1")
    assert age is not None
    assert (age.type, age.weight) == ("number", 2)
    assert by_glob is not None
    assert (by_glob.column, by_glob.type) == ("f_*", "auto")
    assert config.source.feature("other") is None
    again = load_config(write(tmp_path, yaml.safe_load(config.to_yaml())))
    assert again == config


@pytest.mark.parametrize(
    ("feature", "says"),
    [
        ("{column: a, typ: number}", "source.features.0.typ is not a setting; did you mean"),
        ("{column: a, type: text}", "source.features.0.type='text' must be 'auto', 'number'"),
        ("{column: a, weight: 0}", "source.features.0.weight=0 must be greater than 0"),
        ("{type: number}", "source.features.0.column is missing"),
        ("7", "source.features.0=7 must be a valid string"),
        ("{column: y, type: number}, y", "names y more than once"),
    ],
)
def test_features_that_are_wrong(tmp_path: Path, feature: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(write(tmp_path, LEAST), [f"source.features=[{feature}]"])
    assert says in str(refused.value)


def test_keys_are_not_explained(tmp_path: Path) -> None:
    (found,) = errors(tmp_path, LEAST, "source.keys=[id]", "explain.columns=[id, country]")
    assert found.startswith("explain.columns names id, which source.keys does too")


# ------------------------------------------------------------------------------------- duplicates


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nclusters: 2\nseed: 3", ["seed", "line 1, column 1", "line 3, column 1"]),
        ("refine: {alpha: 1}\nseed: 0\nrefine: {tol: 1}", ["refine is", "line 1", "line 3"]),
        ("a:\n  b:\n    c: 1\n    d: 1\n    c: 2", ["a.b.c", "line 3, column 5", "line 5"]),
        ("refine: {tol: 1, 'tol': 2}", ["refine.tol", "column 10 and", "column 18"]),
        ("l: [{a: 1}, {a: 1, a: 2}]", ["l.a", "line 1, column 14", "line 1, column 20"]),
        ("x: &d {a: 1, a: 2}\ny: *d", ["x.a", "column 8", "column 14"]),
        ("a: {<<: {b: 1}, <<: {c: 1}}", ["a.<< is set twice"]),
        ("1: a\ntrue: b", ["true is set twice"]),  # equal keys, as Python sees them
        ("a: &a [1, {b: *a}]", ["a.b contains itself", "line 1, column 4"]),
        ("secret_key: x\nsecret_key: y", ["… is set twice, in line 1", "line 2"]),
    ],
)
def test_key_that_is_set_twice(tmp_path: Path, text: str, expected: list[str]) -> None:
    (line,) = errors(tmp_path, text)
    assert all(words in line for words in expected), line


def test_override_that_sets_a_key_twice(tmp_path: Path) -> None:
    (line,) = errors(tmp_path, LEAST, "model={hidden: [8], embedding: 2, hidden: [9]}")
    assert line.startswith("--set model: hidden is set twice, in line 1, column 2")


def test_every_key_that_is_set_twice_is_named(tmp_path: Path) -> None:
    lines = errors(tmp_path, "a: 1\nb: {c: 1, c: 2}\na: 2\na: 3")
    assert [line.partition(": ")[2].partition(" is")[0] for line in lines] == ["b.c", "a", "a"]


def test_merged_and_repeated_anchors_are_no_duplicates(tmp_path: Path) -> None:
    config = load_config(
        write(
            tmp_path,
            "source: {path: in, features: [x]}\noutput: out\nclusters: 3\n"
            "pretrain: &training {batch_rows: 64, passes: 3}\n"
            "refine: {<<: [*training, {noise: 0.1}], passes: 5}\n",
        )
    )
    assert (config.refine.passes, config.refine.batch_rows) == (5, 64)
    assert (config.pretrain.passes, config.refine.noise) == (3, 0.1)


# -------------------------------------------------------------------------------------- locations

# Settings of text that are no locations; a new one belongs here or is a Location.
NO_LOCATIONS = {
    *("source.features", "source.keys", "evaluate.label", "augment.function"),
    *("source.version", "source.where", "source.catalog"),
    *("explain.columns", "explain.endpoint", "explain.model"),
    *("lake.table", "lake.catalog"),  # pyiceberg's own
    *("storage.endpoint", "storage.region", "storage.anonymous_buckets", "storage.kms_key"),
    *("prices.currency", "track.mlflow.experiment"),
    *("track.openlineage.namespace", "track.openlineage.job"),
}


def text_settings(section: type[Section] = Config, path: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = sections_in(field.annotation)
        for one in inner:
            yield from text_settings(one, f"{path}{name}.")
        if "str" in str(field.annotation) and not (inner and name != "features"):
            yield path + name


def locations() -> list[str]:
    found = [name for name in text_settings() if not name.startswith("source.features.")]
    assert set(found) >= NO_LOCATIONS
    return sorted(set(found) - NO_LOCATIONS)


def test_every_location_is_known() -> None:
    assert {"source.path", "output", "track.tensorboard"} <= set(locations())


@pytest.mark.parametrize("name", locations())
@pytest.mark.parametrize(
    ("location", "nearest"),
    [
        ("gs://bucket/lake", "an s3:// URL"),
        ("hdfs:///lake", "a local path"),
        ("s3a://bucket/lake", "write s3://bucket/lake"),
    ],
)
def test_location_of_another_scheme(tmp_path: Path, name: str, location: str, nearest: str) -> None:
    (line,) = errors(tmp_path, LEAST, f"{name}={location}")
    assert line.startswith(f"{name}='{location}' ")
    assert nearest in line or "MLflow" in line


@pytest.mark.parametrize(
    ("location", "nearest"),
    [
        ("S3://bucket/a", "write s3://bucket/a"),
        ("s3n://bucket", "write s3://bucket"),
        ("s3:/bucket/a", "write s3://bucket/a"),
        ("s3:bucket/a", "write s3://bucket/a"),
        ("S3A:bucket/a", "write s3://bucket/a"),
        (" s3://bucket/a", "write s3://bucket/a"),
        ("s3://", "s3://bucket/prefix"),
        ("s3:///a", "s3://bucket/prefix"),
        ("az://container/a", "an s3:// URL"),
        ("abfss://container@account.dfs.core.windows.net/a", "an s3:// URL"),
        ("viewfs://a", "file:///"),
        ("hdfs:/a", "a local path"),
        ("https://host/a.parquet", "a local path"),
        ("dbfs:/mnt/a", "write /dbfs/mnt/a"),
        ("FILE:///a", "write file:///a"),
        ("file://host/a", "write file:///host/a"),
        ("file:a", "write a"),
        ("file:///a%20b", "the plain path"),
        ("~nobody-here/a", "./~"),
        ("a\nb", "control character"),
    ],
)
def test_nearest_location_that_works(location: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=re.escape(nearest)):
        checked_location(location)
    with pytest.raises(ConfigError, match=re.escape(nearest)):  # of a command line, such as --keys
        absolute(location)


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("file:///a/b", "/a/b"),
        ("file:/a/b", "/a/b"),
        ("file://localhost/a/b", "/a/b"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a%41?#ü b", "s3://bucket/a%41?#ü b"),
        ("a:b/c%41?#ü d", "a:b/c%41?#ü d"),
        ("./gs:/a", "./gs:/a"),
        ("~/a", "~/a"),
        ("a/{ds}/*.parquet", "a/{ds}/*.parquet"),
    ],
)
def test_locations_that_work(tmp_path: Path, location: str, path: str) -> None:
    assert checked_location(location) == path
    settings = {**LEAST, "source": {"path": [location], "features": ["x"]}, "output": location}
    config = load_config(write(tmp_path, settings))
    assert (config.output, config.source.locations) == (path, [path])
