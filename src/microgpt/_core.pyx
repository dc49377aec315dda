# cython: language_level=3, wraparound=False, cdivision=True
"""The autograd core, compiled: the same names in the same order as `_core_py.py`, its definition.

How a graph is laid out in memory
---------------------------------
A node is one cache line. It is a number with up to two children, or it represents a block:

    L = a * b + a          handles (Python)     nodes (slabs, in order of creation)

                               a  ----------->  LEAF  data grad
                               b  ----------->  LEAF  data grad
                                                MUL   data grad  left=a right=b  dL/da dL/db
                               L  ----------->  ADD   data grad  left=* right=a  1.0   1.0

- Nodes are allocated in order from 64 KiB chunks, aligned to their size so that a node finds its
  chunk; a step therefore writes memory in order. 16 chunks are one arena, the unit that is
  requested from and returned to the system.
- A `Value` is a handle: a Python object that holds nothing but a node. A node counts its handle
  and its parents, and at zero it is released iteratively, not by recursion. A node remembers
  its handle, so `v._children[0] is a` while a is alive.
- A `Matrix` is a handle too. Its node has kind BLOCK and points to a `Block`: shape, numbers,
  gradients, op, inputs, and what backward needs (saved numbers, ids).
- `m[i][j]` is a node of kind ELEMENT that reads and writes the number inside its block.
- `m[a:b]` is a block whose numbers and gradients are part of the block that it is a slice of.
- Buffers and Blocks that are no longer used go to free lists.

Everything that creates, counts or frees nodes runs under the GIL. The forward and backward of a
block are functions of the node alone (inputs, output, saved, ids).
"""

from cpython.buffer cimport PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_AsSsize_t, PyLong_CheckExact
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from libc.math cimport exp, isfinite, isinf, log, pow, sqrt, tanh
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy, memmove, memset

cimport cython

import os
from array import array
from contextlib import ContextDecorator

from . import _checks as checks
from . import _core_py as twins
from . import _display as display
from ._core_py import RMSNORM_EPS, __all__


cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        Py_ssize_t tp_basicsize
        void (*tp_dealloc)(PyObject*) noexcept
        void (*tp_free)(void*) noexcept
        PyObject* tp_dict
    void PyType_Modified(type)
    PyTypeObject* Py_TYPE(PyObject*)
    Value PyObject_Init(PyObject*, PyTypeObject*)
    PyObject* PyObject_Malloc(size_t)
    Py_ssize_t PY_SSIZE_T_MAX
    Py_ssize_t PyNumber_AsSsize_t(object, PyObject*) except? -1  # NULL: a large one is cut
    Py_ssize_t Py_REFCNT(PyObject*)


cdef extern from "_kernels.h" nogil:
    ctypedef Py_ssize_t Index
    ctypedef struct AdamRates:
        double lr_hat, beta1, beta2, eps_hat
    ctypedef struct Kernels:
        void (*embedding_forward)(void*, const void*, const Index*, Index, Index) noexcept nogil
        void (*embedding_backward)(void*, const void*, const Index*, Index, Index) noexcept nogil
        bint (*elementwise_forward)(
            int, void*, const void*, const void*, Index, Index, Index, Index) noexcept nogil
        void (*elementwise_backward)(
            int, void*, int, void*, int, const void*, const void*, const void*, const void*,
            Index, Index, Index, Index) noexcept nogil
        void (*linear_forward)(void*, void*, const void*, const void*, Index, Index, Index) noexcept nogil
        void (*linear_backward_x)(void*, int, const void*, const void*, Index, Index, Index) noexcept nogil
        void (*linear_backward_w)(void*, int, const void*, const void*, Index, Index, Index) noexcept nogil
        void (*rmsnorm_forward)(void*, void*, const void*, double, Index, Index) noexcept nogil
        void (*rmsnorm_backward)(
            void*, int, const void*, const void*, const void*, Index, Index) noexcept nogil
        void (*relu_forward)(void*, const void*, Index) noexcept nogil
        void (*relu_backward)(void*, int, const void*, const void*, Index) noexcept nogil
        void (*softmax_forward)(void*, const void*, double, Index, Index) noexcept nogil
        void (*softmax_backward)(void*, const void*, const void*, double, Index, Index) noexcept nogil
        void (*attention_weights_forward)(
            void*, const void*, const void*, const Index*, Index, Index, Index, Index) noexcept nogil
        void (*attention_weights_backward)(
            void*, void*, const void*, const void*, const void*, const void*, const Index*, Index,
            Index, Index, Index) noexcept nogil
        void (*attention_forward)(
            void*, void*, const void*, const void*, const void*, const Index*, Index, Index,
            Index, Index) noexcept nogil
        void (*attention_row_forward)(
            void*, void*, const void*, const void*, const void*, const Index*, Index, Index,
            Index) noexcept nogil
        void (*attention_backward)(
            void*, int, void*, int, void*, int, const void*, void*, const Index*, Index, Index,
            Index, Index) noexcept nogil
        void (*cross_entropy_forward)(
            void*, void*, const void*, const Index*, Index, Index) noexcept nogil
        void (*cross_entropy_backward)(
            void*, int, const void*, const void*, const Index*, Index, Index) noexcept nogil
        double (*mean_forward)(const void*, Index) noexcept nogil
        void (*mean_backward)(void*, int, double, Index) noexcept nogil
        void (*adam)(void*, const void*, void*, void*, const AdamRates*, Index) noexcept nogil
        void (*linear_update)(
            void*, void*, void*, void*, const void*, const void*, const AdamRates*, Index, Index,
            Index) noexcept nogil
        Index (*linear_workspace_size)(Index, Index) noexcept nogil
        Index (*attention_workspace_size)(const Index*, Index, Index, Index, Index) noexcept nogil
        Index (*attention_row_workspace_size)(Index, Index, Index) noexcept nogil
    cdef enum:
        FLOAT64
        FLOAT32
    const Kernels* kernels[2]  # of each type, in the level in use
    const char* kernels_choose(const char*)
    const char* kernels_level(int)


cdef extern from *:
    """
    #if defined(_MSC_VER)
    #define MICROGPT_THREAD_LOCAL __declspec(thread)
    #else
    #define MICROGPT_THREAD_LOCAL _Thread_local
    #endif
    static MICROGPT_THREAD_LOCAL int no_grad_depth = 0;
    static MICROGPT_THREAD_LOCAL void *tape = NULL;
    """
    int no_grad_depth
    void* tape  # the _Graph being recorded, not counted; NULL: none


include "_memory.pxi"  # nodes, blocks and buffers: ownership and reuse
include "_graph.pxi"  # children, release, the forward and backward of a block, sort, sweep
include "_sharing.pxi"  # memory that gradients share in an update


cdef Node* node_for_next_handle = NULL  # of a Matrix; NULL: a new leaf


cdef inline void attach(PyObject* handle, Node* node) noexcept:
    global node_for_next_handle
    node_for_next_handle = NULL
    node.handle = handle
    retain(node)


cdef inline bint has_handle(Node* node) noexcept:
    """Whether the node's handle can be given out: not while it is being deallocated."""
    return node.handle is not NULL and Py_REFCNT(node.handle) > 0


cdef void disown(Node* node) noexcept:
    """Free a node whose handle could not be made."""
    global node_for_next_handle
    node_for_next_handle = NULL
    retain(node)
    release(node)


# An op makes a Value and often drops one, so both are written out: what Cython makes of `__new__`
# and `__dealloc__` handles arguments and puts exceptions aside, which takes longer than the rest.
# No Python code runs in either.

