"""The Trainer of Hugging Face's transformers: python examples/huggingface_trainer.py

The model is timm's, without weights, so that it runs offline. Any AutoModelFor…Classification.from_pretrained(…) will
do: of texts, of sound or of images.
"""
import os

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate
from torch.utils.data import random_split
from transformers import TimmWrapperConfig as Config
from transformers import TimmWrapperForImageClassification as Model
from transformers import Trainer, TrainingArguments, set_seed

import timm_multimix

set_seed(0)
images, labels = load_digits(return_X_y=True)  # 1 797 images of 8×8 pixels, which come with scikit-learn
images = interpolate(torch.tensor(images / 16).float().view(-1, 1, 8, 8), size=64)
train, test = random_split([{'pixel_values': x, 'labels': y} for x, y in zip(images, labels)], [0.8, 0.2])

loss = timm_multimix.hf_loss(ramp=0.5)
trainer = Trainer(
    model=Model(Config(architecture='test_convnext', num_labels=10, model_args={'in_chans': 1})),
    train_dataset=train, eval_dataset=test, compute_loss_func=loss,
    callbacks=[loss],  # tells how far the training is, for the ramp, and what was mixed in the log
    compute_metrics=lambda output: {'right': (output.predictions.argmax(1) == output.label_ids).mean()},
    args=TrainingArguments(num_train_epochs=float(os.environ.get('EPOCHS', 10)), per_device_train_batch_size=64,
                           learning_rate=2e-3, report_to='none', save_strategy='no', output_dir='output'))
trainer.train()
print(f'{trainer.evaluate()["eval_right"]:.1%} of {len(test)} test images are right')
