# Drawing tokens from what a model says. Part of _core.pyx.

cdef Py_ssize_t choose(double* probs, Py_ssize_t n, object random, object top_k,
                       object top_p) except -1:
    """Return what `draw_token` does; random: the method of the generator, or None.

    probs: they become their own running sums. random may run any Python, so they are kept by the
        caller, and no Python can reach them.
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


cdef int keep_likely(double* probs, Py_ssize_t n, Py_ssize_t limit, object top_p) except -1:
    """Set to 0 all but the `limit` largest, and of these all that top_p leaves out."""
    cdef double total = 0.0, part = 1.0 if top_p is None else top_p, sum = 0.0
    cdef Py_ssize_t i, n_kept = limit
    cdef Py_ssize_t* likely = <Py_ssize_t*>allocate(n * sizeof(Py_ssize_t))
    sort_by_probability(likely, probs, n)
    if top_p is not None:
        for i in range(limit):
            total += probs[likely[i]]
        n_kept = 1
        for i in range(limit):
            sum += probs[likely[i]]
            n_kept += sum < part * total
        n_kept = min(n_kept, limit)
    for i in range(n_kept, n):
        probs[likely[i]] = 0.0
    PyMem_RawFree(likely)
    return 0


cdef void sort_by_probability(Py_ssize_t* indices, double* probs, Py_ssize_t n) noexcept:
    """List 0 to n - 1, the largest probability first; equal ones in the order of the indices."""
    cdef Py_ssize_t i, low, high, middle
    for i in range(n):
        low, high = 0, i
        while low < high:
            middle = (low + high) // 2
            if probs[indices[middle]] < probs[i]:
                high = middle
            else:
                low = middle + 1
        memmove(indices + low + 1, indices + low, (i - low) * sizeof(Py_ssize_t))
        indices[low] = i


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


def draw_tokens(Replay replay not None, cache, probs, end, stop, rng, top_k=None, top_p=None):
    """Return the tokens drawn one after another, each fed to a model to draw the next.

    replay: takes the list of one token and returns a Matrix whose last row `draw_token` draws
        from; it is called with the position as key.
    cache: its `length` is the position: how many tokens the model has seen.
    probs: a Matrix whose last row the first token is drawn from.
    end: the position to end at. stop: the token after which to end; it is in the list then.
    """
    cdef Py_ssize_t token, position, last = end, stopping = stop
    cdef Block* block = block_of((<Matrix?>probs).node)
    cdef Py_ssize_t n = block.cols
    cdef double* row = <double*>new_buffer(n * sizeof(double))  # which no Python can reach
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
            block = replay.step(position, token)
            if block is NULL:
                cache.length = position
                probs = replay.call(([token],), position)
                replay.keep(position)
                block = block_of((<Matrix?>probs).node)
                require_whole((<Matrix>probs).node)
            if block.cols != n:
                free_buffer(row, n * sizeof(double))
                row, n = NULL, block.cols
                row = <double*>new_buffer(n * sizeof(double))
            copy_last_row(row, block)
            probs = None  # so that its graph can be replayed
            position += 1
            cache.length = position
    finally:
        free_buffer(row, n * sizeof(double))


cdef void copy_last_row(double* row, Block* block) noexcept:
    cdef Py_ssize_t i, n = block.cols, first = (block.rows - 1) * n
    if block.dtype == FLOAT64:
        memcpy(row, <double*>block.data + first, n * sizeof(double))
    else:
        for i in range(n):
            row[i] = number_at(block, first + i)