cdef extern from *:
    """
    #if CYTHON_USE_TYPE_SPECS
    #error "Value must be a static type: free_handle gives back no reference to it"
    #endif
    """


cdef enum:
    MAX_SPARE_HANDLES = 1024


cdef PyObject* spare_handles = NULL  # memory of deallocated Values, linked by `node`
cdef int n_spare_handles = 0


cdef Value new_handle(Node* node):
    """Return the handle of a scalar node that has none."""
    global spare_handles, n_spare_handles
    cdef PyObject* memory = spare_handles
    cdef Value value
    if memory is not NULL:
        spare_handles = <PyObject*>(<Value>memory).node
        n_spare_handles -= 1
        unpoison(memory, sizeof(PyObject))
    else:
        memory = PyObject_Malloc((<PyTypeObject*>Value).tp_basicsize)
        if memory is NULL:
            disown(node)
            raise MemoryError
    value = PyObject_Init(memory, <PyTypeObject*>Value)
    value.node = node
    value.initialized = True
    attach(<PyObject*>value, node)
    return value


cdef void free_handle(PyObject* handle) noexcept:
    """Deallocate a Value, or what subtype_dealloc leaves of a subclass's: Value's tp_dealloc.

    A cast to Value counts no reference as long as only its C fields are used.
    """
    global spare_handles, n_spare_handles
    cdef Node* node = (<Value>handle).node
    if node is not NULL:  # else __cinit__ ran out of memory
        if node.handle is handle:
            node.handle = NULL
        release(node)
    if Py_TYPE(handle) is <PyTypeObject*>Value and n_spare_handles < MAX_SPARE_HANDLES:
        (<Value>handle).node = <Node*>spare_handles
        spare_handles = handle
        n_spare_handles += 1
        poison(handle, sizeof(PyObject))
    else:
        Py_TYPE(handle).tp_free(handle)


cdef inline Value value_of(Node* node):
    """Return the handle of a scalar node; make one if it has none."""
    return <Value>node.handle if has_handle(node) else new_handle(node)


cdef inline Matrix matrix_of(Node* node):
    """Return the handle of a block's node; make one if it has none."""
    global node_for_next_handle
    if has_handle(node):
        return <Matrix>node.handle
    node_for_next_handle = node
    try:
        return Matrix.__new__(Matrix)
    finally:
        if node_for_next_handle is node:
            disown(node)


cdef inline double data_of(Node* node) noexcept nogil:
    if node.kind == ELEMENT:
        return number_at(block_of(node.left), <Py_ssize_t>node.right)
    return node.data


cdef int refuse(object check, tuple arguments) except -1:
    """Raise what a check says of arguments that do not fit; whatever happens in it, raise."""
    numbers_are_read()  # a function that is recorded may go on after the error
    check(*arguments)
    raise ValueError(f"{check.__name__} of {arguments}")


cdef inline bint to_double(object x, double* result) except -1:
    """Set result and return True if x is a number, else return False."""
    if PyFloat_CheckExact(x):
        result[0] = PyFloat_AS_DOUBLE(x)
        return True
    if PyLong_CheckExact(x) or checks.is_number(x):
        result[0] = float(x)
        return True
    return False


cdef inline double as_double(object x, str what) except? -1.0:
    cdef double result = 0.0
    if not to_double(x, &result):
        checks.number(x, what)  # raises TypeError
    return result


cdef inline Value one_child(Kind kind, double data, Node* child, double local_grad):
    cdef Node* node = new_node(LEAF, data)
    if not no_grad_depth:
        node.kind = kind
        node.left = child
        node.local_grad[0] = local_grad
        retain(child)
    return new_handle(node)


cdef inline Value two_children(Kind kind, double data, Node* left, Node* right, double left_grad,
                               double right_grad):
    cdef Node* node = new_node(LEAF, data)
    if not no_grad_depth:
        node.kind = kind
        node.left = left
        node.right = right
        node.local_grad[0] = left_grad
        node.local_grad[1] = right_grad
        retain(left)
        retain(right)
    return new_handle(node)


cdef Value plus(Value a, Value b):
    return two_children(ADD, data_of(a.node) + data_of(b.node), a.node, b.node, 1.0, 1.0)


cdef Value times(Value a, Value b):
    cdef double x = data_of(a.node), y = data_of(b.node)
    return two_children(MUL, x * y, a.node, b.node, y, x)


cdef inline Value with_number(Kind kind, double data, Node* left, double number,
                              double left_grad, double right_grad):
    """Return an op with a constant; nothing is linked if memory runs out at the second node."""
    cdef Value value = new_handle(new_node(LEAF, data))
    cdef Node* node = value.node
    cdef Node* constant
    if not no_grad_depth:
        constant = new_node(LEAF, number)
        constant.refs = 1
        retain(left)
        node.kind = kind
        node.left = left
        node.right = constant
        node.local_grad[0] = left_grad
        node.local_grad[1] = right_grad
    return value


cdef Value plus_number(Value a, double number):
    return with_number(ADD, data_of(a.node) + number, a.node, number, 1.0, 1.0)


cdef Value times_number(Value a, double number):
    cdef double x = data_of(a.node)
    return with_number(MUL, x * number, a.node, number, number, x)


cdef inline object plus_any(Value a, object b):
    cdef double number = 0.0
    if isinstance(b, Value):
        return plus(a, <Value>b)
    return plus_number(a, number) if to_double(b, &number) else NotImplemented


cdef inline object times_any(Value a, object b):
    cdef double number = 0.0
    if isinstance(b, Value):
        return times(a, <Value>b)
    return times_number(a, number) if to_double(b, &number) else NotImplemented


cdef inline bint power_fails(double x, double exponent, double* result) noexcept:
    """Set result to x ** exponent; return whether a float would raise an error."""
    # C's pow makes an exception for signalling NaNs
    result[0] = 1.0 if x == 1.0 or exponent == 0.0 else pow(x, exponent)
    return not isfinite(result[0]) and isfinite(x) and isfinite(exponent)


cdef double power(double x, double exponent) except? -1.0:
    """Return x ** exponent; raise where a float would."""
    cdef double result
    return checks.power(x, exponent) if power_fails(x, exponent, &result) else result


cdef double power_slope(double x, double exponent) except? -1.0:
    """Return the derivative of x ** exponent; raise where it is no float."""
    cdef double result
    if power_fails(x, exponent - 1.0, &result):
        return checks.power_slope(x, exponent)
    return exponent * result


cdef Value to_the(Value a, double exponent):
    cdef double x = data_of(a.node)
    cdef double number = power(x, exponent)
    cdef Value result = one_child(POW, number, a.node, power_slope(x, exponent))
    result.node.local_grad[1] = exponent  # for its label
    return result


