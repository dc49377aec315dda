# Drawing tokens from what a model says. Part of _core.pyx.

cdef Py_ssize_t choose(double* probs, Py_ssize_t n, object random, object top_k,
                       object top_p) except -1:
    """Return what `draw_token` does; random: the method of the generator, or None.

    probs: they become their own running sums. random may run any Python, which must not be able to
        change or free them.
    """
    cdef double total = 0.0, least = 0.0, part
    cdef Py_ssize_t i, best = 0
    for i in range(n):
        total += probs[i]
        if probs[i] < least:
            least = probs[i]
    if n == 0 or not isfinite(total) or random is not None and (least < 0.0 or total <= 0.0):
        refuse(checks.row_to_draw_from, (n, least, total, random is None))
    if random is None:
        for i in range(n):
            if probs[i] > probs[best]:
                best = i
        return best
    if top_k is not None or top_p is not None:
        keep_likely(probs, n, n if top_k is None else min(n, top_k), top_p)
    for i in range(1, n):
        probs[i] += probs[i - 1]
    part = <double>random() * probs[n - 1]
    i = 0
    while i < n - 1 and not part < probs[i]:
        i += 1
    return i


cdef struct Likely:
    double prob
    Py_ssize_t index


cdef int likelier(const void* a, const void* b) noexcept nogil:
    """Order by probability, the largest first; equal ones by their indices."""
    cdef const Likely* x = <const Likely*>a
    cdef const Likely* y = <const Likely*>b
    if x.prob != y.prob:
        return -1 if x.prob > y.prob else 1
    return -1 if x.index < y.index else 1


cdef int keep_likely(double* probs, Py_ssize_t n, Py_ssize_t limit, object top_p) except -1:
    """Set to 0 all but the `limit` largest, and of these all that top_p leaves out."""
    cdef double total = 0.0, part = 1.0 if top_p is None else top_p, sum = 0.0
    cdef Py_ssize_t i, n_kept = limit
    cdef Likely* likely = <Likely*>allocate(n * sizeof(Likely))
    for i in range(n):
        likely[i].prob, likely[i].index = probs[i], i
    qsort(likely, n, sizeof(Likely), likelier)
    if top_p is not None:
        for i in range(limit):
            total += likely[i].prob
        n_kept = 1
        for i in range(limit):
            sum += likely[i].prob
            n_kept += sum < part * total
        n_kept = min(n_kept, limit)
    for i in range(n_kept, n):
        probs[likely[i].index] = 0.0
    PyMem_RawFree(likely)
    return 0


def draw_token(probs, rng, top_k=None, top_p=None):
    """Return an index drawn with these probabilities as rng.choices draws it.

    rng: a random.Random; None: return the index of the largest number, the first of several.
    top_k: draw from this many of the largest probabilities only.
    top_p: nucleus sampling (Holtzman et al. 2019, arXiv:1904.09751): draw from the fewest of the
        largest probabilities that sum to at least this part of all; after top_k.
    Of equal probabilities those with the lower indices are kept.

    Raises FloatingPointError if the sum of the numbers is not finite, or that of probabilities 0;
    ValueError if there are none, one is negative, or top_k or top_p is out of range.
    """
    top_k, top_p = checks.draw_limits(top_k, top_p)
    cdef tuple numbers = tuple(probs)
    cdef Py_ssize_t i, n = len(numbers)
    cdef double* row = <double*>new_buffer(n * sizeof(double))
    try:
        for i in range(n):
            row[i] = numbers[i]
        return choose(row, n, None if rng is None else rng.random, top_k, top_p)
    finally:
        free_buffer(row, n * sizeof(double))


cdef struct Prefix:  # the tokens of a document so far, and what was computed after them
    Prefix* first  # of those that are one token longer, in the order in which they were added
    Prefix* next  # with another last token
    Py_ssize_t token  # the last one
    Py_ssize_t n  # the probabilities, which follow in memory; after them, a row for each matrix


cdef struct PrefixChunk:  # the head of a piece of memory for prefixes
    PrefixChunk* previous


cdef enum:
    PREFIX_CHUNK_BYTES = 1 << 18


cdef inline double* probabilities_of(Prefix* prefix) noexcept:
    return <double*>(prefix + 1)


