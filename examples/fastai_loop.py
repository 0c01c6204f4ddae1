"""fastai: python examples/fastai_loop.py"""
import os

import timm
import torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner, accuracy
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import TensorDataset, random_split

import timm_multimix

epochs = int(os.environ.get('EPOCHS', 10))
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)  # 1 797 images of 8×8 pixels, which come with scikit-learn
images = interpolate(torch.tensor(images / 16).float().view(-1, 1, 8, 8), size=64)
train, test = random_split(TensorDataset(images, torch.tensor(labels)), [0.8, 0.2])


class MultiMix(Callback):
    """fastai calls the model with images alone; this one takes the targets there too, and the loss from it."""
    def before_fit(self):
        self.plain = self.learn.loss_func

    def before_batch(self):
        if self.training:
            self.learn.model.set_progress(self.learn.pct_train)
            self.learn.xb = (*self.xb, *self.yb)
        self.learn.loss_func = (lambda output, y: output.loss) if self.training else self.plain

    def after_fit(self):
        self.learn.loss_func = self.plain


model = timm_multimix.wrap(timm.create_model('test_convnext', num_classes=10, in_chans=1), input_size=(1, 64, 64))
data = DataLoaders(DataLoader(train, 64, shuffle=True, drop_last=True), DataLoader(test, 128))
learner = Learner(data, model, loss_func=cross_entropy, metrics=accuracy, cbs=MultiMix())
with learner.no_logging():
    learner.fit(epochs, 2e-3)
print(f'{learner.validate()[1]:.1%} of {len(test)} test images are right')
