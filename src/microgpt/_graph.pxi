# The graph: children, release, forward and backward of a block, sort, sweep. Part of _core.pyx.

cdef inline Node* child_at(Node* node, Py_ssize_t i) noexcept nogil:
    """Return child i of a node, NULL after the last."""
    cdef Block* block
    cdef Many* many
    if node.kind == LEAF:
        return NULL
    if node.kind <= CUSTOM1:
        if i == 0:
            return node.left
        return <Node*>node.right if i == 1 and node.kind <= CUSTOM2 else NULL
    if node.kind == CUSTOM:
        many = <Many*>node.right
        return many.children[i] if i < many.n else NULL
    if node.kind != BLOCK:
        return node.left if i == 0 else NULL
    block = block_of(node)
    if block.items is not NULL:
        return block.items[i] if i < block.rows * block.cols else NULL
    return block.inputs[i] if i < block.n_inputs else NULL


cdef inline void drop(Node* node, Node** dead) noexcept:
    """Drop one reference; at zero put the node on a list, linked by the handle it has no more."""
    node.refs -= node.refs != MANY_REFS
    if node.refs == 0:
        node.handle = <PyObject*>dead[0]
        dead[0] = node


cdef void release(Node* node) noexcept:
    """Drop one reference; free the node at zero, and what only it kept alive."""
    cdef Node* dead = NULL
    cdef Node* child
    cdef Py_ssize_t i
    drop(node, &dead)
    while dead is not NULL:
        node = dead
        dead = <Node*>node.handle
        if LEAF < node.kind <= CUSTOM2:  # the most common ops: no questions for each child
            drop(node.left, &dead)
            drop(<Node*>node.right, &dead)
        elif node.kind != LEAF:
            i = 0
            child = child_at(node, 0)
            while child is not NULL:
                drop(child, &dead)
                i += 1
                child = child_at(node, i)
            if node.kind == CUSTOM:
                PyMem_RawFree(node.right)
            elif node.kind == ELEMENT:
                block_of(node.left).elements[<uintptr_t>node.right] = NULL
            elif node.kind == BLOCK:
                free_block(block_of(node))
        free_node(node)


cdef int need_grad(Node* node) except -1:
    """Give a block room for its gradients, 0 at first, if it has none.

    Raises RuntimeError for rows of a block that another thread works on: its room may pass to others.
    """
    cdef Block* block = block_of(node)
    cdef Block* owner
    if block.grad is not NULL:
        return 0
    if block.op == VIEW:
        require_unused(node)
        need_grad(block.inputs[0])
        owner = block_of(block.inputs[0])
        block.grad = place_in(owner.grad, block.dtype, first_entry(block))
    else:
        block.grad = new_buffer(block.capacity)
        block.grad_is_zero = True
    return 0


cdef inline bint has_gradient(Block* owner) noexcept:
    """Whether the memory for the gradients of a block holds them; else they are 0."""
    return owner.grad is not NULL and not owner.grad_is_zero and not owner.grad_passes


cdef inline void* gradient(Block* block) noexcept nogil:
    """Return the gradient of a block as its memory holds it, to be read or added to."""
    cdef Block* owner = block_of(block.inputs[0]) if block.op == VIEW else block
    if owner.grad_is_zero:
        memset(owner.grad, 0, bytes_of(owner))
        owner.grad_is_zero = False
    return block.grad


cdef inline void set_gradient_at(Block* block, Py_ssize_t i, double x) noexcept nogil:
    set_number(gradient(block), block.dtype, i, x)


cdef inline bint is_first(Block* block) noexcept nogil:
    """Whether the gradient that is about to be passed on to a block is written, not added."""
    cdef bint zero = block.grad_is_zero
    if block.op == VIEW:
        gradient(block)
        return False
    block.grad_is_zero = False
    return zero


cdef inline void clear_grad(Block* block) noexcept nogil:
    if block.op == VIEW or block.grad_is_seen:
        memset(gradient(block), 0, bytes_of(block))
    else:
        block.grad_is_zero = True


cdef inline bint is_single_row(Block* y) noexcept nogil:
    """Whether attention_row_forward serves: for one row, as in generation, without backward."""
    return y.detached and y.rows == 1 and y.dtype == FLOAT64


