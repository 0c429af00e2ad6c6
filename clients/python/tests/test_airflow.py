"""The Airflow listener, in a real DAG run. `.ci/clients-python` runs it in an environment of its own, because Airflow limits the versions of many packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import Server, needs, token

import tidings

needs("airflow")

DAG = """
import datetime
from airflow.sdk import dag, task

@dag(dag_id="nightly", schedule=None, start_date=datetime.datetime(2026, 1, 1))
def nightly():
    @task
    def read():
        return 3

    @task
    def broken():
        raise ValueError("no rows")

    read() >> broken()

made = nightly()
if __name__ == "__main__":
    made.test()
"""


@pytest.mark.timeout(300)
def test_a_dag_run_and_its_tasks_are_jobs(server: Server, tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "tidings_plugin.py").write_text("from tidings.integrations.airflow import TidingsPlugin\n")
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "nightly.py").write_text(DAG)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(tidings.__file__).parents[1]),
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "TIDINGS_URL": server.url,
        "TIDINGS_TOKEN": token(),
    }
    airflow = [sys.executable, "-m", "airflow"]
    subprocess.run([*airflow, "db", "migrate"], env=environment, cwd=tmp_path, check=True, capture_output=True, timeout=200)
    done = subprocess.run([sys.executable, "dags/nightly.py"], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    tasks = server.get("/api/jobs?job_type=airflow.task")["jobs"]
    jobs = {job["job_id"].partition(":")[0] + job["job_id"].rpartition(":")[2]: job for job in tasks}
    assert set(jobs) == {"nightlyread", "nightlybroken"}, done.stderr[-2000:] + done.stdout[-2000:]
    assert jobs["nightlyread"]["status"] == "completed"
    assert jobs["nightlybroken"]["status"] == "failed"
    assert jobs["nightlybroken"]["error"]["message"] == "no rows"
    [run] = server.get("/api/jobs?job_type=airflow.dag")["jobs"]
    assert (run["status"], run["metadata"]["title"]) == ("failed", "nightly")
    assert {job["job_id"].rpartition(":")[0] for job in tasks} == {run["job_id"]}
