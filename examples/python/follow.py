"""Follows a scope of Tidings over Server-Sent Events and stays connected. Needs only Python's standard library."""

import http.client
import json
import random
import time
import urllib.error
import urllib.request

# Two missing heartbeats mean that the connection is dead.
SILENCE_SECS = 30
PAUSE_MAX_SECS = 30


def follow(url, token, cursor=""):
    """Yields each message, in order, each event once. `token` returns a valid token. Raises an error after a permanent
    rejection. To resume after a restart, store `message["cursor"]` of the last message that was processed."""
    pause = 1
    while True:
        headers = {"Authorization": f"Bearer {token()}", "Accept": "text/event-stream", "Last-Event-ID": cursor}
        at, wait = cursor, 0
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=SILENCE_SECS) as lines:
                for line in lines:
                    name, _, value = line.decode().rstrip("\r\n").partition(": ")
                    if name == "id":
                        at = value
                    elif name == "data":
                        message = json.loads(value)
                        if message["type"] == "ready":
                            pause = 1
                        if message["type"] == "closing":
                            wait = (message["retry_ms"] or 0) / 1000
                        if message["type"] != "heartbeat":
                            yield message
                        cursor = at
        except urllib.error.HTTPError as error:
            if error.code in (400, 401, 403, 404, 422):
                raise
            wait = float(error.headers.get("Retry-After", 0))
        except (OSError, http.client.HTTPException):
            pass
        # Add jitter, so that clients do not all reconnect at the same moment.
        time.sleep(max(wait, pause) * (1 + random.random()))
        pause = min(pause * 2, PAUSE_MAX_SECS)
