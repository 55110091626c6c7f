from contextlib import closing
from threading import Barrier, current_thread

import pytest
import torch

from twinsqueeze.utils.threads import map_threaded


@pytest.fixture
def four_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("threads", "share"), [(1, 4), (2, 2), (3, 1), (6, 1)])
def test_pieces_are_handled_at_once_each_on_its_share_of_the_cores(four_cores, threads, share):
    together = Barrier(threads)

    def handle(piece: int) -> tuple[int, int]:
        together.wait(60)  # breaks where fewer are at it
        return piece**2, torch.get_num_threads()

    found = list(map_threaded(iter(range(3 * threads)), handle, threads))
    assert found == [(piece, (piece**2, share)) for piece in range(3 * threads)]
    assert torch.get_num_threads() == 4


def test_pieces_are_read_here_and_no_faster_than_results_are_taken():
    read = []

    def pieces():
        for piece in range(100):
            read.append((piece, current_thread().name))
            yield piece

    with closing(map_threaded(pieces(), lambda piece: piece, 2)) as found:
        for piece, _ in found:
            assert len(read) <= piece + 6
    assert {name for _, name in read} == {current_thread().name}


def test_an_error_is_raised_where_its_result_is_due_and_the_rest_is_left():
    begun = []

    def handle(piece: int) -> int:
        begun.append(piece)
        if piece == 1:
            raise ValueError("piece 1")
        return piece

    found = map_threaded(iter(range(100)), handle, 2)
    assert next(found) == (0, 0)
    with pytest.raises(ValueError, match="piece 1"):
        next(found)
    assert len(begun) < 10
