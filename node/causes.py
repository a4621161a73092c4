"""What keeps a job from running, as values, and what each answer of a peer means.

The tables below are the only place where a refusal's, or a network error's, meaning for a
person is written. `node.explain` chooses from them.

A command in `…` is to be given on this machine, one in “…” on the peer's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from shoal.crypto.peer_id import PeerId
from shoal.node.outlook import Outlook
from shoal.node.records import Answer, Job, Unit
from shoal.protocol.negotiation_messages import Reason

UPGRADE = "pip install -c constraints.txt ."
"""What installs shoal from a checkout, as README has it: there is no package elsewhere."""


class Remedy(StrEnum):
    """Who can get the job running, from what is soonest to what may never be."""

    WAIT = "wait"
    """It passes by itself within seconds."""
    HERE = "here"
    """A command on this machine."""
    LATER = "later"
    """It passes by itself, and nobody here knows when."""
    THERE = "there"
    """The operator of the other machine."""
    NOBODY = "nobody"

    @property
    def rank(self) -> int:
        """Its place in this order."""
        return tuple(Remedy).index(self)


class Cause(msgspec.Struct, frozen=True):
    """One thing that keeps units from running, or from running sooner.

    Attributes:
        code: A refusal's `Reason`, a network error's code, or one of this node's own:
            ``no_peer``, ``not_asked``, ``triton_version``, ``gone``, ``version``,
            ``false_result``, ``unanswered``, ``other_jobs``, ``working``, ``in_check``,
            ``disputed`` and ``done``; or the code of a failure.
        sentence: What is so, for a person.
        step: What would change it, for a person; "" where nothing need be done.
        remedy: Who can do that.
        peers: Whom it is about; this node may be among them.
        units: Indices of the units that it is about, some of them at most; none for all.
    """

    code: str
    sentence: str
    step: str = ""
    remedy: Remedy = Remedy.WAIT
    peers: tuple[PeerId, ...] = ()
    units: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """Sentence and step as one line."""
        return f"{self.sentence}: {self.step}." if self.step else f"{self.sentence}."


class Explanation(msgspec.Struct, frozen=True):
    """Why a job, or one unit of it, stands where it stands.

    Attributes:
        headline: How it stands.
        causes: What would get it running soonest comes first.
        answers: What peers answered to the job's calls, oldest first.
        outlook: The job's plan at this moment; None where it does not run.
        unit: The unit that was asked about.
    """

    job: Job
    headline: str
    causes: tuple[Cause, ...] = ()
    answers: tuple[Answer, ...] = ()
    outlook: Outlook | None = None
    unit: Unit | None = None

    @property
    def summary(self) -> str:
        """The headline and a line for each cause."""
        return "\n".join([self.headline, *(cause.text for cause in self.causes)])


@dataclass(frozen=True, slots=True)
class Words:
    """What an answer says about who gave it, and what would change it.

    Attributes:
        one: After the name of one peer: "is busy".
        many: After "3 peers": "are busy".
        step: What to do where it is a peer's answer; ``{…}`` are filled in by
            `node.explain`.
        here: What to do where it is this node's own; as ``step`` where it is "".
        remedy: Who can do ``step``; what this node can change it changes itself.
        told: Whether the peer's own words are told as well.
    """

    one: str
    many: str
    step: str
    remedy: Remedy
    here: str = ""
    told: bool = True


REFUSALS = {
    Reason.BANNED: Words(
        "bans this node, for a result that was proved false",
        "ban this node, for a result that was proved false",
        "“shoal peers” there names the proof, `shoal proof verify` checks it anywhere, and a "
        "ban lapses by itself; its operator can lift it with “shoal peers --unban {own}”",
        Remedy.THERE,
    ),
    Reason.BUSY: Words(
        "is busy",
        "are busy",
        "nothing need be done, {again}; more peers would make it sooner",
        Remedy.WAIT,
        here="nothing need be done, {again}",
    ),
    Reason.CLASS_NOT_OFFERED: Words(
        "does not offer the numeric class {class}",
        "do not offer the numeric class {class}",
        "submit it again with another one, by `--class`; `shoal peers` shows who offers which",
        Remedy.HERE,
    ),
    Reason.DATA_MISSING: Words(
        "could not fetch the program or an input from this node",
        "could not fetch the program or an input from this node",
        "keep this daemon running and reachable (`shoal status`), {again}; where the data is "
        "lost on this machine, submit the job again",
        Remedy.HERE,
    ),
    Reason.DENIED: Words(
        "has this node on its deny list",
        "have this node on their deny lists",
        "only its operator can change that: “shoal deny --remove {own}” there",
        Remedy.THERE,
        told=False,
    ),
    Reason.DRAINING: Words(
        "is shutting down",
        "are shutting down",
        "it is asked again once it has come back with “shoal up”",
        Remedy.THERE,
        here="wait for its next start with `shoal up`",
        told=False,
    ),
    Reason.EXPIRED: Words(
        "had let go of the lease",
        "had let go of their leases",
        "nothing need be done, {again}",
        Remedy.WAIT,
    ),
    Reason.INTERNAL: Words(
        "failed inside, by a fault of its own",
        "failed inside, by faults of their own",
        "other nodes try the unit; the log there tells its operator more",
        Remedy.LATER,
        here="its log tells more, and `shoal bugreport` collects it",
    ),
    Reason.NOT_PROVIDING: Words(
        "takes no work of others",
        "take no work of others",
        "its operator can change that: `provide = true` there, then “shoal reload”",
        Remedy.THERE,
        told=False,
    ),
    Reason.NO_DEVICE: Words(
        "has no device that works",
        "have no device that works",
        "“shoal devices” there tells its operator why, and “shoal doctor” what to do",
        Remedy.THERE,
        here="`shoal devices` tells why, and `shoal doctor` what to do",
    ),
    Reason.NO_ROOM: Words(
        "has no room for the program, an input or an output",
        "have no room for the program, an input or an output",
        "its operator can raise `blob_quota` there and then give “shoal reload”; smaller units "
        "(`--batch`) help too",
        Remedy.THERE,
        here="raise `blob_quota` in the settings and give `shoal reload`, or make units "
        "smaller with `--batch`",
    ),
    Reason.PAUSED: Words(
        "takes no work for now, as its owner wishes",
        "take no work for now, as their owners wish",
        "wait, or its owner gives “shoal resume” there",
        Remedy.LATER,
        here="`shoal resume` ends a pause, and `shoal status` shows what else holds it back",
    ),
    Reason.PRICE: Words(
        "takes only units that are worth more",
        "take only units that are worth more",
        "its operator can lower `min_price` there and then give “shoal reload”",
        Remedy.THERE,
    ),
    Reason.PROGRAM_REFUSED: Words(
        "refused the program or its inputs",
        "refused the program or its inputs",
        "change what these words name and submit it again; `shoal version` here and there "
        "tells whether both follow the same rules",
        Remedy.HERE,
    ),
    Reason.TOO_LARGE: Words(
        "gives a unit less memory or time than this job asks for",
        "give a unit less memory or time than this job asks for",
        "submit it again with less, by `--memory-limit` or `--time-limit`",
        Remedy.HERE,
    ),
    Reason.UNSETTLED: Words(
        "waits until this node has acknowledged units that it did before",
        "wait until this node has acknowledged units that they did before",
        "this node acknowledges them by itself, {again}",
        Remedy.WAIT,
    ),
    Reason.UNTRUSTED_REQUESTER: Words(
        "serves only nodes that its owner knows, and this node is not on its allow list",
        "serve only nodes that their owners know, and this node is not on their allow lists",
        "its operator can add this node there: “shoal allow {own}”",
        Remedy.THERE,
        told=False,
    ),
}
"""For each refusal: what it says about the peer, and what would change it."""

NO_CARD = Words(
    "has no GPU for it",
    "have no GPU for it",
    "it runs on a node with a GPU alone: `shoal peers --connect ADDRESS` links this node to "
    "one",
    Remedy.HERE,
)
"""`Reason.NO_DEVICE` of a node whose devices work, and are no GPUs."""

KERNELS_OF_FRIENDS = Words(
    "takes kernels only of nodes that are on its allow list",
    "take kernels only of nodes that are on their allow lists",
    "its operator can add this node there: “shoal allow {own}”",
    Remedy.THERE,
    told=False,
)
"""`Reason.UNTRUSTED_REQUESTER` of a node that would serve strangers with anything else."""

NO_SANDBOX = Words(
    "serves nodes that are not on its allow list from within a sandbox only, and has none",
    "serve nodes that are not on their allow lists from within a sandbox only, and have none",
    "its operator can add this node there: “shoal allow {own}”; “shoal doctor” there says what "
    "the sandbox lacks",
    Remedy.THERE,
    told=False,
)
"""`Reason.UNTRUSTED_REQUESTER` of a node that would serve strangers."""

IN_DEBT = Words(
    "serves those who serve, and did far more for this node than it had back",
    "serve those who serve, and did far more for this node than they had back",
    "take work of it: `provide = true` here, and a price that it accepts; `shoal ledger` "
    "shows how it stands; or its operator adds this node there: “shoal allow {own}”",
    Remedy.LATER,
)
"""The same where a node keeps count of who did how much (`node.ledger`)."""

LOW_STANDING = Words(
    "does not work for this node, for what it did before",
    "do not work for this node, for what it did before",
    "standing recovers with time; “shoal standing {own}” there gives its operator the reasons",
    Remedy.LATER,
)
"""The same where this node's standing is too low (`node.standings`)."""

