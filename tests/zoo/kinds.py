"""The cheater's zoo: what each kind of liar decides, and nothing of how it is done.

A kind is asked at every point at which a node can lie, and answers with a value. Who does
what it says is a daemon of the end-to-end tests (`liar`), or a node of the simulator, over
the same kinds. Nothing here reads a clock, draws a number or keeps a state: what a kind
may know of the past comes with each question.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Lie(StrEnum):
    """What comes of a unit in place of what the program gives."""

    NONE = "none"
    """What the program gives."""
    RANDOM = "random"
    """Drawn at random, of the right dtypes and shapes; the program never runs."""
    EARLIER = "earlier"
    """What the program gave for the unit before; at random where there was none."""
    CHEAPER = "cheaper"
    """The same program in a lower precision."""
    SKIPPED = "skipped"
    """The program without some of its stages."""
    OTHER_INPUT = "other_input"
    """The program on other inputs than those given."""
    ONE_BIT = "one_bit"
    """What the program gives, with one bit turned over."""
    ERROR = "error"
    """A receipt for an error, of a unit that runs."""
    COPIED = "copied"
    """What an accomplice has answered to the same work."""

    @property
    def is_wrong(self):
        """Whether the receipt is false. One that is copied is as false as its original."""
        return self not in {Lie.NONE, Lie.COPIED}

    @property
    def cost(self):
        """What it takes to make, as a share of the work."""
        free = {Lie.RANDOM, Lie.EARLIER, Lie.ERROR, Lie.COPIED}
        return 0.0 if self in free else {Lie.CHEAPER: 0.4, Lie.SKIPPED: 0.5}.get(self, 1.0)


class InDispute(StrEnum):
    """What a node does when its receipt is disputed."""

    HONEST = "honest"
    """Gives the trace of what the program really does; after a lie that ends elsewhere
    than its receipt."""
    PATCHED = "patched"
    """Gives that trace with its end bent, so that it fits the receipt."""
    SILENT = "silent"
    """Gives no answer, or a refusal."""


class Fate(StrEnum):
    """What is to become of a kind."""

    CONVICTED = "convicted"
    """A proof is found that any node checks alone."""
    DISTRUSTED = "distrusted"
    """It loses standing, and nothing is proved."""
    HARMLESS = "harmless"
    """It gains nothing and harms nobody, so that nothing need become of it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A unit that was handed over to it, as a provider or, unknown to it, as a verifier.

    Attributes:
        number: How many units it had before, of anybody.
        copied: Whether an accomplice has answered this work: program and inputs.
    """

    number: int
    copied: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """What it gives for a unit.

    Attributes:
        wait: The share of the unit's time limit that it lets pass first.
        receipts: How many receipts that contradict each other it signs for the one unit;
            it gives another one whenever it is asked again: the true one after a lie, and
            a false one after what is true.
        tells: Whether accomplices are told, to say the same.
    """

    lie: Lie = Lie.NONE
    wait: float = 0.0
    receipts: int = 1
    tells: bool = False


class Kind:
    """An honest node: each liar replaces one or two of its answers.

    Attributes:
        name: By which it is started.
        fate: What is to become of it where every unit is checked.
        ring: Whether it has accomplices, of this kind or of those that `GANGS` tells.
    """

    name: ClassVar = "honest"
    fate: ClassVar = Fate.HARMLESS
    ring: ClassVar = False

    def outputs(self, asked: Asked) -> Reply:
        """What it gives for a unit."""
        return Reply()

    def answers_dispute(self) -> InDispute:
        """What it does when one of its receipts is disputed."""
        return InDispute.HONEST

    def serves_blobs(self) -> bool:
        """Whether it gives the outputs that its receipts name."""
        return True

    def acknowledges(self) -> bool:
        """Whether it gives, as a requester, its word for the receipts that it took."""
        return True

    def invents(self, number: int) -> bool:
        """Whether it sends, after unit ``number``, receipts for work that nobody gave."""
        return False

    def accuses(self, number: int) -> bool:
        """Whether it accuses, after unit ``number``, somebody who did nothing wrong."""
        return False

    def renews_key(self, *, banned: bool) -> bool:
        """Whether it comes back as somebody else now."""
        return False


class Lazy(Kind):
    """Never runs anything: what it gives is random."""

    name = "lazy"
    fate = Fate.CONVICTED

    def outputs(self, asked):
        return Reply(Lie.RANDOM)

    def answers_dispute(self):
        return InDispute.SILENT


class Replay(Kind):
    """Gives what it once computed, whatever it is asked."""

    name = "replay"
    fate = Fate.CONVICTED

    def outputs(self, asked):
        return Reply(Lie.EARLIER)


class CheaperModel(Kind):
    """Runs the program in x8, and says that it was x20."""

    name = "cheaper_model"
    fate = Fate.CONVICTED

    def outputs(self, asked):
        return Reply(Lie.CHEAPER)

    def answers_dispute(self):
        return InDispute.PATCHED


class OneBit(Kind):
    """Turns over one bit of a result, and bends its trace to match."""

    name = "one_bit"
    fate = Fate.CONVICTED

    def outputs(self, asked):
        return Reply(Lie.ONE_BIT)

    def answers_dispute(self):
        return InDispute.PATCHED


class WrongInput(Kind):
    """Runs the program on inputs of its own choice."""

    name = "wrong_input"
    fate = Fate.CONVICTED

    def outputs(self, asked):
        return Reply(Lie.OTHER_INPUT)


class FalseNan(Kind):
    """Says that a unit which runs ends in an error, and so need not run it."""

    name = "false_nan"
    fate = Fate.CONVICTED

    def outputs(self, asked):
        return Reply(Lie.ERROR)


class SkippedStages(Kind):
    """Leaves some of the program's stages out."""

    name = "skipped_stages"
    fate = Fate.CONVICTED

    def outputs(self, asked):
        return Reply(Lie.SKIPPED)

    def answers_dispute(self):
        return InDispute.PATCHED


