"""On a machine set up for marked tests only, files that lack a package are skipped, and say which."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

MARKS = ("gpu", "standin")


class SkipMissingPackages:
    """A plugin for `-m gpu` and `-m standin`.

    Elsewhere a missing package stays an error, so that no test is left out unnoticed. It is no part of a
    `conftest.py`, whose hooks pytest does not ask about folders.
    """

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Generator[None, Any, Any]:
        """Turn a failed import of a whole package, by a file or a folder's conftest, into a skip."""
        report = yield
        if report.failed and collector.config.option.markexpr in MARKS:
            error = report.call.excinfo.value
            cause = error.__cause__ or error
            # a module that lacks within a package is a fault
            if isinstance(cause, ModuleNotFoundError) and cause.name and "." not in cause.name:
                report.outcome = "skipped"
                report.longrepr = (str(collector.path), 0, f"{cause.name} is not installed")
        return report