_RETRIED = "{again}; look there whether its daemon runs (“shoal status”, else “shoal up”)"

ERRORS = {
    "unreachable": Words(
        "cannot be reached",
        "cannot be reached",
        "look there whether its daemon runs (“shoal status”, else “shoal up”), and whether a "
        "firewall is between; {again}",
        Remedy.THERE,
    ),
    "no_answer": Words("gives no answer", "give no answer", _RETRIED, Remedy.THERE, told=False),
    "timed_out": Words("gives no answer", "give no answer", _RETRIED, Remedy.THERE, told=False),
    "link_lost": Words("was lost on the way", "were lost on the way", _RETRIED, Remedy.WAIT),
    "not_connected": Words(
        "was lost on the way", "were lost on the way", _RETRIED, Remedy.WAIT
    ),
    "peer_unknown": Words(
        "has no address that is known here",
        "have no address that is known here",
        "`shoal peers --connect ADDRESS`, with what “shoal status” shows there",
        Remedy.HERE,
        told=False,
    ),
    "both_private": Words(
        "cannot be dialled and neither can this node, and there is no relay",
        "cannot be dialled and neither can this node, and there is no relay",
        "make this node reachable: `shoal status` says how, under reachability",
        Remedy.HERE,
        told=False,
    ),
    "not_introduced": Words(
        "cannot be dialled, and no peer could have it dial this node",
        "cannot be dialled, and no peer could have them dial this node",
        "{again}; `shoal status` says under reachability whether this node can be dialled",
        Remedy.LATER,
    ),
    "other_network": Words(
        "is in another private network, or in none",
        "are in another private network, or in none",
        "an invitation made there (“shoal invite”) and `shoal join TOKEN` here bring both "
        "together",
        Remedy.THERE,
    ),
    "peer_cut": Words(
        "is cut off by this node",
        "are cut off by this node",
        "`shoal peers --forgive {peer}` lets it back in before that time",
        Remedy.HERE,
    ),
    "peer_banned": Words(
        "is banned by this node, for a result that was proved false",
        "are banned by this node, for results that were proved false",
        "`shoal proof list` shows the proof; a ban lapses by itself, and "
        "`shoal peers --unban {peer}` lifts it before",
        Remedy.HERE,
    ),
    "too_many_requests": Words(
        "was asked too much by this node, and is left alone for a while",
        "were asked too much by this node, and are left alone for a while",
        "nothing need be done, {again}",
        Remedy.WAIT,
        told=False,
    ),
    "not_ready": Words("is starting", "are starting", "{again}", Remedy.WAIT, told=False),
    "peer_too_old": Words(
        "runs an older shoal that does not know what this job needs",
        "run an older shoal that does not know what this job needs",
        f"its operator must upgrade it: “{UPGRADE}” in a newer checkout of shoal, then “shoal "
        "down” and “shoal up”",
        Remedy.THERE,
    ),
}
"""For each way not to reach a peer, or to be misunderstood by it: the same."""

