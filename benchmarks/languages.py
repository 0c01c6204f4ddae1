"""Prompts of a telephone exchange in several languages, as log-mel spectrograms: for `benchmarks.modalities`.

Debian's packages asterisk-core-sounds-{en,es,fr,it,ru}-wav have them, about 350 in each language (CC-BY-SA-3.0,
Russian CC-BY-3.0). Each language has one speaker, and English and Spanish have the same. Without root:

    apt-get download asterisk-core-sounds-{en,es,fr,it,ru}-wav
    for package in *.deb; do dpkg -x $package prompts; done
    python -m benchmarks.modalities languages --data-dir prompts/usr/share/asterisk/sounds
"""
from __future__ import annotations

import math
import random
from pathlib import Path

import torch
from torch import Tensor

from timm_multimix.errors import SettingError

MELS, FRAMES, HOP = 64, 96, 256  # three seconds of 8 000 samples
SHORTEST = 0.6  # seconds: what is shorter is a tone


def image(file: Path) -> Tensor:
    """Log-mel spectrogram, (1, MELS, FRAMES), about in [-1, 1]. What lasts longer is cut."""
    import numpy as np
    from scipy.io import wavfile
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    rate, wave = wavfile.read(file)
    mel = spectrogram(wave / max(float(np.abs(wave).max()), 1e-9), window_function(512), 512, HOP, mel_floor=1e-3,
                      mel_filters=mel_filter_bank(257, MELS, 0, rate / 2, rate), log_mel='log10')[:, :FRAMES]
    padded = torch.nn.functional.pad(torch.tensor(mel).float(), (0, FRAMES - mel.shape[1]), value=-3)
    return padded[None] / 3


def seconds(file: Path) -> float:
    return file.stat().st_size / 16_000  # 8 000 samples of two bytes


def prompts(folder: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test data, images (N, 1, MELS, FRAMES) and languages: what is said in one is not said in the other.

    Raises:
        SettingError: there are no two folders with the same sounds.
    """
    languages = sorted(path for path in folder.iterdir() if path.is_dir())
    if len(languages) < 2:
        raise SettingError(f'--data-dir {folder} must hold a folder for each language.')
    names = set.intersection(*({path.name for path in one.glob('*.wav') if seconds(path) >= SHORTEST}
                               for one in languages))
    said = sorted(names)
    random.Random(0).shuffle(said)
    if len(said) < 2:
        raise SettingError(f'--data-dir {folder}: its folders have no two sounds in common.')

    def part(chosen: list[str]) -> tuple[Tensor, Tensor]:
        files = [(one / name, label) for label, one in enumerate(languages) for name in chosen]
        return torch.stack([image(file) for file, _ in files]), torch.tensor([label for _, label in files])

    half = math.ceil(len(said) / 2)
    return part(said[:half]), part(said[half:])
