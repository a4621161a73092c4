import pytest

from shoal.crypto.errors import VerificationError
from shoal.crypto.merkle import check_path, leaf_of, path_of, root_of

COUNTS = (1, 2, 3, 4, 5, 7, 8, 9, 31, 33)


def leaves(count):
    return [leaf_of(bytes([index])) for index in range(count)]


@pytest.mark.parametrize("count", COUNTS)
def test_every_leaf_has_a_path_to_the_root(count):
    items = leaves(count)
    for index, leaf in enumerate(items):
        check_path(root_of(items), leaf, index, count, path_of(items, index))


@pytest.mark.parametrize("count", COUNTS[1:])
def test_a_path_opens_no_other_place_and_no_other_leaf(count):
    items = leaves(count)
    root = root_of(items)
    for index in range(count):
        path = path_of(items, index)
        for place, leaf in ((index, items[index - 1]), ((index + 1) % count, items[index])):
            with pytest.raises(VerificationError, match="Merkle"):
                check_path(root, leaf, place, count, path)


@pytest.mark.parametrize("change", [lambda p: p[:-1], lambda p: p + bytes(32), lambda _: b""])
def test_a_path_of_another_length_is_refused(change):
    items = leaves(5)
    with pytest.raises(VerificationError):
        check_path(root_of(items), items[2], 2, 5, change(path_of(items, 2)))


def test_a_place_outside_is_refused():
    items = leaves(4)
    for index in (-1, 4):
        with pytest.raises(VerificationError):
            check_path(root_of(items), items[0], index, 4, path_of(items, 0))


def test_an_inner_node_is_no_leaf():
    items = leaves(4)
    inner = root_of(items[:2])
    with pytest.raises(VerificationError):
        check_path(root_of(items), inner, 0, 2 + 2, root_of(items[2:]))
    assert leaf_of(items[0] + items[1]) != inner


def test_one_root_for_one_list():
    roots = {root_of(leaves(count)) for count in COUNTS}
    assert len(roots) == len(COUNTS)
    assert root_of(leaves(3)[::-1]) != root_of(leaves(3))
