# Ids that nodes refer to, and graphs that are replayed on other ids. Part of _core.pyx.

cdef bint are_plain(object numbers, Py_ssize_t n) except -1:
    """Whether numbers is a list of ints in 0..n-1, at least one: reading it runs no Python."""
    if type(numbers) is not list or not numbers:
        return False
    for item in <list>numbers:
        if not (PyLong_CheckExact(item) and 0 <= item < n):
            return False
    return True


cdef IdBuffer* ids_of(object numbers, Py_ssize_t n, str what) except NULL:
    """Return ints in 0..n-1 as a buffer: a new one, or the one that a recording knows."""
    cdef IdBuffer* ids = recorded_ids(numbers)
    cdef list checked
    cdef Py_ssize_t i
    if ids is not NULL:
        require_below(ids, n, what)
        ids.limit = min(ids.limit, n)
        ids.refs += 1
        return ids
    if isinstance(numbers, _Ids):
        numbers = (<_Ids>numbers).read()
    checked = numbers if are_plain(numbers, n) else checks.ids(numbers, n, what)
    ids = new_ids(len(checked))
    try:
        for i in range(ids.n):
            ids.items[i] = PyLong_AsSsize_t(checked[i])
        require_below(ids, n, what)  # where no profile hook sees them, as it sees the list
    except:
        release_ids(ids)
        raise
    return ids


cdef int require_below(IdBuffer* ids, Py_ssize_t n, str what) except -1:
    cdef Py_ssize_t i
    for i in range(ids.n):
        if not 0 <= ids.items[i] < n:
            raise ValueError(f"{what} {ids.items[i]} is outside 0..{n - 1}")
    if ids.n == 0:
        raise ValueError(f"at least one {what} is needed")
    return 0


cdef inline void numbers_are_read() noexcept:
    """What Python makes of a number is not recorded, so what is being recorded is of no use.

    Nor is it if numbers or gradients are changed in a way that is not recorded.
    """
    if tape is not NULL:
        (<_Graph>tape).known = False


cdef inline void rows_are_read(Node* node) noexcept:
    """What Python makes of the rows of a block holds as long as they are as many."""
    if tape is not NULL and step_of(node, <_Graph>tape) is not NULL:
        (<_Graph>tape).fixed_rows = True


cdef IdBuffer no_ids  # all 0
no_ids.refs = 1


@cython.final
cdef class _Ids:
    """Show the buffer that stands for an argument of a Replay; block ops take it for a list.

    Only while its call is recorded do they share the buffer: what they take at another time, or
    in another thread, is a copy. What Python asks it is noted with the buffer, in any thread.
    """

    cdef IdBuffer* buffer
    cdef uint64_t recording  # the number of its _Graph

    def __cinit__(self):
        self.buffer = &no_ids  # so that there is no _Ids without a buffer, whoever makes it
        no_ids.refs += 1

    def __dealloc__(self):
        release_ids(self.buffer)

    def __len__(self):
        self.buffer.is_measured = True
        if self.buffer.tokens is not NULL:
            self.buffer.tokens.is_measured = True
        return self.buffer.n

    def __iter__(self):
        return iter(self.read())

    def __getitem__(self, i):
        return self.read()[i]

    cdef list read(self):
        cdef Py_ssize_t i
        self.buffer.is_read = True
        return [self.buffer.items[i] for i in range(self.buffer.n)]


cdef IdBuffer* recorded_ids(object numbers) noexcept:
    """Return the buffer of an _Ids of the call that this thread records; NULL: they are others."""
    if tape is NULL or not isinstance(numbers, _Ids):
        return NULL
    return (<_Ids>numbers).buffer if (<_Ids>numbers).recording == (<_Graph>tape).number else NULL


cdef bint starts_fit(IdBuffer* starts, Py_ssize_t rows) noexcept:
    """Whether starts rise from 0 and stay below rows."""
    cdef Py_ssize_t i
    for i in range(starts.n):
        if not (starts.items[i] < rows and (starts.items[i - 1] < starts.items[i] if i
                                            else starts.items[0] == 0)):
            return False
    return starts.n > 0