cdef inline Prefix* longer(Prefix* prefix, Py_ssize_t token) noexcept:
    """Return the prefix with one more token; NULL: it was not added."""
    cdef Prefix* found = prefix.first
    while found is not NULL and found.token != token:
        found = found.next
    return found


@cython.final
cdef class Prefixes:
    """Prefixes(matrices, limit=2_000_000)
--

    Keep what `draw_tokens` computes after each prefix, for other documents that begin with it.

    The documents must all begin to be drawn at the same position, after the same tokens.

    matrices: have a row for each token that a model has seen, its keys or its values. What the
        model says must follow from these rows, the token and the position.
    limit: the most numbers to keep, with four counted for each prefix itself. What comes after
        that is computed each time.
    """

    cdef Prefix start  # of all documents: only its `first` is used
    cdef Node** matrices
    cdef Py_ssize_t n_matrices
    cdef Py_ssize_t rows  # the fewest of a matrix
    cdef Py_ssize_t row_numbers  # of a row of each matrix, together
    cdef Py_ssize_t row_bytes
    cdef Py_ssize_t numbers_left
    cdef PrefixChunk* chunks  # a prefix is freed only with all others: see draw_tokens
    cdef char* memory  # the untouched rest of the newest chunk
    cdef Py_ssize_t bytes_left

    def __cinit__(self, matrices, limit=2_000_000):
        cdef tuple given = tuple(matrices)
        cdef Block* block
        self.numbers_left = PyNumber_AsSsize_t(checks.index(limit), NULL)
        self.rows = PY_SSIZE_T_MAX
        self.matrices = <Node**>allocate((len(given) + 1) * sizeof(Node*))
        for matrix in given:
            block = block_of(block_argument(matrix, "each of matrices").node)
            self.rows = min(self.rows, block.rows)
            self.row_numbers += block.cols
            self.row_bytes += block.cols * size_of_number(block.dtype)
            self.matrices[self.n_matrices] = (<Matrix>matrix).node
            retain(self.matrices[self.n_matrices])
            self.n_matrices += 1

    def __dealloc__(self):
        cdef PrefixChunk* chunk
        cdef Py_ssize_t i
        while self.chunks is not NULL:
            chunk = self.chunks
            self.chunks = chunk.previous
            PyMem_RawFree(chunk)
        for i in range(self.n_matrices):
            release(self.matrices[i])
        PyMem_RawFree(self.matrices)

    cdef int require_row(self, Py_ssize_t position) except -1:
        if not 0 <= position < self.rows:
            refuse(checks.cache_row, (position, self.rows))
        return 0

    cdef void* row_of(self, Py_ssize_t i, Py_ssize_t position) noexcept:
        cdef Block* block = block_of(self.matrices[i])
        return place_in(block.data, block.dtype, position * block.cols)

    cdef inline Py_ssize_t bytes_of_row(self, Py_ssize_t i) noexcept:
        cdef Block* block = block_of(self.matrices[i])
        return block.cols * size_of_number(block.dtype)

    cdef int put_back(self, Prefix* prefix, Py_ssize_t position) except -1:
        """Write the rows of a prefix into the matrices, as computing them did."""
        cdef char* numbers = <char*>(probabilities_of(prefix) + prefix.n)
        cdef Py_ssize_t i
        for i in range(self.n_matrices):
            numbers_change(self.matrices[i])
            memcpy(self.row_of(i, position), numbers, self.bytes_of_row(i))
            numbers += self.bytes_of_row(i)
        return 0

    cdef Prefix* add(self, Prefix* prefix, Py_ssize_t token, Py_ssize_t position, double* probs,
                     Py_ssize_t n) except? NULL:
        """Add the prefix with one more token, which was just computed; NULL: there is no room."""
        cdef Py_ssize_t i, size = sizeof(Prefix) + n * sizeof(double) + self.row_bytes
        cdef Prefix** place = &prefix.first
        cdef Prefix* added
        cdef char* numbers
        if 4 + n + self.row_numbers > self.numbers_left:
            return NULL
        for i in range(self.n_matrices):
            require_whole(self.matrices[i])
        added = <Prefix*>self.take_memory(size)
        added.first = added.next = NULL
        added.token, added.n = token, n
        memcpy(probabilities_of(added), probs, n * sizeof(double))
        numbers = <char*>(probabilities_of(added) + n)
        for i in range(self.n_matrices):
            memcpy(numbers, self.row_of(i, position), self.bytes_of_row(i))
            numbers += self.bytes_of_row(i)
        while place[0] is not NULL:
            place = &place[0].next
        place[0] = added
        self.numbers_left -= 4 + n + self.row_numbers
        return added

    cdef void* take_memory(self, Py_ssize_t size) except NULL:
        """Return room for so many bytes."""
        cdef PrefixChunk* chunk
        cdef Py_ssize_t n
        size = (size + 7) & ~7
        if size > self.bytes_left:
            n = max(size, PREFIX_CHUNK_BYTES)
            chunk = <PrefixChunk*>allocate(sizeof(PrefixChunk) + n)
            chunk.previous = self.chunks
            self.chunks = chunk
            self.memory, self.bytes_left = <char*>(chunk + 1), n
        self.memory += size
        self.bytes_left -= size
        return self.memory - size


