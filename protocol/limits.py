"""Every bound on what comes over the wire, each with its unit and its reason.

A peer can make this node hold at most what stands here. The annotated types
are used by the messages and `protocol.statements`, so that a field
over its bound is refused while it is decoded.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

PROTOCOL_MAJOR = 1
"""Nodes of different majors refuse each other and say what to upgrade."""

PROTOCOL_MINOR = 6
"""A newer minor adds words that are said only to peers whose hello names it.

1.1 brought capability challenges; 1.2 moved proofs of capability from the advert into
messages of their own, put the version into every statement, and brought dial-backs and
introductions; 1.3 brought many units in one message, and outputs that stay with their
provider; 1.4 brought what catches liars: draws, acknowledgements, traces and accusations;
1.5 brought bulk channels, and units that go out with the award; 1.6 brought several units at
once on one device, and says which Triton a node's cards have.
"""

FRAME_LIMIT_BYTES = 1 << 20
"""One message on a control stream: inline blobs, a receipt and room to spare."""

INLINE_LIMIT_BYTES = 256 << 10
"""Blobs carried inside one message, in all; beyond, they go by blob stream.

Opening a stream costs milliseconds, as much as sending some 400 KiB, and a round trip.
"""

BLOB_LIMIT_BYTES = 64 << 30
"""One blob; its chunk list, which is held in memory, then has 2 MiB."""

BLOB_AT_ONCE_LIMIT_BYTES = 64 << 10
"""A blob of so much follows its chunk list unasked: proving it would take as long."""

ADVERT_LIMIT_BYTES = 1 << 10
"""One signed advert, its envelope included: every node hears every other's.

What does not fit is left out by a fixed order; see "What fits into an advert".
"""

CHANNEL_FROM_BYTES = 4 << 20
"""A larger blob goes by bulk channel where there is one: opening it costs three round
trips and some 3 ms of CPU on both sides, in which a stream carries 200 KB."""

CHANNEL_CHUNKS_LIMIT = 16
"""Chunks in one request on a bulk channel: what has to be sent before another request is
looked at."""

CHANNEL_AHEAD_LIMIT = 4
"""Requests on one channel that wait for their answers: at most 64 MiB, which is 0.5 s of
1 Gbit/s, so that no link is idle for a request's round trip."""

CHANNEL_TOKEN_BYTES = 24
"""Random, for one connection."""

CHANNEL_TOKEN_LIMIT_S = 60.0
"""The longest time in which a token may be used; a dial takes seconds."""

CERTIFICATE_LIMIT_BYTES = 1024
"""A self-signed certificate of a short key; an Ed25519 one has some 300 bytes."""

DIGEST_LIMIT = 4096
"""Nodes in a table, and so entries of 16 bytes in one anti-entropy digest."""

ADVERTS_PER_MESSAGE_LIMIT = 128
"""Adverts in one answer to a digest: 20 ms of the taker's one thread, for signatures."""

RENEWALS_PER_MESSAGE_LIMIT = 384
"""Renewals in one answer to a digest: 40 ms of the taker's one thread."""

RENEWAL_LIMIT_BYTES = 256
"""One signed renewal; it has about 160."""

RENEWALS_LIMIT = 65_000
"""Renewals of one advert, so that their number fits 2 bytes of a digest: 15 days at least."""

TOLD_WHEN_FULL_LIMIT = 16
"""Adverts that a node without room for a link tells its caller: enough to choose 6 of."""

REQUESTS_IN_FLIGHT_LIMIT = 256
"""Unanswered requests on one control stream; more would only queue at the peer."""

LEASE_UNITS_LIMIT = 4096
"""Units under one lease: some seconds of the smallest units there are."""

UNITS_IN_FLIGHT_LIMIT = 256
"""Units handed over under one lease and not yet answered: four full batches, so that a
link with a round trip of 100 ms keeps a provider of the smallest units busy. It was 64
before 1.3, and no bid to an older peer names more.
"""