cdef int derive(IdBuffer* ids, Py_ssize_t rows) except -1:
    """Write what follows from the first rows of documents, for each row; they fit."""
    cdef Py_ssize_t t, start = 0, i = 1
    cdef IdBuffer* starts = ids.starts
    resize_ids(ids, rows)
    for t in range(rows):
        if starts is not NULL and i < starts.n and starts.items[i] == t:
            start = t
            i += 1
        ids.items[t] = t - start if ids.source == POSITIONS else start
    return 0


cdef IdBuffer* derived_ids(IdSource source, object starts, Py_ssize_t rows) except NULL:
    """Return a buffer with an int for each row that follows from starts: ints, _Ids or None.

    Its source is FIXED unless it follows from arguments of a Replay, or from nothing but rows.
    """
    cdef IdBuffer* given = recorded_ids(starts)
    cdef IdBuffer* ids
    if given is not NULL:
        given.are_starts = True
        given.refs += 1
    elif starts is not None:
        if isinstance(starts, _Ids):
            starts = (<_Ids>starts).read()
        starts = [checks.index(start) for start in starts]
        checks.document_starts(rows, starts)
        given = ids_of(starts, rows, "start")
    try:
        if given is not NULL and not starts_fit(given, rows):
            refuse(checks.document_starts, (rows, [given.items[i] for i in range(given.n)]))
        ids = new_ids(rows)
    except:
        release_ids(given)
        raise
    ids.source, ids.starts = source, given
    try:
        derive(ids, rows)
    except:
        release_ids(ids)
        raise
    if given is not NULL and given.source != GIVEN:  # nor does it keep what it is not derived from
        ids.source, ids.starts = FIXED, NULL
        release_ids(given)
    return ids


def positions(tokens, starts=None, block_size=None):
    """Return the position of each token in its document: T tokens -> T ints.

    starts: first rows of the documents packed into tokens, from 0 upwards; None: one document.
    block_size: the maximum number of tokens per document.

    Raises ValueError if a document is longer, or starts do not fit.

    >>> list(positions([5, 0, 7, 5, 2], [0, 3]))
    [0, 1, 2, 0, 1]
    """
    cdef IdBuffer* given = recorded_ids(tokens)
    cdef Py_ssize_t t, longest = 0, rows = len(tokens) if given is NULL else given.n
    if rows == 0:
        refuse(checks.document_starts, (0, []))
    cdef _Ids result = _Ids.__new__(_Ids)
    result.buffer = derived_ids(POSITIONS, starts, rows)
    no_ids.refs -= 1
    cdef IdBuffer* ids = result.buffer
    for t in range(rows):
        longest = max(longest, ids.items[t] + 1)
    if block_size is not None:
        block_size = checks.index(block_size)
        checks.document_length(longest, block_size)
        ids.limit = min(block_size, PY_SSIZE_T_MAX)
    if given is not NULL and given.source == GIVEN and ids.source == POSITIONS:
        (<_Graph>tape).add_positions(result, given)
        return result
    if given is not NULL:
        given.is_measured = True
    if recorded_ids(starts) is not NULL:
        (<_Ids>starts).buffer.is_read = True
    return [ids.items[t] for t in range(rows)]


def pack_documents(docs, Py_ssize_t block_size):
    """Return tokens, targets and first rows of documents, one after another without padding.

    docs: lists of token ids; position t of each predicts its token t + 1.
    block_size: the maximum number of tokens per document; the rest is not used.

    Raises ValueError if a document has fewer than two tokens.

    >>> pack_documents([[3, 0, 1, 3], [3, 2, 3]], block_size=2)
    ([3, 0, 3, 2], [0, 1, 2, 3], [0, 2])
    """
    cdef list ids, tokens = [], targets = [], starts = []
    cdef Py_ssize_t n
    for doc in docs:
        ids = doc if type(doc) is list else list(doc)
        if len(ids) < 2:
            refuse(checks.document_too_short, (len(ids),))
        n = min(len(ids) - 1, block_size)
        starts.append(len(tokens))
        tokens.extend(ids[:n])
        targets.extend(ids[1 : n + 1])
    return tokens, targets, starts


