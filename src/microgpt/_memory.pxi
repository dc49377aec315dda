# Nodes, blocks and buffers: ownership and reuse. Part of _core.pyx.

cdef extern from *:
    """
    #if defined(__has_feature)
    #if __has_feature(address_sanitizer)
    #define __SANITIZE_ADDRESS__ 1
    #endif
    #endif
    #ifdef __SANITIZE_ADDRESS__
    #include <sanitizer/asan_interface.h>
    #else
    #define ASAN_POISON_MEMORY_REGION(start, size) ((void)0)
    #define ASAN_UNPOISON_MEMORY_REGION(start, size) ((void)0)
    #endif
    """
    # They let AddressSanitizer see a use of memory in our free lists; without it they do nothing.
    void poison "ASAN_POISON_MEMORY_REGION"(void*, size_t) noexcept nogil
    void unpoison "ASAN_UNPOISON_MEMORY_REGION"(void*, size_t) noexcept nogil


cdef enum Kind:
    LEAF
    ADD  # ADD to CUSTOM2: two children, left and right
    MUL
    CUSTOM2
    POW  # POW to CUSTOM1: one child, left
    EXP
    LOG
    TANH
    RELU
    CUSTOM1
    CUSTOM  # any number of children, in right as Many*
    ELEMENT  # left: a block's node; right: the index in the block
    MEAN  # left: a block's node; right: the _Graph whose root it is, not counted, or NULL
    BLOCK  # right: Block*


cdef tuple LABELS = (
    "", "+", "*", "", "**", "exp", "log", "tanh", "relu", "", "", "", "mean", "",
)


cdef enum Op:
    NONE  # a leaf
    CONSTANT  # a number, once for each column: it gets no gradient
    VIEW  # rows of inputs[0], sharing its numbers and gradients
    LOAD  # only in a recorded graph: no numbers, inputs[1] is copied into inputs[0]
    PACK
    EMBEDDING
    MATRIX_ADD  # from here to MATRIX_TANH in the order of the element-wise table of _kernels.c
    MATRIX_SUBTRACT
    MATRIX_MULTIPLY  # from here on backward reads the numbers of the inputs
    MATRIX_DIVIDE  # from here to MATRIX_LOG a number can be an error
    MATRIX_POWER
    MATRIX_EXP
    MATRIX_LOG
    MATRIX_TANH
    LINEAR
    RMSNORM
    MATRIX_RELU
    SOFTMAX
    ATTENTION
    ATTENTION_WEIGHTS
    CROSS_ENTROPY


cdef tuple NAMES = (
    "", "", "", "", "pack", "embedding", "+", "-", "*", "/", "**", "exp", "log", "tanh", "linear",
    "rmsnorm", "relu", "softmax", "attention", "attention_weights", "cross_entropy",
)


cdef inline bint is_elementwise(uint8_t op) noexcept nogil:
    return MATRIX_ADD <= op <= MATRIX_TANH


cdef inline bint can_fail(uint8_t op) noexcept nogil:
    """Whether the op raises an error where a number is one for Values."""
    return MATRIX_DIVIDE <= op <= MATRIX_LOG


cdef struct Node:  # 64 bytes
    PyObject* handle  # the Value or Matrix of this node, not counted; or the next in a free list
    uint32_t refs  # the handle and the parents; MANY_REFS: too many to count, never freed
    uint16_t mark  # 0, or the number of the traversal that is at work on this node
    uint8_t kind
    double data
    double grad
    Node* left
    void* right
    double local_grad[2]


cdef struct Many:
    Py_ssize_t n
    Node** children
    double* local_grads


cdef enum IdSource:
    FIXED  # the numbers of one call
    GIVEN  # an argument of a Replay
    POSITIONS  # of each row in its document
    FIRST_KEYS  # of each row: the first row of its document


cdef struct IdBuffer:  # ints that nodes refer to
    Py_ssize_t refs
    Py_ssize_t n
    Py_ssize_t capacity
    Py_ssize_t limit  # all of them are below it
    IdSource source
    bint are_starts  # of documents, so that other ids follow from them
    bint is_read  # by Python
    bint is_measured  # its length was read by Python
    IdBuffer* starts  # what the last two sources are computed from, GIVEN; NULL: one document
    IdBuffer* tokens  # POSITIONS: whose, GIVEN
    Index* items


cdef struct Moments:  # of a parameter
    Node* p
    Node* m
    Node* v
    const AdamRates* rates
    bint is_done  # by its gradient