cdef Py_ssize_t numbers_saved(Block* y) except -1:
    """Return how many numbers the forward of a block saves for its backward, or works with."""
    cdef Py_ssize_t n
    if y.op == LINEAR:
        return kernels[y.dtype].linear_workspace_size(y.rows, block_of(y.inputs[0]).cols)
    if y.op == RMSNORM:
        return y.rows
    if y.op == CROSS_ENTROPY:
        return size_of(y.inputs[0])
    if y.op != ATTENTION:
        return 0
    if is_single_row(y):
        return kernels[y.dtype].attention_row_workspace_size(
            block_of(y.inputs[1]).rows, y.cols, y.n_head)
    n = kernels[y.dtype].attention_workspace_size(
        y.ids.items, y.rows, block_of(y.inputs[1]).rows, y.cols, y.n_head
    )
    if n < 0:
        raise MemoryError(
            f"no memory for the weights of {y.n_head} heads, {y.rows} rows and "
            f"{block_of(y.inputs[1]).rows} keys"
        )
    return n


cdef uint64_t n_changes = 0  # of numbers of blocks from outside


cdef bint block_forward(Node* node) noexcept nogil:
    """Compute a block; return whether one of its entries is an error for Values."""
    global n_changes
    cdef Block* y = block_of(node)
    cdef const Kernels* of_type = kernels[y.dtype]
    cdef int i
    if not y.detached:
        for i in range(y.n_inputs):
            y.seen[i] = owner_of(y.inputs[i]).version
        y.made = y.version
    cdef Block* a = block_of(y.inputs[0])
    cdef Block* b = block_of(y.inputs[1]) if y.n_inputs > 1 else NULL
    cdef Block* c = block_of(y.inputs[2]) if y.n_inputs > 2 else NULL
    if is_elementwise(y.op):
        return of_type.elementwise_forward(
            y.op - MATRIX_ADD, y.data, a.data, NULL if b is NULL else b.data, y.rows, y.cols,
            a.rows, 0 if b is NULL else b.rows)
    if y.op == LOAD:
        copy_numbers(a, b)
        owner_of(y.inputs[0]).version += 1
        n_changes += 1
    elif y.op == EMBEDDING:
        of_type.embedding_forward(y.data, a.data, y.ids.items, y.rows, y.cols)
    elif y.op == LINEAR:
        of_type.linear_forward(y.data, y.saved, a.data, b.data, y.rows, a.cols, y.cols)
    elif y.op == RMSNORM:
        of_type.rmsnorm_forward(y.data, y.saved, a.data, EPS, y.rows, y.cols)
    elif y.op == MATRIX_RELU:
        of_type.relu_forward(y.data, a.data, y.rows * y.cols)
    elif y.op == SOFTMAX:
        of_type.softmax_forward(y.data, a.data, y.temperature, y.rows, y.cols)
    elif y.op == ATTENTION:
        if is_single_row(y):
            of_type.attention_row_forward(y.data, y.saved, a.data, b.data, c.data, y.ids.items,
                                          b.rows, y.cols, y.n_head)
        else:
            of_type.attention_forward(y.data, y.saved, a.data, b.data, c.data, y.ids.items,
                                      y.rows, b.rows, y.cols, y.n_head)
    elif y.op == ATTENTION_WEIGHTS:
        of_type.attention_weights_forward(y.data, a.data, b.data, y.ids.items,
                                  a.rows, b.rows, a.cols, y.n_head)
    elif y.op == CROSS_ENTROPY:
        of_type.cross_entropy_forward(y.data, y.saved, a.data, y.ids.items, a.rows, a.cols)
    return False


cdef double mean_of(Node* node) noexcept nogil:
    cdef Block* block = block_of(node)
    return kernels[block.dtype].mean_forward(block.data, block.rows * block.cols)


