from shoal.node.unit_board import ERRORS_LIMIT, LOSSES_LIMIT, UnitBoard


def test_units_are_taken_in_order_and_each_once():
    board = UnitBoard.of(range(3))
    assert [board.take("a"), board.take("b"), board.take("a"), board.take("a")] == [
        0,
        1,
        2,
        None,
    ]


def test_a_board_is_finished_when_every_unit_has_ended():
    board = UnitBoard.of(range(2))
    for index in (board.take("a"), board.take("a")):
        assert not board.finished
        assert board.done(index)
    assert board.finished


def test_a_unit_ends_once():
    board = UnitBoard.of([0])
    board.take("a")
    assert board.done(0)
    assert not board.done(0)
    assert not board.failed(0, "a")
    assert not board.lost(0)
    assert board.waiting == 0


def test_a_lost_unit_is_the_next_to_be_taken():
    board = UnitBoard.of(range(3))
    board.take("a")
    assert not board.lost(0)
    assert board.take("b") == 0


def test_a_unit_that_is_handed_back_waits_again_and_never_counts_as_lost():
    board = UnitBoard.of([0])
    for _ in range(2 * LOSSES_LIMIT):
        assert board.take("a") == 0
        board.handed_back(0)
    assert board.take("b") == 0
    assert board.done(0)
    board.handed_back(0)  # late
    assert (board.waiting, board.finished) == (0, True)


def test_a_unit_is_not_given_again_to_who_called_it_an_error():
    board = UnitBoard.of([0])
    board.take("a")
    assert not board.failed(0, "a")
    assert board.take("a") is None
    assert not board.takeable("a")
    assert board.takeable("b")
    assert board.take("b") == 0


def test_a_unit_fails_after_enough_providers_called_it_an_error():
    board = UnitBoard.of([0])
    verdicts = []
    for k in range(ERRORS_LIMIT):
        board.take(f"peer{k}")
        verdicts.append(board.failed(0, f"peer{k}"))
    assert verdicts == [False] * (ERRORS_LIMIT - 1) + [True]
    assert board.finished


def test_a_unit_is_given_up_where_nobody_else_could_try_it():
    board = UnitBoard.of(range(2))
    board.take("a")
    assert not board.failed(0, "a")
    assert board.give_up(["a", "b"]) == []
    assert board.give_up(["a"]) == [0]
    assert board.take("b") == 1
    assert board.done(1)
    assert board.finished


def test_a_unit_that_nobody_called_an_error_is_never_given_up():
    board = UnitBoard.of([0])
    assert board.give_up([]) == []
    assert board.take("a") == 0


def test_a_unit_that_somebody_tries_just_now_is_not_given_up():
    board = UnitBoard.of([0])
    board.take("a")
    board.failed(0, "a")
    assert board.take("b") == 0
    assert board.give_up([]) == []
    assert board.done(0)


def test_a_unit_that_takes_every_lease_with_it_fails_in_the_end():
    board = UnitBoard.of([0])
    verdicts = []
    for _ in range(LOSSES_LIMIT):
        assert board.take("a") == 0
        verdicts.append(board.lost(0))
    assert verdicts == [False] * (LOSSES_LIMIT - 1) + [True]
    assert board.finished