def pack_encoded(ids, begins, block_size, bos):
    """Return tokens, targets and first rows of documents in an array, without padding.

    ids: of all documents, as Tokenizer.encode_all gives them: unsigned ints, 'B', 'H' or 'I'.
    begins: where the documents begin; each goes up to its bos, or to the end of ids.
    block_size: the maximum number of tokens per document; the rest is not used.
    bos: what ends a document, and comes before it: the targets are its ids, the tokens are bos
        and these ids but the last.

    Raises TypeError if ids is no such array, ValueError if a document begins outside ids or
    block_size is below 1.

    >>> from array import array
    >>> pack_encoded(array("B", [0, 1, 3, 2, 3]), [0, 3], block_size=4, bos=3)
    ([3, 0, 1, 3, 2], [0, 1, 3, 2, 3], [0, 3])
    """
    cdef list tokens = [], targets = [], starts = []
    cdef Py_ssize_t n, i, j, end, number, longest, stop
    cdef Py_buffer buffer
    if not (PyLong_CheckExact(block_size) and block_size > 0 and PyLong_CheckExact(bos)):
        block_size, bos = checks.integer(block_size, "block_size", 1), checks.index(bos)
    if type(ids) is not array:
        checks.unsigned_array(ids)
    longest, stop = PyNumber_AsSsize_t(block_size, NULL), PyNumber_AsSsize_t(bos, NULL)
    PyObject_GetBuffer(ids, &buffer, PyBUF_FORMAT)  # so that nobody changes its length
    try:
        if buffer.format[0] not in b"BHI":
            checks.unsigned_array(ids)
        n = buffer.len // buffer.itemsize
        for begin in begins:
            if not PyLong_CheckExact(begin):
                begin = checks.index(begin)
            i = PyNumber_AsSsize_t(begin, NULL)
            if not 0 <= i < n:
                refuse(checks.place, (begin, n))
            starts.append(len(tokens))
            end = n if n - i < longest else i + longest
            target = bos
            for j in range(i, end):
                tokens.append(target)
                number = id_at(buffer.buf, buffer.itemsize, j)
                target = number
                targets.append(target)
                if number == stop:
                    break
    finally:
        PyBuffer_Release(&buffer)
    return tokens, targets, starts


cdef inline uint32_t id_at(const void* ids, Py_ssize_t size, Py_ssize_t i) noexcept:
    """Return entry i of an array whose ids take so many bytes."""
    if size == 1:
        return (<const uint8_t*>ids)[i]
    return (<const uint16_t*>ids)[i] if size == 2 else (<const uint32_t*>ids)[i]


cdef uint64_t n_recordings = 0


cdef struct Step:  # of a recorded graph
    Node* node
    Py_ssize_t refs  # those that the graph itself has to the node
    Py_ssize_t rows  # of its block, once the graph runs on the ids being loaded


cdef Step* step_of(Node* node, _Graph graph) noexcept:
    """Return the step that computes a block; NULL: the graph only reads it."""
    cdef Py_ssize_t i = block_of(node).step
    if 0 <= i < graph.n and graph.steps[i].node is node:
        return &graph.steps[i]
    return NULL


cdef Py_ssize_t rows_after(Node* node, _Graph graph) noexcept:
    cdef Step* step = step_of(node, graph)
    return block_of(node).rows if step is NULL else step.rows


