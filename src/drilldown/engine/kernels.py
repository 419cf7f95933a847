"""Forward and backward passes of small convolutional layers, as loops that Numba compiles for the processor.

Layout: arrays are contiguous and CHWN, (channels, height, width, batch). The innermost loops run over one row of all
images, which is a long vector however few channels there are. All floating-point arrays of a call have one dtype.

Threads: each thread computes whole rows or whole channels, and each sum has one order. The number of threads changes
no result.

Output: a kernel writes into its last arguments. ReLU, dropout and the gradients that are named `grad` work in place.
"""

import numba
import numpy as np
from numba import prange

BLOCK = 512  # values of a row that are computed together: this many stay in the first-level cache
TAP_GROUP = 9  # taps (weights of one output channel) that one loop applies; arrays of taps are padded to a multiple

# Vectorized sums need "reassoc". NaN and infinity keep their meaning, as "nnan" and "ninf" are not in the set.
kernel = numba.njit(parallel=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
inline = numba.njit(inline="always")  # a call would cost the smallest layers a sixth of their speed


@inline
def tap_views(x_flat: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return one view of the flat input for each tap of a group, starting where the tap reads its first value."""
    first = x_flat[offsets[0] :], x_flat[offsets[1] :], x_flat[offsets[2] :]
    second = x_flat[offsets[3] :], x_flat[offsets[4] :], x_flat[offsets[5] :]
    return *first, *second, x_flat[offsets[6] :], x_flat[offsets[7] :], x_flat[offsets[8] :]


@kernel
def conv(x: np.ndarray, weight: np.ndarray, tap_offsets: np.ndarray, out: np.ndarray) -> None:
    """Compute a convolution with stride 1 and without padding.

    Args:
        x: (C, H, W, N).
        weight: (D, T), the taps of each output channel. T is a multiple of TAP_GROUP; extra taps are zero.
        tap_offsets: (groups, T), the index in the flat x that a tap reads for the first output pixel.
        out: (D, H', W', N).
    """
    x_flat, x_row_size = x.ravel(), x.shape[2] * x.shape[3]
    channels, height, width, batch = out.shape
    out_rows = out.reshape(channels, height, width * batch)
    group_size = channels // len(tap_offsets)
    for y in prange(height):
        for start in range(0, width * batch, BLOCK):
            size = min(BLOCK, width * batch - start)
            for group in range(len(tap_offsets)):
                for tap in range(0, tap_offsets.shape[1], TAP_GROUP):
                    a0, a1, a2, b0, b1, b2, c0, c1, c2 = tap_views(
                        x_flat[y * x_row_size + start :], tap_offsets[group, tap:]
                    )
                    for d in range(group * group_size, (group + 1) * group_size):
                        row, w = out_rows[d, y, start:], weight[d, tap:]
                        w0, w1, w2, w3, w4, w5, w6, w7, w8 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8]
                        if tap == 0:  # two loops: a condition inside one loop makes a training step 3 % slower
                            for i in range(size):
                                a = w0 * a0[i] + w1 * a1[i] + w2 * a2[i]
                                b = w3 * b0[i] + w4 * b1[i] + w5 * b2[i]
                                c = w6 * c0[i] + w7 * c1[i] + w8 * c2[i]
                                row[i] = a + b + c
                        else:
                            for i in range(size):
                                a = w0 * a0[i] + w1 * a1[i] + w2 * a2[i]
                                b = w3 * b0[i] + w4 * b1[i] + w5 * b2[i]
                                c = w6 * c0[i] + w7 * c1[i] + w8 * c2[i]
                                row[i] += a + b + c


@kernel
def conv_weight_grad(
    x: np.ndarray, grad_out: np.ndarray, tap_offsets: np.ndarray, row_sums: np.ndarray, grad_weight: np.ndarray
) -> None:
    """Compute the gradient of the weight of `conv`.

    Args:
        x: (C, H, W, N), the input of `conv`.
        grad_out: (D, H', W', N).
        tap_offsets: (groups, T), as in `conv`.
        row_sums: (H', D, T), a buffer for the sums of each output row.
        grad_weight: (D, taps), without the extra taps.
    """
    x_flat, x_row_size = x.ravel(), x.shape[2] * x.shape[3]
    channels, height, width, batch = grad_out.shape
    grad_rows = grad_out.reshape(channels, height, width * batch)
    group_size = channels // len(tap_offsets)
    for y in prange(height):
        for d in range(channels):
            row_sum = row_sums[y, d]
            for tap in range(len(row_sum)):
                row_sum[tap] = 0
        for start in range(0, width * batch, BLOCK):
            size = min(BLOCK, width * batch - start)
            for group in range(len(tap_offsets)):
                for tap in range(0, tap_offsets.shape[1], TAP_GROUP):
                    a0, a1, a2, b0, b1, b2, c0, c1, c2 = tap_views(
                        x_flat[y * x_row_size + start :], tap_offsets[group, tap:]
                    )
                    for d in range(group * group_size, (group + 1) * group_size):
                        grad_row, sums = grad_rows[d, y, start:], row_sums[y, d, tap:]
                        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = x.dtype.type(0)
                        for i in range(size):
                            grad = grad_row[i]
                            s0 += grad * a0[i]
                            s1 += grad * a1[i]
                            s2 += grad * a2[i]
                            s3 += grad * b0[i]
                            s4 += grad * b1[i]
                            s5 += grad * b2[i]
                            s6 += grad * c0[i]
                            s7 += grad * c1[i]
                            s8 += grad * c2[i]
                        sums[0] += s0
                        sums[1] += s1
                        sums[2] += s2
                        sums[3] += s3
                        sums[4] += s4
                        sums[5] += s5
                        sums[6] += s6
                        sums[7] += s7
                        sums[8] += s8
    for d in range(channels):
        total = grad_weight[d]
        for tap in range(len(total)):
            total[tap] = row_sums[0, d, tap]
        for y in range(1, height):
            row_sum = row_sums[y, d]
            for tap in range(len(total)):
                total[tap] += row_sum[tap]


@kernel
def pad(x: np.ndarray, out: np.ndarray) -> None:
    """Copy x (C, H, W, N) into the middle of out (C, H + 2 p, W + 2 q, N) and fill the border with zeros."""
    channels, height, width, batch = x.shape
    top, left = (out.shape[1] - height) // 2, (out.shape[2] - width) // 2 * batch
    x_rows, out_rows = x.reshape(channels, height, width * batch), out.reshape(channels, out.shape[1], -1)
    for y in prange(out.shape[1]):
        inside = top <= y < top + height
        for c in range(channels):
            row = out_rows[c, y]
            for i in range(left if inside else len(row)):
                row[i] = 0
            if inside:
                values, middle, right = x_rows[c, y - top], row[left:], row[left + width * batch :]
                for i in range(len(values)):
                    middle[i] = values[i]
                for i in range(len(right)):
                    right[i] = 0


@kernel
def batch_norm(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    eps: float,
    momentum: float,
    relu: bool,
    running_mean: np.ndarray,
    running_var: np.ndarray,
    out: np.ndarray,
    mean: np.ndarray,
    inv_std: np.ndarray,
) -> None:
    """Compute batch normalization in training mode, followed by a ReLU if `relu`, and update the running statistics.

    Sums are in the dtype of x within a block and in float64 over the blocks.

    Args:
        x, out: (C, H, W, N).
        weight, bias, running_mean, running_var: (C,).
        mean, inv_std: (C,), of this batch; inv_std = 1 / sqrt(var + eps).
    """
    x_flat, out_flat, dtype = x.reshape(len(x), -1), out.reshape(len(x), -1), x.dtype.type
    for c in prange(len(x)):
        values, results = x_flat[c], out_flat[c]
        total = squares = 0.0
        for start in range(0, len(values), BLOCK):
            block_sum = dtype(0)
            for i in range(start, min(start + BLOCK, len(values))):
                block_sum += values[i]
            total += block_sum
        center = dtype(total / len(values))
        for start in range(0, len(values), BLOCK):
            block_sum = dtype(0)
            for i in range(start, min(start + BLOCK, len(values))):
                block_sum += (values[i] - center) ** 2
            squares += block_sum
        var = squares / len(values)
        mean[c], inv_std[c] = center, 1 / np.sqrt(var + eps)
        running_mean[c] += momentum * (center - running_mean[c])
        running_var[c] += momentum * (squares / (len(values) - 1) - running_var[c])
        scale, shift = weight[c] * inv_std[c], bias[c]
        for i in range(len(values)):
            result = scale * (values[i] - center) + shift
            results[i] = 0 if relu and result < 0 else result  # NaN stays NaN


@kernel
def batch_norm_grad(
    x: np.ndarray,
    out: np.ndarray,
    relu: bool,
    weight: np.ndarray,
    mean: np.ndarray,
    inv_std: np.ndarray,
    grad: np.ndarray,
    grad_weight: np.ndarray,
    grad_bias: np.ndarray,
) -> None:
    """Compute the gradients of `batch_norm`: grad holds that of out before the call and that of x afterwards.

    With g = grad of the normalized values (after the ReLU's part) and m = mean over a channel's values:
    grad_x = weight * inv_std * (g - m(g) - inv_std² * m(g * (x - mean)) * (x - mean)).
    """
    x_flat, grad_flat, dtype = x.reshape(len(x), -1), grad.reshape(len(x), -1), x.dtype.type
    out_flat = out.reshape(len(x), -1)
    for c in prange(len(x)):
        values, result, g, center = x_flat[c], out_flat[c], grad_flat[c], mean[c]
        if relu:
            for i in range(len(values)):
                g[i] = 0 if result[i] <= 0 else g[i]
        total = products = 0.0
        for start in range(0, len(values), BLOCK):
            block_sum, block_product = dtype(0), dtype(0)
            for i in range(start, min(start + BLOCK, len(values))):
                block_sum += g[i]
                block_product += g[i] * (values[i] - center)
            total += block_sum
            products += block_product
        grad_weight[c], grad_bias[c] = products * inv_std[c], total
        scale, mean_g = weight[c] * inv_std[c], dtype(total / len(values))
        slope = dtype(products * inv_std[c] ** 2 / len(values))
        for i in range(len(values)):
            g[i] = scale * (g[i] - mean_g - slope * (values[i] - center))


@kernel
def max_pool(x: np.ndarray, out: np.ndarray, argmax: np.ndarray) -> None:
    """Compute a 2×2 max pool with stride 2.

    Args:
        x: (C, 2 H, 2 W, N).
        out: (C, H, W, N).
        argmax: int8 (C, H, W, N), the first maximum of each window: 0 and 1 are its upper row, 2 and 3 its lower row.
    """
    for y in prange(out.shape[1]):
        for c in range(out.shape[0]):
            for col in range(out.shape[2]):
                largest, index = out[c, y, col], argmax[c, y, col]
                top, bottom = x[c, 2 * y], x[c, 2 * y + 1]
                v0, v1, v2, v3 = top[2 * col], top[2 * col + 1], bottom[2 * col], bottom[2 * col + 1]
                for i in range(len(largest)):  # `v != v` is true for NaN, which wins as in torch
                    upper = v0[i] if v0[i] > v1[i] or v0[i] != v0[i] else v1[i]
                    lower = v2[i] if v2[i] > v3[i] or v2[i] != v2[i] else v3[i]
                    largest[i] = upper if upper > lower or upper != upper else lower
                    index[i] = (0 if v0[i] == upper else 1) if upper >= lower else (2 if v2[i] == lower else 3)


@kernel
def max_pool_grad(grad_out: np.ndarray, argmax: np.ndarray, grad_x: np.ndarray) -> None:
    """Compute the gradient of `max_pool`: grad_out goes to the maximum of each window, zero to the other values."""
    for y in prange(grad_out.shape[1]):
        for c in range(grad_out.shape[0]):
            for col in range(grad_out.shape[2]):
                grad, index = grad_out[c, y, col], argmax[c, y, col]
                for k in range(4):
                    grad_k = grad_x[c, 2 * y + k // 2, 2 * col + k % 2]
                    for i in range(len(grad)):
                        grad_k[i] = grad[i] if index[i] == k else 0


@kernel
def relu(x: np.ndarray) -> None:
    """Compute a ReLU in place; NaN stays NaN."""
    rows = x.reshape(x.shape[0], x.shape[1], -1)
    for y in prange(rows.shape[1]):
        for c in range(len(rows)):
            values = rows[c, y]
            for i in range(len(values)):
                values[i] = 0 if values[i] < 0 else values[i]


@kernel
def relu_grad(out: np.ndarray, grad: np.ndarray) -> None:
    """Compute the gradient of `relu` in place, from its output."""
    out_rows = out.reshape(out.shape[0], out.shape[1], -1)
    grad_rows = grad.reshape(out_rows.shape)
    for y in prange(out_rows.shape[1]):
        for c in range(len(out_rows)):
            values, grad_row = out_rows[c, y], grad_rows[c, y]
            for i in range(len(values)):
                grad_row[i] = 0 if values[i] <= 0 else grad_row[i]


@kernel
def dropout(bits: np.ndarray, threshold: int, scale: float, x: np.ndarray) -> None:
    """Compute dropout in place, or its gradient: zero where bits < threshold, multiply by scale elsewhere.

    Args:
        bits: int16 (C, H, W * N), random.
        x: (C, H, W, N).
    """
    rows, dtype = x.reshape(x.shape[0], x.shape[1], -1), x.dtype.type
    for y in prange(rows.shape[1]):
        for c in range(len(rows)):
            values, row_bits = rows[c, y], bits[c, y]
            for i in range(len(values)):
                values[i] *= dtype(scale) if row_bits[i] >= threshold else dtype(0)  # NaN stays NaN
