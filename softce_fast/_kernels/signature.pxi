# Calls that do not fit a function's signature: Python raises before the function has begun, so that
# it takes a hook here to say what to write instead. A call that fits pays a jump for it.

cdef extern from *:
    """
    #if PY_VERSION_HEX < 0x030C0000
    #define PyFunction_SetVectorcall(function, call) ((function)->vectorcall = (call))
    #endif
    """
    ctypedef PyObject *(*vectorcallfunc)(
        PyObject *function, PyObject *const *arguments, size_t count, PyObject *names) noexcept
    ctypedef struct PyFunctionObject:
        vectorcallfunc vectorcall
    void PyFunction_SetVectorcall(PyFunctionObject *function, vectorcallfunc call)
    bint PyErr_ExceptionMatches(PyObject *kind)
    void PyErr_Fetch(PyObject **kind, PyObject **error, PyObject **traceback)
    void PyErr_NormalizeException(PyObject **kind, PyObject **error, PyObject **traceback)
    void PyErr_Restore(PyObject *kind, PyObject *error, PyObject *traceback)
    PyObject *PyExc_TypeError

cdef vectorcallfunc python_call = NULL  # how Python calls its functions
cdef object misfit_explainer = None


cdef PyObject *call_or_explain(PyObject *function, PyObject *const *arguments, size_t count,
                               PyObject *names) noexcept:
    cdef PyObject *result = python_call(function, arguments, count, names)
    if result is NULL and PyErr_ExceptionMatches(PyExc_TypeError):
        explain(function)
    return result


cdef int explain(PyObject *function) noexcept:
    """Hand the error of a call to the explainer, unless a line of Python has raised it."""
    cdef PyObject *kind
    cdef PyObject *error
    cdef PyObject *traceback
    PyErr_Fetch(&kind, &error, &traceback)
    PyErr_NormalizeException(&kind, &error, &traceback)
    if traceback is NULL:
        misfit_explainer(<object>function, <object>error)
    PyErr_Restore(kind, error, traceback)
    return 0


def explain_misfits(function, explainer):
    """Let `explainer` amend the TypeError of calls of a Python function that do not fit it.

    It is given the function and the error. There is one explainer for all functions.
    """
    global python_call, misfit_explainer
    cdef PyFunctionObject *called = <PyFunctionObject *>function
    misfit_explainer = explainer
    if called.vectorcall != call_or_explain:
        python_call = called.vectorcall
        PyFunction_SetVectorcall(called, call_or_explain)
