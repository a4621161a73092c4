"""The order of the test files: those that take longest begin first. And no test is timed.

What is marked ``soak`` is for `make soak` and `make soak-short`.

`make test` hands out whole files to three processes. One that begins last should not be one
that takes a minute while two of them have nothing left to do.
"""

import os

import hypothesis

hypothesis.settings.register_profile(
    "house",
    deadline=None,  # machines are noisy: how fast drawing goes says nothing
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("house")

LONG = (
    "e2e/test_chaos.py",
    "property/test_exact_cpu.py",
    "e2e/test_doctor.py",
    "e2e/test_local_faults.py",
    "property/test_exact_operators.py",
    "net/test_jobs.py",
    "net/test_libp2p_compat.py",
    "net/test_connection_limits.py",
    "net/test_hostile_programs.py",
    "e2e/",
    "interop/",
    "net/",
)
"""Beginnings of paths below ``tests/``; what is named earlier begins earlier."""


def pytest_collection_modifyitems(config, items):
    tests = config.rootpath / "tests"

    def place(item):
        path = item.path.relative_to(tests).as_posix()
        return next((n for n, start in enumerate(LONG) if path.startswith(start)), len(LONG))

    if "SHOAL_SOAK_S" not in os.environ:
        config.hook.pytest_deselected(items=[i for i in items if i.get_closest_marker("soak")])
        items[:] = [item for item in items if not item.get_closest_marker("soak")]
    items.sort(key=place)  # stable: within a file nothing moves
