"""The memory of large fresh results: kept for the next one, and never shared by two."""

from __future__ import annotations

import concurrent.futures
import gc
import mmap
import pickle
import sys
import threading
from typing import Any

import numpy as np
import pytest

import softce_fast as sf
import subprocesses
from softce_fast import _fresh_outputs

pytestmark = pytest.mark.skipif(
    not hasattr(mmap, "MADV_FREE"), reason="the system cannot take back pages that are kept"
)

SHAPE = (4200, 1000)
FLOAT32 = np.dtype(np.float32)
assert np.prod(SHAPE) * FLOAT32.itemsize > _fresh_outputs.SMALLEST_BLOCK


@pytest.fixture(autouse=True)
def nothing_kept() -> Any:
    gc.collect()
    _fresh_outputs._store.blocks.clear()
    yield
    _fresh_outputs._store.blocks.clear()


def address(array: Any) -> int:
    return int(array.ctypes.data)


def test_memory_is_kept_for_the_next_result() -> None:
    first = _fresh_outputs.empty(SHAPE, FLOAT32)
    place = address(first)
    del first
    assert address(_fresh_outputs.empty(SHAPE, FLOAT32)) == place


def test_memory_is_not_shared_while_a_view_is_held() -> None:
    first = _fresh_outputs.empty(SHAPE, FLOAT32)
    first[...] = 1
    view = first.T[5:, ::2]
    del first
    others = [_fresh_outputs.empty(SHAPE, FLOAT32) for _ in range(3)]
    for other in others:
        other[...] = 2
    assert len({address(other) for other in others}) == 3
    assert (view == 1).all()


def test_an_array_that_outlives_the_modules_at_exit_makes_no_noise() -> None:
    result = subprocesses.run_python(
        "import numpy, softce_fast as sf\nnumpy.kept = sf.softmax(numpy.zeros((4200, 1000), 'f4'))"
    )
    assert result.stderr == ""


def test_few_blocks_are_kept_and_none_of_another_size() -> None:
    arrays = [_fresh_outputs.empty(SHAPE, FLOAT32) for _ in range(5)]
    arrays.clear()
    assert len(_fresh_outputs._store.blocks) == _fresh_outputs.MOST_BLOCKS
    larger = _fresh_outputs.empty((2 * SHAPE[0], SHAPE[1]), FLOAT32)
    assert not _fresh_outputs._store.blocks
    del larger
    assert len(_fresh_outputs._store.blocks) == 1


def test_a_block_serves_its_own_size_alone() -> None:
    larger = _fresh_outputs.empty((2 * SHAPE[0], SHAPE[1]), FLOAT32)
    size = larger.nbytes
    del larger
    (block,) = _fresh_outputs._store.blocks
    assert len(block) >= size
    result = _fresh_outputs.empty(SHAPE, FLOAT32)
    assert not _fresh_outputs._store.blocks
    del result
    (block,) = _fresh_outputs._store.blocks
    assert SHAPE[0] * SHAPE[1] * 4 <= len(block) < size


