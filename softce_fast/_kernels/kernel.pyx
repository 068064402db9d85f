# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False
# A kernel module: all kernels, for an instruction set and a type that is computed in. It has
# nothing that Python calls; execute.pyx takes its table.
#
# A call goes through these files from the bottom up:
#   problem.pxd             a call: arrays, options, plan; traits of operations
#   tasks.pxi               absorb, finish, emit: the steps that one thread does
#   operations/             what is made of a row's state; sums of two arrays; binary losses
#   passes/along, across    the two ways of walking through rows
#   passes/state            what is known of rows meanwhile
#   passes/panel, writer    where elements come from, and where they go
#   passes/softcap          what is done to logits there, and to gradients
#   numbers.pxd             double-double numbers, exp and log
#   vector.h, element.h     instruction sets; conversions
#
# What is `cdef inline` is inlined wherever it is called; the rest, by GCC, nowhere (see setup.py).
# So each pass is a function with all its loops, and no two compete for registers.
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport NAN, fabs, isnan
from libc.stdint cimport INT64_MAX, int64_t
from libc.stdlib cimport llabs
from libc.string cimport memcpy, memset

cdef extern from "share.h" nogil:
    void flag_raise(char *flag)

from .numbers cimport *
from .problem cimport *
from .vector cimport *

include "passes/panel.pxi"
include "passes/writer.pxi"
include "passes/softcap.pxi"
include "passes/state.pxi"
include "passes/along.pxi"
include "passes/across.pxi"
include "operations/softmax.pxi"
include "operations/cross_entropy.pxi"
include "operations/hessian.pxi"
include "operations/scores.pxi"
include "operations/shards.pxi"
include "passes/pairs.pxi"
include "operations/backward.pxi"
include "operations/likelihood.pxi"
include "operations/binary.pxi"
include "tasks.pxi"

cdef extern from "labels.h" nogil:
    Py_ssize_t labels_count(
        const char *labels, Py_ssize_t n, int kind, int64_t ignored, int64_t classes, int *bad
    ) noexcept

cdef Kernels kernels
kernels.lanes = LANES
kernels.real_kind = REAL_KIND
kernels.permutes = PERMUTES
kernels.scratch_size = scratch_size
kernels.states_size = states_size
kernels.rows = rows_task
kernels.rows_by_chunks = ChunkTasks(absorb_task, finish_task, emit_task)
kernels.pairs = pair_task
kernels.pairs_by_chunks = ChunkTasks(pair_sums_task, pair_merge_task, pair_emit_task)
kernels.labels_count = labels_count
kernels.label_losses = label_losses_task
kernels.binary_losses = binary_task

table = PyCapsule_New(&kernels, SOFTCE_FAST_KERNELS, NULL)
