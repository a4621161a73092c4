"""What the daemon answers from, where no other module has it."""

from dataclasses import fields

from shoal.compute.devices.inventory import Device, Inventory
from shoal.node import front
from shoal.node.front import Daemon
from shoal.node.offer import Capacity
from shoal.node.owner_view import check_device

CPU = Device(id="cpu", kind="cpu", name="A", memory_bytes=1, memory_free_bytes=1)


async def test_a_device_is_known_by_name_before_the_daemon_has_looked_for_devices(monkeypatch):
    monkeypatch.setattr(front.hardware, "detect", lambda: Inventory((CPU,)))
    parts = dict.fromkeys(field.name for field in fields(Daemon) if field.init)
    starting = Daemon(**parts | {"capacity": Capacity()})
    assert check_device("cpu", await starting._found()) == "cpu"