cdef struct Block:
    Py_ssize_t rows
    Py_ssize_t cols
    void* data  # of its type, as all its numbers
    void* grad  # NULL until needed
    Py_ssize_t capacity  # of data and of grad, in bytes
    bint grad_is_zero  # whatever its memory holds: what is added first is written
    bint grad_is_seen  # through a buffer, so that its memory always holds it
    bint grad_passes  # during an update, which does not keep it: see share_gradients
    bint grad_is_shared  # during an update: it is in the memory of another block
    bint is_viewed  # a Matrix was made of some of its rows, which shows its gradient too
    void* saved  # what backward needs of the forward
    Py_ssize_t n_saved
    Py_ssize_t saved_capacity
    Node* inputs[3]
    uint64_t version  # counts the changes of its numbers from outside; a view has that of its owner
    uint64_t made  # the version that the forward wrote
    uint64_t seen[3]  # the versions of the inputs that the forward read
    int in_use  # by so many computations without the GIL
    uint32_t uses  # how many nodes of the graph being differentiated have it as a child
    Moments* update  # the update without the GIL that changes these numbers; NULL: none
    Node** items  # PACK: one scalar node per entry, else NULL
    Node** elements  # the living ELEMENT nodes of this block, not counted; NULL until needed
    IdBuffer* ids
    Py_ssize_t n_head
    double temperature
    Py_ssize_t step  # its place in a recorded graph, if that graph agrees
    uint8_t dtype
    uint8_t op
    uint8_t n_inputs
    bint detached  # computed under no_grad: backward treats it as a leaf
    Block* next  # in the free list, or of those that have passed their gradient on


cdef enum:
    MANY_REFS = 0xFFFFFFFF


cdef inline void retain(Node* node) noexcept:
    """Count a reference; at the largest count it stays there, and the node is never freed."""
    node.refs += node.refs != MANY_REFS


cdef inline Block* block_of(Node* node) noexcept nogil:
    return <Block*>node.right


cdef inline Block* owner_of(Node* node) noexcept nogil:
    """Return the block whose numbers these are: its own, or those that a view shows."""
    cdef Block* block = block_of(node)
    return block_of(block.inputs[0]) if block.op == VIEW else block


cdef inline Py_ssize_t size_of_number(uint8_t dtype) noexcept nogil:
    return sizeof(float) if dtype == FLOAT32 else sizeof(double)


cdef inline Py_ssize_t bytes_of(Block* block) noexcept nogil:
    return block.rows * block.cols * size_of_number(block.dtype)


cdef inline void* place_in(void* numbers, uint8_t dtype, Py_ssize_t i) noexcept nogil:
    return <char*>numbers + i * size_of_number(dtype)


cdef inline double get_number(const void* numbers, uint8_t dtype, Py_ssize_t i) noexcept nogil:
    return (<const float*>numbers)[i] if dtype == FLOAT32 else (<const double*>numbers)[i]


cdef inline void set_number(void* numbers, uint8_t dtype, Py_ssize_t i, double x) noexcept nogil:
    if dtype == FLOAT32:
        (<float*>numbers)[i] = <float>x
    else:
        (<double*>numbers)[i] = x


cdef inline double number_at(Block* block, Py_ssize_t i) noexcept nogil:
    return get_number(block.data, block.dtype, i)


cdef inline void set_number_at(Block* block, Py_ssize_t i, double x) noexcept nogil:
    set_number(block.data, block.dtype, i, x)


cdef inline void copy_numbers(Block* target, Block* source) noexcept nogil:
    """Copy the numbers of a block of the same shape, converted to the type of the other."""
    cdef Py_ssize_t i
    if target.dtype == source.dtype:
        memmove(target.data, source.data, bytes_of(source))
    else:
        for i in range(source.rows * source.cols):
            set_number_at(target, i, number_at(source, i))