BATCH_UNITS_LIMIT = 64
"""Units in one message: what a message costs is then a hundredth of what they cost."""

AT_ONCE_LIMIT = 16
"""Messages whose units one device runs at once: each takes a process, and a part of a card's
memory."""

BATCH_PORTS_LIMIT_BYTES = 192 << 10
"""Names and ids of the inputs and outputs of one message's units, `PORT_BYTES` and the
name for each. They stand in the request, and again in the receipts that answer it: with
`INLINE_LIMIT_BYTES` of blobs and 64 receipts of the longest errors that is a frame.
"""

PORT_BYTES = 72
"""What one input or output takes in a message beside its name."""


LEASE_IDLE_LIMIT_S = 3600.0
"""Longest silence that a lease may outlast; a provider keeps blobs and answers for it."""

UNIT_TIME_LIMIT_S = 7 * 86400.0
"""A unit of over a week is to be split."""

PORTS_LIMIT = 256
"""Inputs or outputs of a program; the largest exported models have some dozens."""

SOURCES_LIMIT = 512
"""Peers named in one unit as holders of its inputs: two for each of the most inputs."""

SOURCE_BYTES = 122
"""What one source takes in a message: a blob's id and a peer's."""

BATCH_SOURCES_LIMIT = 1024
"""Sources that the units of one message name, in all: an eighth of its frame."""

SOURCE_BYTES = 130
"""What one source takes in a message."""

IN_FLIGHT_LIMIT_BYTES = 4 * (
    INLINE_LIMIT_BYTES + BATCH_PORTS_LIMIT_BYTES + BATCH_SOURCES_LIMIT * SOURCE_BYTES
)
"""Inline blobs, names, ids and sources of all units that are out under one lease: a
provider holds them. Four full batches.
"""

PROGRAM_SOURCES_LIMIT = 16
"""Peers that an award names as having its program, 55 bytes each: more would not make a
provider's copy come any faster."""

SHARED_IDS_LIMIT = 512
"""Kept outputs in one message; more go in several."""

LIST_LIMIT = 512
"""Items in any one list: the renewals of one message are the most."""

MAP_LIMIT = 32
"""Keys in any one map; the largest struct has half as many fields."""

CONTAINERS_LIMIT = 8192
"""Lists and maps in one message, in all; the fullest answer to a digest has 520.

A byte can hold an empty list: without this bound a frame of them costs half a
second of the daemon's one thread.
"""

LEASE_ANSWERS_LIMIT_BYTES = 16 << 20
"""Answers that a provider keeps for one lease, in case they were lost on the way.

An answer beyond it, oldest first, is forgotten, and a repeated request for its
unit is refused; the requester gives the unit to another lease.
"""

CLOCK_TOLERANCE_MS = 2 * 3600 * 1000
"""How wrong two clocks may be before a statement of now looks like a replay."""

ADVERT_LIFETIME_LIMIT_S = 3600.0
"""Longest life of an advert, reached at 3,600 nodes; at 1,000 it is 17 minutes."""

RATES_LIMIT = 4
"""Rates of one device in an advert: each is a line of it, about 25 bytes."""

PROOFS_LIMIT = 8
"""Proofs of capability that a node gives at once, about 360 bytes each: who reads them
counts those of a few verifiers."""

DEVICES_LIMIT = 16
"""Lines of devices in an advert, equal ones in one: more kinds than a machine has slots."""

EQUAL_DEVICES_LIMIT = 1024
"""Devices in one line of an advert; no machine has more."""

ADDRESSES_LIMIT = 8
"""Addresses in an advert: a machine's networks, in both families."""

CHALLENGE_ROWS_LIMIT = 4096
"""Rows of one product of a challenge; each leaves a digest of 32 bytes at the prover."""

CHALLENGE_SIZE_LIMIT = 4096
"""Terms and columns of one product: the fixed operand then takes 64 MiB as float32."""

