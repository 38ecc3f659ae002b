"""Features of speech in numpy: mel-frequency cepstral coefficients.

Source: Davis, Mermelstein, "Comparison of parametric representations for monosyllabic word recognition", 1980; mel
scale as in O'Shaughnessy, "Speech Communication", 1987.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

RATE_HZ = 8_000
CLIP_SAMPLES = 8_000
WINDOW_SAMPLES = 256
HOP_SAMPLES = 160
FRAMES = 1 + (CLIP_SAMPLES - WINDOW_SAMPLES) // HOP_SAMPLES
BANDS = 40
COEFFICIENTS = 10
_LOWEST_HZ = 20.0
# Keeps the logarithm of silence finite; about the energy of one step of 16 bits.
_FLOOR = 1e-6


def mfcc(clip: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """Return the coefficients of one second around the middle of a clip, (49, 10): windows of 32 ms every 20 ms.

    Shorter clips have silence on both sides, longer ones are cut on both sides.
    """
    starts = np.arange(FRAMES) * HOP_SAMPLES
    frames = centred(clip)[starts[:, np.newaxis] + np.arange(WINDOW_SAMPLES)]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW_SAMPLES))) ** 2
    coefficients = np.log(power @ mel_bands().T + _FLOOR) @ _cosines().T
    return coefficients.astype(np.float32)


def centred(clip: npt.NDArray[np.int16]) -> npt.NDArray[np.float64]:
    """Return 8,000 samples in -1 to 1 with the clip in their middle.

    >>> centred(np.array([16384], np.int16)).nonzero()[0].tolist()
    [3999]
    """
    scaled = clip / 32768
    lacking = CLIP_SAMPLES - len(clip)
    if lacking >= 0:
        return np.pad(scaled, (lacking // 2, lacking - lacking // 2))
    return scaled[-lacking // 2 :][:CLIP_SAMPLES]


@functools.cache
def mel_bands() -> npt.NDArray[np.float64]:
    """Return the weights of the spectrum's bins in each triangular band, (40, 129)."""
    edges_mel = np.linspace(_mel(_LOWEST_HZ), _mel(RATE_HZ / 2), BANDS + 2)
    edges_hz = 700 * (10 ** (edges_mel / 2595) - 1)
    low, middle, high = (edges_hz[i : i + BANDS, np.newaxis] for i in range(3))
    bins_hz = np.linspace(0, RATE_HZ / 2, WINDOW_SAMPLES // 2 + 1)
    bands: npt.NDArray[np.float64] = np.maximum(
        0, np.minimum((bins_hz - low) / (middle - low), (high - bins_hz) / (high - middle))
    )
    return bands


def _mel(hz: float) -> float:
    return 2595 * float(np.log10(1 + hz / 700))


@functools.cache
def _cosines() -> npt.NDArray[np.float64]:
    """Return the first rows of the orthonormal DCT-II, (10, 40)."""
    order, band = np.arange(COEFFICIENTS)[:, np.newaxis], np.arange(BANDS)
    rows: npt.NDArray[np.float64] = np.sqrt(2 / BANDS) * np.cos(np.pi * order * (2 * band + 1) / (2 * BANDS))
    rows[0] /= np.sqrt(2)
    return rows
