"""Attention maps against the model's own numbers, and localisation by hand and by brute force."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

from timm_multimix import SettingError, wrap
from timm_multimix.evaluate import attention
from timm_multimix.evaluate.load import learned_attention
from timm_multimix.evaluate.tables.attention import THRESHOLDS, Maps, localisation, rank_correlation


def test_localisation_by_hand() -> None:
    """A map and a mask of one size: no enlarging. Mask: the left half of 2×4."""
    mask = torch.tensor([[[1, 1, 0, 0], [1, 1, 0, 0]]]).bool()
    good = torch.tensor([[[8.0, 4, 2, 0], [4, 4, 0, 0]]])
    found = localisation(good, mask)
    assert found['pointing'][0] == 1 and found['auc'][0] == 1
    iou = dict(zip(THRESHOLDS.round(2), found['iou'][0]))
    assert iou[0.1] == pytest.approx(4 / 5) and iou[0.5] == 1 and iou[0.51] == pytest.approx(1 / 4)
    bad = localisation(good.flip(2), mask)
    assert bad['pointing'][0] == 0 and bad['auc'][0] == 0 and bad['correlation'][0] == -found['correlation'][0]
    flat = localisation(torch.ones(1, 2, 4), mask)
    assert flat['pointing'][0] == 0.5 and flat['auc'][0] == 0.5  # of all pixels, the share on the object
    assert set(flat['iou'][0]) == {0.5} and np.isnan(flat['correlation'][0])
    none = localisation(good, torch.zeros(1, 2, 4).bool())
    assert all(np.isnan(none[k]).all() for k in none)
    everything = localisation(good, torch.ones(1, 2, 4).bool())
    assert everything['pointing'][0] == 1 and np.isnan(everything['auc'][0])


def test_localisation_by_brute_force() -> None:
    g = torch.Generator().manual_seed(0)
    maps, masks = torch.rand(5, 4, 4, generator=g), torch.rand(5, 12, 12, generator=g) < 0.3
    found = localisation(maps, masks)
    large = F.interpolate(maps[:, None].double(), (12, 12), mode='bilinear')[:, 0]
    for i, (a, mask) in enumerate(zip(large, masks)):
        a = a / a.max()
        pairs = a[mask][:, None] - a[~mask][None]
        won = (pairs > 0).double() + 0.5 * (pairs == 0)  # enlarging repeats the borders: there are ties
        assert found['auc'][i] == pytest.approx(float(won.mean()))
        for k in (0, 30, 77):
            cut = a >= THRESHOLDS[k]
            assert found['iou'][i, k] == pytest.approx(float((cut & mask).sum() / (cut | mask).sum()))
        share = masks[i].view(4, 3, 4, 3).double().mean((1, 3)).flatten()
        ranks = np.corrcoef(rankdata(maps[i].flatten()), rankdata(share))[0, 1]
        assert found['correlation'][i] == pytest.approx(ranks)
        assert found['pointing'][i] == pytest.approx(float(mask[a == a.max()].double().mean()))


def test_rank_correlation_ignores_scale() -> None:
    a = torch.rand(3, 4, 4)
    np.testing.assert_allclose(rank_correlation(a, a ** 3), 1)
    np.testing.assert_allclose(rank_correlation(a, -a), -1)


def test_gap_and_cam_are_of_the_features(resnet: nn.Module) -> None:
    x, y = torch.randn(3, 3, 32, 32), torch.tensor([4, 0, 9])
    maps = Maps(resnet, ('gap', 'cam', 'uniform'), 'l1_relu')(x, y)
    with torch.no_grad():
        f = resnet.forward_features(x)
    u = f.mean((2, 3))
    gap = torch.einsum('bchw,bc->bhw', f, u).relu()
    torch.testing.assert_close(maps['gap'], gap / gap.sum((1, 2), keepdim=True))
    cam = torch.einsum('bchw,bc->bhw', f, resnet.fc.weight[y]).detach().relu()
    total = cam.sum((1, 2), keepdim=True)
    assert bool((total > 0).any())
    torch.testing.assert_close(maps['cam'], torch.where(total > 0, cam / total, 1 / 16))
    assert set(maps['uniform'].flatten().tolist()) == {1 / 16}
    soft = Maps(wrap(resnet, 'dense'), ('gap',), 'softmax')(x, y)['gap']
    torch.testing.assert_close(soft, torch.einsum('bchw,bc->bhw', f, u).flatten(1).softmax(1).view(3, 4, 4))


@pytest.mark.parametrize('pool', ['token', 'avg'])
def test_self_is_the_last_blocks(pool: str) -> None:
    kwargs = {} if pool == 'token' else {'global_pool': 'avg', 'fc_norm': False}
    vit = timm.create_model('test_vit', img_size=32, patch_size=8, num_classes=5, **kwargs).eval()
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    fused = vit.blocks[-1].attn.fused_attn
    keep: list[Tensor] = []
    hook = vit.blocks[-1].attn.register_forward_pre_hook(lambda m, i: keep.append(i[0]))
    maps = Maps(vit, ('self', 'gap'), 'l1_relu')
    if pool == 'token':  # a copy is looked at, so that the model stays as it is
        assert maps.model is not vit and vit.global_pool == 'token' and 'class token' in maps.notes[0]
    found = maps(x, y)
    with torch.no_grad():
        vit.forward_features(x)
    hook.remove()
    attn = vit.blocks[-1].attn
    q, k, _ = attn.qkv(keep[-1]).view(2, 17, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    whole = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1).mean(1)
    a = whole[:, 0, 1:] if pool == 'token' else whole[:, 1:, 1:].mean(1)
    torch.testing.assert_close(found['self'], (a / a.sum(1, keepdim=True)).detach().view(2, 4, 4))
    assert vit.blocks[-1].attn.fused_attn == fused and found['gap'].shape == (2, 4, 4)


def test_table(resnet: nn.Module, loader: list[tuple[Tensor, Tensor]]) -> None:
    masks = torch.zeros(16, 32, 32)
    masks[:, :, :8] = 1
    with_masks = [(x, y, masks[:len(x)]) for x, y in loader]
    table = attention(resnet, with_masks, pictures=3)
    assert table['object area, %'] == table['uniform | pointing, %'] == 25
    assert table['uniform | IoU at the best threshold, %'] == 25 and table['uniform | AUC, %'] == 50
    assert np.isnan(table['uniform | rank correlation with the mask'])
    assert table['uniform | effective positions'] == pytest.approx(16)
    assert 1 <= table['gap | effective positions'] <= 16
    assert not any(row.startswith('self') for row in table.rows) and 'no self' in table.notes[0]
    assert len(table.arrays['shown']) == 3
    plain = attention(resnet, loader)
    assert plain['gap | effective positions'] == pytest.approx(table['gap | effective positions'])
    assert 'gap | AUC, %' not in plain.rows
    with pytest.raises(SettingError, match='masks are'):
        attention(resnet, [(x, y, masks[:len(x), :8]) for x, y in loader])
    with pytest.raises(SettingError, match="kinds has 'gpa'"):
        attention(resnet, loader, kinds=['gpa'])


def test_a_model_without_positions_says_so() -> None:
    volo = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(SettingError):
        attention(volo, [(torch.randn(2, 3, 2, 2), torch.tensor([0, 1]))])


def test_learned_attention_is_a_type_where_there_is_one() -> None:
    """Of a wrapped model its own; else the u that is given."""
    net = timm.create_model('test_resnet', num_classes=5)
    model = wrap(net, 'dense', input_size=(3, 64, 64), attention='learned', attention_lr=0.5, preset='embeddings')
    images, target = torch.randn(6, 3, 64, 64), torch.arange(6) % 5
    assert model(images, target).loss.isfinite()
    u = model.multimix.learned.u.detach()
    model.eval()
    z = model.forward_features(images).flatten(2).transpose(1, 2)
    want = torch.stack([(one @ u).softmax(0) for one in z]).detach()
    loader = [(images, target, torch.rand(6, 64, 64) < 0.5)]
    for table in (attention(model, loader, pictures=6), attention(net.eval(), loader, learned=u, pictures=6)):
        shown = torch.stack([one['maps']['learned'] for one in table.arrays['shown']])
        torch.testing.assert_close(shown.flatten(1), want, rtol=1e-4, atol=1e-5)
        assert {'learned | pointing, %', 'learned | effective positions',
                'learned | rank correlation with gap'} <= set(table.rows)
    assert not any('learned' in row for row in attention(net, loader).rows)
    with pytest.raises(SettingError, match=r'learned is \(3,\), but the features have'):
        attention(net, loader, learned=torch.zeros(3))


def test_it_is_found_in_the_checkpoint_of_a_run(tmp_path: Path) -> None:
    u = torch.randn(4)
    torch.save({'epoch': 0, 'state_dict': {}, 'task_state': {'step': 3, 'attention': {'u': u, 'adam': {}}}},
               tmp_path / 'last.pth.tar')
    (tmp_path / 'model').mkdir()
    for path in (tmp_path, tmp_path / 'model', f'local-dir:{tmp_path}/model', tmp_path / 'last.pth.tar'):
        found = learned_attention(str(path))
        assert found is not None and torch.equal(found, u)
    for nothing in ('hf-hub:user/name', 'resnet18', str(tmp_path / 'none')):
        assert learned_attention(nothing) is None
    torch.save({'epoch': 0, 'state_dict': {}, 'task_state': {'step': 3}}, tmp_path / 'last.pth.tar')
    assert learned_attention(str(tmp_path)) is None