def test_threads_that_let_go_at_once_leave_no_more_blocks_than_promised(monkeypatch: Any) -> None:
    """The check of how many there are and the step that adds one must be the same step."""
    sizes = []

    class SlowBlock(mmap.mmap):
        """Lets other threads come between whatever two steps there are."""

        def madvise(self, *arguments: int) -> None:
            super().madvise(*arguments)
            if arguments[0] == mmap.MADV_FREE:
                together.wait()

    together = threading.Barrier(8)
    monkeypatch.setattr(_fresh_outputs.mmap, "mmap", SlowBlock)
    arrays = [[_fresh_outputs.empty(SHAPE, FLOAT32)] for _ in range(8)]
    monkeypatch.undo()

    def let_go(array: list[Any]) -> None:
        array.clear()
        sizes.append(len(_fresh_outputs._store.blocks))

    threads = [threading.Thread(target=let_go, args=(array,)) for array in arrays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(sizes) <= _fresh_outputs.MOST_BLOCKS


REFUSED = """
import mmap, sys
import numpy as np, softce_fast as sf
from softce_fast import _fresh_outputs

class Refusing(mmap.mmap):
    def madvise(self, advice, *rest):
        if advice == mmap.MADV_FREE:
            raise OSError(22, "Invalid argument")
        super().madvise(advice, *rest)

mmap.mmap = Refusing
x = np.zeros((4200, 1000), np.float32)
first = sf.softmax(x)
view = first[1:3]
del first
assert (view == np.float32(1e-3)).all()
del view
assert not _fresh_outputs._store.blocks
again = sf.softmax(x)
assert again.flags.owndata and (again == np.float32(1e-3)).all()
"""


def test_nothing_is_kept_where_its_pages_cannot_be_freed() -> None:
    """In locked memory, or a sandbox: results are then NumPy's own, and nobody complains."""
    result = subprocesses.run_python(REFUSED)
    assert result.stderr == ""


LOCKED = """
import ctypes, os, resource
import numpy as np, softce_fast as sf
from softce_fast import _fresh_outputs
libc = ctypes.CDLL(None, use_errno=True)
if libc.mlockall(2):  # MCL_FUTURE
    print("skip:", os.strerror(ctypes.get_errno()))
    raise SystemExit
x = np.zeros((4200, 1000), np.float32)
for _ in range(3):
    assert (sf.softmax(x) == np.float32(1e-3)).all()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mlockall as on Linux")
def test_locked_memory() -> None:
    result = subprocesses.run_python(LOCKED, environment={"OMP_STACKSIZE": "256k"}, check=False)
    if result.stdout.startswith("skip") or "MemoryError" in result.stderr:
        pytest.skip("no memory can be locked here")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_a_large_result_says_why_it_cannot_be_resized() -> None:
    result = sf.softmax(np.zeros(SHAPE, np.float32))
    with pytest.raises(ValueError, match="does not own its data"):
        result.resize((2, 2))
    assert result.shape == SHAPE


@pytest.mark.parametrize("shape", [(0, 5), (3, 4), (1 << 19, 7)])
def test_small_results_are_of_numpy(shape: tuple[int, int]) -> None:
    array = _fresh_outputs.empty(shape, FLOAT32)
    assert array.flags.owndata
    assert (array.shape, array.dtype) == (shape, FLOAT32)


def test_results_are_ordinary_arrays(dtype: np.dtype) -> None:
    shape = (SHAPE[0] * 4 // dtype.itemsize, SHAPE[1])
    result = _fresh_outputs.empty(shape, dtype)
    assert type(result) is np.ndarray
    assert (result.shape, result.dtype) == (shape, dtype)
    assert result.flags.c_contiguous
    assert result.flags.writeable
    assert result.flags.aligned
    result[...] = 3
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(result[:2])), result[:2])


def test_results_in_a_loop_and_from_many_threads() -> None:
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    expected = sf.softmax(x, out=np.empty_like(x))

    def work(_: int) -> bool:
        result = sf.softmax(x)
        loss, grad = sf.cross_entropy_with_grad(x, np.zeros(len(x), int))
        return bool((result == expected).all() and np.isfinite(loss) and (grad[:, 0] < 0).all())

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(12)))


CHILD = """
import os, numpy as np, softce_fast as sf
from softce_fast import _fresh_outputs
x = np.zeros((4200, 1000), np.float32)
held = sf.softmax(x)
sf.softmax(x)
assert len(_fresh_outputs._store.blocks) == 1
child = os.fork()
if child == 0:
    if _fresh_outputs._store.blocks:
        os._exit(2)
    same = bool((sf.softmax(x) == held).all())
    os._exit(0 if same and len(_fresh_outputs._store.blocks) == 1 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert (sf.softmax(x) == held).all()
print("done")
"""


def test_forked_child() -> None:
    subprocesses.run_python(CHILD)