cdef class Value:
    """Value(data, children=(), local_grads=())
--

    Hold one number of a graph, its gradient, its children and their local derivatives.

    data: the number; it becomes a float.
    children: Values that it was computed from, any number of them.
    local_grads: for each child, the derivative of this Value with respect to it.

    `data` and `grad` are floats that can be set. An op that is not built in is made with the
    constructor:

    >>> import math
    >>> x = Value(0.5)
    >>> y = Value(math.sin(x.data), (x,), (math.cos(x.data),))
    >>> y.backward()
    >>> round(x.grad, 4)
    0.8776

    Raises TypeError if data or a local gradient is not a number or a child is not a Value,
    ValueError unless there is one local gradient per child.
    """

    cdef Node* node
    cdef bint initialized

    __array_ufunc__ = None  # NumPy scalars leave the arithmetic to us

    def __cinit__(self, *args, **kwargs):
        self.node = new_node(LEAF, 0.0)
        attach(<PyObject*>self, self.node)

    def __init__(self, data, children=(), local_grads=()):
        cdef double number = as_double(data, "data")
        if children is not () or local_grads is not ():
            children, local_grads = checks.links(children, local_grads, Value)
            for child in children:
                child = <Value?>child  # links uses isinstance, which trusts __class__
        # checked only now, because the above can run Python code; a node with parents is in use
        if self.initialized or self.node.refs > 1:
            raise TypeError("a Value is made once: make another one, or set its data")
        if children and not no_grad_depth:
            adopt_children(self.node, children, local_grads)  # first, because it can fail
        self.node.data = number
        self.initialized = True

    @property
    def data(self):
        """The number, a float; it can be set."""
        numbers_are_read()
        return data_of(self.node)

    @data.setter
    def data(self, data):
        cdef double number = as_double(data, "data")
        numbers_are_read()
        if self.node.kind == ELEMENT:
            numbers_change(self.node.left)
            set_number_at(block_of(self.node.left), <Py_ssize_t>self.node.right, number)
        else:
            self.node.data = number

    @property
    def grad(self):
        """The gradient, a float; `backward` adds to that of a leaf. It can be set."""
        cdef Block* block
        if self.node.kind != ELEMENT:
            return self.node.grad
        block = block_of(self.node.left)
        if not has_gradient(block):
            return 0.0
        return get_number(block.grad, block.dtype, <Py_ssize_t>self.node.right)

    @grad.setter
    def grad(self, grad):
        cdef double number = as_double(grad, "grad")
        if self.node.kind == ELEMENT:
            require_unused(self.node.left)
            need_grad(self.node.left)
            set_gradient_at(block_of(self.node.left), <Py_ssize_t>self.node.right, number)
        else:
            self.node.grad = number

    @property
    def _children(self):
        cdef Node* node = self.node
        cdef Py_ssize_t i = 0
        cdef Node* child
        children = []
        if node.kind == MEAN:
            for i in range(size_of(node.left)):
                children.append(element_of(node.left, i))
        elif node.kind != ELEMENT:
            child = child_at(node, 0)
            while child is not NULL:
                children.append(value_of(child))
                i += 1
                child = child_at(node, i)
        return tuple(children)

    @property
    def _local_grads(self):
        cdef Node* node = self.node
        cdef Many* many
        cdef Py_ssize_t i
        numbers_are_read()
        if node.kind == MEAN:
            return (1.0 / size_of(node.left),) * size_of(node.left)
        if node.kind == CUSTOM:
            many = <Many*>node.right
            return tuple([many.local_grads[i] for i in range(many.n)])
        return tuple([node.local_grad[i] for i in range(2) if child_at(node, i) is not NULL
                      and node.kind <= CUSTOM1])

    @property
    def _op(self):
        if self.node.kind == POW:
            return f"**{self.node.local_grad[1]:g}"
        return LABELS[self.node.kind]

    @property
    def _inputs(self):
        """What this Value was computed from, for pictures: its children, or one block.

        That is the block of which it is an entry, or the Matrix of which it is the mean.
        """
        cdef Node* node = self.node
        if node.kind == MEAN:
            return (matrix_of(node.left),)
        if node.kind == ELEMENT:
            numbers_are_read()
            return () if is_leaf(block_of(node.left)) else (matrix_of(node.left),)
        return self._children

    def __repr__(self):
        return f"Value(data={self.data}, grad={self.grad})"

    def __format__(self, spec):
        """Return the number in the format of a float, as in f"{value:.3f}"."""
        return format(self.data, spec) if spec else str(self)

    def __reduce__(self):
        return Value, (self.data,)  # a copy is a leaf: it does not carry the graph along

    def __add__(self, other):
        return plus_any(self, other)

    def __radd__(self, other):
        return plus_any(self, other)

    def __mul__(self, other):
        return times_any(self, other)

    def __rmul__(self, other):
        return times_any(self, other)

    def __neg__(self):
        return times_number(self, -1.0)

    def __sub__(self, other):
        cdef double number = 0.0
        if isinstance(other, Value):
            return plus(self, times_number(<Value>other, -1.0))
        return plus_number(self, -number) if to_double(other, &number) else NotImplemented

    def __rsub__(self, other):
        cdef double number = 0.0
        if not to_double(other, &number):
            return NotImplemented
        return plus_number(times_number(self, -1.0), number)

    def __truediv__(self, other):
        cdef double number = 0.0
        if isinstance(other, Value):
            return times(self, to_the(<Value>other, -1.0))
        if not to_double(other, &number):
            return NotImplemented
        return times_number(self, power(number, -1.0))

    def __rtruediv__(self, other):
        cdef double number = 0.0
        if not to_double(other, &number):
            return NotImplemented
        return times_number(to_the(self, -1.0), number)

    def __pow__(self, exponent):
        cdef double number = 0.0
        if isinstance(exponent, (Value, Matrix)):
            checks.exponent(exponent)  # raises TypeError
        return to_the(self, number) if to_double(exponent, &number) else NotImplemented

    def exp(self):
        """Return e ** self. Raises OverflowError above 709.78, the limit of a float."""
        cdef double x = data_of(self.node)
        cdef double result = exp(x)
        if isinf(result) and not isinf(x):
            checks.exp(x)  # raises OverflowError
        return one_child(EXP, result, self.node, result)

    def log(self):
        """Return the natural logarithm. Raises ValueError unless self is positive."""
        cdef double x = data_of(self.node)
        if x <= 0.0:
            checks.log(x)  # raises ValueError
        return one_child(LOG, log(x), self.node, 1.0 / x)

    def tanh(self):
        """Return the hyperbolic tangent, between -1 and 1."""
        cdef double result = tanh(data_of(self.node))
        return one_child(TANH, result, self.node, 1.0 - result * result)

    def relu(self):
        """Return self where it is positive, else 0."""
        cdef double x = data_of(self.node)
        if x > 0.0:
            return one_child(RELU, x, self.node, 1.0)
        return one_child(RELU, 0.0, self.node, 0.0)

    def backward(self):
        """Add to the grad of each leaf below this Value the derivative with respect to it.

        The root's gradient is 1. Inner nodes start from 0 at every call; leaves accumulate, so
        a second call doubles them. The depth of the graph is not limited.
        Raises RuntimeError if another thread is differentiating a part of the same graph.

        >>> a, b = Value(2), Value(3)
        >>> (a * b + a).backward()
        >>> a.grad, b.grad
        (4.0, 2.0)
        """
        backward_from(self.node, None)


cdef int adopt_children(Node* node, tuple children, tuple local_grads) except -1:
    """Make a leaf an inner node with these children."""
    cdef Py_ssize_t n = len(children), i
    cdef Many* many
    if n <= 2:
        node.left = (<Value>children[0]).node
        node.local_grad[0] = local_grads[0]
        node.kind = CUSTOM1
        if n == 2:
            node.right = (<Value>children[1]).node
            node.local_grad[1] = local_grads[1]
            node.kind = CUSTOM2
    else:
        many = <Many*>allocate(sizeof(Many) + n * (sizeof(Node*) + sizeof(double)))
        many.n = n
        many.local_grads = <double*>(many + 1)
        many.children = <Node**>(many.local_grads + n)
        for i in range(n):
            many.children[i] = (<Value>children[i]).node
            many.local_grads[i] = local_grads[i]
        node.right = many
        node.kind = CUSTOM
    for i in range(n):
        retain((<Value>children[i]).node)
    return 0


