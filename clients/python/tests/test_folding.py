"""How progress that waits is folded, without I/O."""

from __future__ import annotations

import pytest

from tidings import _outbox
from tidings._outbox import Body, Outbox, Report, Subject


def tick(**body: object) -> Report:
    return Report(Subject("jobs", "a"), "progress", body, is_tick=True)


def test_a_large_tick_is_not_measured_again_by_those_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    outbox, measured = Outbox(), 0
    large = {"rows": "x" * 900_000}
    assert outbox.offer(tick(progress=0, metadata=large))

    def counted(body: Body) -> int:
        nonlocal measured
        measured += "rows" in body.get("metadata", {})
        return measure(body)

    measure = _outbox.size_of
    monkeypatch.setattr(_outbox, "size_of", counted)
    for progress in range(1_000):
        assert outbox.offer(tick(progress=progress, metadata={"row": progress}))
    assert (len(outbox), measured) == (2, 0)
    assert [report.body for report in outbox.take("w", 0)] == [{"progress": 0, "metadata": large}, {"progress": 999, "metadata": {"row": 999}}]


def test_a_large_tick_that_replaces_the_one_that_waits_is_folded() -> None:
    outbox = Outbox()
    for progress in range(20):
        assert outbox.offer(tick(progress=progress, metadata={"rows": str(progress) * 20_000}))
    [left] = outbox.take("w", 0)
    assert left.body == {"progress": 19, "metadata": {"rows": "19" * 20_000}}
    assert outbox.bytes == left.size == _outbox.size_of(left.body)


def test_a_tick_that_lacks_something_of_the_large_one_that_waits_leaves_it_alone() -> None:
    large = {"rows": "x" * 20_000}
    for later in (tick(progress=2), tick(progress=2, metadata={"rows": "y"}), tick(message="on", metadata={"rows": "y", "row": 1})):
        outbox = Outbox()
        assert outbox.offer(tick(message="begins", progress=1, metadata=large))
        assert outbox.offer(later)
        assert [report.body for report in outbox.take("w", 0)] == [{"message": "begins", "progress": 1, "metadata": large}, later.body]
