"""A secret that the scrubber knows does not survive, however it was written down."""

import base64

import base58
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.node.cli.checkup.scrub import Scrubber

SECRETS = st.binary(min_size=32, max_size=36)
WORDS = st.text(alphabet="abc xyz=:,'\"{}\n", max_size=20)
WRITERS = (
    bytes.hex,
    lambda data: data.hex().upper(),
    lambda data: data.hex(":"),
    lambda data: base58.b58encode(data).decode(),
    lambda data: base64.b64encode(data).decode(),
    lambda data: base64.urlsafe_b64encode(data).decode(),
    lambda data: base64.b32encode(data).decode().lower(),
    repr,
    lambda data: str(list(data)),
)


@settings(deadline=None)
@given(SECRETS, st.sampled_from(WRITERS), WORDS, WORDS)
def test_a_known_secret_is_gone_in_every_form(secret, write, before, after):
    written = write(secret)
    scrubbed = Scrubber(secrets=(secret,)).scrub(f"{before} {written} {after}")
    kernel = written.strip("b'\"[]=")  # without what stands round it
    assert kernel not in scrubbed
    assert kernel[4:-4] not in scrubbed


@settings(deadline=None)
@given(SECRETS, st.binary(max_size=9), st.binary(max_size=9))
def test_a_known_secret_is_gone_where_it_is_part_of_longer_base64(secret, before, after):
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        written = encode(before + secret + after).decode()
        scrubbed = Scrubber(secrets=(secret,)).scrub(f"data={written};")
        first, last = len(before) * 8 // 6 + 2, (len(before) + len(secret)) * 8 // 6 - 2
        assert written[first:last] not in scrubbed


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_text_can_be_scrubbed_and_scrubbing_again_changes_nothing(text):
    scrubber = Scrubber(secrets=(bytes(range(32)),), words={"alice": "[user]"})
    once = scrubber.scrub(text)
    assert scrubber.scrub(once) == once
