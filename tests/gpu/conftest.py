"""What needs a card: `make test-gpu`; `make rehearse-gpu` runs it without one.

Elsewhere one test stands for all, and says why.
"""

import signal

import pytest
from rehearsal import DEVICE, LEFT_OUT, REHEARSED, why_not

REASON = why_not()
collect_ignore_glob = ["test_*_on_card.py"] if REASON else []


def pytest_configure():
    if not REASON:  # `on_a_card.sh` ends a step so: what was found out until then is written
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_report_header():
    if not REHEARSED:
        return []
    return ["rehearsal without a card; it leaves out:", *(f"  {what}" for what in LEFT_OUT)]


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            if REASON:
                item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(scope="session")
def card_name():
    import torch

    return "a rehearsal" if DEVICE == "cpu" else torch.cuda.get_device_name()