cdef class Matrix:
    """Matrix(rows, cols, dtype='float64')
--

    Hold rows x cols Values side by side, all 0 at first.

    dtype: the type of the numbers and their gradients, "float64" or "float32"; a float32 block
        holds what it is given rounded. Blocks of both types do not mix in an op.

    `m[i]` is row i as a tuple of Values, `m[i][j]` one Value that lives in the block; `m[a:b]`
    is a Matrix of rows a to b - 1 which shares their numbers and gradients. `m.data` and
    `m.grad` are 2-D buffers of the dtype: read-only snapshots in the pure core, live and writable
    in this one. A copy or a pickle holds the numbers, not the graph.

    `+ - * /` take another Matrix of equal shape, a row (1, n) that serves all rows, or a number,
    `**` takes a number, entry by entry and with the errors of Values.

    >>> m = Matrix.of([[1, 2], [3, 4]])
    >>> m.shape, m[1][0].data, m[1:].tolist()
    ((2, 2), 3.0, [[3.0, 4.0]])

    Raises TypeError if a size is not an int, ValueError if it is below 1.
    """

    cdef Node* node
    cdef bint initialized

    __array_ufunc__ = None  # NumPy scalars leave the arithmetic to us

    def __cinit__(self, rows=None, cols=None, dtype="float64"):
        # The block is made here, so that there is no Matrix without one, whatever a subclass does.
        cdef Node* node = node_for_next_handle
        self.initialized = node is not NULL
        if not self.initialized:
            self.node = unmade  # what the collector's lists give out while the sizes are asked
            retain(unmade)
            rows, cols = checks.sizes(rows, cols)
            node = new_leaf_block(rows, cols, place_of_dtype(dtype))
            release(unmade)
        self.node = node
        attach(<PyObject*>self, node)

    def __init__(self, rows, cols, dtype="float64"):
        if self.initialized:
            raise TypeError("a Matrix keeps its shape: make another one, or load other numbers")
        self.initialized = True

    def __dealloc__(self):
        if self.node is not NULL:
            if self.node.handle is <PyObject*>self:
                self.node.handle = NULL
            release(self.node)

    @classmethod
    def of(cls, lists, dtype=None):
        """Return a Matrix of leaves with the numbers of equally long lists, or of a Matrix.

        dtype: None: that of the Matrix; of lists "float64".
        """
        if isinstance(lists, Matrix):
            lists, dtype = lists.tolist(), dtype_of(lists) if dtype is None else dtype
        lists = checks.rectangle(lists)
        matrix = cls(len(lists), len(lists[0]), "float64" if dtype is None else dtype)
        matrix.load(lists)
        return matrix

    @classmethod
    def pack(cls, rows_of_values, dtype="float64"):
        """Return a new Matrix with the data of rows of Values; gradients flow back to them.

        Numbers among the Values are constants. Raises ValueError if the rows differ in length.
        """
        cdef tuple rows = checks.rectangle(rows_of_values)
        cdef Node* node = new_block(PACK, len(rows), len(rows[0]), place_of_dtype(dtype))
        cdef Block* block = block_of(node)
        cdef Py_ssize_t i = 0
        retain(node)
        try:
            numbers_are_read()
            block.items = <Node**>allocate(size_of(node) * sizeof(Node*))
            memset(block.items, 0, size_of(node) * sizeof(Node*))
            for row in rows:
                for item in row:
                    block.items[i] = ((<Value>item).node if isinstance(item, Value)
                                      else new_node(LEAF, as_double(item, "an entry")))
                    retain(block.items[i])
                    set_number_at(block, i, data_of(block.items[i]))
                    i += 1
            if no_grad_depth:
                for i in range(size_of(node)):
                    release(block.items[i])
                PyMem_RawFree(block.items)
                block.items = NULL
                block.op = NONE
            return matrix_of(node)
        finally:
            release(node)

    @property
    def shape(self):
        """The number of rows and of columns."""
        rows_are_read(self.node)
        return shape_of(self)

    @property
    def dtype(self):
        """The type of the numbers, "float64" or "float32"."""
        return dtype_of(self)

    @property
    def data(self):
        """The numbers as a buffer of rows x cols of the dtype; `tolist()` gives lists of them."""
        numbers_are_read()
        return memoryview(_Buffer.__new__(_Buffer, self, False))

    @property
    def grad(self):
        """The gradients as a buffer of rows x cols of the dtype; `grad.tolist()` gives lists."""
        return memoryview(_Buffer.__new__(_Buffer, self, True))

    def __len__(self):
        rows_are_read(self.node)
        return rows_in(self)

    def __iter__(self):
        return iter([self[i] for i in range(rows_in(self))])

    def __getitem__(self, index):
        cdef Block* block
        cdef Py_ssize_t i, start, stop
        if isinstance(index, slice):
            start, stop = checks.row_slice(index, rows_in(self))
            if not 0 <= start < stop <= rows_in(self):
                raise ValueError(f"rows {start}:{stop} of a Matrix")
            return rows_of(self.node, start, stop)
        i = checks.row_index(index, rows_in(self))
        if not 0 <= i < rows_in(self):
            raise IndexError(f"row {i} of a Matrix")
        block = block_of(self.node)
        return tuple([element_of(self.node, i * block.cols + j) for j in range(block.cols)])

    @property
    def _block(self):
        """The block as its entries know it: equal for all that show the same one in a picture."""
        return self

    @property
    def _op(self):
        cdef Block* block = block_of(self.node)
        cdef Py_ssize_t first
        if block.op == VIEW:
            first = first_entry(block) // block.cols
            return f"[{first}:{first + block.rows}]"
        return "" if is_leaf(block) else NAMES[block.op]

    @property
    def _inputs(self):
        """The Matrices, numbers or Values that this block was computed from, for pictures."""
        cdef Block* block = block_of(self.node)
        cdef Node* node
        cdef Py_ssize_t i = 0
        inputs = []
        numbers_are_read()
        if is_leaf(block):
            return ()
        node = child_at(self.node, 0)
        while node is not NULL:
            if node.kind != BLOCK:
                inputs.append(value_of(node))
            elif block_of(node).op == CONSTANT:
                inputs.append(number_at(block_of(node), 0))
            else:
                inputs.append(matrix_of(node))
            i += 1
            node = child_at(self.node, i)
        return tuple(inputs)

    def _places(self, values):
        """Return index -> (row, column) of those of these Values that are entries of this block."""
        cdef Py_ssize_t i, cols = cols_in(self)
        cdef Node* node
        cdef Value value
        places = {}
        for i, value in enumerate(values):
            node = value.node
            if node.kind == ELEMENT and node.left is self.node:
                places[i] = divmod(<Py_ssize_t><uintptr_t>node.right, cols)
        return places

    def _rms(self):
        """Return the root mean squares of the numbers and of the gradients."""
        numbers_are_read()
        cdef Block* block = block_of(self.node)
        cdef Block* owner = owner_of(self.node)
        cdef Py_ssize_t i, n = size_of(self.node), first = first_entry(block) if block.op == VIEW else 0
        cdef double x, data = 0.0, grad = 0.0
        cdef bint has_grad = has_gradient(owner)
        for i in range(n):
            x = number_at(block, i)
            data += x * x
            if has_grad:
                x = get_number(owner.grad, owner.dtype, first + i)
                grad += x * x
        return sqrt(data / n), sqrt(grad / n)

    def __repr__(self):
        return display.text(self)

    def _repr_html_(self):
        return display.html(self)

    def __array__(self, dtype=None, copy=None):
        """Return the numbers as a NumPy array: live in this core, copied in the pure one."""
        import numpy

        return numpy.array(self.data, dtype=dtype, copy=copy)

    def __reduce__(self):
        return Matrix.of, (self.tolist(), dtype_of(self))

    def tolist(self):
        """Return the numbers as a list of lists of floats."""
        numbers_are_read()
        require_whole(self.node)
        cdef Block* block = block_of(self.node)
        cdef Py_ssize_t i, j, cols = block.cols
        return [[number_at(block, i * cols + j) for j in range(cols)] for i in range(block.rows)]

    def load(self, source):
        """Set the numbers from lists or from a Matrix of the same shape. Nothing is recorded.

        They are converted to the type of this block.
        Raises ValueError if the shape differs, RuntimeError while another thread computes with it;
        nothing is changed then.
        """
        cdef Py_ssize_t n = size_of(self.node), i = 0
        cdef Block* block = block_of(self.node)
        cdef void* numbers
        cdef tuple lists
        if isinstance(source, Matrix):
            if not alike(self, source):
                refuse(checks.load_shapes, (shape_of(self), shape_of(source)))
            require_whole((<Matrix>source).node)
            if tape is not NULL:
                (<_Graph>tape).add_load(self.node, (<Matrix>source).node)
            numbers_change(self.node)
            copy_numbers(block, block_of((<Matrix>source).node))
            return
        lists = checks.rectangle(source)
        if len(lists) != rows_in(self) or len(lists[0]) != cols_in(self):
            refuse(checks.load_shapes, (shape_of(self), (len(lists), len(lists[0]))))
        numbers = new_buffer(bytes_of(block))  # not a list, which what converts an entry could get hold of
        try:
            for row in lists:
                for item in row:
                    set_number(numbers, block.dtype, i, as_double(item, "an entry"))
                    i += 1
            numbers_are_read()
            numbers_change(self.node)
            memmove(block.data, numbers, bytes_of(block))
        finally:
            free_buffer(numbers, bytes_of(block))

    def __add__(self, other):
        return elementwise(MATRIX_ADD, self, other)

    def __radd__(self, other):
        return elementwise(MATRIX_ADD, self, other)

    def __sub__(self, other):
        return elementwise(MATRIX_SUBTRACT, self, other)

    def __rsub__(self, other):
        return elementwise(MATRIX_SUBTRACT, self, other, True)

    def __mul__(self, other):
        return elementwise(MATRIX_MULTIPLY, self, other)

    def __rmul__(self, other):
        return elementwise(MATRIX_MULTIPLY, self, other)

    def __neg__(self):
        return elementwise(MATRIX_MULTIPLY, self, -1.0)

    def __truediv__(self, other):
        cdef double number = 0.0
        if isinstance(other, (Matrix, Value)) or not to_double(other, &number):
            return elementwise(MATRIX_DIVIDE, self, other)
        if block_of(self.node).dtype == FLOAT32:
            number = <float>number
        return elementwise(MATRIX_MULTIPLY, self, power(number, -1.0))

    def __rtruediv__(self, other):
        return elementwise(MATRIX_DIVIDE, self, other, True)

    def __pow__(self, exponent):
        if isinstance(exponent, (Value, Matrix)):
            checks.exponent(exponent)  # raises TypeError
        return elementwise(MATRIX_POWER, self, exponent)

    def exp(self):
        """Return e ** entry for each entry. Raises OverflowError above 709.78."""
        return record(block_op(MATRIX_EXP, rows_in(self), cols_in(self), NULL, self))

    def log(self):
        """Return the natural logarithms. Raises ValueError unless all entries are positive."""
        return record(block_op(MATRIX_LOG, rows_in(self), cols_in(self), NULL, self))

    def tanh(self):
        """Return the hyperbolic tangent of each entry."""
        return record(block_op(MATRIX_TANH, rows_in(self), cols_in(self), NULL, self))

    def relu(self):
        """Return the entries where they are positive, else 0; as `relu(self)`."""
        return relu(self)


