"""evaluate.py as a user runs it."""
from __future__ import annotations

import csv
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import ImageDataset, create_transform
from torch.utils.data import DataLoader

from tests import forked
from tests.conftest import ROOT, write_images
from timm_multimix.data import DigitsReader
from timm_multimix.evaluate.report import markdown, plain, table_lines, write
from timm_multimix.evaluate.table import Table, Value, rows_of
from timm_multimix.hub import save_plain
from timm_multimix.runs.screen import say

DATA = {'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'interpolation': 'bilinear', 'crop_pct': 1.0,
        'crop_mode': 'center'}


def run_evaluate(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return forked.run(str(ROOT / 'evaluate.py'), '-j', '0', '--device', 'cpu', *args, cwd=cwd)


@pytest.fixture(scope='module')
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two tiny models of the digits: a little trained and untrained."""
    root = tmp_path_factory.mktemp('runs')
    data = ImageDataset('', reader=DigitsReader('train'), transform=create_transform(**DATA))
    torch.manual_seed(0)
    for name in ('trained', 'untrained'):
        model = timm.create_model('test_resnet', num_classes=10, output_stride=8)
        if name == 'trained':
            optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
            for images, target in DataLoader(data, 64, shuffle=True):
                optimizer.zero_grad()
                F.cross_entropy(model(images), target).backward()
                optimizer.step()
        save_plain(model, root / name / 'model', DATA, {'output_stride': 8}, [str(i) for i in range(10)])
    return [root / 'trained', root / 'untrained']


def test_two_checkpoints_on_everything(folders: list[Path], tmp_path: Path) -> None:
    done = run_evaluate(
        f'one={folders[0]}', str(folders[1] / 'model'), '--num-images', '150', '--attack-images', '8', '--bank', '100',
        '--ood', 'uniform', 'photographs', '--ood-images', '20', '--knn-k', '5', '--map-images', '40',
        '--hull-batch', '32', '--pgd-steps', '3', '--output', 'report', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / 'report'
    results: dict[str, Any] = json.loads((folder / 'results.json').read_text())
    assert list(results['tables']) == ['accuracy', 'calibration', 'robustness', 'ood', 'embedding', 'hull', 'attention']
    assert all(set(columns) == {'one', 'untrained'} for columns in results['tables'].values())
    # accuracy, recomputed with timm alone on all images; here it is of 150 of them, drawn at random
    rows = results['tables']['accuracy']['one']['rows']
    model = timm.create_model(f'local-dir:{folders[0]}/model', pretrained=True).eval()
    data = ImageDataset('', reader=DigitsReader('validation'), transform=create_transform(**DATA))
    order = torch.randperm(355, generator=torch.Generator().manual_seed(0))[:150]
    images, target = zip(*(data[i] for i in order.tolist()))
    with torch.no_grad():
        z = model(torch.stack(images))
    assert rows['top-1, %'][0] == pytest.approx(100 * float((z.argmax(1) == torch.tensor(target)).float().mean()))
    assert rows['NLL'][0] == pytest.approx(float(F.cross_entropy(z, torch.tensor(target))), rel=1e-4)
    assert rows['top-1, %'][0] > 25 and rows['images'] == 150
    assert 'top-1 minus that of one, points' in results['tables']['accuracy']['untrained']['rows']
    report = (folder / 'report.md').read_text()
    assert '| | one | untrained |' in report and results['command'] in report
    summed = report.split('## Summary')[1].split('## Accuracy')[0]
    assert summed.count(' ↑ |') + summed.count(' ↓ |') == 10 == len(results['summary'])
    assert results['summary']['top-1, % ↑']['one'] == rows['top-1, %'][0]
    assert 'Expected to take ' in done.stdout.split('one: accuracy')[0]
    pictures = sorted(p.name for p in folder.glob('*.png'))
    assert pictures == ['attention_1.png', 'attention_2.png', 'confusion.png', 'embedding.png', 'hull.png',
                        'hull_plane.png', 'ood.png', 'reliability.png', 'robustness.png']
    assert all(f'({name})' in report for name in pictures)
    assert not list(folder.glob('*.tmp')) and not list(folder.glob('.*'))


@pytest.mark.parametrize('args, says', [
    (['CHECKPOINT', '--on', 'acuracy'], "--on has 'acuracy'.*Did you mean accuracy"),
    (['nowhere'], "'nowhere' is no checkpoint"),
    (['CHECKPOINT', '--data-dir', 'nowhere'], "--data-dir is 'nowhere'"),
    (['CHECKPOINT', '--pgd-eps', '4'], r'--pgd-eps is 4, but it must be above 0 and up to 1'),
    (['CHECKPOINT', '--on', 'transfer'], 'no --transfer-data'),
    (['CHECKPOINT', '--transfer-data', 'x'], "--transfer-data is 'x', but --on has no transfer"),
    (['CHECKPOINT', '--on', 'ood', '--ood', 'nowhere'], "--ood has 'nowhere'"),
    (['CHECKPOINT', '--bins', '0'], '--bins is 0'),
    (['CHECKPOINT', '--num-classes', '5'], '--num-classes is 5, but it is for files of weights'),
])
def test_bad_input(folders: list[Path], args: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
                   monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluate
    monkeypatch.chdir(tmp_path)
    assert evaluate.main([a.replace('CHECKPOINT', str(folders[0])) for a in args]) == 2
    error = capsys.readouterr().err
    assert error.startswith('evaluate.py: error: ')
    import re
    assert re.search(says, error), error
    assert not list(tmp_path.iterdir())  # nothing was written


def test_one_table_that_fails_does_not_take_the_others(folders: list[Path], tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    import evaluate
    status = evaluate.main([str(folders[0]), '--on', 'hull,accuracy', '--num-images', '20', '-j', '0', '--output',
                            str(tmp_path)])
    assert status == 1  # what was asked for is not all there
    results = json.loads((tmp_path / 'results.json').read_text())
    assert list(results['tables']) == ['accuracy'] and 'batch is 128' in results['missing']['hull']['trained']
    assert 'trained: not measured. batch is 128' in (tmp_path / 'report.md').read_text()


def test_training_images_that_cannot_be_read_are_left_out_too(tmp_path: Path) -> None:
    import evaluate
    data = write_images(tmp_path / 'images')
    for path in (data / 'train' / 'class_1').glob('*.png'):
        path.write_bytes(path.read_bytes()[:60])
    model = timm.create_model('test_resnet', num_classes=3, output_stride=8)
    save_plain(model, tmp_path / 'm', DATA, {'output_stride': 8}, ['class_0', 'class_1', 'class_2'])
    common = [str(tmp_path / 'm'), '--data-dir', str(data), '--on', 'ood', '--ood', 'uniform', '-j', '0', '--device',
              'cpu']
    assert evaluate.main([*common, '--output', str(tmp_path / 'all')]) == 0
    results = json.loads((tmp_path / 'all' / 'results.json').read_text())
    assert "6 of 18 images in 'train' cannot be read and are left out" in results['note']
    assert 'uniform | AuROC, KNN, %' in results['tables']['ood']['m']['rows']
    assert evaluate.main([*common, '--bank', '2', '--output', str(tmp_path / 'few')]) == 0
    few = (tmp_path / 'few' / 'report.md').read_text()
    assert 'of 18 images' not in few  # only those that KNN takes were looked at


def test_a_name_that_is_no_text_does_not_take_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class folder of an old archive, say, whose name is in Latin-1."""
    name = os.fsdecode(b'caf\xe9')
    table = Table('accuracy', rows_of({f'recall | {name}, %': 50.0}))
    write(tmp_path, [], {'accuracy': {'m': table}}, {}, {}, {'images': name})
    assert '| caf?, % | 50.00 |' in (tmp_path / 'report.md').read_text(encoding='utf-8')
    assert name in json.loads((tmp_path / 'results.json').read_text())['images']
    say(f'Found {name}.')
    assert capsys.readouterr().out == 'Found caf?.\n'


def test_cells() -> None:
    table = Table('x', rows_of({'images': 1000, 'a, %': Value(12.345, 1, 20), 'b': 0.00012345, 'c': float('nan'),
                                'g | d': 70.3}))
    other = Table('x', rows_of({'images': 5, 'g | e': 1.5}))
    assert table_lines({'p': table, 'q': other}) == [
        '| | p | q |', '|---|---:|---:|', '| images | 1000 | 5 |', '| a, % | 12.35 [1.00, 20.00] |  |',
        '| b | 0.0001234 |  |', '| c | – |  |', '| **g** | | |', '| d | 70.30 |  |', '| e |  | 1.500 |']
    assert 'a, %    12.35 [1.00, 20.00]' in str(table)
    assert plain({'a': (float('nan'), 1), 2: float('inf')}) == {'a': [None, 1], '2': None}
    assert '## Calibration' in markdown([], {'calibration': {'p': table}}, {}, {}, {})


def test_a_list_of_the_wrongly_classified_images(tmp_path: Path) -> None:
    import evaluate
    data = write_images(tmp_path / 'images')
    torch.manual_seed(0)
    names = ['class_0', 'class_1', 'class_2']
    for name in 'ab':
        model = timm.create_model('test_resnet', num_classes=3, output_stride=8).eval()
        save_plain(model, tmp_path / name, DATA, {'output_stride': 8}, names)
    out = tmp_path / 'out'
    assert evaluate.main([str(tmp_path / 'a'), str(tmp_path / 'b'), '--data-dir', str(data), '--on', 'accuracy', '-j',
                          '0', '--device', 'cpu', '--num-images', '15', '--output', str(out)]) == 0
    with (out / 'mistakes.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    tables = json.loads((out / 'results.json').read_text())['tables']['accuracy']
    for name in 'ab':
        own = [row for row in rows if row['checkpoint'] == name]
        assert len(own) == round(15 * (1 - tables[name]['rows']['top-1, %'][0] / 100)) > 0
        assert f'{name}: mistakes.csv lists its {len(own)} wrongly' in (out / 'report.md').read_text()
        model = timm.create_model(f'local-dir:{tmp_path / name}', pretrained=True).eval()
        transform = create_transform(**DATA)
        for row in own:
            assert row['image'].startswith(f'{row["class"]}/')
            with torch.no_grad(), Image.open(data / 'validation' / row['image']) as image:
                says = model(transform(image).unsqueeze(0)).softmax(1)[0]
            assert names[says.argmax()] == row['called'] != row['class']
            assert float(row['probability']) == pytest.approx(float(says.max()), abs=2e-4)
        sure = [float(row['probability']) for row in own]
        assert sure == sorted(sure, reverse=True)
