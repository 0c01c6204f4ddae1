"""Sounds through a timm model, as log-mel spectrograms: python examples/sound.py FOLDER, with FOLDER/CLASS/*.wav"""
import os
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from scipy.io import wavfile
from torch.utils.data import DataLoader, TensorDataset, random_split
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

import timm_multimix

if len(sys.argv) < 2:
    sys.exit(__doc__)
epochs, frames, mels = int(os.environ.get('EPOCHS', 30)), 128, 64
torch.manual_seed(0)
files = sorted(Path(sys.argv[1]).glob('*/*.wav'))
classes = sorted({file.parent.name for file in files})

def image(file):  # (1, mels, frames): what lasts longer is cut, and what is shorter is silent at the end
    rate, wave = wavfile.read(file)
    mel = spectrogram(wave / max(np.abs(wave).max(), 1e-9), window_function(512), 512, 256, mel_floor=1e-3,
                      mel_filters=mel_filter_bank(257, mels, 0, rate / 2, rate), log_mel='log10')[:, :frames]
    return torch.nn.functional.pad(torch.tensor(mel).float(), (0, frames - mel.shape[1]), value=-3)[None] / 3

target = torch.tensor([classes.index(file.parent.name) for file in files])
train, test = random_split(TensorDataset(torch.stack([image(file) for file in files]), target), [0.8, 0.2])
model = timm_multimix.wrap(timm.create_model('test_convnext', num_classes=len(classes), in_chans=1), 'dense',
                           preset='embeddings', input_size=(1, mels, frames))
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for _ in range(epochs):
    for x, y in DataLoader(train, 32, shuffle=True, drop_last=True):
        model(x, y).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
plain = timm_multimix.unwrap(model).eval()
right = torch.cat([plain(x).argmax(1) == y for x, y in DataLoader(test, 128)])
print(f'{right.float().mean():.1%} of {len(test)} test sounds are right')