@cython.final
cdef class _Graph:
    """What block ops, `mean` and `load` computed in one call of a function, in that order.

    It can be computed again, forwards, on other ids, also on more or fewer of them, as long as no
    handle, node or buffer outside refers to what it computes; this is checked each time.
    """

    cdef Step* steps
    cdef Py_ssize_t n
    cdef Py_ssize_t capacity
    cdef Py_ssize_t entries  # of all blocks, with what they save
    cdef Node* root
    cdef uint64_t number
    cdef list ids  # the _Ids of the arguments, None for None
    cdef list derived  # the _Ids of positions
    cdef bint known  # nothing was done that cannot be done again, and all parts fit together
    cdef bint fixed_rows
    cdef bint loads  # into a Matrix that others may look at meanwhile
    cdef bint can_fail  # by an error that depends on numbers
    cdef bint busy
    cdef uint64_t changes  # n_changes after the last forward
    cdef Visit* topo  # of the root, as the last update of it was sorted; NULL: not yet
    cdef Py_ssize_t n_topo
    cdef Py_ssize_t topo_capacity
    cdef _Update update  # what that was

    def __cinit__(self, arguments):
        global n_recordings
        cdef _Ids handle
        n_recordings += 1
        self.number = n_recordings
        self.known = True
        self.derived = []
        self.ids = []
        for numbers in arguments:
            handle = None
            if numbers is not None:
                handle = _Ids.__new__(_Ids)
                handle.buffer = ids_of(numbers, PY_SSIZE_T_MAX, "id")
                no_ids.refs -= 1
                handle.buffer.source = GIVEN
                handle.recording = self.number
            self.ids.append(handle)

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.root is not NULL and self.root.kind == MEAN:
            self.root.right = NULL
        for i in range(self.n - 1, -1, -1):
            release(self.steps[i].node)
        free_array(self.steps, self.capacity, sizeof(Step))
        free_array(self.topo, self.topo_capacity, sizeof(Visit))

    cdef int add(self, Node* node) except -1:
        """Note a node that was computed; its inputs are set."""
        cdef Block* block
        if self.n == self.capacity:
            grow(<void**>&self.steps, &self.capacity, sizeof(Step))
        self.steps[self.n].node = node
        self.steps[self.n].refs = 1
        retain(node)
        if node.kind == BLOCK:
            block = block_of(node)
            block.step = self.n
            # Only ids that come from the arguments are those of another call too.
            if block.ids is not NULL and block.ids.source == FIXED:
                self.known = False
            if block.op == VIEW and step_of(block.inputs[0], self) is not NULL:
                self.fixed_rows = True
            if can_fail(block.op):
                self.can_fail = True
        self.n += 1
        return 0

    cdef int add_load(self, Node* target, Node* source) except -1:
        cdef Node* node = new_block(LOAD, block_of(target).rows, block_of(target).cols,
                                    block_of(target).dtype)
        cdef Block* block = block_of(node)
        block.inputs[0] = target
        block.inputs[1] = source
        block.n_inputs = 2
        retain(target)
        retain(source)
        self.loads = True
        try:
            return self.add(node)
        except:
            disown(node)
            raise

    cdef int add_positions(self, _Ids handle, IdBuffer* tokens) except -1:
        handle.recording = self.number
        handle.buffer.tokens = tokens
        tokens.refs += 1
        self.derived.append(handle)
        return 0

    cdef int close(self, object result) except -1:
        """Set the result of the function as the root; count the graph's own references."""
        cdef Py_ssize_t i, j
        cdef Node* node
        cdef Node* child
        cdef Step* step
        cdef _Ids ids
        for ids in self.ids + self.derived:
            if ids is not None and ids.buffer.is_read:
                self.known = False
        if type(result) is Value:
            self.root = (<Value>result).node
        elif type(result) is Matrix:
            self.root = (<Matrix>result).node
        self.known = self.known and self.n > 0 and self.root is self.steps[self.n - 1].node
        if not self.known:
            self.root = NULL
        elif self.root.kind == MEAN:
            self.root.right = <void*>self
        for i in range(self.n):
            node = self.steps[i].node
            self.entries += size_of(node) + block_of(node).n_saved if node.kind == BLOCK else 0
            for j in range(3):
                child = child_at(node, j) if node.kind != BLOCK else block_of(node).inputs[j]
                if child is NULL:
                    break
                step = step_of(child, self)
                if step is not NULL:
                    step.refs += 1
                elif owner_of(child).op > VIEW:
                    self.known = False  # computed by something that was not noted
        self.known = self.known and self.can_begin_again()
        return 0

    cdef bint can_begin_again(self) noexcept:
        """Whether a call that ends in an error can be made once more from the start.

        Not if it loaded into numbers that it had read before.
        """
        cdef Py_ssize_t i, j, k
        cdef Block* step
        cdef Block* loaded
        if not (self.loads and self.can_fail):
            return True
        for i in range(self.n):
            if self.steps[i].node.kind != BLOCK or block_of(self.steps[i].node).op != LOAD:
                continue
            loaded = owner_of(block_of(self.steps[i].node).inputs[0])
            for j in range(i + 1):
                if self.steps[j].node.kind == MEAN:
                    if owner_of(self.steps[j].node.left) is loaded:
                        return False
                    continue
                step = block_of(self.steps[j].node)
                if step.op == VIEW:
                    continue
                for k in range(step.op == LOAD, step.n_inputs):
                    if owner_of(step.inputs[k]) is loaded:
                        return False
        return True

    cdef bint can_be_reached(self, bint result_is_held) noexcept:
        """Whether anything but the graph, and the holder of its result, refers to a part of it."""
        cdef Py_ssize_t i
        for i in range(self.n):
            if self.steps[i].node.refs != self.steps[i].refs + (
                    result_is_held and i == self.n - 1):
                return True
        for ids in self.ids:
            if ids is not None and Py_REFCNT(<PyObject*>ids) != 2:  # the list, and `ids` here
                return True
        for ids in self.derived:
            if Py_REFCNT(<PyObject*>ids) != 2:
                return True
        return False

    cdef bint load(self, tuple arguments) except -1:
        """Take other ids; return False if the graph does not serve them, now and for ever."""
        cdef Py_ssize_t i, j
        cdef Index number
        cdef int overflow
        cdef IdBuffer* ids
        cdef list numbers
        cdef bint fits = True  # still, because neither a length nor the first rows changed
        self.known = False  # until all fits again: whatever runs meanwhile must not use it
        for i in range(len(arguments)):
            numbers = arguments[i]
            if numbers is None:
                continue
            ids = (<_Ids?>self.ids[i]).buffer
            if ids.is_measured and len(numbers) != ids.n:
                return False
            fits = fits and len(numbers) == ids.n
            resize_ids(ids, len(numbers))
            for j in range(ids.n):
                if not PyLong_CheckExact(numbers[j]):
                    return False
                number = PyLong_AsLongLongAndOverflow(numbers[j], &overflow)
                if overflow or not 0 <= number < ids.limit:
                    return False
                fits = fits and (not ids.are_starts or ids.items[j] == number)
                ids.items[j] = number
        self.known = fits or self.fit()
        return self.known

    cdef bint load_token(self, Py_ssize_t token) noexcept:
        """Take one id instead of the one that stands there; return False if more would change."""
        cdef IdBuffer* ids
        if len(self.ids) != 1 or self.ids[0] is None or self.derived:
            return False
        ids = (<_Ids>self.ids[0]).buffer
        if ids.n != 1 or ids.are_starts or not 0 <= token < ids.limit:
            return False
        ids.items[0] = token
        return True

    cdef bint fit(self) except -1:
        """Give every block the rows that follow from the ids; return False if they do not fit.

        What a failure leaves behind is of no use, and is not used: the graph is not `known`.
        """
        cdef Py_ssize_t i, rows
        cdef Block* y
        cdef IdBuffer* ids
        cdef bint others = False
        for handle in self.derived:
            ids = (<_Ids?>handle).buffer
            if ids.starts is not NULL and not starts_fit(ids.starts, ids.tokens.n):
                return False
            derive(ids, ids.tokens.n)
            for i in range(ids.n):
                if ids.items[i] >= ids.limit:
                    return False
        for i in range(self.n):
            if self.steps[i].node.kind == BLOCK:
                y = block_of(self.steps[i].node)
                rows = rows_wanted(self.steps[i].node, self)
                if rows < 1:
                    return False
                self.steps[i].rows = rows
                others = others or rows != y.rows
                if y.ids is not NULL and y.ids.source == FIRST_KEYS:
                    rows = rows_after(y.inputs[0], self)
                    if y.ids.starts is not NULL and not starts_fit(y.ids.starts, rows):
                        return False
                    derive(y.ids, rows)
        if others and self.fixed_rows:
            return False
        self.entries = 0
        for i in range(self.n):
            if self.steps[i].node.kind == BLOCK:
                resize_block(self.steps[i].node, self.steps[i].rows)
                y = block_of(self.steps[i].node)
                self.entries += y.rows * y.cols + y.n_saved
        return True

    cdef bint forward(self) except -1:
        """Compute all steps; return False if one of them meets what is an error for Values."""
        cdef Py_ssize_t i
        cdef uint16_t number
        cdef bint done
        cdef int j
        for i in range(self.n):
            if self.steps[i].node.mark:
                raise RuntimeError(BUSY)
            for j in range(3 if n_updates_beside else 0):
                if (touched_by(self.steps[i].node, j) is not NULL
                        and touched_by(self.steps[i].node, j).update is not NULL):
                    raise RuntimeError(BUSY)
        if self.entries < LONG_TRAVERSAL or self.loads:
            done = forward_steps(self.steps, self.n)
            self.changes = n_changes
            return done
        number = take_number()
        self.busy = True
        for i in range(self.n):
            self.steps[i].node.mark = number
            hold(self.steps[i].node, 1)
        with nogil:
            done = forward_steps(self.steps, self.n)
        for i in range(self.n):
            self.steps[i].node.mark = 0
            hold(self.steps[i].node, -1)
        self.busy = False
        give_number_back(number)
        return done

    cdef bint can_update(self, _Update update) noexcept:
        """Whether an update of the root needs no sort: nothing changed since the forward."""
        return (self.update is update and self.known and self.changes == n_changes
                and n_traversals == 0 and self.entries < LONG_TRAVERSAL)


