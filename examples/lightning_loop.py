"""Lightning: python examples/lightning_loop.py"""
import os

import lightning
import timm
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, TensorDataset, random_split

import timm_multimix

epochs = int(os.environ.get('EPOCHS', 10))
lightning.seed_everything(0)
images, labels = load_digits(return_X_y=True)  # 1 797 images of 8×8 pixels, which come with scikit-learn
images = interpolate(torch.tensor(images / 16).float().view(-1, 1, 8, 8), size=64)
train, test = random_split(TensorDataset(images, torch.tensor(labels)), [0.8, 0.2])

class Classifier(lightning.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = timm_multimix.wrap(model, 'dense', input_size=(1, 64, 64))

    def on_train_epoch_start(self):
        self.model.set_progress(self.current_epoch, self.trainer.max_epochs)

    def training_step(self, batch, index):
        return self.model(*batch).loss

    def test_step(self, batch, index):
        self.log('right', (self.model(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)

model = Classifier(timm.create_model('test_convnext', num_classes=10, in_chans=1))
trainer = lightning.Trainer(max_epochs=epochs, logger=False, enable_progress_bar=False, enable_checkpointing=False)
trainer.fit(model, DataLoader(train, 64, shuffle=True, drop_last=True))
right = trainer.test(model, DataLoader(test, 128), verbose=False)[0]['right']
print(f'{right:.1%} of {len(test)} test images are right')