cdef inline Py_ssize_t first_entry(Block* view) noexcept nogil:
    """Return which entry of its owner is the first of a view."""
    return ((<char*>view.data - <char*>block_of(view.inputs[0]).data)
            // size_of_number(view.dtype))


cdef Py_ssize_t requests_until_failure = 0  # 0: none fails


def _fail_allocation(Py_ssize_t n):
    """Let the n-th request for memory from now and all after it fail; 0: none. For tests.

    Meanwhile no buffer or Block comes from a free list. Returns whether one failed.
    """
    global requests_until_failure
    failed, requests_until_failure = requests_until_failure == 1, n + 1 if n > 0 else 0
    return failed


cdef bint allocation_should_fail() noexcept:
    """Whether this request for memory is to fail."""
    global requests_until_failure
    if requests_until_failure > 1:
        requests_until_failure -= 1
    return requests_until_failure == 1


cdef void* allocate(size_t size) except NULL:
    """Request memory from the system; only this does."""
    cdef void* memory = NULL if allocation_should_fail() else PyMem_RawMalloc(size)
    if memory is NULL:
        raise MemoryError(f"no memory for {size} bytes of graph")
    return memory


cdef struct Arena:
    void* memory
    uint32_t n_empty


cdef struct Chunk:  # the first 64 bytes of a chunk
    Arena* arena
    Chunk* next
    Chunk* previous
    Node* freed  # released nodes, linked by handle
    uint32_t live
    uint8_t state


cdef enum ChunkState:
    CURRENT  # nodes are allocated from it
    FULL  # more than half of its nodes are alive
    SPARSE  # in the list of chunks worth allocating from
    EMPTY


cdef enum:
    CHUNK_BYTES = 1 << 16
    CHUNKS_PER_ARENA = 16
    SPARE_CHUNKS = 256  # empty chunks kept for the next graph: 16 MiB


cdef uint32_t NODES_PER_CHUNK = CHUNK_BYTES // sizeof(Node) - 1
cdef Chunk* current_chunk = NULL
cdef Node* next_node = NULL  # the untouched rest of the current chunk
cdef Node* end_of_chunk = NULL
cdef Chunk* empty_chunks = NULL
cdef Chunk* sparse_chunks = NULL
cdef Py_ssize_t n_empty_chunks = 0


cdef inline Chunk* chunk_of(Node* node) noexcept:
    return <Chunk*>(<uintptr_t>node & ~<uintptr_t>(CHUNK_BYTES - 1))


cdef inline void put_chunk(Chunk** first, Chunk* chunk) noexcept:
    chunk.previous = NULL
    chunk.next = first[0]
    if first[0] is not NULL:
        first[0].previous = chunk
    first[0] = chunk


cdef inline void take_chunk(Chunk** first, Chunk* chunk) noexcept:
    if chunk.previous is NULL:
        first[0] = chunk.next
    else:
        chunk.previous.next = chunk.next
    if chunk.next is not NULL:
        chunk.next.previous = chunk.previous


cdef int new_arena() except -1:
    global empty_chunks, n_empty_chunks
    cdef size_t size = (CHUNKS_PER_ARENA + 1) * CHUNK_BYTES + sizeof(Arena)
    cdef void* memory = allocate(size)
    cdef uintptr_t first = (<uintptr_t>memory + CHUNK_BYTES - 1) & ~<uintptr_t>(CHUNK_BYTES - 1)
    cdef Arena* arena = <Arena*>(first + CHUNKS_PER_ARENA * CHUNK_BYTES)
    cdef Chunk* chunk
    cdef int i
    arena.memory = memory
    arena.n_empty = CHUNKS_PER_ARENA
    for i in range(CHUNKS_PER_ARENA - 1, -1, -1):
        chunk = <Chunk*>(first + <uintptr_t>i * CHUNK_BYTES)
        chunk.arena = arena
        chunk.live = 0
        chunk.freed = NULL
        chunk.state = EMPTY
        put_chunk(&empty_chunks, chunk)
    n_empty_chunks += CHUNKS_PER_ARENA
    return 0


cdef void free_arena(Arena* arena) noexcept:
    global n_empty_chunks
    cdef uintptr_t first = <uintptr_t>arena - CHUNKS_PER_ARENA * CHUNK_BYTES
    cdef int i
    for i in range(CHUNKS_PER_ARENA):
        take_chunk(&empty_chunks, <Chunk*>(first + <uintptr_t>i * CHUNK_BYTES))
    n_empty_chunks -= CHUNKS_PER_ARENA
    PyMem_RawFree(arena.memory)


cdef int next_chunk() except -1:
    """Make another chunk the current one: an empty one, else a sparse one, else a new one."""
    global current_chunk, next_node, end_of_chunk, n_empty_chunks
    cdef Chunk* chunk
    if empty_chunks is NULL and sparse_chunks is NULL:
        new_arena()
    if current_chunk is not NULL:
        current_chunk.state = FULL
    next_node = end_of_chunk = NULL
    if empty_chunks is not NULL:
        chunk = empty_chunks
        take_chunk(&empty_chunks, chunk)
        n_empty_chunks -= 1
        chunk.arena.n_empty -= 1
        chunk.freed = NULL
        next_node = <Node*>chunk + 1
        end_of_chunk = next_node + NODES_PER_CHUNK
    else:
        chunk = sparse_chunks
        take_chunk(&sparse_chunks, chunk)
    chunk.state = CURRENT
    current_chunk = chunk
    return 0


cdef inline Node* new_node(Kind kind, double data) except NULL:
    """Return a node without handle, parents or children."""
    global next_node
    cdef Node* node
    if next_node is end_of_chunk and (current_chunk is NULL or current_chunk.freed is NULL):
        next_chunk()
    if next_node is not end_of_chunk:
        node = next_node
        next_node += 1
    else:
        node = current_chunk.freed
        current_chunk.freed = <Node*>node.handle
    unpoison(node, sizeof(Node))
    current_chunk.live += 1
    node.handle = NULL
    node.refs = 0
    node.mark = 0
    node.kind = kind
    node.data = data
    node.grad = 0.0
    node.left = NULL
    node.right = NULL
    return node


cdef inline void free_node(Node* node) noexcept:
    global next_node, n_empty_chunks
    cdef Chunk* chunk = chunk_of(node)
    node.handle = <PyObject*>chunk.freed
    poison(&node.refs, sizeof(Node) - sizeof(node.handle))
    chunk.freed = node
    chunk.live -= 1
    if chunk.state == CURRENT:
        if chunk.live == 0 and end_of_chunk is not NULL:
            chunk.freed = NULL
            next_node = end_of_chunk - NODES_PER_CHUNK
    elif chunk.live == 0:
        if chunk.state == SPARSE:
            take_chunk(&sparse_chunks, chunk)
        chunk.state = EMPTY
        put_chunk(&empty_chunks, chunk)
        n_empty_chunks += 1
        chunk.arena.n_empty += 1
        if chunk.arena.n_empty == CHUNKS_PER_ARENA and n_empty_chunks > SPARE_CHUNKS:
            free_arena(chunk.arena)
    elif chunk.state == FULL and chunk.live <= NODES_PER_CHUNK // 2:
        chunk.state = SPARSE
        put_chunk(&sparse_chunks, chunk)


cdef enum:
    N_CLASSES = 21  # buffers of 64, 128, 256, ... bytes wait for reuse, up to
    SPARE_BYTES = 1 << 26  # 64 MiB, and of all sizes together not more than that
    LARGE_CLASS = 12  # from 256 KiB on they are given back when a Replay ends


cdef void** spare_buffers[N_CLASSES]
cdef Py_ssize_t n_spare_bytes = 0


cdef inline int size_class(Py_ssize_t n) noexcept:
    """Return i such that 64 * 2**i is the least power of two that has room for n bytes."""
    cdef int i = 0
    while i < N_CLASSES and (<Py_ssize_t>64 << i) < n:
        i += 1
    return i


cdef inline Py_ssize_t capacity_for(Py_ssize_t n) noexcept:
    """Return how many bytes a buffer for n has room for."""
    return n if n > SPARE_BYTES else <Py_ssize_t>64 << size_class(n)


cdef inline bint has_room(Py_ssize_t capacity, Py_ssize_t n) noexcept:
    """Whether a buffer is kept for n bytes: one size serves documents that differ by a few."""
    return n <= capacity and (capacity == 64 or capacity // 8 <= n)


cdef void* new_buffer(Py_ssize_t n) except NULL:
    """Return room for n bytes, aligned to a cache line, its content undefined."""
    global n_spare_bytes
    cdef int i = size_class(n)
    cdef void** raw
    cdef uintptr_t start
    n = capacity_for(n)
    if i < N_CLASSES and spare_buffers[i] is not NULL and not requests_until_failure:
        raw = spare_buffers[i]
        unpoison(raw, n)
        spare_buffers[i] = <void**>raw[0]
        n_spare_bytes -= n
        return <void*>raw
    if n > PY_SSIZE_T_MAX - 128:
        raise MemoryError(f"no memory for {n} bytes")
    raw = <void**>allocate(n + 64 + sizeof(void*))
    start = (<uintptr_t>raw + sizeof(void*) + 63) & ~<uintptr_t>63
    (<void**>start - 1)[0] = raw
    return <void*>start


cdef void free_buffer(void* buffer, Py_ssize_t n) noexcept:
    global n_spare_bytes
    if buffer is NULL:
        return
    cdef int i = size_class(n)
    cdef void** start = <void**>buffer
    n = capacity_for(n)
    if n_spare_bytes + n <= SPARE_BYTES:
        start[0] = spare_buffers[i]
        poison(start + 1, n - sizeof(void*))
        spare_buffers[i] = start
        n_spare_bytes += n
    else:
        PyMem_RawFree((start - 1)[0])


cdef void give_back_large_buffers() noexcept:
    """Return the spare buffers that are large to the system."""
    global n_spare_bytes
    cdef int i
    cdef void** start
    for i in range(LARGE_CLASS, N_CLASSES):
        while spare_buffers[i] is not NULL:
            start = spare_buffers[i]
            unpoison(start, sizeof(void*))
            spare_buffers[i] = <void**>start[0]
            n_spare_bytes -= <Py_ssize_t>64 << i
            PyMem_RawFree((start - 1)[0])


def _spare_bytes():
    """Return how much memory waits for reuse in buffers. For tests."""
    return n_spare_bytes


cdef Block* spare_blocks = NULL


cdef Node* new_block(Op op, Py_ssize_t rows, Py_ssize_t cols, uint8_t dtype) except NULL:
    """Return the node of a block with room for its numbers, which are undefined."""
    global spare_blocks
    cdef Node* node
    cdef Block* block = spare_blocks
    if rows < 1 or cols < 1 or cols > PY_SSIZE_T_MAX // 8 // rows:
        raise MemoryError(f"no memory for a Matrix of {rows} x {cols}")
    if block is NULL or requests_until_failure:
        block = <Block*>allocate(sizeof(Block))
    else:
        unpoison(block, sizeof(Block))
        spare_blocks = block.next
    memset(block, 0, sizeof(Block))
    block.rows, block.cols, block.op, block.dtype = rows, cols, op, dtype
    try:
        if op != VIEW and op != LOAD:
            block.data = new_buffer(bytes_of(block))
            block.capacity = capacity_for(bytes_of(block))
        node = new_node(BLOCK, 0.0)
    except:
        free_block(block)
        raise
    node.right = block
    return node


cdef void free_block(Block* block) noexcept:
    global spare_blocks
    if block.op != VIEW and block.op != LOAD:
        free_buffer(block.data, block.capacity)
        free_buffer(block.grad, block.capacity)
    free_buffer(block.saved, block.saved_capacity)
    PyMem_RawFree(block.items)
    PyMem_RawFree(block.elements)
    release_ids(block.ids)
    block.next = spare_blocks
    poison(block, sizeof(Block) - sizeof(block.next))  # `next` is its last field
    spare_blocks = block


cdef int resize_block(Node* node, Py_ssize_t rows) except -1:
    """Change the rows of a block to which only its graph refers; its numbers are undefined."""
    cdef Block* block = block_of(node)
    cdef Py_ssize_t n = rows * block.cols * size_of_number(block.dtype)
    if block.op == LOAD or block.op == VIEW:
        return 0
    if block.elements is not NULL:
        PyMem_RawFree(block.elements)
        block.elements = NULL
    if not has_room(block.capacity, n):
        free_buffer(block.data, block.capacity)
        free_buffer(block.grad, block.capacity)
        block.data = block.grad = NULL
        block.grad_is_seen = False
        block.data = new_buffer(n)
        block.capacity = capacity_for(n)
    block.rows = rows
    resize_saved(block)
    return 0


cdef int resize_saved(Block* block) except -1:
    """Make room for what the forward of a block saves; it is undefined then."""
    block.n_saved = numbers_saved(block)
    cdef Py_ssize_t n = block.n_saved * size_of_number(block.dtype)
    if n and not has_room(block.saved_capacity, n):
        free_buffer(block.saved, block.saved_capacity)
        block.saved = NULL
        block.saved = new_buffer(n)
        block.saved_capacity = capacity_for(n)
    return 0


cdef IdBuffer* new_ids(Py_ssize_t n) except NULL:
    cdef IdBuffer* ids = <IdBuffer*>allocate(sizeof(IdBuffer))
    ids.refs = 1
    ids.n = ids.capacity = 0
    ids.limit = PY_SSIZE_T_MAX
    ids.source = FIXED
    ids.are_starts = ids.is_read = ids.is_measured = False
    ids.starts = ids.tokens = NULL
    ids.items = NULL
    try:
        resize_ids(ids, n)
    except:
        release_ids(ids)
        raise
    return ids


cdef int resize_ids(IdBuffer* ids, Py_ssize_t n) except -1:
    """Make room for n ids; they are undefined then."""
    cdef Index* items
    if n > ids.capacity:
        items = <Index*>allocate(n * sizeof(Index))
        PyMem_RawFree(ids.items)
        ids.items, ids.capacity = items, n
    ids.n = n
    return 0


cdef void release_ids(IdBuffer* ids) noexcept:
    if ids is not NULL:
        ids.refs -= 1
        if ids.refs == 0:
            release_ids(ids.starts)
            release_ids(ids.tokens)
            PyMem_RawFree(ids.items)
            PyMem_RawFree(ids)