cdef void keep_order(Node* root, Traversal* walk, _Update update) noexcept:
    """Let the graph of a root, if it is a replayed one, keep its order for other updates."""
    cdef _Graph graph
    # Only a sort gives gradients to leaves that are not in the order.
    if (root.kind == MEAN and root.right is not NULL
            and not (walk.has_scalar_leaves or walk.has_detached)):
        graph = <_Graph>root.right
        free_array(graph.topo, graph.topo_capacity, sizeof(Visit))
        graph.topo, graph.n_topo, graph.topo_capacity = walk.topo, walk.n, walk.capacity
        graph.update = update
        walk.topo, walk.capacity = NULL, 0


cdef bint update_replayed(Node* root, _Update update) except -1:
    """Run backward and the update of a replayed graph without sorting it; return whether it did."""
    cdef _Graph graph
    cdef Py_ssize_t i
    if root.kind != MEAN or root.right is NULL:
        return False
    graph = <_Graph>root.right
    if not graph.can_update(update):
        return False
    for i in range(graph.n_topo):
        if graph.topo[i].node.kind == BLOCK:
            need_grad(graph.topo[i].node)
    update.begin(NULL)
    if not graph.can_update(update):  # what counted the step has changed something
        update.take_back()
        return False
    for i in range(graph.n_topo):
        if graph.topo[i].node.kind != BLOCK:
            graph.topo[i].node.grad = 0.0
        elif block_of(graph.topo[i].node).op > VIEW:
            clear_grad(block_of(graph.topo[i].node))
    root.grad = 1.0
    sweep(graph.topo, graph.n_topo, 0)
    update.finish()
    return True