cdef inline bint is_leaf(Block* block) noexcept:
    return block.op <= CONSTANT or block.detached


cdef Matrix constant_row(double number, Matrix like):
    """Return a row of a number, which serves all rows of a Matrix as one of its type does."""
    cdef Node* node = new_block(CONSTANT, 1, cols_in(like), block_of(like.node).dtype)
    cdef Block* block = block_of(node)
    cdef Py_ssize_t i
    for i in range(block.cols):
        set_number_at(block, i, number)
    block.detached = True
    return matrix_of(node)


cdef object elementwise(Op op, Matrix a, object other, bint swapped=False):
    """Return a op other, or other op a, entry by entry; a single row serves all rows."""
    cdef Matrix b
    cdef double number = 0.0
    if isinstance(other, Matrix):
        b = other
    elif isinstance(other, Value):
        refuse(checks.matrix_with_value, (NAMES[op],))
    elif to_double(other, &number):
        b = constant_row(number, a)
    else:
        checks.matrix_with_array(NAMES[op], other)  # can raise TypeError
        return NotImplemented
    if swapped:
        a, b = b, a
    if cols_in(a) != cols_in(b) or (rows_in(a) != rows_in(b) and rows_in(a) != 1
                                    and rows_in(b) != 1):
        refuse(checks.elementwise_shapes, (NAMES[op], shape_of(a), shape_of(b)))
    return record(block_op(op, max(rows_in(a), rows_in(b)), cols_in(a), NULL, a, b))


@cython.final
cdef class _Buffer:
    """Export the numbers or the gradients of a Matrix, and keep its node alive meanwhile."""

    cdef Node* node
    cdef bint of_grad
    cdef Py_ssize_t shape[2]
    cdef Py_ssize_t strides[2]

    def __cinit__(self, Matrix matrix not None, bint of_grad):
        if of_grad:
            require_unused(matrix.node)
            need_grad(matrix.node)
            owner_of(matrix.node).grad_is_seen = True
            gradient(block_of(matrix.node))
        self.node = matrix.node
        retain(self.node)
        self.of_grad = of_grad
        self.shape[0] = block_of(self.node).rows
        self.shape[1] = block_of(self.node).cols
        self.strides[1] = size_of_number(block_of(self.node).dtype)
        self.strides[0] = self.shape[1] * self.strides[1]

    def __dealloc__(self):
        if self.node is not NULL:
            release(self.node)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        cdef Block* block = block_of(self.node)
        buffer.buf = block.grad if self.of_grad else block.data
        buffer.obj = self
        buffer.len = bytes_of(block)
        buffer.itemsize = self.strides[1]
        buffer.readonly = 0
        buffer.ndim = 2
        buffer.format = "f" if block.dtype == FLOAT32 else "d"
        buffer.shape = self.shape
        buffer.strides = self.strides
        buffer.suboffsets = NULL
        buffer.internal = NULL


cdef inline Py_ssize_t size_of(Node* node) noexcept nogil:
    return block_of(node).rows * block_of(node).cols


cdef inline Py_ssize_t rows_in(Matrix x) noexcept:
    return block_of(x.node).rows


cdef inline Py_ssize_t cols_in(Matrix x) noexcept:
    return block_of(x.node).cols


cdef inline bint same_shape(Node* a, Node* b) noexcept:
    return block_of(a).rows == block_of(b).rows and block_of(a).cols == block_of(b).cols


