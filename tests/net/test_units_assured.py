"""The journal counts by the same grounds that single units are told by."""

from collections import Counter
from itertools import combinations, product

import msgspec
import pytest
from journal_samples import PEER, done, failed, make_job, make_units

from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.crypto.peer_id import PeerId
from shoal.node.assurance import assure
from shoal.node.records import Ban, Check
from shoal.node.state import open_state
from shoal.node.units_assured import units_assured

OWN, BOB = PeerId("12D3KooWown"), PeerId("12D3KooWbob")
OPINIONS = [
    (level, verifier, verdict)
    for level, verifier in (("quorum", BOB), ("re-run", BOB), ("own", OWN))
    for verdict in ("agrees", "differs", "no_answer")
]
SETS = [opinions for size in range(3) for opinions in combinations(OPINIONS, size)]


async def test_results_are_in_doubt_that_rest_on_convicted_peers_alone(tmp_path):
    mallory, trudy, bob = (identity.generate().peer_id for _ in range(3))
    cases = [
        (mallory, [], True),
        (mallory, [trudy], True),
        (mallory, [bob], False),
        (mallory, [OWN], False),
        (bob, [trudy], True),
        (bob, [], False),
        (OWN, [], False),
    ]
    async with open_state(tmp_path / "state.sqlite") as state:
        job, spec = make_job()
        units = make_units(len(cases))
        await state.add_job(job, spec, units)
        for unit, (provider, agreed, _) in zip(units, cases, strict=True):
            checks = [
                Check(job.id, unit.index, "re-run", peer, "agrees", None, 1.0)
                for peer in agreed
            ]
            end = done(unit)
            ran = msgspec.structs.replace(end.unit, provider=provider)
            await state.end_units(
                [msgspec.structs.replace(end, unit=ran, checks=tuple(checks))]
            )
        assert (await units_assured(state, job, OWN)).doubted == ()
        for peer in (mallory, trudy):
            await state.add_ban(Ban(peer, blob_id_of(peer.encode()), 1.0, 2e9, "a proof", True))
        counted = await units_assured(state, job, OWN)
    assert counted.doubted == tuple(n for n, (*_, doubted) in enumerate(cases) if doubted)
    assert counted.doubted_units == len(counted.doubted)


@pytest.mark.parametrize(
    ("numeric_class", "verify", "below"),
    [
        ("exact", "auto", False),
        ("fp32", "quorum:2", True),
        ("exact", "quorum:3", True),
    ],
)
async def test_the_counts_are_those_of_the_units_one_by_one(
    tmp_path, numeric_class, verify, below
):
    async with open_state(tmp_path / "state.sqlite") as state:
        job, spec = make_job(numeric_class=numeric_class, verify=verify)
        cases = list(product((PEER, OWN), SETS))
        units = make_units(len(cases) + 2)
        await state.add_job(job, spec, units)
        ends = []
        for unit, (provider, opinions) in zip(units, cases, strict=False):
            checks = [
                Check(job.id, unit.index, level, verifier, verdict, None, 1.0)
                for level, verifier, verdict in opinions
            ]
            end = done(unit)
            ran = msgspec.structs.replace(end.unit, provider=provider)
            ends.append(msgspec.structs.replace(end, unit=ran, checks=tuple(checks)))
        await state.end_units([*ends, failed(units[-1])])
        counted = await units_assured(state, job, OWN)
        assured = [
            assure(job, unit, await state.checks(job.id, unit.index), OWN)
            for unit in await state.units(job.id, 0, len(units))
        ]
    assert counted.units == Counter(each.ground for each in assured)
    assert counted.differed == sum(bool(each.differed) for each in assured)
    in_place = [each for each in assured if "in place of" in each.checked]
    assert counted.below_quorum == len(in_place)
    assert bool(in_place) == below
    assert counted.weaker == (numeric_class == "fp32")
    assert len(counted.units) == 5
