"""What is taken out of a text before a user hands it to strangers. Pure.

Three layers, each of which would do for most: the secrets that this home holds, in
every form in which a program may have written them; whatever has the look of a secret
(invitations, PEM blocks, long runs of digits or letters), whoever's it is; and what is
personal and not secret, which is replaced by a name that is the same all through the
text, so that two lines about one host can still be told to be so.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import base58

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SECRET: Final = "[secret]"  # noqa: S105  # what stands in its place
_LEAST_SIZE_BYTES: Final = 16
"""Shorter ones are no secrets, and would be found in innocent words."""

_PEM = re.compile(r"-----BEGIN [A-Z ]*KEY-----.*?(?:-----END [A-Z ]+-----|\Z)", re.DOTALL)
_INVITATION = re.compile(r"shoal\d{1,9}_[a-z2-7]+(?:(?:\s|\\n)+[a-z2-7]{16,})*", re.IGNORECASE)
_PEER = re.compile(r"\b(?:12D3KooW|16Uiu2HA|Qm)[1-9A-HJ-NP-Za-km-z]{30,}")
_HEX = re.compile(r"\b(?:0x)?[0-9a-fA-F]{32,}\b")
_RUN = re.compile(r"(?<![A-Za-z0-9+_-])[A-Za-z0-9+_-]{40,}={0,2}(?![A-Za-z0-9+_-])")
_WORDY = re.compile(r"[a-z]+(?:_[a-z]+)+")
"""A long name of a function or a test is no secret."""

_IP4 = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.]*\d)")
_IP6 = re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?:%\w+)?(?![\w:])")
_NAMED_HOST = re.compile(r"/(dns[46]?|dnsaddr)/([^/\s\"']+)")
_HOME = re.compile(r"(/(?:home|Users)/)([^/\s\"':;,]+)")
_KEPT_END: Final = 8
_COMMON: Final = ("root", "localhost", "shoal", "/root")


@dataclass(slots=True)
class Scrubber:
    """Scrubs texts; the same host gets the same name in all of them.

    Attributes:
        secrets: Bytes that must not be told in any form.
        words: Personal words (user, host, the machine's name), with what stands for them.
        with_addresses: Whether addresses and names of hosts stay.
    """

    secrets: tuple[bytes, ...] = ()
    words: dict[str, str] = field(default_factory=dict)
    with_addresses: bool = False
    _forms: tuple[re.Pattern[str], ...] | None = None
    _hosts: dict[str, str] = field(default_factory=dict)

    def scrub(self, text: str) -> str:
        """``text`` without secrets and without what is personal."""
        for form in self._known_forms():
            text = form.sub(SECRET, text)
        text = _PEM.sub(SECRET, text)
        text = _INVITATION.sub("[invitation]", text)
        text = _PEER.sub(lambda found: f"…{found[0][-_KEPT_END:]}", text)
        text = _HEX.sub(lambda found: f"{found[0][:_KEPT_END]}…", text)
        text = _RUN.sub(_shortened, text)
        if not self.with_addresses:
            text = _NAMED_HOST.sub(self._named, text)
            text = _IP4.sub(self._ip, text)
            text = _IP6.sub(self._ip, text)
        for word, stand_in in sorted(self.words.items(), key=lambda pair: -len(pair[0])):
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", stand_in, text)
        return _HOME.sub(r"\1[user]", text)

    def _known_forms(self) -> tuple[re.Pattern[str], ...]:
        if self._forms is None:
            texts = {form for secret in self.secrets for form in forms_of(secret)}
            ordered = sorted(texts, key=len, reverse=True)
            self._forms = tuple(re.compile(re.escape(t), re.IGNORECASE) for t in ordered)
        return self._forms

    def _named(self, found: re.Match[str]) -> str:
        return f"/{found[1]}/{self._stand_in(found[2], 'name')}"

    def _ip(self, found: re.Match[str]) -> str:
        try:
            address = ipaddress.ip_address(found[0].partition("%")[0])
        except ValueError:
            return found[0]  # a time of day, a version
        if address.is_loopback or address.is_unspecified:
            return found[0]
        kind = "private ip" if address.is_private or address.is_link_local else "ip"
        return self._stand_in(str(address), f"{kind}{address.version}")

    def _stand_in(self, host: str, kind: str) -> str:
        return self._hosts.setdefault(host, f"[{kind} {len(self._hosts) + 1}]")


def forms_of(secret: bytes) -> Iterator[str]:
    """The texts in which a program may have written ``secret``."""
    if len(secret) < _LEAST_SIZE_BYTES:
        return
    yield secret.hex()
    yield secret.hex(":")
    yield secret.hex(" ")
    yield base58.b58encode(secret).decode()
    yield base64.b32encode(secret).decode().rstrip("=")
    yield repr(secret)[2:-1]
    yield ", ".join(map(str, secret))
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        # Inside longer data its letters depend on where it begins: three cases, of each
        # the letters that it alone decides.
        for before in range(3):
            text = encode(bytes(before) + secret).decode().rstrip("=")
            first = -(-before * 8 // 6)
            yield text[first : (before + len(secret)) * 8 // 6]


def words_of(user: str, home: str, host: str, names: Iterable[str] = ()) -> dict[str, str]:
    """Personal words of this machine, and what stands for them."""
    given = {home: "~", user: "[user]", host: "[host]", **dict.fromkeys(names, "[name]")}
    return {word: it for word, it in given.items() if len(word) > 2 and word not in _COMMON}


def _shortened(found: re.Match[str]) -> str:
    run = found[0]
    if _WORDY.fullmatch(run) or not any(c.isdigit() for c in run) or run.strip("-=_+") == "":
        return run
    return f"{run[:4]}… ({len(run)} characters)"