def draw_tokens(Replay replay not None, cache, probs, end, stop, rng, top_k=None, top_p=None,
                Prefixes prefixes=None):
    """Return the tokens drawn one after another, each fed to a model to draw the next.

    replay: takes the list of one token and returns a Matrix whose last row `draw_token` draws
        from; it is called with the position as key.
    cache: its `length` is the position: how many tokens the model has seen.
    probs: a Matrix whose last row the first token is drawn from.
    end: the position to end at. stop: the token after which to end; it is in the list then.
    prefixes: what other documents that begin with the same tokens have computed.
    """
    cdef Py_ssize_t token, position, last = end, stopping = stop
    cdef Block* block = block_of((<Matrix?>probs).node)
    cdef Py_ssize_t n = block.cols
    cdef double* row = <double*>new_buffer(n * sizeof(double))  # which no Python can reach
    cdef Prefix* prefix = NULL if prefixes is None else &prefixes.start  # so far; NULL: not kept
    cdef Prefix* found
    cdef list tokens = []
    try:
        numbers_are_read()
        require_whole((<Matrix>probs).node)
        copy_last_row(row, block)
        if top_k is not None or top_p is not None:
            top_k, top_p = checks.draw_limits(top_k, top_p)
        random = None if rng is None else rng.random
        position = cache.length
        while True:
            token = choose(row, n, random, top_k, top_p)
            tokens.append(token)
            if token == stopping or position >= last:
                return tokens
            found = NULL
            if prefix is not NULL:
                prefixes.require_row(position)
                found = longer(prefix, token)
            if found is not NULL:
                prefixes.put_back(found, position)
                row = row_for(found.n, row, &n)
                memcpy(row, probabilities_of(found), n * sizeof(double))
            else:
                block = replay.step(position, token)
                if block is NULL:
                    cache.length = position
                    probs = replay.call(([token],), position)
                    replay.keep(position)
                    block = block_of((<Matrix?>probs).node)
                    require_whole((<Matrix>probs).node)
                row = row_for(block.cols, row, &n)
                copy_last_row(row, block)
                probs = None  # so that its graph can be replayed
                if prefix is not NULL:
                    found = prefixes.add(prefix, token, position, row, n)
            prefix = found
            position += 1
            cache.length = position
    finally:
        free_buffer(row, n * sizeof(double))


cdef double* row_for(Py_ssize_t wanted, double* row, Py_ssize_t* n) except NULL:
    """Return room for so many numbers: a row of n, or another one in its place."""
    cdef double* other
    if wanted == n[0]:
        return row
    other = <double*>new_buffer(wanted * sizeof(double))
    free_buffer(row, n[0] * sizeof(double))
    n[0] = wanted
    return other


cdef void copy_last_row(double* row, Block* block) noexcept:
    cdef Py_ssize_t i, n = block.cols, first = (block.rows - 1) * n
    if block.dtype == FLOAT64:
        memcpy(row, <double*>block.data + first, n * sizeof(double))
    else:
        for i in range(n):
            row[i] = number_at(block, first + i)