cdef void block_backward(Node* node, Moments* update) noexcept nogil:
    """Pass a gradient on. update: of the weight, which may be updated at once; NULL: it may not."""
    cdef Block* y = block_of(node)
    cdef const Kernels* of_type = kernels[y.dtype]
    cdef Block* a = block_of(y.inputs[0]) if y.n_inputs > 0 else NULL
    cdef Block* b = block_of(y.inputs[1]) if y.n_inputs > 1 else NULL
    cdef Block* c = block_of(y.inputs[2]) if y.n_inputs > 2 else NULL
    cdef void* dy
    cdef Py_ssize_t i, n = y.rows * y.cols
    cdef bint first_a, first_b, first_c
    if y.op <= VIEW:
        return
    dy = gradient(y)
    # One input may be two, so the order in which they are asked is that of the kernel.
    if y.op == PACK:
        for i in range(n):
            y.items[i].grad += get_number(dy, y.dtype, i)
    elif y.op == EMBEDDING:
        of_type.embedding_backward(gradient(a), dy, y.ids.items, y.rows, y.cols)
    elif is_elementwise(y.op):
        if b is not NULL and b.op == VIEW:
            gradient(b)  # before a is asked, of which it may be a part
        first_a = is_first(a)
        first_b = b is not NULL and is_first(b)
        of_type.elementwise_backward(
            y.op - MATRIX_ADD, a.grad, first_a, NULL if b is NULL else b.grad, first_b, dy, y.data,
            a.data, NULL if b is NULL else b.data, y.rows, y.cols, a.rows,
            0 if b is NULL else b.rows)
    elif y.op == LINEAR:
        of_type.linear_backward_x(a.grad, is_first(a), dy, b.data, y.rows, a.cols, y.cols)
        if update is not NULL and b.grad_is_zero and not b.grad_is_seen:
            of_type.linear_update(b.data, block_of(update.m).data, block_of(update.v).data, b.grad,
                                  dy, a.data, update.rates, y.rows, a.cols, y.cols)
            update.is_done = True
        else:
            of_type.linear_backward_w(b.grad, is_first(b), dy, a.data, y.rows, a.cols, y.cols)
    elif y.op == RMSNORM:
        of_type.rmsnorm_backward(a.grad, is_first(a), dy, a.data, y.saved, y.rows, y.cols)
    elif y.op == MATRIX_RELU:
        of_type.relu_backward(a.grad, is_first(a), dy, a.data, n)
    elif y.op == SOFTMAX:
        of_type.softmax_backward(gradient(a), dy, y.data, y.temperature, y.rows, y.cols)
    elif y.op == ATTENTION:
        first_a, first_b, first_c = is_first(a), is_first(b), is_first(c)
        of_type.attention_backward(a.grad, first_a, b.grad, first_b, c.grad, first_c, dy, y.saved,
                           y.ids.items, y.rows, b.rows, y.cols, y.n_head)
    elif y.op == ATTENTION_WEIGHTS:
        gradient(a)
        of_type.attention_weights_backward(a.grad, gradient(b), dy, y.data, a.data, b.data, y.ids.items,
                                   a.rows, b.rows, a.cols, y.n_head)
    elif y.op == CROSS_ENTROPY:
        of_type.cross_entropy_backward(a.grad, is_first(a), dy, y.saved, y.ids.items, a.rows, a.cols)


cdef inline Block* touched_by(Node* node, int i) noexcept:
    """Return a block with numbers or gradients that the work on a node needs; NULL: none."""
    if node.kind == MEAN or node.kind == ELEMENT:
        return owner_of(node.left) if i == 0 else NULL
    if node.kind != BLOCK:
        return NULL
    if i == 3:
        return owner_of(node)
    return owner_of(block_of(node).inputs[i]) if block_of(node).inputs[i] is not NULL else NULL


cdef void hold(Node* node, int change) noexcept:
    """Note that work on a node without the GIL begins, by 1, or ends, by -1."""
    cdef int i
    for i in range(4):
        if touched_by(node, i) is not NULL:
            touched_by(node, i).in_use += change


cdef int n_updates_beside = 0  # that run without the GIL


cdef inline int require_whole(Node* node) except -1:
    """Raise RuntimeError if a thread that does not hold the GIL is changing a block's numbers."""
    if n_updates_beside and owner_of(node).update is not NULL:
        raise RuntimeError(BUSY)
    return 0


cdef int require_unused(Node* node) except -1:
    """Raise RuntimeError if a block is being worked on by a thread that does not hold the GIL.

    Or if an update is about to: what exports its gradient now would show that of others.
    """
    if owner_of(node).in_use > 0 or owner_of(node).grad_passes:
        raise RuntimeError(BUSY)
    return 0


cdef struct Frame:
    Node* node
    Py_ssize_t next  # the child to look at


cdef struct Visit:
    Node* node
    Moments* update  # of the weight of a linear, if nothing else needs it; NULL: none


cdef struct Traversal:  # one backward
    uint16_t number
    Frame* stack
    Py_ssize_t depth
    Py_ssize_t stack_capacity
    Visit* topo
    Py_ssize_t n
    Py_ssize_t capacity
    Py_ssize_t entries  # of all blocks in the graph
    uint64_t changes  # n_changes before
    bint has_scalar_leaves
    bint has_detached  # blocks, which are leaves of it, but not in topo
    bint shares  # gradients, because it is for an update


cdef enum:
    MAX_TRAVERSALS = 64  # at the same time, in as many threads
    LONG_TRAVERSAL = 100_000  # entries from which it pays to let other threads run meanwhile


