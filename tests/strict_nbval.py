"""A pytest plugin for the notebooks in `make test`: expected failures and very slow cells are counted as failures.

nbval 0.11 reports the cells after a timed-out cell as xfail. If the timed-out cell catches KeyboardInterrupt, as a
training loop does, the cell passes. In both cases pytest exits with 0, so the plugin is needed. Load it with
`-p strict_nbval`.
"""

import pytest

LARGEST_FRACTION = 0.5  # a cell may take this fraction of the cell timeout


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if getattr(report, "wasxfail", None) is not None:
        del report.wasxfail
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} did not run, because an earlier cell timed out"
    limit = LARGEST_FRACTION * (item.config.getoption("--nbval-cell-timeout", default=None) or float("inf"))
    if call.when == "call" and call.duration > limit:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} took {call.duration:.0f} s; a cell may take {limit:.0f} s"