CHALLENGE_STEPS_LIMIT = 64
"""Products in one chain: with the two limits above it leaves at most 8 MiB of digests."""

CHALLENGE_RATE_MIN = 1e6
"""The least rate that a challenge can be about; a division by it stays sane."""

CHALLENGE_PLACES_LIMIT = 64
"""Rows that a verifier asks to have opened: a tenth of them wrong passes 1 in 850 times."""

VIA_LIMIT = 3
"""Peers that introduce others to a node: 55 bytes of its advert each."""

DIAL_BACK_PORTS_LIMIT = 4
"""Ports that one request asks to have dialled; a node listens on one or two."""

ACKNOWLEDGED_LIMIT = 256
"""Receipts in one acknowledgement, some 17 KB: as many as the answers to four full batches
hold. One for each batch cost 4 % of the smallest units."""

CANDIDATES_LIMIT = 64
"""Peers in the list of an award that verifiers are drawn from; a longer one is no fairer."""

LEAVES_LIMIT = 1 << 20
"""Leaves under one root of a trace: twenty times the nodes that a program may have."""

TREE_LEVELS_LIMIT = 20
"""Levels of nodes above the leaves, then."""

NODES_LIMIT = 16
"""Digests in one step of a bisection: four binary levels, 512 bytes."""

LEAF_LIMIT_BYTES = 64 << 10
"""One leaf of a trace: an operator of 512 inputs and outputs, or a state of as many tensors."""

FRAUD_PROOF_LIMIT_BYTES = 100_000
"""A fraud proof without its blobs: most have a few KiB, one about a unit of a hundred inputs
and outputs with long names some 60 KiB."""

OPENINGS_LIMIT = 9
"""Leaves that a fraud proof opens: a disputed one, and those it may have read from."""

PROOF_BLOBS_LIMIT = 512
"""Blobs that a fraud proof needs to be checked: one operator's, or a whole program's."""

PROOF_BLOBS_LIMIT_BYTES = 4 << 30
"""All of them together; what needs more is not spread, and convicts only where it is held."""

ACCUSATIONS_LIMIT = 64
"""Accusations in one answer; whoever lacks more asks again."""

ACCUSED_BLOBS_LIMIT = 4096
"""Blobs that the accusations of one answer name, in all: 270 KB of its frame."""

KNOWN_PROOFS_LIMIT = 256
"""Fraud proofs that somebody says to know, the newest: one for each peer it has banned."""

Port = Annotated[int, Meta(ge=1, le=65535)]
"""A TCP port."""

HostText = Annotated[str, Meta(min_length=1, max_length=253)]
"""A DNS name or an IP address as text; the longest name there is."""

Token = Annotated[bytes, Meta(min_length=CHANNEL_TOKEN_BYTES, max_length=CHANNEL_TOKEN_BYTES)]
"""What opens one bulk channel, once."""

TokenSeconds = Annotated[float, Meta(gt=0.0, le=CHANNEL_TOKEN_LIMIT_S)]
"""How long a token may be used, measured as `Seconds` are."""

CertificateBytes = Annotated[bytes, Meta(min_length=64, max_length=CERTIFICATE_LIMIT_BYTES)]
"""An X.509 certificate as DER."""

IpText = Annotated[str, Meta(max_length=45)]
"""An IP address as text; the longest form of IPv6."""

Text = Annotated[str, Meta(max_length=256)]
"""A name or a sentence for people: one line of a table."""

ShortText = Annotated[str, Meta(max_length=64)]
"""A name chosen by a program: a device id, a code, an operator."""

HexId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""A content id: 64 lower-case hexadecimal digits."""

Nonce = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
"""128 random bits that a peer drew, in hexadecimal: the name of a call or of a bid."""

UnitId = Annotated[str, Meta(min_length=1, max_length=64)]
"""The requester's own name for a unit, unique under one award."""

