"""The figures that a refusal's own words hold, and the next step with them.

Pure. What is read here is what `node.bidding.refusal` writes; words of another form have no
figures, and are told as they came.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shoal.node.records import Job, Policy
from shoal.node.wording import binary_size
from shoal.protocol.negotiation_messages import Reason

_MEMORY = re.compile(r"a unit may use (\d{1,18}) bytes here, not (\d{1,18})")
_TIME = re.compile(r"a unit may take ([\d.e+]{1,18}) s here, not ([\d.e+]{1,18})")
_PRICE = re.compile(
    r"a unit of it is worth ([\d.e+]{1,18}) credits, and those of ([\d.e+]{1,18}) or more"
)


@dataclass(frozen=True, slots=True)
class Refuser:
    """Who refused, as far as the grammar depends on it.

    Attributes:
        own: It is this node.
        many: They are several.
    """

    own: bool = False
    many: bool = False

    def verb(self, stem: str) -> str:
        """``gives`` or ``give``."""
        return stem if self.many else f"{stem}s"

    def sets(self, setting: str, then: str) -> str:
        """Who sets what, and what has to follow it."""
        if self.own:
            return f"set `{setting}` in the settings, then `{then}`"
        who = "their operators" if self.many else "its operator"
        return f"{who} can set `{setting}` there, then “{then}”"


def with_figures(job: Job, verdict: str, detail: str, who: Refuser) -> tuple[str, str] | None:
    """What a refusal says in figures, and the step with them; None where it has none."""
    command = "shoal run" if job.policy is Policy.RUN else "shoal map"
    if verdict == Reason.TOO_LARGE and (found := _MEMORY.match(detail)):
        offers, asked = int(found[1]), int(found[2])
        less = f"`{command} … --memory-limit {binary_size(offers, exact=True)}`"
        more = f'memory = "{binary_size(asked, exact=True)}"'
        says = f"{who.verb('give')} a unit {binary_size(offers)} of memory, and this job asks"
        return (
            f"{says} for {binary_size(asked)}",
            f"submit it again with less, {less}; or {who.sets(more, 'shoal down')} and, to "
            "start it again, " + ("`shoal up`" if who.own else "“shoal up”"),
        )
    if verdict == Reason.TOO_LARGE and (found := _TIME.match(detail)):
        less = f"`{command} … --time-limit {found[1]}s`"
        longer = who.sets(f'time_limit = "{found[2]}s"', "shoal reload")
        return (
            f"{who.verb('give')} a unit {found[1]} s, and this job asks for {found[2]} s",
            f"submit it again with less, {less}; or {longer}",
        )
    if verdict == Reason.PRICE and (found := _PRICE.match(detail)):
        says = f"{who.verb('take')} only units worth {found[2]} credits or more, and one of"
        lower = who.sets(f"min_price = {found[1]}", "shoal reload")
        return (
            f"{says} this job is worth {found[1]}",
            f"{lower}; or make units larger with `--batch`: 100 MB of inputs are worth 1",
        )
    return None