cdef Py_ssize_t rows_wanted(Node* node, _Graph graph) except -2:
    """Return the rows that a block gets from its inputs and ids, or -1 if they do not fit."""
    cdef Block* y = block_of(node)
    cdef Node** inputs = y.inputs
    cdef Py_ssize_t a = rows_after(inputs[0], graph), b, i
    for i in range(1, y.n_inputs):
        b = rows_after(inputs[i], graph)
        if y.op == LOAD:
            if a != b:
                return -1
        elif is_elementwise(y.op):  # as for a call: a single row serves all rows
            if a != b and a != 1 and b != 1:
                return -1
            a = max(a, b)
        elif y.op == ATTENTION or y.op == ATTENTION_WEIGHTS:
            if a > b or b != rows_after(inputs[1], graph):
                return -1
            if y.ids.starts is not NULL and a != b:
                return -1
            if y.op == ATTENTION_WEIGHTS and b != y.cols:
                return -1
        elif b != block_of(inputs[i]).rows:  # the weights of a linear: its columns
            return -1
    if y.op == VIEW:
        return y.rows if a == block_of(inputs[0]).rows else -1
    if y.op == EMBEDDING:
        return y.ids.n if a == block_of(inputs[0]).rows else -1
    if y.op == CROSS_ENTROPY and y.ids.n != a:
        return -1
    return y.n_head * a if y.op == ATTENTION_WEIGHTS else a


cdef bint forward_steps(Step* steps, Py_ssize_t n) noexcept nogil:
    """Compute the nodes; return False, before the end, if one meets what is an error."""
    cdef Py_ssize_t i
    cdef Node* node
    for i in range(n):
        node = steps[i].node
        if node.kind == MEAN:
            node.data = mean_of(node.left)
        elif block_of(node).op != VIEW and block_forward(node):
            return False
    return True


cdef enum:
    MAX_ENTRIES = 1 << 23  # of the graphs of one Replay together: 64 MiB
    MAX_ARGUMENTS = 29  # one bit each
    MAX_STEPS = 1 << 16  # positions whose graphs `step` finds