cdef str BUSY = "another thread is computing a part of this graph"
cdef bint numbers_in_use[MAX_TRAVERSALS + 1]
cdef int n_traversals = 0  # while there are none, no node is marked


cdef uint16_t take_number() except 0:
    """Return a number that no other traversal has."""
    global n_traversals
    cdef int number
    for number in range(1, MAX_TRAVERSALS + 1):
        if not numbers_in_use[number]:
            numbers_in_use[number] = True
            n_traversals += 1
            return number
    raise RuntimeError(f"more than {MAX_TRAVERSALS} threads are in backward")


cdef void give_number_back(uint16_t number) noexcept:
    global n_traversals
    numbers_in_use[number] = False
    n_traversals -= 1


cdef int start_traversal(Node* root, Traversal* walk, _Update update) except -1:
    """Sort the graph below root, mark its nodes and begin the update, if there is one."""
    memset(walk, 0, sizeof(Traversal))
    walk.changes = n_changes
    walk.number = take_number()
    walk.shares = update is not None
    try:
        sort(root, walk)
        if update is None:
            refuse_later_changes(walk)
        else:
            update.begin(walk)
    except:
        end_traversal(walk)
        free_array(walk.topo, walk.capacity, sizeof(Visit))
        raise
    return 0


cdef int refuse_later_changes(Traversal* walk) except -1:
    """Look at the numbers again, if any changed after they were looked at: by a signal's handler,
    or by what counts the steps of an update."""
    cdef Py_ssize_t i
    if n_changes != walk.changes:
        for i in range(walk.n):
            if walk.topo[i].node.kind == BLOCK:
                refuse_changed_numbers(walk.topo[i].node)
    return 0


cdef void end_traversal(Traversal* walk) noexcept:
    """Take the marks off."""
    cdef Py_ssize_t i
    for i in range(walk.n):
        walk.topo[i].node.mark = 0
    for i in range(walk.depth):
        walk.stack[i].node.mark = 0
    give_number_back(walk.number)
    free_array(walk.stack, walk.stack_capacity, sizeof(Frame))


cdef int backward_from(Node* root, _Update update) except -1:
    """Run backward, and the update, if there is one, in one go."""
    numbers_are_read()  # a replay would not run it
    retain(root)  # whatever happens to its handle
    try:
        if update is not None and update_replayed(root, update):
            return 0
        return backward_below(root, update)
    finally:
        release(root)


cdef int backward_below(Node* root, _Update update) except -1:
    global n_updates_beside
    cdef Traversal walk
    cdef Py_ssize_t i
    if root.kind == LEAF or (root.kind == ELEMENT and block_of(root.left).op == NONE):
        if root.kind == ELEMENT:
            require_unused(root.left)
            need_grad(root.left)
        if update is not None:
            update.begin(NULL)
        if root.kind == LEAF:
            root.grad = 1.0
        else:
            set_gradient_at(block_of(root.left), <Py_ssize_t>root.right, 1.0)
        if update is not None:
            update.finish()
        return 0
    start_traversal(root, &walk, update)
    root.grad = 1.0
    if walk.entries >= LONG_TRAVERSAL and not walk.has_scalar_leaves:
        for i in range(walk.n):
            hold(walk.topo[i].node, 1)
        if update is not None:
            update.hold(1)
            n_updates_beside += 1
        with nogil:
            sweep(walk.topo, walk.n, walk.number)  # the marks stay: they keep other threads out
        for i in range(walk.n):
            hold(walk.topo[i].node, -1)
        end_sharing(&walk)
        if update is not None:
            update.hold(-1)
            n_updates_beside -= 1
    else:
        sweep(walk.topo, walk.n, 0)
        end_sharing(&walk)
        if update is not None:
            keep_order(root, &walk, update)
        walk.n = 0
    if update is not None:
        update.finish()
    end_traversal(&walk)
    free_array(walk.topo, walk.capacity, sizeof(Visit))
    return 0


cdef int grow(void** array, Py_ssize_t* capacity, size_t size) except -1:
    """Double an array of items of a size; it is a buffer, so that a steady step asks for none."""
    cdef Py_ssize_t more = 2 * capacity[0] if capacity[0] else 64
    cdef void* moved = new_buffer(more * size)
    if array[0] is not NULL:
        memcpy(moved, array[0], capacity[0] * size)
    free_array(array[0], capacity[0], size)
    array[0] = moved
    capacity[0] = more
    return 0


