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
            for group in range(len(places)):
                for tap in range(0, places.shape[1], TAPS):
                    a0, a1, a2, b0, b1, b2, c0, c1, c2 = fields(flat[y * next_row + start :], places[group, tap:])
                    for d in range(group * of_group, (group + 1) * of_group):
                        row, k = rows[d, y, start:], kernels[d, tap:]
                        k0, k1, k2, k3, k4, k5, k6, k7, k8 = k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7], k[8]
                        if tap == 0:  # chosen inside the loop, a training step would take some 3 % longer
                            for i in range(size):
                                a = k0 * a0[i] + k1 * a1[i] + k2 * a2[i]
                                b = k3 * b0[i] + k4 * b1[i] + k5 * b2[i]
                                c = k6 * c0[i] + k7 * c1[i] + k8 * c2[i]
                                row[i] = a + b + c
                        else:
                            for i in range(size):
                                a = k0 * a0[i] + k1 * a1[i] + k2 * a2[i]
                                b = k3 * b0[i] + k4 * b1[i] + k5 * b2[i]
                                c = k6 * c0[i] + k7 * c1[i] + k8 * c2[i]
                                row[i] += a + b + c


@compiled
def kernel_gradient(maps, gradient, places, sums, own):
    """The kernels' own gradient, (D, I * h * w), given that of what `convolve` made; sums (H', D, T) are each row's."""
    flat, next_row = maps.ravel(), maps.shape[2] * maps.shape[3]
    channels, height, width, count = gradient.shape
    rows = gradient.reshape(channels, height, width * count)
    of_group = channels // len(places)
    for y in prange(height):
        for d in range(channels):
            row = sums[y, d]
            for tap in range(len(row)):
                row[tap] = 0
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
    for d in range(channels):
        whole = own[d]
        for tap in range(len(whole)):
            whole[tap] = sums[0, d, tap]
        for y in range(1, height):
            row = sums[y, d]
            for tap in range(len(whole)):
                whole[tap] += row[tap]


@compiled
def surround(maps, made):
    """Put zeros around maps, on every side as many as there is room for."""
    channels, height, width, count = maps.shape
    above, before = (made.shape[1] - height) // 2, (made.shape[2] - width) // 2 * count
    rows, into = maps.reshape(channels, height, width * count), made.reshape(channels, made.shape[1], -1)
    for y in prange(made.shape[1]):
        inside = above <= y < above + height
        for c in range(channels):
            row = into[c, y]
            for i in range(before if inside else len(row)):
                row[i] = 0
            if inside:
                values, middle, after = rows[c, y - above], row[before:], row[before + width * count :]
                for i in range(len(values)):
                    middle[i] = values[i]
                for i in range(len(after)):
                    after[i] = 0


@compiled
def normalise(maps, weight, bias, eps, momentum, rectifies, running_mean, running_variance, made, mean, scale):
    """Batch normalisation, and a ReLU if it `rectifies`; the scale (C,) is one over the batch's standard deviation.

    Sums are in double precision, of blocks in the maps' own.
    """
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
        variance = squares / len(values)
        mean[c], scale[c] = centre, 1 / np.sqrt(variance + eps)
        running_mean[c] += momentum * (centre - running_mean[c])
        running_variance[c] += momentum * (squares / (len(values) - 1) - running_variance[c])
        slope, shift = weight[c] * scale[c], bias[c]
        for i in range(len(values)):
            result = slope * (values[i] - centre) + shift
            results[i] = 0 if rectifies and result < 0 else result  # what is not a number stays so


@compiled
def normalise_gradient(maps, results, rectifies, weight, mean, scale, gradient, weight_gradient, bias_gradient):
    """The gradients of `normalise`, whose results these were; that of the maps in place."""
    flat, slopes, number = maps.reshape(len(maps), -1), gradient.reshape(len(maps), -1), maps.dtype.type
    made = results.reshape(len(maps), -1)
    for c in prange(len(maps)):
        values, result, slope, centre = flat[c], made[c], slopes[c], mean[c]
        if rectifies:
            for i in range(len(values)):
                slope[i] = 0 if result[i] <= 0 else slope[i]
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
    for y in prange(made.shape[1]):
        for c in range(made.shape[0]):
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
    for y in prange(gradient.shape[1]):
        for c in range(gradient.shape[0]):
            for x in range(gradient.shape[2]):
                slope, place = gradient[c, y, x], places[c, y, x]
                for here in range(4):
                    change = made[c, 2 * y + here // 2, 2 * x + here % 2]
                    for i in range(len(slope)):
                        change[i] = slope[i] if place[i] == here else 0


@compiled
def rectify(maps):
    """A ReLU; what is not a number stays so."""
    rows = maps.reshape(maps.shape[0], maps.shape[1], -1)
    for y in prange(rows.shape[1]):
        for c in range(len(rows)):
            values = rows[c, y]
            for i in range(len(values)):
                values[i] = 0 if values[i] < 0 else values[i]


@compiled
def rectify_gradient(results, gradient):
    """The gradient of `rectify`, whose results these were."""
    made = results.reshape(results.shape[0], results.shape[1], -1)
    slopes = gradient.reshape(made.shape)
    for y in prange(made.shape[1]):
        for c in range(len(made)):
            values, slope = made[c, y], slopes[c, y]
            for i in range(len(values)):
                slope[i] = 0 if values[i] <= 0 else slope[i]


@compiled
def drop(bits, threshold, scale, maps):
    """Zeros where the bits, int16 (C, H, W * N), are below the threshold, and the others scaled."""
    rows, number = maps.reshape(maps.shape[0], maps.shape[1], -1), maps.dtype.type
    for y in prange(rows.shape[1]):
        for c in range(len(rows)):
            values, chances = rows[c, y], bits[c, y]
            for i in range(len(values)):
                values[i] *= number(scale) if chances[i] >= threshold else number(0)  # what is not a number stays so
