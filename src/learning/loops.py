"""Convolution, batch normalisation and pooling as plain loops, which Numba compiles for the processor at hand.

Maps lie batch last, (C, H, W, N): the innermost loops run over a row's pixels of all images, one long vector however
few the channels are. Each thread has rows or channels of its own, and each sum one order, so that the number of threads
changes no result. Arrays are contiguous and of one floating-point type; each function writes into its last ones, which
for ReLU, dropout and the gradient of batch normalisation are also what it reads.
"""

import numba
import numpy as np
from numba import prange

BLOCK = 512  # values of a row that are computed together, as so many stay in the fastest cache
TAPS = 9  # values of a kernel that are used together; their number is a multiple of it

# The freedoms that vector registers need for sums. Not among them: to take no value for infinite or not a number.
compiled = numba.njit(parallel=True, cache=True, fastmath={"contract", "reassoc", "nsz"})


@numba.njit(inline="always")  # called, it would cost the smallest convolutions a sixth of their speed
def fields(flat, at):
    """What the next TAPS values of a kernel meet, for the places where they do."""
    first = flat[at[0] :], flat[at[1] :], flat[at[2] :]
    second = flat[at[3] :], flat[at[4] :], flat[at[5] :]
    return *first, *second, flat[at[6] :], flat[at[7] :], flat[at[8] :]


@compiled
def convolve(maps, kernels, places, made):
    """Convolve maps by kernels (D, T) into (D, H', W', N).

    Args:
        places: (groups, T), where in the flat maps a kernel's values meet the first pixel of the first image.
    """
    flat, next_row = maps.ravel(), maps.shape[2] * maps.shape[3]
    channels, height, width, count = made.shape
    rows = made.reshape(channels, height, width * count)
    of_group = channels // len(places)
    for y in prange(height):
        for start in range(0, width * count, BLOCK):
            size = min(BLOCK, width * count - start)
            for d in range(channels):
                row = rows[d, y, start:]
                for i in range(size):
                    row[i] = 0
            for group in range(len(places)):
                for tap in range(0, places.shape[1], TAPS):
                    a0, a1, a2, b0, b1, b2, c0, c1, c2 = fields(flat[y * next_row + start :], places[group, tap:])
                    for d in range(group * of_group, (group + 1) * of_group):
                        row, k = rows[d, y, start:], kernels[d, tap:]
                        k0, k1, k2, k3, k4, k5, k6, k7, k8 = k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7], k[8]
                        for i in range(size):
                            a = k0 * a0[i] + k1 * a1[i] + k2 * a2[i]
                            b = k3 * b0[i] + k4 * b1[i] + k5 * b2[i]
                            c = k6 * c0[i] + k7 * c1[i] + k8 * c2[i]
                            row[i] += a + b + c


@compiled
def kernel_gradient(maps, gradient, places, sums):
    """Add each row's share, (H', D, T), in the gradient of the kernels; given is that of what `convolve` made."""
    flat, next_row = maps.ravel(), maps.shape[2] * maps.shape[3]
    channels, height, width, count = gradient.shape
    rows = gradient.reshape(channels, height, width * count)
    of_group = channels // len(places)
    for y in prange(height):
        for start in range(0, width * count, BLOCK):
            size = min(BLOCK, width * count - start)
            for group in range(len(places)):
                for tap in range(0, places.shape[1], TAPS):
                    a0, a1, a2, b0, b1, b2, c0, c1, c2 = fields(flat[y * next_row + start :], places[group, tap:])
                    for d in range(group * of_group, (group + 1) * of_group):
                        row, k = rows[d, y, start:], sums[y, d, tap:]
                        k0 = k1 = k2 = k3 = k4 = k5 = k6 = k7 = k8 = maps.dtype.type(0)
                        for i in range(size):
                            slope = row[i]
                            k0 += slope * a0[i]
                            k1 += slope * a1[i]
                            k2 += slope * a2[i]
                            k3 += slope * b0[i]
                            k4 += slope * b1[i]
                            k5 += slope * b2[i]
                            k6 += slope * c0[i]
                            k7 += slope * c1[i]
                            k8 += slope * c2[i]
                        k[0] += k0
                        k[1] += k1
                        k[2] += k2
                        k[3] += k3
                        k[4] += k4
                        k[5] += k5
                        k[6] += k6
                        k[7] += k7
                        k[8] += k8


