"""Create the RayJob of the night that a CronJob has scheduled, and wait for its end.

The CronJob's controller writes the scheduled date into the Job, however late the Job starts; a Job
made with `kubectl create job --from=cronjob/dec-nightly start-2026-01-31` has the date in its name.
The RayJob's name contains the date, so that the API server refuses a second one for the same night.

Exit codes: 0 the night is done · 1 retry · 2 wrong name · 3 the night failed.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

log = logging.getLogger("start_night")

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SCHEDULED = "batch.kubernetes.io/cronjob-scheduled-timestamp"
# KubeRay's jobDeploymentStatus of a RayJob that has ended; jobStatus says whether it succeeded.
ENDED = ("Complete", "Failed", "ValidationFailed")


class Api:
    """Client of the API server, with this pod's service account.

    Args:
        server: URL of the API server.
        account: Folder with the account's token, namespace and the server's certificate authority.
    """

    def __init__(self, server: str, account: Path = ACCOUNT) -> None:
        self._server = server
        self._account = account
        self._namespace = (account / "namespace").read_text()
        self._tls = None
        if server.startswith("https:"):
            self._tls = ssl.create_default_context(cafile=str(account / "ca.crt"))

    def call(self, group: str, plural: str, name: str = "", body: Any = None) -> Any:
        """Get an object, or create the one in the body.

        Raises:
            urllib.error.HTTPError: The server refuses; 409 if the name exists.
            urllib.error.URLError: The server does not answer.
        """
        path = f"apis/{group}/namespaces/{self._namespace}/{plural}/{name}".rstrip("/")
        # Read for each call: the kubelet renews it.
        token = (self._account / "token").read_text()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._server}/{path}", data=content, headers=headers)
        with urllib.request.urlopen(request, timeout=30, context=self._tls) as answer:
            return json.load(answer)


def night_of(job: dict[str, Any], days_back: int) -> str | None:
    """The logical date of a Job, YYYY-MM-DD; None where neither schedule nor name has one."""
    if scheduled := job["metadata"].get("annotations", {}).get(SCHEDULED):
        # In the CronJob's own time zone.
        day = datetime.datetime.fromisoformat(scheduled).date()
        return (day - datetime.timedelta(days=days_back)).isoformat()
    named = re.search(r"-(\d{4}-\d\d-\d\d)$", job["metadata"]["name"])
    return named[1] if named else None


def rayjob_of(template: dict[str, Any], ds: str) -> dict[str, Any]:
    """The RayJob of a night, from the RayCronJob that holds its template."""
    spec = json.dumps(template["spec"]["jobTemplate"]).replace("${DS}", ds)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": f"{template['metadata']['name']}-{ds}",
            "labels": template["metadata"].get("labels", {}),
        },
        "spec": json.loads(spec),
    }


def start(api: Api, job: str, template: str, days_back: int) -> str | None:
    """Create the RayJob unless it exists.

    Returns:
        Its name; None if the Job's name has no date, or is the name that the RayJob would need.
    """
    ds = night_of(api.call("batch/v1", "jobs", job), days_back)
    if ds is None:
        log.error(
            "job %s has no scheduled date, and its name does not end in a date YYYY-MM-DD", job
        )
        return None
    rayjob = rayjob_of(api.call("ray.io/v1", "raycronjobs", template), ds)
    name = rayjob["metadata"]["name"]
    if name == job:
        log.error(
            "job %s has the name that KubeRay needs for its submitter job: use start-%s", job, ds
        )
        return None
    try:
        api.call("ray.io/v1", "rayjobs", body=rayjob)
        log.info("created rayjob %s", name)
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise
        log.info("rayjob %s exists already; to run that night again, delete it first", name)
    return str(name)


def wait(api: Api, rayjob: str, seconds: float = 30) -> bool:
    """Wait for the end of a RayJob; return whether it succeeded."""
    seen = None
    while True:
        try:
            status = api.call("ray.io/v1", "rayjobs", rayjob).get("status", {})
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            log.error("rayjob %s was deleted", rayjob)
            return False
        now = (status.get("jobDeploymentStatus"), status.get("jobStatus"))
        if now != seen:
            log.info("rayjob %s: %s, job %s %s", rayjob, *now, status.get("message", ""))
        seen = now
        if now[0] in ENDED:
            return now[1] == "SUCCEEDED"
        time.sleep(seconds)


def main() -> int:
    """Start the night of this Job and wait for its end."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        api = Api("https://kubernetes.default.svc")
        days_back = int(os.environ["DAYS_BACK"])
        rayjob = start(api, os.environ["JOB"], os.environ["TEMPLATE"], days_back)
        if rayjob is None:
            return 2
        return 0 if wait(api, rayjob) else 3
    except urllib.error.URLError as error:  # HTTPError is one
        log.error("the API server: %s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
