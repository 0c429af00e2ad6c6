"""Drop-in replacements for the in-process broadcasters of a FastAPI back end. The classes have the names, methods and
parameters that the back end already uses, but they report to a Tidings server instead of to sockets of this process.

Needs only Python 3.9. TIDINGS_URL is the server's URL, and TIDINGS_TOKEN a worker's token. No call raises, because a failed
progress report must not end the work. Reports that cannot be delivered are logged by the logger `tidings`.
"""

import asyncio
import inspect
import json
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections import namedtuple
from collections.abc import Coroutine

log = logging.getLogger("tidings")
Answer = namedtuple("Answer", "status json")
TIMEOUT_SECS = 5
# Delays before the retries, if there was no answer or the server asked to retry.
PAUSES_SECS = (0.2, 1.0)
# Silence after which a session ends and a device is offline. A health checker may report only every five minutes.
LEASE_SECS = 600
# A job's metadata may have 16 KiB in total; a larger result is sent only as the job's `result`.
METADATA_MAX_BYTES = 8192


def quoted(subject_id):
    return urllib.parse.quote(str(subject_id), safe="")


def without_none(**fields):
    return {name: value for name, value in fields.items() if value is not None}


def call(method, path, body=None, school_id=None, expected=()):
    """Returns the server's answer, with status 0 if there was none. A status in `expected` is not logged."""
    url = os.environ.get("TIDINGS_URL", "http://127.0.0.1:8000") + path
    school_id = school_id or os.environ.get("TIDINGS_SCHOOL_ID")
    if school_id:
        url += f"?school_id={school_id}"
    headers = {"Authorization": f"Bearer {os.environ.get('TIDINGS_TOKEN', '')}", "Content-Type": "application/json"}
    if method == "POST":
        # A request whose answer was lost is not carried out twice.
        headers["Idempotency-Key"] = uuid.uuid4().hex
    data = None if body is None else json.dumps(body, default=str).encode()
    for pause in (*PAUSES_SECS, None):
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECS) as response:
                return Answer(response.status, json.load(response))
        except urllib.error.HTTPError as error:
            answer = Answer(error.code, json.loads(error.read() or b"{}"))
        except (OSError, ValueError) as error:
            answer = Answer(0, {"detail": str(error)})
        if answer.status not in (0, 429, 503) or pause is None:
            break
        time.sleep(pause)
    if answer.status not in expected:
        log.warning("%s %s was not delivered: %s %s", method, path, answer.status, answer.json.get("detail"))
    return answer


def report(path, body, make, school_id=None, expected=()):
    """Posts a report. If its subject does not exist yet, it is created first with `make` (the arguments of a call)."""
    answer = call("POST", path, body, school_id, expected=(404, *expected))
    if answer.status == 404:
        call(*make, school_id, expected=(409,))
        answer = call("POST", path, body, school_id, expected)
    return answer


class Done(Coroutine):
    """What methods return that some back ends await or make a task of, and others do neither."""

    def __await__(self):
        return iter(())

    def send(self, _):
        raise StopIteration

    def throw(self, error, value=None, traceback=None):
        raise error


class EnrollmentProgressBroadcaster:
    def __init__(self, scans=None):
        """With `scans`, the progress covers this number of scans."""
        self.scans = scans

    async def _report(self, school_id, session_id, verb, **body):
        made = without_none(session_id=session_id, lease_secs=LEASE_SECS, total_attempts=self.scans)
        path = f"/api/enrollments/{quoted(session_id)}/{verb}"
        await asyncio.to_thread(report, path, without_none(**body), ("POST", "/api/enrollments", made), school_id)

    async def broadcast_progress(self, school_id, session_id, progress, status, message):
        # The end of a scan is not the end of the session, which `broadcast_completion` reports.
        status = "processing" if status == "complete" else status
        await self._report(school_id, session_id, "progress", progress=progress, status=status, message=message)

    async def broadcast_completion(self, school_id, session_id, message=None, quality_score=None):
        await self._report(school_id, session_id, "complete", message=message, quality_score=quality_score)

    async def broadcast_cancelled(self, school_id, session_id, message=None):
        await self._report(school_id, session_id, "cancel", message=message)

    async def broadcast_error(self, school_id, session_id, error_message):
        await self._report(school_id, session_id, "error", error=error_message)

    def register(self, *_, **__):
        log.warning("a page connected to this process: route /ws/enrollment to Tidings")
        return Done()

    def disconnect(self, *_, **__):
        return Done()

    def get_connection_count(self, school_id=None):
        """Returns 1, because callers skip reports without listeners, but Tidings also keeps events for later ones."""
        return 1