cdef inline bint same_dtype(Matrix a, Matrix b) noexcept:
    return b is None or block_of(a.node).dtype == block_of(b.node).dtype


cdef inline bint alike(Matrix a, Matrix b) noexcept:
    return same_shape(a.node, b.node)


cdef tuple shape_of(Matrix x):
    """Return the true shape; that of a subclass can be anything."""
    return rows_in(x), cols_in(x)


cdef tuple DTYPES = ("float64", "float32")  # in the order of the tables of kernels


cdef str dtype_of(Matrix x):
    return DTYPES[block_of(x.node).dtype]


cdef uint8_t place_of_dtype(object dtype) except 255:
    return <uint8_t>DTYPES.index(checks.dtype(dtype))


cdef Node* new_leaf_block(Py_ssize_t rows, Py_ssize_t cols, uint8_t dtype) except NULL:
    cdef Node* node = new_block(NONE, rows, cols, dtype)
    memset(block_of(node).data, 0, bytes_of(block_of(node)))
    return node


cdef Node* unmade = new_leaf_block(1, 1, FLOAT64)
retain(unmade)


cdef Matrix rows_of(Node* node, Py_ssize_t start, Py_ssize_t stop):
    """Return rows start to stop - 1 of a block as a view."""
    cdef Block* block = block_of(node)
    cdef Node* owner = block.inputs[0] if block.op == VIEW else node
    cdef void* data = place_in(block.data, block.dtype, start * block.cols)
    cdef Node* view = new_block(VIEW, stop - start, block.cols, block.dtype)
    block = block_of(view)
    block.data = data
    block.inputs[0] = owner
    block.n_inputs = 1
    block_of(owner).is_viewed = True
    retain(owner)
    if tape is not NULL:
        note(view)
    return matrix_of(view)


cdef Value element_of(Node* node, Py_ssize_t i):
    """Return entry i of a block, counted row by row; the same node while one is alive."""
    cdef Block* block = block_of(node)
    cdef Node* element
    numbers_are_read()
    if block.op == VIEW:
        i += first_entry(block)
        node = block.inputs[0]
        block = block_of(node)
    if block.elements is NULL:
        block.elements = <Node**>allocate(size_of(node) * sizeof(Node*))
        memset(block.elements, 0, size_of(node) * sizeof(Node*))
    element = block.elements[i]
    if element is NULL:
        element = new_node(ELEMENT, 0.0)
        element.left = node
        element.right = <void*><uintptr_t>i
        retain(node)
        block.elements[i] = element
    return value_of(element)


cdef Matrix record(Node* node):
    """Compute a new block from its inputs and link it to them; under no_grad make it a leaf."""
    cdef Block* block = block_of(node)
    cdef int i
    try:
        for i in range(block.n_inputs):
            require_whole(block.inputs[i])
    except:
        block.n_inputs = 0  # not yet counted
        disown(node)
        raise
    if block_forward(node):
        refuse_numbers(node)
    if no_grad_depth and tape is NULL:
        block.op = NONE
        block.detached = False
        block.n_inputs = 0
        free_buffer(block.saved, block.saved_capacity)
        block.saved = NULL
        release_ids(block.ids)
        block.ids = NULL
    else:
        for i in range(block.n_inputs):
            retain(block.inputs[i])
        if tape is not NULL:
            note(node)
    return matrix_of(node)


cdef int refuse_numbers(Node* node) except -1:
    """Raise the error of the first entry that is one for Values, and free the new block."""
    cdef Block* y = block_of(node)
    cdef Block* a = block_of(y.inputs[0])
    cdef Block* b = a if y.n_inputs == 1 else block_of(y.inputs[1])
    cdef Py_ssize_t i
    cdef double x, other
    numbers_are_read()  # as in refuse
    for i in range(y.n_inputs):
        retain(y.inputs[i])
    retain(node)
    try:
        for i in range(y.rows * y.cols):
            x = number_at(a, i if a.rows == y.rows else i % y.cols)
            other = number_at(b, i if b.rows == y.rows else i % y.cols)
            if y.op == MATRIX_EXP:
                checks.exp(x)
            elif y.op == MATRIX_LOG:
                checks.log(x)
            elif y.op == MATRIX_DIVIDE:
                power(other, -1.0)
                power_slope(other, -1.0)
            else:
                power(x, other)
                power_slope(x, other)
        raise ArithmeticError(f"{NAMES[y.op]} of numbers that changed meanwhile")
    finally:
        release(node)


cdef int note(Node* node) except -1:
    """Add a node to the graph that is being recorded."""
    try:
        return (<_Graph>tape).add(node)
    except:
        disown(node)
        raise


cdef Node* block_op(Op op, Py_ssize_t rows, Py_ssize_t cols, IdBuffer* ids, Matrix a,
                    Matrix b=None, Matrix c=None, Py_ssize_t n_head=0) except NULL:
    """Return a new block that owns ids, with its inputs set but not yet counted."""
    cdef Node* node
    cdef Block* block
    try:
        if not (same_dtype(a, b) and same_dtype(a, c)):
            refuse(checks.dtypes, (NAMES[op], [dtype_of(x) for x in (a, b, c) if x is not None]))
        node = new_block(op, rows, cols, block_of(a.node).dtype)
    except:
        release_ids(ids)
        raise
    block = block_of(node)
    block.ids = ids
    block.n_head = n_head
    block.detached = no_grad_depth != 0
    block.inputs[0] = a.node
    if b is not None:
        block.inputs[1] = b.node
    if c is not None:
        block.inputs[2] = c.node
    try:
        resize_saved(block)
    except:
        disown(node)
        raise
    block.n_inputs = 1 + (b is not None) + (c is not None)
    return node


cdef double EPS = RMSNORM_EPS


cdef str level_in_use = ""


def _level(wanted=None):
    """Use the kernels of an instruction-set level, auto for the best; return the level in use.

    Raises ValueError if this machine does not have it.
    """
    global level_in_use
    cdef bytes name
    cdef const char* chosen
    if wanted is not None:
        name = wanted.encode()
        chosen = kernels_choose(name)
        if chosen is NULL:
            levels = " or ".join(_levels())
            raise ValueError(f"MICROGPT_SIMD must be auto, {levels}, not {wanted!r}")
        level_in_use = chosen.decode()
    return level_in_use


def _levels():
    """Return the names of the instruction-set levels of this machine, the best first."""
    names = []
    while kernels_level(len(names)) is not NULL:
        names.append(kernels_level(len(names)).decode())
    return names


_level(os.environ.get("MICROGPT_SIMD") or "auto")


include "_replay.pxi"  # graphs replayed on other ids
include "_sampling.pxi"  # drawing tokens


cdef IdBuffer* first_keys(Matrix q, Matrix k, object starts) except NULL:
    """Return for each row of q the first key that it may see; starts are ints, _Ids or None."""
    if starts is not None:
        if rows_in(q) != rows_in(k):
            refuse(checks.starts_need_equal_rows, (rows_in(q), rows_in(k)))
    return derived_ids(FIRST_KEYS, starts, rows_in(q))


cdef tuple plain_ints(object n_head, object starts):
    """Return both as ints. This can run Python code, so it comes before any shape is read."""
    if starts is not None and recorded_ids(starts) is NULL:
        starts = [checks.index(start) for start in starts]
    return checks.index(n_head), starts


