"""The card of a checkpoint, what lies beside it, and the checkpoint that comes with the repository."""
from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard

import train
from tests.conftest import ROOT
from tests.hub.conftest import SHIPPED, a_run, small_model, wrapped
from tests.hub.server import HubServer
from timm_multimix import MultiMixModel, SettingError, from_pretrained, list_checkpoints, push_to_hub, unwrap, wrap
from timm_multimix.data import create_train_val
from timm_multimix.hub import export, save_plain
from timm_multimix.hub.__main__ import main as hub_main
from timm_multimix.hub.card import MARK, train_command
from timm_multimix.runs.settings import parse_args


def test_the_card_tells_what_happened(hub: HubServer, tmp_path: Path) -> None:
    run = a_run(tmp_path / 'run', dataset=None, data_dir=str(tmp_path / 'pets'), recipe='',
                pretrained_path=str(tmp_path / 'start.safetensors'), log=['tensorboard'],
                class_weight=str(tmp_path / 'weights.txt'))
    push_to_hub(run, 'user/pets-vit')
    assert str(tmp_path) not in hub.repos['user/pets-vit'].files()['args.yaml'].decode()
    text = hub.repos['user/pets-vit'].files()['README.md'].decode()
    card = ModelCard(text)
    assert card.data.library_name == 'timm' and card.data.pipeline_tag == 'image-classification'
    assert {'timm', 'timm-multimix', 'dense-multimix', 'arxiv:2311.05538'} <= set(card.data.tags)
    top1, top5 = card.data.eval_results
    assert (top1.dataset_type, top1.dataset_name, top1.metric_type) == ('imagefolder', 'pets', 'accuracy')
    assert (top1.metric_value, top5.metric_value) == (0.5875, 0.915)  # of the weights that are there: the last epoch's
    assert 'after epoch 2 of 3: training has not ended' in text
    assert 'The best epoch was 1, with 61.25 % top-1' in text and '| 58.75 | 91.50 | 1.250 |' in text
    assert 'cat, dog, eel, fox, gnu, hen' in text and '![' in text and str(tmp_path) not in text
    assert '--data-dir pets' in text and '--pretrained-path start.safetensors' in text and '--log' not in text
    assert '| effective | 2 |' in text


def steps(model: MultiMixModel, n: int, done: float) -> MultiMixModel:
    """After so many training steps, this far into the training."""
    model.train().set_progress(done)
    for _ in range(n):
        model(torch.randn(4, 3, 160, 160), torch.arange(4))
    return model


def card_of(run: Path) -> ModelCard:
    """The card as it is published."""
    return ModelCard.load(export(run, run.with_name(f'{run.name}-export')) / 'README.md')


def test_the_card_claims_what_was_done(tmp_path: Path) -> None:
    mixed = card_of(a_run(tmp_path / 'mixed', steps(wrapped(preset='embeddings'), 2, 0)))
    assert {'timm-multimix', 'multimix', 'dense-multimix'} <= set(mixed.data.tags)
    assert 'M weights, trained with Dense MultiMix ([arXiv' in mixed.text
    assert '\n\nOf 2 steps 2 mixed embeddings, 0 inputs, and 0 nothing.\n\n## Use' in mixed.text
    assert 'mixed_steps' not in mixed.text and '| preset | embeddings |' in mixed.text

    # The ramp begins at nothing: a run that only said `dense`.
    said = card_of(a_run(tmp_path / 'said', steps(wrapped(), 3, 0)))
    assert 'timm-multimix' in said.data.tags and not {'multimix', 'dense-multimix'} & set(said.data.tags)
    assert 'trained with' not in said.text
    assert 'M weights. Its training was set to Dense MultiMix ([arXiv' in said.text
    assert ', but no step mixed embeddings.\n\nOf 3 steps 0 mixed embeddings, 0 inputs, and 3 nothing.' in said.text

    older = a_run(tmp_path / 'older')  # it did not count
    assert 'mixed_steps' not in (older / 'model' / 'multimix.yaml').read_text()
    card = card_of(older)
    assert 'trained with Dense MultiMix' in card.text and 'mixed embeddings' not in card.text
    assert 'dense-multimix' in card.data.tags


def test_results_on_the_card_are_those_of_its_weights(tmp_path: Path) -> None:
    run = a_run(tmp_path / 'last')
    with (run / 'summary.csv').open('a') as f:
        f.write('2,1.25,,,\n')  # the weights are of this epoch, which was not validated
    card = card_of(run)
    assert 'Results' not in card.text and '58.75' not in card.text and not card.data.eval_results
    few = a_run(tmp_path / 'few')
    save_plain(timm.create_model('test_vit', num_classes=5), few / 'model')  # any five classes hold the true one
    card = card_of(few)
    assert '| 58.75 | 1.250 |' in card.text and 'top-5' not in card.text
    assert [result.metric_name for result in card.data.eval_results] == ['Accuracy (top-1)']


def test_long_settings_on_the_card(tmp_path: Path) -> None:
    model = wrap(small_model(), 'multimix', layer=['input', 1], class_weight=[1, 2, 3, 4, 5, 6], label_smoothing=0.1)
    table = card_of(a_run(tmp_path / 'run', model)).text.partition('| setting | value |')[2]
    for line in ('| layer | input or 1 |', '| class_weight | 6 weights |', '| label_smoothing | 0.1 |',
                 '| effective | 1.5 to 3 |', '| gather | False |'):
        assert line in table


