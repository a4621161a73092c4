"""Notes are counted, logged now and then, and bounded."""

from shoal.node.notes import DETAIL_LIMIT, LOGGED_AGAIN_S, SENTENCES, Notes, Seen


def test_every_note_has_its_sentence():
    assert SENTENCES.keys() == set(Seen)


def test_a_note_counts_and_keeps_the_last_detail():
    notes = Notes()
    for at_s in range(3):
        notes.note("peer", Seen.STALLED, f"blob {at_s}", float(at_s))
    notes.note("peer", Seen.NO_RIGHT, "x" * 1000, 7.0)
    stalled, no_right = notes.of("peer")
    assert (stalled.what, stalled.times, stalled.last_s) == (Seen.STALLED, 3, 2.0)
    assert stalled.detail == "blob 2"
    assert len(no_right.detail) == DETAIL_LIMIT
    assert notes.of("another") == ()


def test_of_a_flood_each_kind_is_logged_once_a_minute_with_its_count():
    notes = Notes()
    logged = [notes.note("peer", Seen.NO_TLS, "", at_s / 10) for at_s in range(1200)]
    told = [note.times for note in logged if note is not None]
    assert told == [1, 1 + 10 * LOGGED_AGAIN_S]
    assert notes.note("peer", Seen.NO_RIGHT, "", 1.0) is not None


def test_whoever_was_noted_longest_ago_is_forgotten():
    notes = Notes(limit=2)
    for at_s, about in enumerate(["a", "b", "a", "c"]):
        notes.note(about, Seen.NO_TLS, "", float(at_s))
    assert list(notes) == ["a", "c"]
    assert notes.forget("a")
    assert not notes.forget("a")
    assert list(notes) == ["c"]