PeerText = Annotated[str, Meta(pattern=r"\A12D3KooW[1-9A-HJ-NP-Za-km-z]{44}\Z")]
"""A peer id; that a key is behind it shows where it is compared with a signer."""

Price = Annotated[float, Meta(ge=0.0, le=1e12)]
"""Credits: 1 is the price of 10^12 exact multiply-adds. Bounds keep NaN out as well."""

Seconds = Annotated[float, Meta(ge=0.0, le=UNIT_TIME_LIMIT_S)]
"""A duration, measured by each side on its own monotonic clock."""

IdleSeconds = Annotated[float, Meta(gt=0.0, le=LEASE_IDLE_LIMIT_S)]
"""The silence after which a lease ends, measured as `Seconds` are."""

EpochMs = Annotated[int, Meta(ge=0, le=1 << 48)]
"""Wall-clock milliseconds since 1970; advisory, since clocks differ."""

ByteCount = Annotated[int, Meta(ge=0, le=1 << 50)]
"""A size in bytes, up to a pebibyte."""

Count = Annotated[int, Meta(ge=0, le=1 << 31)]
"""How many of something."""

Sequence = Annotated[int, Meta(ge=0, le=(1 << 48) - 1)]
"""Grows with each advert of one node; as milliseconds since 1970 it lasts 8,900 years."""

RenewalNumber = Annotated[int, Meta(ge=1, le=RENEWALS_LIMIT)]
"""Which renewal of one advert: 1, 2, 3, …"""

Lifetime = Annotated[float, Meta(ge=1.0, le=ADVERT_LIFETIME_LIMIT_S)]
"""Seconds after which an advert that was not renewed is dropped."""

Rate = Annotated[float, Meta(ge=0.0, le=1e18)]
"""Multiply-adds or bytes per second; a thousand of the fastest devices there are."""

Digest32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""A BLAKE3 digest as bytes."""

MerklePath = Annotated[bytes, Meta(max_length=32 * 12)]
"""Siblings, lowest first, 32 bytes each: 12 of them lead to one of 4,096 leaves."""

TreePath = Annotated[bytes, Meta(max_length=32 * TREE_LEVELS_LIMIT)]
"""The same for a leaf of a trace: 20 siblings lead to one of about a million leaves."""

TreeLevel = Annotated[int, Meta(ge=0, le=TREE_LEVELS_LIMIT)]
"""Which level of a Merkle tree, counted from the leaves' 0."""

LeafCount = Annotated[int, Meta(ge=0, le=LEAVES_LIMIT)]
"""How many leaves a trace has, or which of them."""

LeafBytes = Annotated[bytes, Meta(min_length=1, max_length=LEAF_LIMIT_BYTES)]
"""A leaf of a trace, in the bytes that its digest is taken over."""

ProofBytes = Annotated[bytes, Meta(min_length=1, max_length=512)]
"""The envelope of a proof of capability, whose fields are short."""

PortName = Annotated[str, Meta(min_length=1, max_length=256)]
"""The name of a program's input or output."""

Named = tuple[PortName, HexId]
"""The name of an input or output, and the id of its tensor."""

NamedIds = Annotated[tuple[Named, ...], Meta(max_length=PORTS_LIMIT)]
"""The inputs or outputs of a unit."""

InlineBytes = Annotated[bytes, Meta(max_length=INLINE_LIMIT_BYTES)]
"""The bytes of a small blob."""

RenewalBytes = Annotated[bytes, Meta(min_length=1, max_length=RENEWAL_LIMIT_BYTES)]
"""The envelope of a renewal."""

HeldBytes = Annotated[bytes, Meta(max_length=16 * DIGEST_LIMIT)]
"""Marks of adverts, 16 bytes each: see "Discovery"."""

EnvelopeBytes = Annotated[bytes, Meta(min_length=1, max_length=192 << 10)]
"""A signed envelope; see `crypto.envelope.ENVELOPE_LIMIT_BYTES`."""