class DeviceStatusBroadcaster:
    async def broadcast_device_status(self, school_id, device_id, status, last_seen=None):
        seen = last_seen and last_seen.isoformat()
        body = without_none(status=status, last_seen=seen, lease_secs=LEASE_SECS)
        await asyncio.to_thread(call, "POST", f"/api/devices/{quoted(device_id)}/status", body, school_id)

    async def broadcast_device_info(self, school_id, device_id, device_info):
        body = {"info": device_info, "lease_secs": LEASE_SECS}
        await asyncio.to_thread(call, "PUT", f"/api/devices/{quoted(device_id)}", body, school_id)


class ProcessingJobLifecycle:
    """Reports jobs. The back end still stores them and passes them to Celery."""

    # The type of a job that was created before Tidings received its first report.
    unknown_type = "job"
    _attempts = {}

    @classmethod
    def _report(cls, job_id, verb, expected=(), **body):
        attempt = cls._attempts.get(str(job_id)) if verb in ("progress", "complete", "fail") else None
        made = {"job_id": str(job_id), "job_type": cls.unknown_type}
        path = f"/api/jobs/{quoted(job_id)}/{verb}"
        body = without_none(attempt=attempt, **body)
        return report(path, body, ("POST", "/api/jobs", made), expected=expected).json

    @classmethod
    def enqueue(cls, job_type, payload, job_id=None, **_):
        """Returns the job's id. The payload is for the worker and is not sent."""
        job_id = str(job_id or uuid.uuid4())
        call("POST", "/api/jobs", {"job_id": job_id, "job_type": job_type})
        return job_id

    @classmethod
    def mark_queued(cls, job_id, queue_name=None, task_id=None):
        return cls._report(job_id, "queue", metadata=without_none(queue_name=queue_name, task_id=task_id))

    @classmethod
    def mark_started(cls, job_id):
        """Returns the job. Its `status` is `cancelled` if a user cancelled it while it waited."""
        job = cls._report(job_id, "start", expected=(409,))
        if job.get("code"):
            job = call("GET", f"/api/jobs/{quoted(job_id)}").json
            if job.get("status") == "failed":
                # Celery retries it.
                cls._report(job_id, "retry")
                job = cls._report(job_id, "start")
        cls._attempts[str(job_id)] = job.get("attempt")
        return job

    @classmethod
    def mark_progress(cls, job_id, progress=None, message=None, metadata=None):
        """Returns the job. Its `cancel_requested` is true if a user wants it to stop."""
        return cls._report(job_id, "progress", progress=progress, message=message, metadata=metadata)

    @classmethod
    def mark_completed(cls, job_id, result_payload=None):
        metadata = cls._metadata(error=None, result=result_payload)
        return cls._end(job_id, "complete", result=result_payload, metadata=metadata)

    @classmethod
    def mark_failed(cls, job_id, error_message="", result_payload=None, **_):
        metadata = cls._metadata(error=error_message[:1000], result=result_payload)
        # The server accepts up to 4,096 bytes.
        return cls._end(job_id, "fail", error=error_message[:1000] or "It failed", metadata=metadata)

    @classmethod
    def _end(cls, job_id, verb, **body):
        job = cls._report(job_id, verb, **body)
        cls._attempts.pop(str(job_id), None)
        return job

    @staticmethod
    def _metadata(**fields):
        """Returns the metadata in which pages expect results and errors. None removes values of an earlier attempt."""
        fits = len(json.dumps(fields, default=str).encode()) <= METADATA_MAX_BYTES
        return fields if fits else {**fields, "result": None}


