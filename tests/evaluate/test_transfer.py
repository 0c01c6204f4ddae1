"""Detection data in both layouts, timm's backbones in torchvision's detectors, and average precision by hand."""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn as nn
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.shapes import SHAPES, draw, write
from timm_multimix import SettingError, wrap
from timm_multimix.evaluate import transfer
from timm_multimix.evaluate.detection.data import Annotated, DetectionSet, read
from timm_multimix.evaluate.detection.detectors import Pyramid, faster_rcnn, ssd
from timm_multimix.evaluate.detection.transfer import fine_tune, measure

SMALL = {'box_batch_size_per_image': 16, 'rpn_post_nms_top_n_train': 50, 'rpn_post_nms_top_n_test': 20}


@pytest.fixture(scope='module')
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp('shapes')
    return {layout: write(root / layout, layout, train=8, test=4, size=64) for layout in ('voc', 'coco')}


def test_both_layouts_say_the_same(shapes: dict[str, Path]) -> None:
    pytest.importorskip('pycocotools')
    voc, coco = (read(str(shapes[layout])) for layout in ('voc', 'coco'))
    assert voc[2] == coco[2] == sorted(SHAPES)
    for part, count in ((0, 8), (1, 4)):
        assert len(voc[part]) == count
        assert [(x.boxes, x.names, x.ignore) for x in voc[part]] == [(x.boxes, x.names, x.ignore) for x in coco[part]]
    rng = np.random.default_rng(0)
    for item in [*voc[0], *voc[1]]:  # and what was drawn
        image, objects = draw(rng, 64)
        assert [(n, tuple(map(float, b))) for n, b in objects] == list(zip(item.names, item.boxes))
        bright = np.asarray(image).min(2) >= 120
        for x0, y0, x1, y1 in (tuple(map(int, box)) for box in item.boxes):
            inside = bright[y0:y1, x0:x1]
            assert inside.any(0).all() and inside.any(1).all()  # a shape touches all four sides of its box
            bright[y0:y1, x0:x1] = False
        assert not bright.any()


def test_layouts_of_voc(shapes: dict[str, Path], tmp_path: Path) -> None:
    year = shapes['voc'] / 'VOC2007'
    (tmp_path / 'VOCdevkit').symlink_to(shapes['voc'])
    assert [x.names for x in read(str(tmp_path))[1]] == [x.names for x in read(str(shapes['voc']))[1]]
    assert [x.path.name for x in read(str(year))[0]] == [x.path.name for x in read(str(shapes['voc']))[0]]
    chosen = read(str(shapes['voc']), ('VOC2007/test', 'VOC2007/trainval'))
    assert (len(chosen[0]), len(chosen[1])) == (4, 8)


def test_difficult_and_crowd(shapes: dict[str, Path], tmp_path: Path) -> None:
    """They are not trained on, an image with nothing else is left out, and in testing they are marked."""
    pytest.importorskip('pycocotools')
    root = write(tmp_path / 'voc', 'voc', train=3, test=2, size=64, seed=5)
    for path in sorted((root / 'VOC2007' / 'Annotations').glob('trainval*'))[:1]:
        path.write_text(path.read_text().replace('<difficult>0', '<difficult>1'))
    train, test, classes = read(str(root))
    assert all(train[0].ignore) and not any(train[1].ignore)
    assert len(DetectionSet(train, SHAPES, training=True)) == 2
    assert DetectionSet(train, SHAPES)[0][1]['iscrowd'].tolist() == [1] * len(train[0].boxes)
    coco = write(tmp_path / 'coco', 'coco', train=3, test=2, size=64, seed=5)
    path = coco / 'annotations' / 'instances_train.json'
    told = json.loads(path.read_text())
    told['annotations'][0]['iscrowd'] = 1
    path.write_text(json.dumps(told))
    assert read(str(coco))[0][0].ignore[0] is True


@pytest.mark.parametrize('splits, says', [
    (('VOC2007/trainval', 'VOC2012/test'), 'VOC2012/test for testing.*It has VOC2007/test, VOC2007/trainval'),
    (('VOC2007/test', 'VOC2007/test'), 'share images'), (('VOC2007/test',), 'it takes two')])