@pytest.mark.parametrize('flags', [
    ['--model', 'test_vit', '--multimix', 'dense'],
    ['--data-dir', '/data/my pets', '-c', 'hparams/cifar10_resnet18.yaml', '--lr', '0.5', '--no-model-ema'],
    ['--data-dir', 'x', '--multimix', 'multimix', '--multimix-alpha', '0.5', '2', '--multimix-layer', 'input', '2',
     '--no-multimix-attention-detach', '--no-aug', '--model-kwargs', 'output_stride=8', '--mean', '0.1', '0.2', '0.3',
     '--opt-betas', '0.8', '0.9', '--torchcompile', '--amp', '--scale', '0.5', '1', '--aa', 'rand-m9-mstd0.5'],
    ['--dataset', 'sklearn/digits', '--multimix', 'none', '--epochs', '300', '--no-sched-on-updates'],
])
def test_the_command_on_the_card_means_what_was_run(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    args = vars(parse_args(flags, train.DIGITS_RECIPE))
    words = shlex.split(train_command(args).replace('\\\n', ' '))
    assert words[:2] == ['timm-multimix', 'train'] and '--multimix' in words
    again = vars(parse_args(words[2:], train.DIGITS_RECIPE))
    machine = {'config', 'recipe', 'workers', 'log_interval', 'checkpoint_hist'}
    assert {k: v for k, v in again.items() if k not in machine} == {k: v for k, v in args.items() if k not in machine}


def test_cards_by_hand_and_licences_stay(hub: HubServer, tmp_path: Path) -> None:
    repo = hub.add('user/name', {'README.md': b'---\nlicense: cc-by-4.0\n---\n'})  # as the Hub's page makes it
    push_to_hub(wrapped(), 'user/name')
    assert MARK in repo.files()['README.md'].decode()
    assert ModelCard(repo.files()['README.md'].decode()).data.license == 'cc-by-4.0'
    by_hand = repo.files()['README.md'].replace(MARK.encode(), b'My own words.')
    repo.commit('main', {**repo.files(), 'README.md': by_hand}, 'edit')
    push_to_hub(wrapped(1), 'user/name')
    assert repo.files()['README.md'] == by_hand


def test_looking_before_publishing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / 'run')
    assert hub_main(['export', str(run), str(tmp_path / 'out'), '--name', 'hf-hub:user/name']) == 0
    assert set(os.listdir(tmp_path / 'out')) == {'README.md', 'args.yaml', 'config.json', 'curves.png', 'multimix.yaml',
                                                 'model.safetensors', 'summary.csv'}
    assert "'hf-hub:user/name'" in (tmp_path / 'out' / 'README.md').read_text()
    assert hub_main(['export', str(run), str(tmp_path / 'out')]) == 2
    assert hub_main(['push', str(tmp_path), 'user/name']) == 2
    assert 'HF_HUB_OFFLINE' in capsys.readouterr().err  # as the tests set it


def test_finding_checkpoints(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    push_to_hub(wrapped(), 'user/one')
    push_to_hub(wrapped(), 'user/secret', private=True)
    push_to_hub(small_model(), 'user/plain')  # no settings of the method: nothing that from_pretrained could give
    hub.add('else/two', {'README.md': b'---\ntags: [timm-multimix]\n---\n'})
    came_along = {m.name for m in list_checkpoints(hub=False)}
    assert SHIPPED.name in came_along
    assert {m.name for m in list_checkpoints()} == {*came_along, 'hf-hub:user/one', 'hf-hub:user/secret',
                                                    'hf-hub:else/two'}
    assert [m.name for m in list_checkpoints(author='user', search='one')] == ['hf-hub:user/one']
    assert list_checkpoints(search='EFFICIENTNET digits', hub=False) == [(SHIPPED.name, f'local-dir:{SHIPPED}', None)]
    for given in ({'author': 'user'}, {'limit': 3}, {'token': 'x'}):
        with pytest.raises(SettingError, match=f'{next(iter(given))} is given with hub=False'):
            list_checkpoints(hub=False, **given)  # type: ignore[arg-type]
    assert hub_main(['list', '--author', 'else']) == 0
    assert capsys.readouterr().out == 'hf-hub:else/two\t0 downloads\n'


def test_the_checkpoint_that_comes_with_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(f.stat().st_size for f in SHIPPED.iterdir()) < 1_000_000
    monkeypatch.chdir(ROOT)
    model = from_pretrained(f'local-dir:checkpoints/{SHIPPED.name}')
    assert model.multimix.config.dense and model.head_info.positions > 1
    card = ModelCard.load(SHIPPED / 'README.md')
    _, val_set = create_train_val('sklearn/digits', None, 'train', 'validation')
    data = timm.data.resolve_model_data_config(unwrap(model))
    val_set.transform = timm.data.create_transform(**data, is_training=False)
    images, target = zip(*(val_set[i] for i in range(len(val_set))))
    with torch.no_grad():
        found = model.eval()(torch.stack(images)).argmax(1) == torch.tensor(target)
    assert float(found.float().mean()) == pytest.approx(card.data.eval_results[0].metric_value, abs=0.003)
    words = shlex.split(card.text.split('```sh\n')[1].split('```')[0].replace('\\\n', ' '))
    assert isinstance(parse_args(words[2:]), argparse.Namespace)