class AlertNotifier:
    async def _report(self, characteristic_id, verb, **body):
        path = f"/api/characteristics/{quoted(characteristic_id)}"
        await asyncio.to_thread(report, f"{path}/{verb}", without_none(**body), ("PUT", path, {}))

    async def notify_violation_created(self, event):
        await self._report(
            event.characteristic_id,
            "violations",
            violation_id=event.violation_id,
            sample_id=event.sample_id,
            rule_id=event.rule_id,
            rule_name=event.rule_name,
            severity=event.severity,
            timestamp=event.timestamp.isoformat(),
        )

    async def notify_violation_acknowledged(self, event):
        path = f"/api/violations/{quoted(event.violation_id)}/ack"
        await asyncio.to_thread(call, "POST", path, {"user": event.user, "reason": event.reason})

    async def sample_processed(self, event):
        """For `SampleProcessedEvent`, with the back end's own verdict."""
        await self._report(
            event.characteristic_id,
            "samples",
            value=event.mean,
            sample_id=event.sample_id,
            zone=event.zone,
            in_control=event.in_control,
            timestamp=event.timestamp.isoformat(),
        )

    async def control_limits_updated(self, event):
        """For `ControlLimitsUpdatedEvent`."""
        limits = {name: getattr(event, name) for name in ("center_line", "ucl", "lcl", "method", "sample_count")}
        path = f"/api/characteristics/{quoted(event.characteristic_id)}"
        await asyncio.to_thread(call, "PUT", path, {"limits": limits})


ViolationCreated = namedtuple(
    "ViolationCreated", "violation_id sample_id characteristic_id rule_id rule_name severity timestamp"
)
ViolationAcknowledged = namedtuple("ViolationAcknowledged", "violation_id user reason timestamp")
# `range_value` is not sent: no message has it.
SampleProcessedEvent = namedtuple(
    "SampleProcessedEvent", "sample_id characteristic_id mean range_value zone in_control timestamp"
)
ControlLimitsUpdatedEvent = namedtuple(
    "ControlLimitsUpdatedEvent",
    "characteristic_id center_line ucl lcl method sample_count timestamp",
    defaults=("moving_range", 0, None),
)
ProgressEvent = namedtuple("ProgressEvent", "file_id progress message", defaults=("",))


class ProgressNotifier:
    """Reports uploads. Each upload is a separate job, because a file may be uploaded again under the same name."""

    def __init__(self):
        self._jobs = {}

    def notify(self, event):
        is_new = event.file_id not in self._jobs
        job_id = self._jobs.setdefault(event.file_id, str(uuid.uuid4()))
        path = f"/api/jobs/{job_id}"
        if is_new:
            metadata = {"file_id": event.file_id, "title": event.file_id}
            call("POST", f"{path}/start", {"job_type": "upload", "metadata": metadata})
        if event.progress < 0:
            answer = call("POST", f"{path}/fail", {"error": event.message or "The upload failed"})
        elif event.progress >= 100:
            answer = call("POST", f"{path}/complete", {"message": event.message} if event.message else {})
        else:
            answer = call("POST", f"{path}/progress", {"progress": event.progress, "message": event.message})
        if not 0 <= event.progress < 100 or answer.status in (404, 409):
            self._jobs.pop(event.file_id, None)


progress_notifier = ProgressNotifier()


class Both:
    """Reports to both Tidings and the old object, while pages of both kinds are open. The caller gets what the old
    object returns or raises, as before."""

    ONLY_OLD = ("register", "disconnect", "get_connection_count", "enqueue")

    def __init__(self, old, new):
        self._old, self._new = old, new

    def __getattr__(self, name):
        old, new = getattr(self._old, name), getattr(self._new, name, None)
        if new is None or name in self.ONLY_OLD:
            return old

        def both(*args, **kwargs):
            result = new(*args, **kwargs)
            if not inspect.isawaitable(result):
                return old(*args, **kwargs)

            async def in_turn():
                await result
                return await old(*args, **kwargs)

            return in_turn()

        return both