OTHER_ERROR = Words(
    "could not be used",
    "could not be used",
    "{again}; `shoal peers` shows whether it is linked",
    Remedy.LATER,
)

FALSE_RESULT = Words(
    "gave a result that is false",
    "gave results that are false",
    "it gets no unit of this job any more; `shoal peers` shows how it stands",
    Remedy.NOBODY,
)

FALSE_RESULTS = frozenset(
    {
        "bad_chunk",
        "bad_chunk_list",
        "bad_envelope",
        "bad_payload",
        "bad_public_key",
        "bad_receipt",
        "bad_signature",
        "receipt_mismatch",
        "wrong_output",
        "wrong_output_id",
        "wrong_outputs",
        "wrong_signer",
        "wrong_statement",
    }
)
"""Codes of `VerificationError` that a provider's result can end in."""

AFTER_FAILURE = {
    "input_failed": "see why the unit failed that was to give the input: `shoal job why JOB`",
    "library_failure": "the log there tells its operator more; other inputs may do",
    "lost_too_often": "`shoal peers` shows whom this node can rely on; submit it again",
    "memory_limit": "submit it again with more, by `--memory-limit`, or with smaller units, by "
    "`--batch`",
    "operator_failed": "look at the inputs of this unit, and at the operator that is named",
    "output_limit": "submit it again with more, by `--memory-limit`, or with smaller units, by "
    "`--batch`",
    "program_refused": "change what these words name and submit it again; inputs that are too "
    "large need more `--memory-limit`, or smaller units by `--batch`",
    "time_limit": "submit it again with more, by `--time-limit`, or with smaller units, by "
    "`--batch`",
}
"""For codes of failed units: what may be done about it before the job is submitted again."""