def test_splits(shapes: dict[str, Path], splits: tuple[str, ...], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        read(str(shapes['voc']), splits)


def test_data_that_is_broken(shapes: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match='no such folder'):
        read(str(tmp_path / 'x'))
    with pytest.raises(SettingError, match='neither as PASCAL VOC'):
        read(str(tmp_path))
    root = write(tmp_path / 'voc', 'voc', train=2, test=1, size=64)
    annotation = root / 'VOC2007' / 'Annotations' / 'test_00000.xml'
    annotation.write_text(annotation.read_text().replace('<xmin>', '<xmin>x'))
    with pytest.raises(SettingError, match='test_00000.xml.*cannot be read as an annotation'):
        read(str(root))
    (root / 'VOC2007' / 'JPEGImages' / 'trainval_00001.jpg').unlink()
    with pytest.raises(SettingError, match='trainval_00001.jpg.*missing'):
        read(str(root))
    item = Annotated(root / 'x.jpg', [(0, 0, 1, 1)], ['star'], [False])
    with pytest.raises(SettingError, match="has a 'star'"):
        DetectionSet([item], SHAPES)


def test_boxes_go_the_way_of_their_image(shapes: dict[str, Path]) -> None:
    train, _, classes = read(str(shapes['voc']))
    image, target = DetectionSet(train, classes)[0]
    mirrored, other = DetectionSet(train, classes, v2.RandomHorizontalFlip(1.0))[0]
    assert image.shape == (3, 64, 64) and 0 <= image.min() < image.max() <= 1 and type(image) is Tensor
    torch.testing.assert_close(mirrored, image.flip(2))
    x0, y0, x1, y1 = target['boxes'].T
    torch.testing.assert_close(other['boxes'], torch.stack([64 - x1, y0, 64 - x0, y1], 1))
    assert [classes[i - 1] for i in target['labels']] == train[0].names


@pytest.mark.parametrize('name, strides', [
    ('test_resnet', [4, 8, 16, 32]), ('test_convnext', [4, 8, 16, 32]), ('test_efficientnet', [4, 8, 16, 32])])
def test_pyramid_is_the_models_own_features(name: str, strides: list[int]) -> None:
    model = timm.create_model(name, num_classes=5).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pyramid = Pyramid(wrap(model, 'multimix'), 128, 4).eval()
    x = torch.randn(2, 3, 128, 96)
    with torch.no_grad():
        found = list(pyramid(x).values())
        own = model.forward_intermediates(x, intermediates_only=True)
    assert pyramid.strides == strides and [f.shape[1] for f in found] == pyramid.channels
    for f, stride in zip(found, strides):
        assert f.shape[2:] == (128 // stride, 96 // stride)
        torch.testing.assert_close(f, [o for o in own if o.shape == f.shape][-1], rtol=1e-4, atol=1e-4)
    pyramid.train()
    pyramid(10 + x)  # frozen: these images leave no trace in its batch norms
    pyramid.eval()
    with torch.no_grad():
        torch.testing.assert_close(list(pyramid(x).values()), found)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and model.num_classes == 5


def test_backbones_that_cannot() -> None:
    with pytest.raises(SettingError, match='one resolution only'):
        Pyramid(timm.create_model('test_vit', num_classes=3), 160, 4)
    with pytest.raises(SettingError, match='cannot take images of 96'):
        Pyramid(timm.create_model('test_resnet', num_classes=3, in_chans=1), 96, 4)
    with pytest.raises(SettingError, match='no forward_intermediates'):
        Pyramid(nn.Linear(2, 2), 96, 4)


def test_detectors_cover_the_image() -> None:
    """Anchors of 8 times the stride for Faster R-CNN, down to one position for SSD; losses have a gradient."""
    model = timm.create_model('test_resnet', num_classes=5)
    settings = (3, 96, (0.5,) * 3, (0.25,) * 3)
    images = [torch.rand(3, 96, 96), torch.rand(3, 80, 96)]
    target = [{'boxes': torch.tensor([[10.0, 10, 50, 60]]), 'labels': torch.tensor([2])},
              {'boxes': torch.zeros(0, 4), 'labels': torch.zeros(0, dtype=torch.int64)}]
    for build, settings_of in ((faster_rcnn, SMALL), (ssd, {})):
        detector: Any = build(model, *settings, **settings_of)
        losses = detector.train()(images, target)
        sum(losses.values()).backward()
        assert all(torch.isfinite(v) for v in losses.values())
        weight = detector.backbone.pyramid.net.conv1[0].weight
        assert weight.grad is not None and weight.grad.abs().sum() > 0
        assert detector.transform.image_mean == [0.5] * 3
    assert faster_rcnn(model, *settings).rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))  # type: ignore
    maps = list(ssd(model, *settings).backbone(torch.zeros(1, 3, 96, 96)).values())  # type: ignore
    assert [m.shape[-1] for m in maps] == [12, 6, 3, 2, 1]