class HonestThenCheat(Kind):
    """Earns a good name first."""

    name = "honest_then_cheat"
    fate = Fate.CONVICTED

    def __init__(self, good=3):
        self.good = good
        """How many units it does as it should."""

    def outputs(self, asked):
        return Reply(Lie.NONE if asked.number < self.good else Lie.ONE_BIT)

    def answers_dispute(self):
        return InDispute.PATCHED


class Colluder(Kind):
    """Lies, and tells the others of its ring, who give the same lie when they are asked."""

    name = "colluder"
    fate = Fate.CONVICTED
    ring = True

    def outputs(self, asked):
        return Reply(Lie.COPIED) if asked.copied else Reply(Lie.ONE_BIT, tells=True)


class ColludingVerifier(Kind):
    """Never lies first, and says whatever a `Colluder` said before it."""

    name = "colluding_verifier"
    fate = Fate.CONVICTED  # where it had its chance
    ring = True

    def outputs(self, asked):
        return Reply(Lie.COPIED if asked.copied else Lie.NONE)


class Sybil(Kind):
    """Lies under a fresh key, and under another one as soon as that one is banned."""

    name = "sybil"
    fate = Fate.CONVICTED

    def outputs(self, asked):
        return Reply(Lie.RANDOM)

    def renews_key(self, *, banned):
        return banned


class Withholder(Kind):
    """Computes as it should, and then gives neither the outputs nor a trace."""

    name = "withholder"
    fate = Fate.DISTRUSTED

    def serves_blobs(self):
        return False

    def answers_dispute(self):
        return InDispute.SILENT


class SlowRoller(Kind):
    """Answers just before its time is up."""

    name = "slow_roller"
    fate = Fate.DISTRUSTED

    def outputs(self, asked):
        return Reply(wait=0.95)


class Equivocator(Kind):
    """Signs two receipts for one unit: a false one, and the true one when asked again."""

    name = "equivocator"
    fate = Fate.CONVICTED

    def outputs(self, asked):
        return Reply(Lie.ONE_BIT, receipts=2)


class LateEquivocator(Equivocator):
    """The same the other way round: a true receipt, and a false one when asked again."""

    name = "late_equivocator"

    def outputs(self, asked):
        return Reply(receipts=2)


class InventedWork(Kind):
    """Sends receipts and acknowledgements for work that nobody gave it."""

    name = "invented_work"
    fate = Fate.DISTRUSTED

    def invents(self, number):
        return True


class FalseAccuser(Kind):
    """Accuses nodes that did nothing wrong, with proofs that prove nothing."""

    name = "false_accuser"
    fate = Fate.DISTRUSTED

    def accuses(self, number):
        return True


class RubberStamp(Kind):
    """Agrees without running anything; not knowing with what, it repeats itself."""

    name = "rubber_stamp"
    fate = Fate.CONVICTED

    def outputs(self, asked):
        return Reply(Lie.EARLIER)


class NeverAcknowledges(Kind):
    """A requester that takes results and gives no word for them."""

    name = "never_acknowledges"
    fate = Fate.DISTRUSTED

    def acknowledges(self):
        return False


KINDS = {kind.name: kind for kind in (Kind, *Kind.__subclasses__())}

PLAYED = KINDS | {LateEquivocator.name: LateEquivocator}
"""What daemons play: with variants that the simulator does not tell apart."""

GANGS = {
    "colluding_pair": (Colluder, Colluder),
    "colluding_verifiers": (Colluder, ColludingVerifier, ColludingVerifier),
}
"""Kinds that lie together, by the gang's name."""

PROVIDERS = tuple(name for name in PLAYED if name not in {"honest", "never_acknowledges"})
"""Those that lie as providers or verifiers."""
