"""What the daemon answers from, where no other module has it."""

from dataclasses import fields

import pytest

from shoal.compute.devices.inventory import Device, Inventory
from shoal.node import front
from shoal.node.errors import JobError
from shoal.node.front import Daemon
from shoal.node.offer import Capacity
from shoal.node.owner_view import check_device

CPU = Device(id="cpu", kind="cpu", name="A", memory_bytes=1, memory_free_bytes=1)


async def test_a_device_is_known_by_name_before_the_daemon_has_looked_for_devices(monkeypatch):
    monkeypatch.setattr(front.hardware, "detect", lambda: Inventory((CPU,)))
    parts = dict.fromkeys(field.name for field in fields(Daemon) if field.init)
    starting = Daemon(**parts | {"capacity": Capacity()})
    assert check_device("cpu", await starting._found()) == "cpu"


class EmptyJournal:
    async def units(self, job_id, offset, limit):
        return []

    async def receipt_ids(self, job_id):
        return []

    async def job(self, job_id):
        raise JobError(f"there is no job {job_id}", code="no_such_job")


async def test_of_a_job_that_is_not_there_neither_units_nor_receipts_are_listed():
    parts = dict.fromkeys(field.name for field in fields(Daemon) if field.init)
    daemon = Daemon(**parts | {"journal": EmptyJournal()})
    with pytest.raises(JobError, match="no job nojob"):
        await daemon.units("nojob", 0, 1)
    with pytest.raises(JobError, match="no job nojob"):
        await daemon.receipts("nojob")
