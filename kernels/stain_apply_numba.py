"""The apply pass of stain normalisation for one interleaved image: what runs inside a DALI graph on the CPU.

The same numbers as csrc/stain/stain_apply_cpu.cpp, whose header says what a recipe holds.
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(nogil=True, error_model="numpy")
def restain_image(out, image, recipe, table, lasso):
    """out float32 [3, H, W] from image uint8 [H, W, 3], recipe float32 [44] and densities float32 [256]."""
    height, width = image.shape[0], image.shape[1]
    keep = recipe[42] > 0
    values = np.empty(3, np.float32)
    for row in range(height):
        for column in range(width):
            r, g, b = image[row, column, 0], image[row, column, 1], image[row, column, 2]
            if keep:
                values[0], values[1], values[2] = np.float32(r), np.float32(g), np.float32(b)
            else:
                x, y, z = table[r], table[g], table[b]
                for c in range(3):
                    values[c] = recipe[3 * c] * x + recipe[3 * c + 1] * y + recipe[3 * c + 2] * z + recipe[9 + c]
                if lasso:
                    first, second = values[0], values[1]
                    both0 = (first - recipe[12] * second) * recipe[13]
                    both1 = (second - recipe[12] * first) * recipe[13]
                    if both0 < 0 or both1 < 0:
                        only0, only1 = max(first, np.float32(0)), max(second, np.float32(0))
                        both0 = only0 if only0 >= only1 else np.float32(0)
                        both1 = np.float32(0) if only0 >= only1 else only1
                    for c in range(3):
                        values[c] = recipe[14 + 2 * c] * both0 + recipe[15 + 2 * c] * both1 + recipe[20 + c]
                for c in range(3):
                    light = np.float32(2.0 ** min(max(values[c], np.float32(-30)), np.float32(9))) - recipe[23]
                    values[c] = min(max(light, np.float32(0)), np.float32(255))
            for c in range(3):
                made = recipe[24 + 3 * c] * values[0] + recipe[25 + 3 * c] * values[1] + recipe[26 + 3 * c] * values[2]
                out[c, row, column] = min(max(made + recipe[33 + c], recipe[36 + c]), recipe[39 + c])
