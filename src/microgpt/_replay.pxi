# Graphs that are computed again on other ids. Part of _core.pyx.

cdef list checked_ids(object numbers, Py_ssize_t n, str what):
    """Return numbers as a list of ints after the check that each is in 0..n-1."""
    cdef bint plain = type(numbers) is list and len(numbers) > 0
    if plain:
        for item in <list>numbers:
            plain = plain and PyLong_CheckExact(item) and 0 <= item < n
    return <list>numbers if plain else checks.ids(numbers, n, what)


cdef IdBuffer* ids_of(object numbers, Py_ssize_t n, str what) except NULL:
    """Return ints in 0..n-1 as a buffer: a new one, or that of an _Ids."""
    cdef IdBuffer* ids
    cdef list checked
    cdef Py_ssize_t i
    if isinstance(numbers, _Ids):
        ids = (<_Ids>numbers).buffer
        checked_ids(list(numbers), n, what)
        ids.limit = min(ids.limit, n)
        ids.refs += 1
        return ids
    checked = checked_ids(numbers, n, what)
    ids = new_ids(len(checked))
    for i in range(ids.n):
        ids.items[i] = PyLong_AsSsize_t(checked[i])
    return ids


@cython.final
cdef class _Ids:
    """Hold a fixed number of ids that nodes refer to, so that a recorded graph can run on others.

    Block ops take it wherever they take ids. Raises ValueError if an id is negative.
    """

    cdef IdBuffer* buffer

    def __cinit__(self, numbers):
        self.buffer = ids_of(list(numbers), PY_SSIZE_T_MAX, "id")

    def __dealloc__(self):
        release_ids(self.buffer)

    def __len__(self):
        return self.buffer.n

    def __iter__(self):
        return iter([self.buffer.items[i] for i in range(self.buffer.n)])

    def load(self, numbers):
        """Change the ids. Raises ValueError if there are more or fewer, or one is out of range."""
        cdef Py_ssize_t i
        cdef list checked = checked_ids(numbers, self.buffer.limit, "id")
        if len(checked) != self.buffer.n:
            raise ValueError(f"load needs {self.buffer.n} ids, not {len(checked)}")
        for i in range(self.buffer.n):
            self.buffer.items[i] = PyLong_AsSsize_t(checked[i])


@cython.final
cdef class _Recording:
    """Keep the graph below a loss, to run it forward and backward again after its ids changed.

    The result is that of building the graph anew, to the last bit. Raises ValueError unless the
    graph is made of block ops and `mean` alone.
    """

    cdef Node* root  # not its handle, which can be given another node
    cdef Traversal walk

    def __cinit__(self, Value loss not None):
        cdef Py_ssize_t i
        cdef Node* node
        self.root = loss.node
        self.root.refs += 1
        start_traversal(self.root, &self.walk)
        end_traversal(&self.walk)
        for i in range(self.walk.n):
            node = self.walk.topo[i]
            if node.kind != MEAN and (node.kind != BLOCK or block_of(node).op == PACK):
                raise ValueError("only a graph of block ops and mean can be recorded")
        if self.walk.n == 0:
            raise ValueError("a leaf is no graph to record")

    def __dealloc__(self):
        PyMem_RawFree(self.walk.topo)
        if self.root is not NULL:
            release(self.root)

    def forward(self):
        """Compute the loss again and return it."""
        self.replay(False)
        return self.root.data

    def backward(self):
        """Do what `backward` of the loss does."""
        self.replay(True)

    cdef int replay(self, bint backward) except -1:
        cdef Traversal* walk = &self.walk
        cdef Py_ssize_t i
        for i in range(walk.n):
            if walk.topo[i].mark:
                raise RuntimeError(BUSY)
        if walk.entries < LONG_TRAVERSAL:
            replay_graph(walk, backward, 0)
            return 0
        walk.number = take_number()
        for i in range(walk.n):
            walk.topo[i].mark = walk.number
        with nogil:
            replay_graph(walk, backward, walk.number)
        end_traversal(walk)
        return 0


@cython.final
cdef class _Tape:
    """Record what block ops and `load` compute in a `with` block, to compute it again.

    Other than a recorded loss it runs forward only, also under no_grad, and in the order in which
    it was recorded. It belongs to one thread.
    """

    cdef Node** nodes
    cdef Py_ssize_t n
    cdef Py_ssize_t capacity
    cdef void* outer  # the tape that was recording before

    def __enter__(self):
        global tape
        self.outer = tape
        tape = <void*>self
        return self

    def __exit__(self, *exc_info):
        global tape
        tape = self.outer

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.n):
            release(self.nodes[i])
        PyMem_RawFree(self.nodes)

    cdef int add(self, Node* node) except -1:
        if self.n == self.capacity:
            grow(<void**>&self.nodes, &self.capacity, sizeof(Node*))
        self.nodes[self.n] = node
        self.n += 1
        node.refs += 1
        return 0

    cdef int add_load(self, Node* target, Node* source) except -1:
        cdef Node* node = new_block(LOAD, block_of(target).rows, block_of(target).cols, 0)
        cdef Block* block = block_of(node)
        block.inputs[0] = target
        block.inputs[1] = source
        block.n_inputs = 2
        target.refs += 1
        source.refs += 1
        return self.add(node)

    def forward(self):
        """Compute all of it again."""
        cdef Py_ssize_t i
        for i in range(self.n):
            block_forward(self.nodes[i])


cdef void replay_graph(Traversal* walk, bint backward, uint16_t mark) noexcept nogil:
    cdef Py_ssize_t i
    cdef Node* node
    for i in range(walk.n):
        node = walk.topo[i]
        if not backward:
            if node.kind == MEAN:
                node.data = mean_forward(block_of(node.left).data, size_of(node.left))
            elif block_of(node).op > VIEW:
                block_forward(node)
        elif node.kind == MEAN:
            node.grad = 0.0
        elif block_of(node).op > VIEW:
            memset(block_of(node).grad, 0, size_of(node) * sizeof(double))
    if backward:
        walk.topo[walk.n - 1].grad = 1.0
        sweep(walk, mark)
