"""A test that needs a package is never left out silently."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import BY_HAND, missing, needs


def test_a_package_that_is_installed_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDINGS_REQUIRE_ALL", "1")
    assert needs("httpx").__name__ == "httpx"


def test_without_its_package_a_test_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDINGS_REQUIRE_ALL", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"^absent\.module is not installed$"):
        needs("absent.module")


def test_without_its_package_a_test_fails_where_all_packages_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDINGS_REQUIRE_ALL", "1")
    for module in ("absent.module", "httpx.absent"):
        with pytest.raises(pytest.fail.Exception, match=f"^{module} is required and not installed$"):
            needs(module)


def test_a_package_that_is_run_by_hand_is_never_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDINGS_REQUIRE_ALL", "1")
    for module in (*BY_HAND, "lightning.pytorch"):
        with pytest.raises(pytest.skip.Exception):
            missing(module)


def test_a_package_that_cannot_be_imported_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDINGS_REQUIRE_ALL", raising=False)
    (tmp_path / "broken_package.py").write_text("import absent\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="absent"):
        needs("broken_package")
