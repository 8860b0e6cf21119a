"""Patches in the tower's order, one number at a time, as the Qwen2-VL report describes them."""

import numpy as np


def patchify(frames_FHWC, pixels):
    """float64 [N, C]: tokens row by row, in a token its patches row by row, in a patch colour, frame, row, column."""
    frames, height, width, _ = frames_FHWC.shape
    p, m, s = pixels.patch, pixels.merge, pixels.temporal_patch
    patches = []
    for t in range(0, frames, s):
        for token_y in range(0, height, p * m):
            for token_x in range(0, width, p * m):
                for y0 in range(token_y, token_y + p * m, p):
                    for x0 in range(token_x, token_x + p * m, p):
                        patches.append(patch(frames_FHWC, pixels, t, y0, x0))
    return np.array(patches)


def patch(frames_FHWC, pixels, t, y0, x0):
    return [
        (frames_FHWC[f, y, x, c] / 255 - pixels.mean[c]) / pixels.std[c]
        for c in range(3)
        for f in range(t, t + pixels.temporal_patch)
        for y in range(y0, y0 + pixels.patch)
        for x in range(x0, x0 + pixels.patch)
    ]