cdef void free_array(void* array, Py_ssize_t capacity, size_t size) noexcept:
    free_buffer(array, capacity * size)


cdef inline bint is_scaled(Block* y) noexcept:
    """Whether a block is another one times a number."""
    return y.op == MATRIX_MULTIPLY and block_of(y.inputs[1]).op == CONSTANT


cdef int refuse_changed_numbers(Node* node) except -1:
    """Raise RuntimeError if backward would mix the numbers of the forward with later ones."""
    cdef Block* y = block_of(node)
    cdef int i
    # The others pass gradients on without them.
    if y.op >= MATRIX_MULTIPLY and y.op != CROSS_ENTROPY and not is_scaled(y):
        for i in range(y.n_inputs):
            if y.seen[i] != owner_of(y.inputs[i]).version:
                refuse(checks.changed_since_forward, (NAMES[y.op], "was computed from"))
    if y.version != y.made and (y.op == SOFTMAX or y.op == ATTENTION_WEIGHTS
                                or y.op == MATRIX_EXP or y.op == MATRIX_TANH):
        refuse(checks.changed_since_forward, (NAMES[y.op], "gave"))
    return 0


cdef inline int visit(Node* node, Traversal* walk) except -1:
    """Put a node on the stack, its gradient ready, unless it is a scalar leaf or was visited."""
    if node.kind == LEAF:
        walk.has_scalar_leaves = True
        return 0
    if node.mark == walk.number:
        if node.kind == BLOCK:
            block_of(node).uses += 1
        return 0
    if node.mark:
        raise RuntimeError(BUSY)
    if node.kind == BLOCK and block_of(node).detached:
        if block_of(node).op != CONSTANT:
            walk.has_detached = True
            need_grad(node)
        return 0
    if walk.depth == walk.stack_capacity:
        grow(<void**>&walk.stack, &walk.stack_capacity, sizeof(Frame))
    if node.kind != BLOCK:
        node.grad = 0.0
    else:
        refuse_changed_numbers(node)
        if not walk.shares:
            need_grad(node)
        block_of(node).uses = 1
        walk.entries += size_of(node)
        if block_of(node).op > VIEW:
            clear_grad(block_of(node))
    node.mark = walk.number
    walk.stack[walk.depth].node = node
    walk.stack[walk.depth].next = 0
    walk.depth += 1
    if (walk.n + walk.depth) & 0xFFFF == 0:
        PyErr_CheckSignals()  # an interrupt ends the sort, before any gradient is passed on
    return 0


cdef int sort(Node* root, Traversal* walk) except -1:
    """List the nodes below root, children first: depth-first, children left to right.

    Scalar leaves are left out: they pass no gradient on.
    """
    cdef Frame* frame
    cdef Node* child
    visit(root, walk)
    while walk.depth:
        frame = &walk.stack[walk.depth - 1]
        child = child_at(frame.node, frame.next)
        if child is not NULL:
            frame.next += 1
            visit(child, walk)
            continue
        if walk.n == walk.capacity:
            grow(<void**>&walk.topo, &walk.capacity, sizeof(Visit))
        walk.topo[walk.n].node = frame.node
        walk.topo[walk.n].update = NULL
        walk.n += 1
        walk.depth -= 1
    return 0


cdef void sweep(Visit* topo, Py_ssize_t n, uint16_t mark) noexcept nogil:
    """Pass gradients from parents to children, in the reverse of the sorted order.

    mark: what each node is marked with when it is done.
    """
    cdef Py_ssize_t i, j
    cdef Node* node
    cdef Block* block
    cdef Many* many
    cdef double grad
    for i in range(n - 1, -1, -1):
        node = topo[i].node
        node.mark = mark
        grad = node.grad
        if node.kind <= CUSTOM2:
            node.left.grad += node.local_grad[0] * grad
            (<Node*>node.right).grad += node.local_grad[1] * grad
        elif node.kind <= CUSTOM1:
            node.left.grad += node.local_grad[0] * grad
        elif node.kind == BLOCK:
            block_backward(node, topo[i].update)
        elif node.kind == ELEMENT:
            block = block_of(node.left)
            j = <Py_ssize_t>node.right
            set_gradient_at(block, j, get_number(gradient(block), block.dtype, j) + grad)
        elif node.kind == MEAN:
            block = block_of(node.left)
            kernels[block.dtype].mean_backward(block.grad, is_first(block), grad,
                                               block.rows * block.cols)
        else:
            many = <Many*>node.right
            for j in range(many.n):
                many.children[j].grad += many.local_grads[j] * grad
