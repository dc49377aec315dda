"""Where the nodes of a layered graph stand: ranks, order within a rank, coordinates.

The steps are those of Sugiyama, Tagawa and Toda 1981. Ranks are longest paths to the root, the
order comes from medians and swaps (Gansner, Koutsofios, North and Vo 1993), the coordinates are
those of Brandes and Köpf 2001, whose long edges are straight. An edge over several ranks has a
point of its own in each rank between.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, inf

_SWEEPS = 24  # over all ranks; more rarely find a better order


@dataclass(frozen=True)
class Layout:
    """The places of nodes and edges.

    ranks: for each rank, the root's being 0, its nodes in order.
    across: for each node, its coordinate within the rank; the least border of a node is 0.
    routes: for each edge, its coordinates in the ranks between its ends, from the child on.
    """

    ranks: list[list[int]]
    across: list[float]
    routes: list[list[float]]


def layered(inputs: Sequence[Sequence[int]], breadths: Sequence[float], gap: float) -> Layout:
    """Return a layout of the graph below node 0, in which children stand on later ranks.

    inputs: for each node the nodes that it is computed from, all below node 0 and without cycles.
    breadths: the size of each node within its rank. gap: the distance of two neighbours.
    The edges are those from inputs[0] to node 0, inputs[1] to node 1, and so on.
    """
    rank = ranks_of(inputs)
    ranks: list[list[int]] = [[] for _ in range(max(rank) + 1)]
    for node in _depth_first(inputs):
        ranks[rank[node]].append(node)
    n, sizes = len(inputs), list(breadths)
    children: list[list[int]] = [[] for _ in range(n)]  # on the next rank: nodes or points of edges
    bends: list[list[int]] = []
    for node, below in enumerate(inputs):
        places: dict[int, list[int]] = {}
        for child in below:
            if child not in places:  # an edge that is there twice has one way
                between = rank[child] - rank[node] - 1
                places[child] = list(range(len(children), len(children) + between))
                children += [[] for _ in places[child]]
                sizes += [0.0 for _ in places[child]]
                way = [node, *places[child], child]
                for i, (upper, lower) in enumerate(pairwise(way)):
                    children[upper].append(lower)
                    if lower != child:
                        ranks[rank[node] + i + 1].append(lower)
            bends.append(places[child])
    parents: list[list[int]] = [[] for _ in children]
    for node, below in enumerate(children):
        for child in below:
            parents[child].append(node)
    ranks = _ordered(ranks, parents, children)
    across = _coordinates(ranks, parents, children, n, sizes, gap)
    least = min(across[node] - sizes[node] / 2 for node in range(n))
    across = [x - least for x in across]
    routes = [[across[point] for point in reversed(way)] for way in bends]
    return Layout([[v for v in nodes if v < n] for nodes in ranks], across[:n], routes)


def ranks_of(inputs: Sequence[Sequence[int]]) -> list[int]:
    """Return for each node the number of edges on the longest way from it to node 0."""
    waiting = [0] * len(inputs)
    for below in inputs:
        for child in below:
            waiting[child] += 1
    rank, ready = [0] * len(inputs), [0]
    while ready:
        node = ready.pop()
        for child in inputs[node]:
            rank[child] = max(rank[child], rank[node] + 1)
            waiting[child] -= 1
            if not waiting[child]:
                ready.append(child)
    return rank


def _depth_first(inputs: Sequence[Sequence[int]]) -> list[int]:
    order, seen, stack = [], set(), [0]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            order.append(node)
            stack += reversed(inputs[node])
    return order


Links = Sequence[Sequence[int]]


def _ordered(ranks: list[list[int]], parents: Links, children: Links) -> list[list[int]]:
    """Return the ranks in the order with the fewest crossings that the sweeps have seen."""
    place = {node: i for nodes in ranks for i, node in enumerate(nodes)}
    best, least = [list(nodes) for nodes in ranks], _all_crossings(ranks, children, place)
    for sweep in range(_SWEEPS):
        if not least:
            break
        down = sweep % 2 == 0
        others = parents if down else children
        for nodes in ranks[1:] if down else ranks[-2::-1]:
            keys = {node: _median([place[v] for v in others[node]], place[node]) for node in nodes}
            nodes.sort(key=keys.__getitem__)
            place.update((node, i) for i, node in enumerate(nodes))
        _swap(ranks, parents, children, place)
        crossings = _all_crossings(ranks, children, place)
        if crossings < least:
            best, least = [list(nodes) for nodes in ranks], crossings
    return best


def _median(places: list[int], own: float) -> float:
    """Return the median of the places of neighbours, of an even number the weighted one."""
    places.sort()
    n, middle = len(places), len(places) // 2
    if n == 0:
        return own
    if n % 2 or n == 2:
        return (places[middle] + places[(n - 1) // 2]) / 2
    left, right = places[middle - 1] - places[0], places[-1] - places[middle]
    if not left + right:
        return (places[middle - 1] + places[middle]) / 2
    return (places[middle - 1] * right + places[middle] * left) / (left + right)


def _swap(ranks: list[list[int]], parents: Links, children: Links, place: dict[int, int]) -> None:
    """Swap neighbours within a rank as long as that takes crossings away."""
    better = True
    while better:
        better = False
        for nodes in ranks:
            for i in range(len(nodes) - 1):
                v, w = nodes[i : i + 2]
                gain = 0
                for links in (parents, children):
                    a, b = [place[x] for x in links[v]], [place[x] for x in links[w]]
                    gain += sum((x > y) - (x < y) for x in a for y in b)
                if gain > 0:
                    nodes[i], nodes[i + 1] = w, v
                    place[v], place[w] = i + 1, i
                    better = True


def _all_crossings(ranks: list[list[int]], children: Links, place: dict[int, int]) -> int:
    crossings = 0
    for nodes in ranks:
        seen: list[int] = []
        for node in nodes:
            ends = sorted(place[child] for child in children[node])
            crossings += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return crossings


def _coordinates(
    ranks: list[list[int]], parents: Links, children: Links, n: int, sizes: list[float], gap: float
) -> list[float]:
    """Return the mean of the middle two of four layouts, each aligned to one side and one end.

    A leaf beside inner nodes does not bend the lines on which these stand: it is moved near later.
    """
    beside = {
        node: parents[node][0] for node in range(n)
        if not children[node] and len(parents[node]) == 1
        and any(children[other] for other in children[parents[node][0]])
    }  # fmt: skip
    upward = [[] if node in beside else links for node, links in enumerate(parents)]
    downward = [[v for v in links if v not in beside] for links in children]
    conflicts = _conflicts(ranks, parents, n)
    layouts = []
    for links, way in ((upward, ranks), (downward, ranks[::-1])):
        for sign in (1, -1):
            layers = [nodes[::sign] for nodes in way]
            root = _aligned(layers, links, conflicts)
            layouts.append([sign * x for x in _compacted(layers, root, sizes, gap)])
    spans = [
        (min(x - s / 2 for x, s in zip(xs, sizes, strict=True)),
         max(x + s / 2 for x, s in zip(xs, sizes, strict=True)))
        for xs in layouts
    ]  # fmt: skip
    first, last = min(spans, key=lambda span: span[1] - span[0])
    for i, xs in enumerate(layouts):
        shift = first - spans[i][0] if i % 2 == 0 else last - spans[i][1]
        layouts[i] = [x + shift for x in xs]
    middle = [sorted(xs)[1:3] for xs in zip(*layouts, strict=True)]
    across = [(a + b) / 2 for a, b in middle]
    for nodes in (*ranks, *(nodes[::-1] for nodes in ranks)):
        for i, node in enumerate(nodes):
            if node in beside:
                near = [nodes[k] for k in (i - 1, i + 1) if 0 <= k < len(nodes)]
                _approach(node, across[beside[node]], near, across, sizes, gap)
    return across


def _approach(
    node: int, wish: float, near: list[int], across: list[float], sizes: list[float], gap: float
) -> None:
    """Move a node to its wish, as far as its neighbours let it."""
    for other in near:
        distance = (sizes[node] + sizes[other]) / 2 + gap
        if across[other] < across[node]:
            wish = max(wish, across[other] + distance)
        else:
            wish = min(wish, across[other] - distance)
    across[node] = wish


def _conflicts(ranks: list[list[int]], parents: Links, n: int) -> set[tuple[int, int]]:
    """Return the edges that cross the inside of a long one, which is to be straight."""
    found = set()
    for above, nodes in pairwise(ranks):
        place = {node: i for i, node in enumerate(above)}
        left, scanned = 0, 0
        for i, node in enumerate(nodes):
            inner = next((p for p in parents[node] if node >= n and p >= n), None)
            if inner is None and i + 1 < len(nodes):
                continue
            right = len(above) if inner is None else place[inner]
            for v in nodes[scanned : i + 1]:
                for p in parents[v]:
                    if not left <= place[p] <= right and not (v >= n and p >= n):
                        found.add((p, v))
            left, scanned = right, i + 1
    return found


def _aligned(layers: list[list[int]], links: Links, conflicts: set[tuple[int, int]]) -> list[int]:
    """Return for each node the first one of the straight line on which it stands."""
    place = {node: i for nodes in layers for i, node in enumerate(nodes)}
    root = list(range(len(links)))
    taken: set[int] = set()
    for nodes in layers:
        last = -1
        for v in nodes:
            neighbours = sorted(links[v], key=place.__getitem__)
            middle = (len(neighbours) - 1) / 2
            for w in neighbours[floor(middle) : ceil(middle) + 1] if neighbours else ():
                free = root[v] == v and w not in taken and last < place[w]
                if free and (v, w) not in conflicts and (w, v) not in conflicts:
                    taken.add(w)
                    root[v], last = root[w], place[w]
    return root


def _compacted(
    layers: list[list[int]], root: list[int], sizes: list[float], gap: float
) -> list[float]:
    """Return coordinates that are as small as the order allows, then as large as nothing moves."""
    after: dict[int, dict[int, float]] = {}  # line -> the next lines, with their distances
    for nodes in layers:
        for v in nodes:
            after.setdefault(root[v], {})
        for v, w in pairwise(nodes):
            distance = (sizes[v] + sizes[w]) / 2 + gap
            nexts = after[root[v]]
            nexts[root[w]] = max(nexts.get(root[w], 0.0), distance)
    waiting = dict.fromkeys(after, 0)
    for nexts in after.values():
        for line in nexts:
            waiting[line] += 1
    order, x = [line for line in after if not waiting[line]], dict.fromkeys(after, 0.0)
    for line in order:
        for other, distance in after[line].items():
            x[other] = max(x[other], x[line] + distance)
            waiting[other] -= 1
            if not waiting[other]:
                order.append(other)
    for line in reversed(order):
        limit = min((x[other] - distance for other, distance in after[line].items()), default=inf)
        if limit != inf:
            x[line] = max(x[line], limit)
    return [x[line] for line in root]
