"""The present state of a scope, from its messages."""

from __future__ import annotations

from urllib.parse import quote

from ._stream import Message

_SUBJECTS = {
    "job_progress": ("jobs", "job_id", ""),
    "enrollment_progress": ("enrollments", "session_id", ""),
    "enrollment_complete": ("enrollments", "session_id", ""),
    "enrollment_error": ("enrollments", "session_id", ""),
    "enrollment_cancelled": ("enrollments", "session_id", ""),
    "device_status_update": ("devices", "device_id", ""),
    "device_info_update": ("devices", "device_id", "#info"),
    "sample": ("characteristics", "characteristic_id", "#sample"),
    "control_limits": ("characteristics", "characteristic_id", "#limits"),
    "violation": ("violations", "violation_id", ""),
    "ack_update": ("violations", "violation_id", ""),
    "schedule_update": ("schedules", "schedule_id", ""),
}
# As `encodeURIComponent` of JavaScript, so that all clients have the same keys.
_UNESCAPED = "!~*'()"


class State(dict[str, Message]):
    """The latest event of each part of each subject, by keys such as `jobs/42` and `devices/7#info`.

    >>> state = State()
    >>> for message in tidings.watch("jobs"):
    ...     state.apply(message)
    """

    def apply(self, message: Message) -> None:
        """Takes a message of `watch`. A `reset` discards everything, because a complete snapshot follows."""
        name = message.get("type")
        if name == "reset":
            self.clear()
        if name not in _SUBJECTS:
            return
        collection, field, part = _SUBJECTS[name]
        content = message.get("payload", message)
        key = f"{collection}/{quote(str(content.get(field)), safe=_UNESCAPED)}{part}"
        is_removed = name == "schedule_update" and content.get("status") == "removed"
        if is_removed or (name == "ack_update" and content.get("acknowledged")):
            self.pop(key, None)
        else:
            self[key] = message
