"""Samples that a user's function gives."""

import numpy as np
import pytest
from test_data import X, read, rows

from edgepress.compressor.data import open_data
from edgepress.compressor.errors import DataError

FUNCTIONS = """
import numpy as np
def blocks():
    for start in (0, 2, 4):
        yield {"x": np.full((2, 3), start, np.float32)}, np.full(2, start)
def pair(): return np.ones((4, 3)), [0, 1, 2, 3]
def bare(): return np.ones((4, 3))
def raises(): raise KeyError("no such sensor")
def later():
    yield np.ones((2, 3))
    raise OSError("disk gone")
def nothing(): return iter(())
def text(): return "abc"
def uneven():
    yield np.ones((2, 3))
    yield np.ones((2, 4))
"""


def test_a_function_gives_blocks_that_can_be_read_again(functions: str) -> None:
    data = open_data(f"{functions}:blocks", X)
    for _ in range(2):
        values, labels = read(data, 4)
        np.testing.assert_array_equal(values[:, 0], [0, 0, 2, 2, 4, 4])
        np.testing.assert_array_equal(np.concatenate(labels), [0, 0, 2, 2, 4, 4])
    assert open_data(f"{functions}:pair", X).labels is not None
    assert open_data(f"{functions}:bare", X).labels is None
    assert open_data(lambda: rows(4), X).rows == 4


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raises", "raised KeyError: 'no such sensor'"),
        ("later", "raised OSError: disk gone"),
        ("nothing", "gave no data"),
        ("text", "gave str"),
        ("uneven", "block 1 has"),
        ("block", "has no function 'block'"),
    ],
)
def test_a_function_that_fails_is_named(functions: str, function: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(f"{functions}:{function}", X)
    with pytest.raises(DataError, match="does not import"):
        open_data("no_such_module_at_all:f", X)