cdef Py_ssize_t heads(object n_head, Matrix q, Matrix k, Matrix v) except -1:
    """Return n_head, checked against the shapes."""
    if not (rows_in(k) == rows_in(v) and cols_in(k) == cols_in(v) and cols_in(q) == cols_in(k)
            and rows_in(q) <= rows_in(k) and 1 <= n_head <= cols_in(q)
            and cols_in(q) % n_head == 0):
        refuse(checks.attention_shapes, (shape_of(q), shape_of(k), shape_of(v), n_head))
    return n_head


cdef inline Matrix block_argument(object x, str name):
    """Return x; raise TypeError unless it is a Matrix."""
    if not isinstance(x, Matrix):
        refuse(checks.instance, (x, name, Matrix))
    return <Matrix>x


def embedding(table, ids):
    """Return the rows of table that ids name: table (n, cols), T ids -> (T, cols).

    Raises ValueError if an id is outside 0..n-1 or there are no ids.
    """
    cdef Matrix a = block_argument(table, "table")
    cdef IdBuffer* rows = ids_of(ids, rows_in(a), "id")
    return record(block_op(EMBEDDING, rows.n, cols_in(a), rows, a))


def linear(x, w):
    """Return x times w transposed: x (T, nin), w (nout, nin) -> (T, nout).

    Raises ValueError if the two nin differ.
    """
    cdef Matrix a = block_argument(x, "x"), b = block_argument(w, "w")
    if cols_in(a) != cols_in(b):
        refuse(checks.linear_shapes, (shape_of(a), shape_of(b)))
    return record(block_op(LINEAR, rows_in(a), rows_in(b), NULL, a, b))


def rmsnorm(x):
    """Return each row divided by its root mean square: x (T, n) -> (T, n).

    x * (mean(x ** 2) + 1e-5) ** -0.5; Zhang and Sennrich 2019, arXiv:1910.07467, without a gain.
    """
    cdef Matrix a = block_argument(x, "x")
    return record(block_op(RMSNORM, rows_in(a), cols_in(a), NULL, a))


def relu(x):
    """Return x where it is positive, else 0, entry by entry: x (T, n) -> (T, n)."""
    cdef Matrix a = block_argument(x, "x")
    return record(block_op(MATRIX_RELU, rows_in(a), cols_in(a), NULL, a))


def softmax(x, temperature=1.0):
    """Return the softmax of each row of x / temperature: x (T, n) -> (T, n); rows add up to 1.

    Raises ValueError if temperature is not positive.
    """
    cdef Matrix a = block_argument(x, "x")
    cdef double number = checks.temperature(temperature)
    cdef Node* node = block_op(SOFTMAX, rows_in(a), cols_in(a), NULL, a)
    block_of(node).temperature = number
    return record(node)


def attention(q, k, v, n_head, starts=None):
    """Return causal multi-head attention: q (T, n), k and v (S, n) with S >= T -> (T, n).

    Each of the n_head heads works on n / n_head adjacent columns. Row t of q is at
    position S - T + t and sees the keys up to and including its own position.
    starts: first rows of the documents packed into q, from 0 upwards; a row sees only its own
    document. Requires S == T.

    softmax(q k^T / sqrt(head_dim)) v; Vaswani et al. 2017, arXiv:1706.03762.
    Raises ValueError if shapes, n_head or starts do not fit.
    """
    cdef Matrix a = block_argument(q, "q"), b = block_argument(k, "k")
    cdef Matrix c = block_argument(v, "v")
    n_head, starts = plain_ints(n_head, starts)
    cdef Py_ssize_t n = heads(n_head, a, b, c)
    cdef IdBuffer* first_key = first_keys(a, b, starts)
    return record(block_op(ATTENTION, rows_in(a), cols_in(a), first_key, a, b, c, n))


def attention_weights(q, k, n_head, starts=None):
    """Return the weights that `attention` gives: q (T, n), k (S, n) -> (n_head * T, S).

    Row h * T + t holds the weights of head h at row t; a key that it does not see has weight 0.
    """
    cdef Matrix a = block_argument(q, "q"), b = block_argument(k, "k")
    n_head, starts = plain_ints(n_head, starts)
    cdef Py_ssize_t n = heads(n_head, a, b, b)
    cdef IdBuffer* first_key = first_keys(a, b, starts)
    return record(
        block_op(ATTENTION_WEIGHTS, n * rows_in(a), rows_in(b), first_key, a, b, None, n))


def cross_entropy(logits, targets):
    """Return -log(softmax(row)[target]) for each row: logits (T, n), T targets -> (T, 1).

    Computed with log-sum-exp, so that a probability too small for a float still gives its loss.
    Raises ValueError if a target is outside 0..n-1, or unless there is one per row.
    """
    cdef Matrix a = block_argument(logits, "logits")
    cdef IdBuffer* ids = ids_of(targets, cols_in(a), "target")
    if ids.n != rows_in(a):
        targets = ids.n
        release_ids(ids)
        refuse(checks.one_target_per_row, (rows_in(a), targets))
    return record(block_op(CROSS_ENTROPY, rows_in(a), 1, ids, a))


def mean(x):
    """Return the mean of all entries as one Value: x (T, n)."""
    cdef Matrix a = block_argument(x, "x")
    require_whole(a.node)
    cdef double data = mean_of(a.node)
    result = one_child(MEAN, data, a.node, 0.0)
    if tape is not NULL and result.node.kind == MEAN:
        (<_Graph>tape).add(result.node)
    return result


cdef inline int numbers_change(Node* node) except -1:
    """Count a change of a block's numbers from outside; refuse it while a thread computes."""
    global n_changes
    require_unused(node)
    owner_of(node).version += 1
    n_changes += 1
    return 0


cdef Node* node_of(object x) except NULL:
    return block_argument(x, "a param or moment").node


