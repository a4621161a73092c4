"""What all messages of the control stream share; each family of them is a module."""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all messages share. The tag is the class's name in snake case.

    A field at its default is not written, so that a peer which does not know it (see
    `protocol.vocabulary`) never sees it.
    """
