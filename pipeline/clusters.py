"""The best clusters of sorted numbers: exact one-dimensional k-means.

In one dimension a cluster is an interval of the sorted values, and prefix sums give the squared error of any interval
at once. How the least error falls with the number of clusters is convex, as the cost of an interval has the Monge
property. So instead of the best k clusters one may ask for the best clusters at a price for each: if as many as k
come out, they are the best k (Grønlund et al. 2017, arXiv:1701.07204, section 3; there is no duality gap). At a given
price the programme has one row. Its choices are monotone, so each value keeps a queue of borders that will be best
further on (Galil and Park 1992, doi:10.1016/0304-3975(92)90135-3), and a row takes a few steps a value.

The price is near the loss of an optimal quantizer for that density (Panter and Dite 1951), and the number of clusters
goes about with its inverse third power. Between a price with too many clusters and one with too few, the price at
which both cost the same is tried next; so one to four rows find it. Where the number jumps over k, as it can for
values in a regular grid, the textbook's programme with k rows decides (`by_rows`; Wang and Song 2011,
doi:10.32614/RJ-2011-015), whose rows are filled by divide and conquer.

All that is compiled and calls one another is in this file, as numba's cache looks only at the file of the function
that is called: a callee elsewhere would go on as it was after a change.
"""

from __future__ import annotations

import numba
import numpy as np

compiled = numba.njit(nogil=True, cache=True)

KEYS = 1 << 16
"""Bit patterns of FP16."""

_SORTED = 1 << 14  # values of a group from which a histogram is faster than sorting
_SPACING = 8  # values from whose distance the density is estimated
_TRIES = 40  # prices tried