@cython.final
cdef class _Update:
    """What the Adam steps of one object change, checked, and the rates of one step."""

    cdef object adam
    cdef object step  # the number of the step
    cdef AdamRates rates
    cdef tuple params, m, v  # not lists, which what sets the count could get hold of
    cdef Moments* all  # one for each parameter
    cdef Py_ssize_t n
    cdef bint busy

    def __cinit__(self, adam):
        cdef Py_ssize_t i
        cdef Moments* one
        self.adam = adam
        self.params, self.m, self.v = tuple(adam.params), tuple(adam.m), tuple(adam.v)
        self.n = len(self.params)
        if not len(self.m) == len(self.v) == self.n:
            self.refuse_shapes()
        self.all = <Moments*>allocate((self.n + 1) * sizeof(Moments))
        for i in range(self.n):
            one = self.all + i
            one.p, one.m, one.v = node_of(self.params[i]), node_of(self.m[i]), node_of(self.v[i])
            if not (same_shape(one.p, one.m) and same_shape(one.p, one.v)):
                self.refuse_shapes()
            if not (block_of(one.p).dtype == block_of(one.m).dtype == block_of(one.v).dtype):
                refuse(checks.dtypes,
                       ("adam_update", [dtype_of(x[i]) for x in (self.params, self.m, self.v)]))
            one.rates = &self.rates
            one.is_done = False

    def __dealloc__(self):
        PyMem_RawFree(self.all)

    cdef int refuse_shapes(self) except -1:
        shapes = [[], [], []]
        for matrices, found in zip((self.params, self.m, self.v), shapes):
            for x in matrices:
                node_of(x)
                found.append(shape_of(x))
        return refuse(checks.adam_shapes, tuple(shapes))

    cdef bint is_of(self, adam) except -1:
        """Whether what was checked is what an Adam has now."""
        return (not self.busy and self.adam is adam and adam.params is self.params
                and adam.m is self.m and adam.v is self.v)

    cdef int set_rates(self, object lr) except -1:
        cdef AdamRates* rates = &self.rates
        cdef double correction1, correction2
        cdef Py_ssize_t i
        step, beta1, beta2 = self.adam.step, self.adam.beta1, self.adam.beta2
        eps = self.adam.eps
        if not (PyLong_CheckExact(step) and PyFloat_CheckExact(lr) and PyFloat_CheckExact(beta1)
                and PyFloat_CheckExact(beta2) and PyFloat_CheckExact(eps)
                and 0 <= step < PY_SSIZE_T_MAX and 0.0 <= beta1 < 1.0 and 0.0 <= beta2 < 1.0
                and eps > 0.0):  # else nothing is left to check
            step, lr, beta1, beta2, eps = checks.adam_rates(step, lr, beta1, beta2, eps)
        self.step = step + 1
        rates.beta1, rates.beta2 = beta1, beta2
        correction1 = 1.0 - pow(rates.beta1, <double>self.step)
        correction2 = 1.0 - pow(rates.beta2, <double>self.step)
        # lr * (m / correction1) / (sqrt(v / correction2) + eps), corrections moved out of the loop
        rates.lr_hat = <double>lr * (sqrt(correction2) / correction1)
        rates.eps_hat = <double>eps * sqrt(correction2)
        for i in range(self.n):
            need_grad(self.all[i].p)
        return 0

    cdef int begin(self, Traversal* walk) except -1:
        """Count the step; after this nothing fails. walk: a graph that was just sorted, or NULL."""
        cdef Py_ssize_t i
        self.busy = True  # what runs now may begin another update
        try:
            self.adam.step = self.step  # first: if it is refused, nothing has changed
        finally:
            self.busy = False
        try:
            for i in range(self.n):
                require_unused(self.all[i].p)
                require_unused(self.all[i].m)
                require_unused(self.all[i].v)
            if walk is not NULL:
                refuse_later_changes(walk)
                share_gradients(walk)  # what is unseen now stays so: no Python runs any more
        except:
            if walk is not NULL:
                end_sharing(walk)
            self.take_back()
            raise
        if walk is not NULL:
            self.claim(walk)
        return 0

    cdef int take_back(self) except -1:
        """Do not count the step after all."""
        self.adam.step = self.step - 1
        return 0

    cdef void claim(self, Traversal* walk) noexcept:
        """Note with each linear of a graph the weight that only it uses: see block_backward."""
        cdef Py_ssize_t i
        cdef Block* p
        cdef Block* m
        cdef Block* v
        cdef Node* node
        for i in range(self.n):
            p, m, v = block_of(self.all[i].p), block_of(self.all[i].m), block_of(self.all[i].v)
            if not (p.op == m.op == v.op == NONE) or p.update or m.update or v.update or m is v:
                self.mark_blocks(False)  # the order of the updates would matter
                return
            p.update = m.update = v.update = self.all + i
        for i in range(walk.n):
            node = walk.topo[i].node
            if node.kind == BLOCK and block_of(node).op == LINEAR:
                p = block_of(block_of(node).inputs[1])
                if (p.op == NONE and p.update is not NULL and block_of(p.update.p) is p
                        and p.uses == 1 and not p.update.m.mark and not p.update.v.mark):
                    walk.topo[i].update = p.update
        self.mark_blocks(False)

    cdef void mark_blocks(self, bint marked) noexcept:
        """Let the blocks that change know of it, or no longer."""
        cdef Py_ssize_t i
        cdef Moments* update
        for i in range(self.n):
            update = self.all + i if marked else NULL
            owner_of(self.all[i].p).update = update
            owner_of(self.all[i].m).update = update
            owner_of(self.all[i].v).update = update

    cdef void hold(self, int change) noexcept:
        """Note that the update without the GIL begins, by 1, or ends, by -1."""
        cdef Py_ssize_t i
        for i in range(self.n):
            owner_of(self.all[i].p).in_use += change
            owner_of(self.all[i].m).in_use += change
            owner_of(self.all[i].v).in_use += change
        self.mark_blocks(change > 0)

    cdef void finish(self) noexcept:
        """Update the parameters that are left. Without Python, so no other thread runs."""
        global n_changes
        cdef Py_ssize_t i
        cdef Block* p
        for i in range(self.n):
            p = block_of(self.all[i].p)
            if not self.all[i].is_done:
                kernels[p.dtype].adam(p.data, gradient(p), block_of(self.all[i].m).data,
                                      block_of(self.all[i].v).data, &self.rates, p.rows * p.cols)
                clear_grad(p)
            self.all[i].is_done = False
            owner_of(self.all[i].p).version += 1
            owner_of(self.all[i].m).version += 1
            owner_of(self.all[i].v).version += 1
        n_changes += 3 * self.n


def adam_update(adam, lr):
    """Take one Adam step on every Matrix of adam.params, in place, and set its gradient to 0.

    adam: has params, m and v, lists of Matrices of equal shapes: parameters, first and second
    moments; step, the number of steps taken before, which is incremented; and the constants
    beta1, beta2 and eps.
    The step is atomic: an interrupt finds all of it or none.

    Kingma and Ba 2014, arXiv:1412.6980, algorithm 1.
    Raises ValueError if lengths or shapes differ, step is negative, a beta is not in [0, 1) or
    eps is not positive.
    """
    cdef _Update update = _Update.__new__(_Update, adam)
    update.set_rates(lr)
    numbers_are_read()  # a replay would not run it
    update.begin(NULL)
    update.finish()


def adam_minimize(loss, adam, lr):
    """Run loss.backward() and take the Adam step; arguments and errors as in adam_update.

    The gradient of an inner Matrix is sure to be kept only while the Matrix, rows or an entry of
    it are referenced.
    """
    cdef _Update update = None
    if not isinstance(loss, Value):
        refuse(checks.instance, (loss, "loss", Value))
    cdef Node* node = (<Value>loss).node
    if node.kind == MEAN and node.right is not NULL:
        update = (<_Graph>node.right).update
    if update is None or not update.is_of(adam):
        update = _Update.__new__(_Update, adam)
    update.set_rates(lr)
    backward_from(node, update)


class no_grad(ContextDecorator):
    """Build no graph inside a `with no_grad():` block of this thread; results are leaves.

    >>> with no_grad():
    ...     (Value(2) * 3)._children
    ()
    """

    def __enter__(self):
        global no_grad_depth
        no_grad_depth += 1
        return self

    def __exit__(self, *exc_info):
        global no_grad_depth
        no_grad_depth -= 1


def grad_enabled():
    """Return whether ops are recorded: False inside `no_grad` of this thread."""
    return not no_grad_depth


def annotate():
    """Give functions and methods the types of their twins, which help() shows."""
    for name in __all__:
        thing, twin = globals()[name], getattr(twins, name)
        pairs = {name: (thing, twin)}
        if isinstance(twin, type):
            pairs = {key: (vars(thing).get(key), f) for key, f in vars(twin).items()}
        for ours, theirs in pairs.values():
            ours, theirs = getattr(ours, "__func__", ours), getattr(theirs, "__func__", theirs)
            if hasattr(ours, "__annotations__") and hasattr(theirs, "__annotations__"):
                ours.__annotations__ = theirs.__annotations__


annotate()
del annotate
(<PyTypeObject*>Value).tp_dealloc = free_handle
(<dict>(<PyTypeObject*>Replay).tp_dict).pop("__pyx_vtable__")  # which help() would show
PyType_Modified(Replay)
