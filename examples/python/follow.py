"""Follows a scope of Tidings over Server-Sent Events and stays connected. Needs Python's standard library only."""

import http.client
import json
import random
import time
import urllib.error
import urllib.request

# Two heartbeats that do not come mean that the connection is dead.
SILENCE_SECS = 30
PAUSE_MAX_SECS = 30


def follow(url, token, cursor=""):
    """Yields each message, in order, each event once. `token` returns a valid token. Raises what the server refuses for
    good. Store `message["cursor"]` of the last message that was dealt with to go on there after a restart."""
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
        # Each client its own time: they do not all come back in the same moment.
        time.sleep(max(wait, pause) * (1 + random.random()))
        pause = min(pause * 2, PAUSE_MAX_SECS)
