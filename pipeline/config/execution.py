"""Sections that never change the result: hardware, storage, retention, prices and trackers."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.sections import Affects, Location, PositiveFloat, PositiveInt, Section
from pipeline.locations import S3_SCHEME, checked_location


class Storage(Section, affects=Affects.EXECUTION):
    """Object store behind s3:// URLs; null leaves a setting to the environment.

    Credentials are no settings: they come from the environment, a profile or a role.
    """

    endpoint: str | None = Field(None, pattern=r"^https?://[^/@\s]+/?$")
    """URL of a store other than AWS; null = AWS_ENDPOINT_URL, or AWS."""
    region: str | None = Field(None, pattern=r"^[a-z0-9-]+$")
    """Region of the store; null = AWS_REGION."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """Form of URLs: path is host/bucket/key, virtual is bucket.host/key, auto is virtual for AWS
    and path for others."""
    anonymous_buckets: list[str] = Field([])
    """Buckets that are read without credentials."""
    encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    """Server-side encryption requested with every write except Iceberg's metadata."""
    kms_key: str | None = None
    """Id or ARN of the key for `encryption: aws:kms`."""

    @model_validator(mode="after")
    def _key_of_kms(self) -> Storage:
        if self.kms_key and not (self.encryption or "").startswith("aws:kms"):
            raise ValueError("storage.kms_key is for storage.encryption: aws:kms; set that too")
        return self


class Execution(Section, affects=Affects.EXECUTION):
    """Hardware and units of work."""

    workers: PositiveInt = 2
    """Number of training workers."""
    min_workers: PositiveInt | None = None
    """Minimum number of training workers; grows to `workers` when nodes join. null = start with
    exactly `workers`, and continue with fewer when nodes are lost."""
    cpus_per_worker: PositiveFloat | None = None
    """CPUs reserved by each training worker; null = an equal share of the cluster."""
    gpus_per_worker: int = Field(0, ge=0, le=1)
    """GPUs reserved by each training worker: 0 or 1."""
    placement: Literal["pack", "spread"] = "pack"
    """Placement of training workers: on few nodes, which communicate faster, or spread over
    many."""
    actors: PositiveInt | None = None
    """Maximum number of actors that label rows; null = `workers`."""
    min_actors: PositiveInt | None = None
    """Minimum number of actors; grows to `actors` when nodes join. null = start with exactly
    `actors`."""
    cpus_per_actor: PositiveFloat | None = None
    """CPUs reserved by each actor; null = `cpus_per_worker`."""
    gpus_per_actor: float = Field(0, ge=0, le=1)
    """Share of a GPU reserved by each actor; 0.25 puts four on one GPU."""
    cache_mib: int = Field(2048, ge=0)
    """Maximum memory for training rows per worker, in MiB; a larger share is streamed in every
    pass."""
    target_slice_mib: Annotated[PositiveInt, Affects.RESULT] = 64
    """Target size of a unit of work, in MiB of Parquet in the columns that are read; also decides
    which rows share a file of the assignments."""
    checkpoint_seconds: PositiveInt = 300
    """Seconds between two checkpoints; a killed training loses at most this much and a pass."""
    grace_seconds: PositiveInt = 25  # Kubernetes kills after 30
    """Maximum seconds to save a checkpoint after SIGTERM before the run exits."""
    retries: int = Field(2, ge=0)
    """Maximum number of retries of a stage that loses workers without progress."""
    node_wait_seconds: int = Field(120, ge=0)
    """Seconds to wait for the replacement of a lost node before continuing with fewer workers."""
    scale_up_seconds: int = Field(900, ge=0)
    """Seconds to wait for nodes that an autoscaler adds; GPU nodes take minutes."""
    lease_seconds: PositiveInt = 60
    """Seconds without a sign of life after which another run may take over the same logical
    date."""


class Retention(Section, affects=Affects.EXECUTION):
    """Retention of runs, snapshots and models: what `dec gc` keeps."""

    snapshots: PositiveInt = 30
    """Number of newest snapshots to keep."""
    days: int = Field(30, ge=0)
    """Days for which superseded snapshots are kept in addition."""
    unpublished_days: PositiveInt = 7
    """Days without a write after which an unpublished run is removed."""
    tuning_days: PositiveInt = 30
    """Days after which a tuning is removed, with its trials and recommendation."""
    champions: PositiveInt = 5
    """Number of newest champions to keep, for `dec rollback`."""


class Prices(Section, affects=Affects.EXECUTION):
    """Prices for `dec plan`; null leaves an item out of the cost estimate."""

    currency: str = "USD"
    """Currency to print."""
    cpu_core_hour: float | None = Field(None, ge=0)
    """Price of a CPU core for an hour."""
    gpu_hour: float | None = Field(None, ge=0)
    """Price of a GPU for an hour."""
    get_requests_per_1000: float | None = Field(None, ge=0)
    """Price of 1,000 GET or HEAD requests to the object store."""
    put_requests_per_1000: float | None = Field(None, ge=0)
    """Price of 1,000 PUT, POST or LIST requests to the object store."""
    read_gib: float | None = Field(None, ge=0)
    """Price of transferring a GiB from the object store, where it is not free."""


class Mlflow(Section, affects=Affects.EXECUTION):
    """MLflow tracking store; its credentials are in MLFLOW_TRACKING_USERNAME and so on."""

    uri: str = Field(min_length=1)
    """URI of the tracking store: https://…, or a file, sqlite:////path/mlflow.db."""
    experiment: str = Field("dec-pipeline", min_length=1)
    """Name of the experiment."""

    @field_validator("uri")
    @classmethod
    def _no_bucket(cls, uri: str) -> str:
        if re.match(r"(s3[an]?|gcs?|gs|wasbs?|abfss?|azure|az|adl|hdfs|viewfs|dbfs):", uri, re.I):
            raise ValueError(
                "is no tracking store of MLflow, but a bucket or file system; give https://…, "
                "sqlite:////path/mlflow.db, or a local folder"
            )
        return uri


class Openlineage(Section, affects=Affects.EXECUTION):
    """OpenLineage events; a server's key is in OPENLINEAGE_API_KEY."""

    to: str = Field(min_length=1)
    """URL of a server, or a local file that events are appended to, one per line."""
    namespace: str = Field("dec-pipeline", min_length=1)
    """Namespace of the job."""
    job: str = Field("dec", min_length=1)
    """Name of the job, the same every night."""

    @field_validator("to")
    @classmethod
    def _server_or_file(cls, to: str) -> str:
        if to.startswith(("http://", "https://")):
            return to
        path = checked_location(to)
        if path.startswith(S3_SCHEME):  # its objects cannot grow
            raise ValueError("must be the http(s):// URL of a server, or the path of a local file")
        return path


class Track(Section, affects=Affects.EXECUTION):
    """Experiment trackers; null turns one off. Their failures never fail a run."""

    mlflow: Mlflow | None = None
    """MLflow tracking store."""
    tensorboard: Location | None = Field(None, min_length=1)
    """Folder of TensorBoard logs, local or s3://, with a folder for each run."""
    openlineage: Openlineage | None = None
    """OpenLineage events."""
