# Memory that the gradients of inner blocks share in an update. Part of _core.pyx.

cdef inline bint is_unseen(Node* node) noexcept:
    """Whether nothing shows the gradient of an inner block, so that an update need not keep it."""
    cdef Block* block = block_of(node)
    return (block.op > VIEW and not block.detached and node.handle is NULL
            and block.elements is NULL and not block.is_viewed and not block.grad_is_seen)


cdef inline void share(Block* block, void* grad) noexcept:
    free_buffer(block.grad, block.capacity)
    block.grad = grad
    block.grad_passes = block.grad_is_shared = True


cdef int take_room(Node* node, Block** left) except -1:
    """Give a block memory for its gradient, if this update has not: what others left, if unseen."""
    cdef Block* block = block_of(node)
    cdef int size = size_class(block.capacity)
    if block.op == CONSTANT or block.grad_passes:
        return 0
    if not is_unseen(node):
        return need_grad(node)
    if size < N_CLASSES and left[size] is not NULL:
        share(block, left[size].grad)
        left[size] = left[size].next
    else:
        need_grad(node)
        block.grad_passes = True
    return 0


cdef inline bint can_inherit(Node* node, Block* y) noexcept:
    """Whether the gradient of y can be that of an input too: nothing was passed on to it before."""
    cdef Block* x = block_of(node)
    return (is_unseen(node) and not x.grad_passes and x.rows == y.rows
            and x.capacity == y.capacity)


cdef inline bint has_input(Block* block, Node* node) noexcept:
    cdef int i
    for i in range(block.n_inputs):
        if block.inputs[i] is node:
            return True
    return False


cdef bint share_with_inputs(Block* y, Node* next, Block** reader) noexcept:
    """Let a term of a sum, or the input of a relu, have its gradient; return whether one does.

    next: the node that passes its gradient on after y. If it is the other term, it reads the same
    gradient before anything is added to it; then it is set as reader.
    """
    cdef Node* heir
    cdef Node* other
    cdef int i
    for i in range(y.n_inputs):
        heir, other = y.inputs[i], y.inputs[1 - i]
        if heir is not other and can_inherit(heir, y):
            share(block_of(heir), y.grad)
            if other is next and can_inherit(other, y) and not has_input(block_of(other), heir):
                reader[0] = block_of(other)
                share(reader[0], y.grad)
            return True
    return False


cdef int share_gradients(Traversal* walk) except -1:
    """Give the blocks of a sorted graph memory for their gradients, in an update.

    An unseen block that has passed its gradient on leaves the memory to others: they find it in a
    cache, and less is needed. What an op would pass on as it is, or change entry by entry, stays
    where it is.
    """
    cdef Py_ssize_t i, j
    cdef Node* node
    cdef Block* y
    cdef Block* reader = NULL
    cdef Block* left[N_CLASSES]  # of each size the blocks whose memory others may have
    cdef int size
    cdef bint leaves
    memset(left, 0, sizeof(left))
    for i in range(walk.n - 1, -1, -1):
        node = walk.topo[i].node
        if node.kind == ELEMENT or node.kind == MEAN:
            take_room(node.left, left)
        if node.kind != BLOCK:
            continue
        y = block_of(node)
        leaves, reader = y.grad_passes and y is not reader, NULL
        if leaves and (y.op == MATRIX_ADD or y.op == MATRIX_RELU) and i > 0:
            leaves = not share_with_inputs(y, walk.topo[i - 1].node, &reader)
        for j in range(y.n_inputs):
            take_room(y.inputs[j], left)
        size = size_class(y.capacity)
        if leaves and size < N_CLASSES:
            y.next = left[size]
            left[size] = y
    return 0


cdef void end_sharing(Traversal* walk) noexcept:
    """Leave the memory of gradients that passed with those that had it first; they are 0 now."""
    cdef Py_ssize_t i
    cdef Block* block
    if not walk.shares:
        return
    for i in range(walk.n):
        if walk.topo[i].node.kind == BLOCK and block_of(walk.topo[i].node).grad_passes:
            block = block_of(walk.topo[i].node)
            if block.grad_is_shared:
                block.grad = NULL
            block.grad_is_zero = True
            block.grad_passes = block.grad_is_shared = False
