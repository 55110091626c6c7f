from contextlib import closing
from threading import Barrier, current_thread

import pytest
import torch

from twinsqueeze.utils.compute import map_threaded


@pytest.fixture
def four_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("threads", "share"), [(1, 4), (2, 2), (3, 1), (6, 1)])
def test_items_are_processed_in_parallel_on_a_share_of_the_cores(four_cores, threads, share):
    together = Barrier(threads)

    def handle(item: int) -> tuple[int, int]:
        together.wait()  # for ever if fewer threads work at a time
        return item**2, torch.get_num_threads()

    found = list(map_threaded(iter(range(3 * threads)), handle, threads))
    assert found == [(item, (item**2, share)) for item in range(3 * threads)]
    assert torch.get_num_threads() == 4


def test_items_are_read_in_the_calling_thread_no_faster_than_results():
    read = []
    items = (read.append(current_thread()) or item for item in range(100))
    with closing(map_threaded(items, lambda item: item, 2)) as found:
        for item, _ in found:
            assert len(read) <= item + 6
    assert set(read) == {current_thread()}


def test_an_error_is_raised_in_order_and_stops_the_rest():
    started = []

    def handle(item: int) -> float:
        started.append(item)
        return 1 / (item - 1)

    found = map_threaded(iter(range(100)), handle, 2)
    assert next(found) == (0, -1)
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert len(started) < 10