class Says(nn.Module):
    """A detector that says what it is told, image by image."""

    def __init__(self, *answers: list[tuple[list[float], float, int]]) -> None:
        super().__init__()
        self.answers = list(answers)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        said, self.answers = self.answers[:len(images)], self.answers[len(images):]
        return [{'boxes': torch.tensor([b for b, _, _ in one], dtype=torch.float32).reshape(-1, 4),
                 'scores': torch.tensor([s for _, s, _ in one], dtype=torch.float32),
                 'labels': torch.tensor([c for _, _, c in one], dtype=torch.int64)} for one in said]


class Truth:
    """Two images of one circle each at (0, 0, 20, 20), and further objects as told."""

    def __init__(self, more: list[tuple[list[float], int, int]] = ()) -> None:  # type: ignore[assignment]
        self.more = list(more)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        objects = [([0.0, 0, 20, 20], 1, 0), *(self.more if i == 0 else [])]
        return torch.zeros(3, 64, 64), {
            'boxes': torch.tensor([b for b, _, _ in objects]), 'labels': torch.tensor([c for _, c, _ in objects]),
            'iscrowd': torch.tensor([x for _, _, x in objects])}


CIRCLE = [0.0, 0, 20, 20]
ELSEWHERE = [40.0, 40, 60, 60]


@pytest.mark.parametrize('answers, more, expected', [
    # all found, exactly
    (([(CIRCLE, 0.9, 1)], [(CIRCLE, 0.8, 1)]), (), (100, 100, 100)),
    # a more confident false positive: precision ½ at recall ½, ⅔ at 1; interpolated ⅔ everywhere
    (([(ELSEWHERE, 0.95, 1), (CIRCLE, 0.9, 1)], [(CIRCLE, 0.8, 1)]), (), (200 / 3,) * 3),
    # one of two missed: 51 of the 101 recall points are reached
    (([(CIRCLE, 0.9, 1)], []), (), (100 * 51 / 101,) * 3),
    # the second detection of an object is false: precision 1, ½, ⅔
    (([(CIRCLE, 0.9, 1), (CIRCLE, 0.85, 1)], [(CIRCLE, 0.8, 1)]), (), ((100 * 51 + 200 / 3 * 50) / 101,) * 3),
    # boxes of 20×20 and 20×13: an overlap of 0.65, enough for 0.5, 0.55, 0.6 and 0.65
    (([([0.0, 0, 20, 13.1], 0.9, 1)], [([0.0, 0, 20, 13.1], 0.8, 1)]), (), (40, 100, 0)),
    # another class is wrong, and a class with objects that are never found counts as 0
    (([(CIRCLE, 0.9, 1)], [(CIRCLE, 0.8, 1)]), [(ELSEWHERE, 2, 0)], (50, 50, 50)),
    # a crowd that is not found, and one that is: neither matters
    (([(CIRCLE, 0.9, 1)], [(CIRCLE, 0.8, 1)]), [(ELSEWHERE, 1, 1)], (100, 100, 100)),
    (([(ELSEWHERE, 0.95, 1), (CIRCLE, 0.9, 1)], [(CIRCLE, 0.8, 1)]), [(ELSEWHERE, 1, 1)], (100, 100, 100)),
])
def test_average_precision_by_hand(answers: Any, more: Any, expected: tuple[float, ...]) -> None:
    pytest.importorskip('torchmetrics')
    pytest.importorskip('pycocotools')
    found, shown = measure(Says(*answers), Truth(more), 1, 0, '', False)  # type: ignore[arg-type]
    assert (found['mAP'], found['AP50'], found['AP75']) == pytest.approx(expected, abs=0.02)
    assert found['per_class'][1] >= found['mAP'] - 0.01 and len(shown) == 2