@compiled
def surround(maps, made):
    """Put zeros around maps, on every side as many as there is room for."""
    above, before = (made.shape[1] - maps.shape[1]) // 2, (made.shape[2] - maps.shape[2]) // 2 * maps.shape[3]
    rows, into = maps.reshape(len(maps), maps.shape[1], -1), made.reshape(len(made), made.shape[1], -1)
    for c in prange(len(made)):
        for y in range(made.shape[1]):
            row = into[c, y]
            for i in range(len(row)):
                row[i] = 0
        for y in range(maps.shape[1]):
            row, values = into[c, above + y, before:], rows[c, y]
            for i in range(len(values)):
                row[i] = values[i]


@compiled
def normalise(maps, weight, bias, eps, made, mean, variance):
    """Batch normalisation; mean and variance (C,) are the batch's own, of sums in double precision."""
    flat, into, number = maps.reshape(len(maps), -1), made.reshape(len(maps), -1), maps.dtype.type
    for c in prange(len(maps)):
        values, results = flat[c], into[c]
        total = squares = 0.0
        for start in range(0, len(values), BLOCK):
            part = number(0)
            for i in range(start, min(start + BLOCK, len(values))):
                part += values[i]
            total += part
        centre = number(total / len(values))
        for start in range(0, len(values), BLOCK):
            part = number(0)
            for i in range(start, min(start + BLOCK, len(values))):
                part += (values[i] - centre) ** 2
            squares += part
        mean[c], variance[c] = centre, squares / len(values)
        slope, shift = number(weight[c] / np.sqrt(squares / len(values) + eps)), bias[c]
        for i in range(len(values)):
            results[i] = slope * (values[i] - centre) + shift


@compiled
def normalise_gradient(maps, weight, mean, scale, gradient, weight_gradient, bias_gradient):
    """The gradients of `normalise`, that of the maps in place; the scale (C,) is one over the standard deviation."""
    flat, slopes, number = maps.reshape(len(maps), -1), gradient.reshape(len(maps), -1), maps.dtype.type
    for c in prange(len(maps)):
        values, slope, centre = flat[c], slopes[c], mean[c]
        total = products = 0.0
        for start in range(0, len(values), BLOCK):
            part, product = number(0), number(0)
            for i in range(start, min(start + BLOCK, len(values))):
                part += slope[i]
                product += slope[i] * (values[i] - centre)
            total += part
            products += product
        weight_gradient[c], bias_gradient[c] = products * scale[c], total
        steep, offset = weight[c] * scale[c], number(total / len(values))
        tilt = number(products * scale[c] ** 2 / len(values))
        for i in range(len(values)):
            slope[i] = steep * (slope[i] - offset - tilt * (values[i] - centre))


@compiled
def pool(maps, made, places):
    """The largest of each square of four, and which of them it was, int8."""
    for c in prange(len(made)):
        for y in range(made.shape[1]):
            for x in range(made.shape[2]):
                most, place = made[c, y, x], places[c, y, x]
                top, bottom = maps[c, 2 * y], maps[c, 2 * y + 1]
                a, b, d, e = top[2 * x], top[2 * x + 1], bottom[2 * x], bottom[2 * x + 1]
                for i in range(len(most)):
                    upper = a[i] if a[i] > b[i] or a[i] != a[i] else b[i]
                    lower = d[i] if d[i] > e[i] or d[i] != d[i] else e[i]
                    most[i] = upper if upper > lower or upper != upper else lower
                    place[i] = (0 if a[i] == upper else 1) if upper >= lower else (2 if d[i] == lower else 3)


@compiled
def pool_gradient(gradient, places, made):
    """The gradient of `pool`, which made these places."""
    for c in prange(len(gradient)):
        for y in range(gradient.shape[1]):
            for x in range(gradient.shape[2]):
                slope, place = gradient[c, y, x], places[c, y, x]
                for here in range(4):
                    change = made[c, 2 * y + here // 2, 2 * x + here % 2]
                    for i in range(len(slope)):
                        change[i] = slope[i] if place[i] == here else 0


@compiled
def rectify(maps):
    """A ReLU; what is not a number stays so."""
    flat = maps.ravel()
    for i in prange(len(flat)):
        flat[i] = 0 if flat[i] < 0 else flat[i]


@compiled
def rectify_gradient(results, gradient):
    """The gradient of `rectify`, whose results these were."""
    flat, slopes = results.ravel(), gradient.ravel()
    for i in prange(len(flat)):
        slopes[i] = 0 if flat[i] <= 0 else slopes[i]


@compiled
def drop(bits, threshold, scale, maps):
    """Zeros where the bits, int16 of as many values, are below the threshold, and the others scaled."""
    flat, number = maps.ravel(), maps.dtype.type
    for i in prange(len(flat)):
        flat[i] *= number(scale) if bits[i] >= threshold else number(0)  # what is not a number stays so