@cython.final
cdef class Replay:
    """Replay(f)
--

    Call a function of lists of token ids; the compiled core replays graphs that it has seen.

    A replay computes the graph on other ids without running the function's Python. For this the
    function must depend on nothing but the ids, the numbers of its Matrices and `key`, and use
    the ids in block ops and `positions` only.

    f: takes lists of ids, or None in place of one, and returns a Value or a Matrix.
    """

    cdef readonly object f
    cdef dict graphs
    cdef list steps  # graphs of single tokens, each at its position, which is its key; or None
    cdef bint initialized

    def __cinit__(self, f):
        checks.function(f)
        self.f = f
        self.graphs = {}
        self.steps = []

    def __init__(self, f):
        if self.initialized:
            raise TypeError("a Replay keeps its function: make another one")
        self.initialized = True

    def __dealloc__(self):
        self.graphs = self.steps = None  # their buffers are spare now
        give_back_large_buffers()

    def __repr__(self):
        return f"Replay({self.f!r})"

    def __reduce__(self):
        return Replay, (self.f,)

    def __call__(self, *ids, key=None):
        return self.call(ids, key)

    cdef object call(self, tuple ids, object key):
        cdef _Graph graph
        cdef Py_ssize_t kind = 2 + (no_grad_depth != 0)  # the leading 1 tells how many follow
        if tape is not NULL or len(ids) > MAX_ARGUMENTS:  # a part of what another one records
            return self.f(*ids)
        for numbers in ids:
            if numbers is not None and type(numbers) is not list:
                return self.f(*ids)
            kind = 2 * kind + (numbers is None)
        key = key, kind
        graph = self.graphs.get(key)
        if graph is None:
            return self.record(key, ids)
        if graph.busy:
            raise RuntimeError(BUSY)
        # A result that somebody still holds keeps its graph; the next one gets its own.
        # From here to the result no Python runs, not even that of a key. An error is left to
        # the function itself, which may expect it.
        if (graph.known and not graph.can_be_reached(False) and graph.load(ids)
                and graph.forward()):
            return matrix_of(graph.root) if graph.root.kind == BLOCK else value_of(graph.root)
        graph = None
        self.forget(key)
        return self.record(key, ids)

    cdef int forget(self, object key) except -1:
        """Drop a graph, or with None all of them."""
        self.steps = []
        if key is None:
            self.graphs.clear()
        else:
            self.graphs.pop(key, None)
        return 0

    cdef int keep(self, Py_ssize_t position) except -1:
        """Note the graph of a position, for `step`."""
        if not 0 <= position < MAX_STEPS:
            return 0
        while len(self.steps) <= position:
            self.steps.append(None)
        self.steps[position] = self.graphs.get((position, 4))  # the kind: see `call`
        return 0

    cdef Block* step(self, Py_ssize_t position, Py_ssize_t token) except? NULL:
        """Compute the graph of a position for one token, as `call` does, without objects.

        Returns its block, valid until any Python runs; NULL if the function has to be called.
        """
        cdef _Graph graph
        if (tape is not NULL or no_grad_depth or n_traversals or n_updates_beside
                or not 0 <= position < len(self.steps)):
            return NULL  # with traversals: a thread may be changing what the graph reads
        graph = self.steps[position]
        if (graph is None or graph.busy or not graph.known or graph.root.kind != BLOCK
                or graph.entries >= LONG_TRAVERSAL and not graph.loads
                or graph.can_be_reached(False) or not graph.load_token(token)
                or not forward_steps(graph.steps, graph.n)):
            return NULL
        return block_of(graph.root)

    cdef object record(self, object key, tuple ids):
        """Run the function, and keep the graph if it can be computed again."""
        global tape
        cdef _Graph graph, other
        cdef Py_ssize_t entries = 0
        for numbers in ids:
            if numbers is not None and not are_plain(numbers, PY_SSIZE_T_MAX):
                return self.f(*ids)
        graph = _Graph.__new__(_Graph, ids)
        tape = <void*>graph
        try:
            result = self.f(*graph.ids)
        finally:
            tape = NULL
        graph.close(result)
        if graph.known and not graph.can_be_reached(True):
            for other in self.graphs.values():
                entries += other.entries
            if entries + graph.entries > MAX_ENTRIES:
                self.forget(None)
            self.graphs[key] = graph
        return result
