"""The best clusters of sorted numbers: exact one-dimensional k-means.

In one dimension a cluster is an interval of the sorted values, and prefix sums give the squared error of any interval
at once. How the least error falls with the number of clusters is convex, as the cost of an interval has the Monge
property. So instead of the best k clusters one may ask for the best clusters at a price for each: if as many as k
come out, they are the best k (Grønlund et al. 2017, arXiv:1701.07204, section 3; there is no duality gap). At a given
price the programme has one row. Its choices are monotone, so each value keeps a queue of borders that will be best
further on (Galil and Park 1992, doi:10.1016/0304-3975(92)90135-3), and a row takes a few steps a value.

The price is near the loss of an optimal quantizer for that density (Panter and Dite 1951), and the number of clusters
goes about with its inverse third power, so one to four rows find it. Where the number jumps over k, as it can for
values in a regular grid, the textbook's programme with k rows decides (`by_rows`; Wang and Song 2011,
doi:10.32614/RJ-2011-015), whose rows are filled by divide and conquer.
"""

from __future__ import annotations

import numba
import numpy as np

compiled = numba.njit(nogil=True, cache=True)

_SPACING = 8  # values from whose distance the density is estimated
_TRIES = 40  # prices tried; halving a bracket that often leaves nothing of it


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
    price, low, high = _price(values, sums[1], entries), 0.0, np.inf
    for _ in range(_TRIES):
        count = _at_price(sums, price, gain, came, candidates, starts)
        if count == entries:
            borders = np.empty(entries + 1, np.int64)
            borders[entries] = n
            for k in range(entries, 0, -1):
                borders[k - 1] = came[borders[k]]
            return _centres(sums, borders)
        if count > entries:
            low = price
        else:
            high = price
        price *= (count / entries) ** 3
        if not low < price < high:
            price = low * 2 if high == np.inf else (low + high) / 2
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
