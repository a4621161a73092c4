"""ONNX Runtime reports to its maker from the moment it is imported, unless told not to."""

from shoal.compute.supervisor import open_worker


async def test_a_worker_starts_no_telemetry(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    async with open_worker(threads=1) as worker:
        await worker.probe()
    assert list(tmp_path.iterdir()) == []  # it would keep a queue in .cache and a session here
