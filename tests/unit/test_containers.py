"""The container files say what the code says: paths, settings, ports, commands.

That the images build and run is shown where there is a container engine; here there is none.
"""

import re
from pathlib import Path

import pytest
import yaml

from shoal.node.settings import SETTINGS

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "deploy" / "containers"
CONTAINERFILE = (CONTAINERS / "Containerfile").read_text()
SERVICES = yaml.safe_load((CONTAINERS / "compose.yaml").read_text())["services"]
VARIABLES = {f"SHOAL_{setting.name.upper()}" for setting in SETTINGS}
DEFAULTS = {setting.name: setting.default for setting in SETTINGS}


def test_what_is_copied_is_there():
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", CONTAINERFILE, re.MULTILINE)
    paths = [path for line in copied for path in line.split()]
    assert {"constraints.txt", "node", "compute", "deploy/package"} <= set(paths)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_variables_are_settings():
    named = set(re.findall(r"\bSHOAL_[A-Z_]+", CONTAINERFILE))
    for service in SERVICES.values():
        named |= set(service["environment"])
    assert named - VARIABLES == set()


@pytest.mark.parametrize("service", SERVICES.values(), ids=list(SERVICES))
def test_the_ports_of_a_service_are_those_that_its_daemon_listens_on(service):
    listen = re.search(r"/tcp/(\d+)$", service["environment"]["SHOAL_LISTEN"])[1]
    assert service["environment"]["SHOAL_LISTEN"] in DEFAULTS["listen"]()
    bulk = service["environment"]["SHOAL_BULK"]
    assert service["ports"] == [f"{listen}:{listen}", f"{bulk}:{bulk}"]
    assert re.search(rf"^EXPOSE {listen} {bulk}$", CONTAINERFILE, re.MULTILINE)


def test_each_kind_of_card_is_handed_on():
    (cards,) = SERVICES["cuda"]["deploy"]["resources"]["reservations"]["devices"]
    assert cards == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert SERVICES["rocm"]["devices"] == ["/dev/kfd", "/dev/dri"]
    assert {"devices", "deploy"}.isdisjoint(SERVICES["cpu"])


@pytest.mark.parametrize("service", SERVICES.values(), ids=list(SERVICES))
def test_a_service_has_no_more_rights_than_a_daemon_needs(service):
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service
    assert re.search(r"^USER shoal$", CONTAINERFILE, re.MULTILINE)