@compiled
def _sums(values, weights):
    """Prefix sums (n + 1,) of weight, weight x value and weight x value squared, about a middle value."""
    n = len(values)
    offset = values[n // 2]  # sums of squares about a middle value lose fewer digits
    mass, first, second = np.zeros(n + 1), np.zeros(n + 1), np.zeros(n + 1)
    for i in range(n):
        x = values[i] - offset
        mass[i + 1] = mass[i] + weights[i]
        first[i + 1] = first[i] + weights[i] * x
        second[i + 1] = second[i] + weights[i] * x * x
    return offset, mass, first, second


@compiled
def _centres(sums, borders):
    offset, mass, first, _ = sums
    centres = np.empty(len(borders) - 1)
    for k in range(len(centres)):
        start, stop = borders[k], borders[k + 1]
        centres[k] = offset + (first[stop] - first[start]) / (mass[stop] - mass[start])
    return centres


@compiled
def _price(values, mass, entries):
    """What the last of so many clusters is worth, about: the density's cube root integrated, cubed, / 6 k^3."""
    n = len(values)
    count = max((n - 1) // _SPACING, 1)
    total = 0.0
    for s in range(count):
        start, stop = s * (n - 1) // count, (s + 1) * (n - 1) // count
        width = values[stop] - values[start]
        total += np.cbrt((mass[stop] - mass[start]) * width * width)
    return (total / entries) ** 3 / 6


@compiled
def _from_where(lead, j, other, mass, first, low, beyond):
    """The first value from `low` on whose best last border is j rather than `other` < j; `beyond` if there is none.

    That is where least[j] + cost(j, value) < least[other] + cost(other, value); once so, it stays so. `lead` is what
    of it does not depend on the value. Nothing is divided: this is where the time goes.
    """
    mass_j, mass_o, first_j, first_o = mass[j], mass[other], first[j], first[other]
    below, at, step = low - 1, low, 1
    while at < beyond:
        mine, theirs, a, b = mass[at] - mass_j, mass[at] - mass_o, first[at] - first_j, first[at] - first_o
        if lead * mine * theirs < a * a * theirs - b * b * mine:
            break
        below, at, step = at, at + step, step * 2
    at = min(at, beyond)
    while at - below > 1:
        middle = (below + at) // 2
        mine, theirs = mass[middle] - mass_j, mass[middle] - mass_o
        a, b = first[middle] - first_j, first[middle] - first_o
        if lead * mine * theirs < a * a * theirs - b * b * mine:
            at = middle
        else:
            below = middle
    return at


@compiled
def _at_price(sums, price, gain, came, candidates, starts):
    """Fill `came` (n + 1,) with the border before each in the best clusters at a price for each; gives their number.

    `candidates[head:tail]` are borders, and `starts` the first value for which each is the best one before it;
    `gain` is the least cost of the values before a border less the sum of their squares.
    """
    _, mass, first, _ = sums
    n, head, tail = len(mass) - 1, 0, 1
    gain[0], candidates[0], starts[0] = 0.0, 0, 1
    for j in range(1, n + 1):
        while head + 1 < tail and starts[head + 1] <= j:
            head += 1
        i = candidates[head]
        part = first[j] - first[i]
        gain[j] = gain[i] - part * part / (mass[j] - mass[i]) + price
        came[j], start = i, j + 1
        while tail > head:
            other, low = candidates[tail - 1], max(starts[tail - 1], j + 1)
            start = _from_where(gain[j] - gain[other], j, other, mass, first, low, n + 1)
            if start > low:
                break
            tail -= 1
            start = j + 1
        if start <= n:
            candidates[tail], starts[tail] = j, start
            tail += 1
    count, j = 0, n
    while j > 0:
        count, j = count + 1, came[j]
    return count


@compiled
def by_price(values, weights, entries):
    """Centres (entries,) of the best clusters of rising `values` (n > entries) with positive `weights`."""
    sums, n = _sums(values, weights), len(values)
    gain, came = np.empty(n + 1), np.empty(n + 1, np.int64)
    candidates, starts = np.empty(n + 1, np.int64), np.empty(n + 1, np.int64)
    price, more, fewer = _price(values, sums[1], entries), 0, 0
    least = most = 0.0
    for _ in range(_TRIES):
        count = _at_price(sums, price, gain, came, candidates, starts)
        if count == entries:
            borders = np.empty(entries + 1, np.int64)
            borders[entries] = n
            for k in range(entries, 0, -1):
                borders[k - 1] = came[borders[k]]
            return _centres(sums, borders)
        if count in (more, fewer) and more and fewer:
            break  # both are the best at this price, and none between them is
        cost = gain[n] - price * count
        if count > entries:
            more, least = count, cost
            price *= ((count - 0.5) / entries) ** 3
        else:
            fewer, most = count, cost
            price *= ((count + 0.5) / entries) ** 3
        if more and fewer:
            price = (most - least) / (more - fewer)
    return by_rows(values, weights, entries)


@compiled
def by_rows(values, weights, entries):
    """The same by one row for each number of clusters, in O(k n log n)."""
    n = len(values)
    sums = _sums(values, weights)
    _, mass, first, second = sums
    best, row = np.empty(n + 1), np.empty(n + 1)
    best[0] = 0.0
    for j in range(1, n + 1):
        best[j] = second[j] - first[j] * first[j] / mass[j]
    cut = np.zeros((entries, n + 1), np.int32)
    stack = np.empty((64, 4), np.int64)
    for k in range(1, entries):
        # k + 1 clusters of the first j values, the last of which starts at cut[k, j]; k <= j as none is empty
        row[:] = np.inf
        stack[0] = (k + 1, n, k, n - 1)
        depth = 1
        while depth:
            depth -= 1
            low, high, left, right = stack[depth]
            j = (low + high) // 2
            found, at = np.inf, left
            for i in range(left, min(right, j - 1) + 1):
                total = first[j] - first[i]
                cost = best[i] + (second[j] - second[i]) - total * total / (mass[j] - mass[i])
                if cost < found:
                    found, at = cost, i
            row[j] = found
            cut[k, j] = at
            if low < j:
                stack[depth] = (low, j - 1, left, at)
                depth += 1
            if j < high:
                stack[depth] = (j + 1, high, at, right)
                depth += 1
        best, row = row, best
    borders = np.zeros(entries + 1, np.int64)
    borders[entries] = n
    for k in range(entries - 1, 0, -1):
        borders[k] = cut[k, borders[k + 1]]
    return _centres(sums, borders)


@compiled
def _key(bits):
    if bits == 0x8000:  # minus zero is zero
        bits = 0
    return 0xFFFF - bits if bits & 0x8000 else bits | 0x8000


@compiled
def add(histogram, bits, importance):
    """Add the importance of each column to `histogram` (keys,) wherever its FP16 numbers (rows, columns) lie."""
    for row in range(bits.shape[0]):
        for column in range(bits.shape[1]):
            histogram[_key(np.int64(bits[row, column]))] += importance[column]


@compiled
def _sort(keys, weights, more_keys, more_weights):
    """Sort keys with their weights by one byte after the other; equal keys keep their order."""
    for shift in (0, 8):
        places = np.zeros(257, np.int64)
        for key in keys:
            places[((key >> shift) & 0xFF) + 1] += 1
        places = np.cumsum(places)
        for i in range(len(keys)):
            digit = (keys[i] >> shift) & 0xFF
            more_keys[places[digit]], more_weights[places[digit]] = keys[i], weights[i]
            places[digit] += 1
        keys, more_keys = more_keys, keys
        weights, more_weights = more_weights, weights


@compiled
def _sorted(bits, importance, every_value):
    """The distinct values of a group (rows, columns), rising, and the importance of each."""
    size = bits.size
    keys, weights = np.empty(size, np.uint16), np.empty(size)
    i = 0
    for row in range(bits.shape[0]):
        for column in range(bits.shape[1]):
            keys[i], weights[i] = _key(np.int64(bits[row, column])), importance[column]
            i += 1
    _sort(keys, weights, np.empty(size, np.uint16), np.empty(size))
    values, count = np.empty(size), 0
    for i in range(size):
        if i and keys[i] == keys[i - 1]:
            weights[count - 1] += weights[i]
            continue
        values[count], weights[count] = every_value[keys[i]], weights[i]
        count += 1
    return values[:count], weights[:count]


@compiled
def distinct(histogram, every_value):
    """The values that a histogram has counted, rising, and the importance of each."""
    present = np.flatnonzero(histogram)
    return every_value[present], histogram[present]


@compiled
def solve(values, weights, entries):
    """The best table (entries,) for distinct values, rising; where they are too few, the largest fills the rest."""
    if len(values) <= entries:  # every value has an entry of its own
        table = np.empty(entries)
        for i in range(entries):
            table[i] = values[min(i, len(values) - 1)]
        return table
    return by_price(values, weights, entries)


@compiled
def fill_tables(groups, importance, every_value, entries, tables):
    """Set `tables` (groups, entries) to the best for FP16 numbers (groups, rows, columns)."""
    for number in range(groups.shape[0]):
        if groups[number].size < _SORTED:
            values, weights = _sorted(groups[number], importance, every_value)
        else:
            histogram = np.zeros(KEYS)
            add(histogram, groups[number], importance)
            values, weights = distinct(histogram, every_value)
        tables[number] = solve(values, weights, entries)


@compiled
def assign_groups(groups, every_value, tables, indices):
    """The nearest entry of a rising table for each value, looked up by its key."""
    of_key = np.empty(KEYS, np.uint8)  # not-a-numbers at both ends get some entry, and are never asked for
    for number in range(groups.shape[0]):
        table, start = tables[number], 0
        for entry in range(len(table)):
            stop = KEYS
            if entry + 1 < len(table):
                stop = np.searchsorted(every_value, (table[entry] + table[entry + 1]) / 2, side="right")
            of_key[start:stop] = entry
            start = max(start, stop)
        for row in range(groups.shape[1]):
            for column in range(groups.shape[2]):
                indices[number, row, column] = of_key[_key(np.int64(groups[number, row, column]))]
