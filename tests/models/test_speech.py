from __future__ import annotations

import numpy as np
import pytest
from edgepress_models import speech


def tone(hz: float, samples: int = speech.CLIP_SAMPLES, loud: float = 0.5) -> np.ndarray:
    return (loud * 32767 * np.sin(2 * np.pi * hz * np.arange(samples) / speech.RATE_HZ)).astype(np.int16)


def log_energies(coefficients: np.ndarray) -> np.ndarray:
    """Back from the coefficients to the 40 bands, as far as ten of them tell."""
    order, band = np.arange(speech.COEFFICIENTS)[:, np.newaxis], np.arange(speech.BANDS)
    rows = np.sqrt(2 / speech.BANDS) * np.cos(np.pi * order * (2 * band + 1) / (2 * speech.BANDS))
    rows[0] /= np.sqrt(2)
    assert np.allclose(rows @ rows.T, np.eye(speech.COEFFICIENTS))
    return coefficients @ rows


def test_a_clip_gives_49_frames_of_10_numbers() -> None:
    assert speech.mfcc(tone(440)).shape == (speech.FRAMES, speech.COEFFICIENTS) == (49, 10)
    assert speech.mfcc(tone(440)).dtype == np.float32


@pytest.mark.parametrize("hz", [300.0, 1000.0, 2500.0])
def test_the_loudest_band_is_that_of_the_tone(hz: float) -> None:
    bands = speech.mel_bands()
    bins_hz = np.linspace(0, speech.RATE_HZ / 2, bands.shape[1])
    centres_hz = bins_hz[bands.argmax(1)]
    loudest = log_energies(speech.mfcc(tone(hz))).mean(0).argmax()
    assert abs(int(loudest) - int(np.abs(centres_hz - hz).argmin())) <= 2


def test_the_bands_are_triangles_that_cover_the_spectrum() -> None:
    bands = speech.mel_bands()
    assert bands.shape == (40, 129)
    assert bands.min() == 0
    assert bands.max() <= 1
    # Between the first and the last peak, neighbouring triangles add up to one.
    first, last = bands[0].argmax(), bands[-1].argmax()
    assert np.allclose(bands.sum(0)[first + 1 : last], 1, atol=0.3)


def test_ten_times_louder_moves_the_first_coefficient_alone() -> None:
    noise = np.random.default_rng(0).integers(-3000, 3000, speech.CLIP_SAMPLES, dtype=np.int16)
    moved = (speech.mfcc(10 * noise) - speech.mfcc(noise)).mean(0)
    # Ten times the samples is a hundred times the energy in each of the 40 bands.
    assert moved[0] == pytest.approx(np.log(100) * np.sqrt(40), rel=0.01)
    assert np.abs(moved[1:]).max() < 0.01 * moved[0]


def test_a_short_clip_lies_in_the_middle_of_silence_and_a_long_one_is_cut_on_both_sides() -> None:
    silence = speech.mfcc(np.zeros(1, np.int16))
    short = speech.mfcc(tone(500, samples=2000))
    loud = np.flatnonzero(np.abs(short - silence).max(1) > 1)
    assert 17 <= loud.min() <= 19
    assert 30 <= loud.max() <= 32
    ramp = np.arange(12_001, dtype=np.int16)
    middle = (speech.centred(ramp) * 32768).round()
    assert len(middle) == speech.CLIP_SAMPLES
    assert abs(middle.mean() - 6000) < 1