def test_end_to_end(shapes: dict[str, Path]) -> None:
    pytest.importorskip('torchmetrics')
    pytest.importorskip('pycocotools')
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=4, zero_init_last=False)  # batch norms will be frozen
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train, test, classes = read(str(shapes['voc']))
    kwargs: dict[str, Any] = dict(epochs=2, batch_size=4, size=64, lr=1e-3, detector_kwargs=SMALL)
    table = transfer(model, train, test, classes, **kwargs)
    for name in ('Faster R-CNN', 'SSD'):
        for what in ('mAP', 'AP50', 'AP75'):
            assert 0 <= table[f'{name} | {what}, %'] <= 100
    for name in ('faster_rcnn', 'ssd'):
        assert len(table.data[name]['loss']) == 2 and min(table.data[name]['loss']) > 0
        assert set(table.data[name]['per_class']) <= set(SHAPES)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    kwargs['detector_kwargs'] = None  # SSD took none of them
    again = transfer(model, train, test, classes, **kwargs, detectors=['ssd'])
    assert again.data['ssd']['loss'] == pytest.approx(table.data['ssd']['loss'], rel=1e-4)
    with pytest.raises(SettingError, match="'box_batch_size_per_imag', which.*Did you mean box_batch_size_per_image"):
        transfer(model, train, test, classes, size=64, detector_kwargs={'box_batch_size_per_imag': 1})


def test_fine_tuning_learns_an_image_by_heart(shapes: dict[str, Path]) -> None:
    torch.manual_seed(0)
    train, _, classes = read(str(shapes['voc']))
    model = timm.create_model('test_resnet', num_classes=4, zero_init_last=False)
    detector = ssd(model, 3, 64, (0.5,) * 3, (0.5,) * 3)
    loss = fine_tune(detector, DetectionSet(train[:1], classes, training=True), 60, 5e-3, 1, 0, '', False)
    assert loss[-1] < 0.4 * loss[0]


@pytest.mark.slow
@pytest.mark.parametrize('detector, kwargs, epochs', [('ssd', {}, 30), ('faster_rcnn', {
    'box_batch_size_per_image': 64, 'rpn_post_nms_top_n_train': 200, 'rpn_post_nms_top_n_test': 100}, 8)])
def test_it_learns_to_find_shapes(detector: str, kwargs: dict[str, Any], epochs: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    train, test, classes = read(str(write(tmp_path, 'voc', train=200, test=40, size=96)))
    model = timm.create_model('test_resnet', num_classes=4, zero_init_last=False)
    table = transfer(model, train, test, classes, detectors=[detector], epochs=epochs, size=96, detector_kwargs=kwargs)
    assert next(v.value for row, v in table.rows.items() if 'AP50' in row) > 20


def test_settings(shapes: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('torchmetrics')
    pytest.importorskip('pycocotools')
    model = timm.create_model('test_resnet', num_classes=4)
    train, test, classes = read(str(shapes['voc']))
    for kwargs, says in (({'detectors': ['yolo']}, "'yolo', but there are faster_rcnn, ssd"),
                         ({'epochs': 0}, '0 epochs'), ({'lr': 1e9, 'size': 64, 'detectors': ['ssd'], 'epochs': 20},
                                                       'lower lr')):
        with pytest.raises(SettingError, match=says):
            transfer(model, train, test, classes, **kwargs)  # type: ignore[arg-type]
    monkeypatch.setattr(sys.modules['timm_multimix.evaluate.detection.transfer'], 'find_spec', lambda name: None)
    with pytest.raises(SettingError, match=r"torchmetrics and pycocotools.*pip install torchmetrics pycocotools"):
        transfer(model, train, test, classes)
