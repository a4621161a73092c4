import pytest

from shoal.node.cli.checkup.scrub import Scrubber, words_of

PEER = "12D3KooWHn3bA8p3tDoZbEjJujVbkLo1t8uSprj4caNCTZZXm7ii"


def scrub(text, **fields):
    return Scrubber(**fields).scrub(text)


def test_an_invitation_is_taken_out_whoever_made_it_and_however_it_was_wrapped():
    letters = "ab3jji3mmfrmiiehjr6oyjtruhqkwmftniq5vp3m"
    for token in (
        f"shoal1_{letters}",
        f"SHOAL1_{letters.upper()}",
        f"shoal1_{letters[:20]}\n{letters[20:]}",
        f"shoal1_{letters[:20]}\\n  {letters[20:]}",
    ):
        assert letters[20:30] not in scrub(f"joining by {token} now").lower()
        assert "[invitation]" in scrub(token)


def test_a_pem_block_is_taken_out_also_in_json_and_without_its_end():
    block = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw\n-----END PRIVATE KEY-----"
    for text in (block, block.replace("\n", "\\n"), block[:50]):
        assert scrub(f"key: {text}").startswith("key: [secret]")
        assert "MC4CAQ" not in scrub(f"key: {text}")


@pytest.mark.parametrize("unknown", ["5f" * 32, "0x" + "AB" * 20, "ghp_" + "a1B2" * 10])
def test_what_looks_like_a_secret_is_shortened(unknown):
    assert unknown not in scrub(f"token={unknown}")
    assert unknown[10:] not in scrub(f"token={unknown}")


def test_ids_keep_their_end_so_that_lines_about_one_peer_can_be_matched():
    assert scrub(f"linked to {PEER}") == "linked to …TZZXm7ii"


def test_long_names_and_times_stay_readable():
    for text in (
        "test_a_peer_that_is_shut_out_by_a_firewall_says_so_at_last",
        "2026-11-26T14:30:07.123456Z",
        "0.9.10-2.1",
        "/usr/lib/python3.11/site-packages/libp2p/network/swarm.py:120",
    ):
        assert scrub(text) == text


def test_addresses_are_masked_and_one_host_is_the_same_everywhere():
    text = "/ip4/8.8.4.4/tcp/1 /ip4/192.168.1.5/tcp/1 8.8.4.4 /dns4/a.example/tcp/1"
    masked = scrub(text)
    assert masked.count("[ip4 2]") == 2
    assert "[private ip4 3]" in masked
    assert "/dns4/[name 1]/tcp/1" in masked
    assert scrub(text, with_addresses=True) == text
    assert scrub("fe80::1%eth0 and 2a00:1450::8") == "[private ip6 1] and [ip6 2]"


def test_addresses_of_every_machine_stay():
    for text in ("127.0.0.1", "/ip4/0.0.0.0/tcp/4711", "::1", "::"):
        assert scrub(text) == text


def test_user_host_and_home_are_masked_and_common_words_stay():
    words = words_of("alice", "/home/alice", "alices-laptop", ["attic"])
    text = "/home/alice/x on alices-laptop by alice in attic, not malice; /home/bob/y"
    assert scrub(text, words=words) == (
        "~/x on [host] by [user] in [name], not malice; /home/[user]/y"
    )
    assert words_of("root", "/root", "localhost") == {}


def test_a_secret_that_is_no_longer_than_a_word_is_not_looked_for():
    assert scrub("aa", secrets=(b"\xaa",)) == "aa"
