"""Settings: presets, checks, and round trips."""
from __future__ import annotations

import pytest
import yaml

from timm_multimix import MultiMixConfig, SettingError
from timm_multimix.config import alpha_for_effective


def test_paper_preset_is_the_published_setting() -> None:
    c = MultiMixConfig('multimix', preset='paper')
    assert (c.n, c.m, c.alpha, c.prob, c.clean_weight, c.mixup) == (1000, None, (0.5, 2.0), 0.5, 0.0, 2.0)
    assert c.alpha_range(128) == (0.5, 2.0) and c.tuple_size(128) == 128


def test_default_preset_scales_alpha_with_the_batch() -> None:
    c = MultiMixConfig('dense')
    assert c.clean_weight == 1
    low, high = c.alpha_range(128)
    assert 0.5 / 130 < low < 0.5 / 120 and 2 / 130 < high < 2 / 120  # α ~ U[0.5, 2] / 128
    assert c.alpha_range(256)[0] < low


def test_default_takes_turns_with_input_mixing_and_alone_does_not() -> None:
    default, alone = MultiMixConfig('dense'), MultiMixConfig('dense', preset='embeddings')
    assert (default.prob, default.ramp, default.mixup, default.cutmix) == (0.25, 0.5, 1, 1)
    assert (alone.prob, alone.ramp, alone.mixup, alone.cutmix) == (1, 0, 0, 0)
    assert default.replace(preset='embeddings') == alone and default.alpha_range(128) == alone.alpha_range(128)


def test_effective_inverts_to_alpha() -> None:
    for m in (8, 128):
        a = alpha_for_effective(3.0, m)
        assert (m * a + 1) / (a + 1) == pytest.approx(3)


def test_effective_on_a_batch_too_small_for_it() -> None:
    for effective in (3, (1.5, 3.0), (2.9, 3.0), (4.5, 6)):
        c = MultiMixConfig('dense', effective=effective)
        for batch in range(1, 9):
            low, high = c.alpha_range(batch)
            assert 0 < low <= high < float('inf')
            assert high == 1 or batch > c.effective[1]  # flat


def test_flags_override_a_preset() -> None:
    c = MultiMixConfig('dense', preset='paper', effective=2, n=10, clean_weight=0.5)
    assert c.alpha is None and c.effective == (2, 2) and c.n == 10 and c.clean_weight == 0.5 and c.prob == 0.5


def test_replace_keeps_what_was_given_and_follows_a_new_preset_otherwise() -> None:
    c = MultiMixConfig('dense', n=7, alpha=1.0).replace(preset='paper')
    assert (c.n, c.alpha, c.prob) == (7, (1, 1), 0.5)
    assert c.replace(effective=3).alpha is None


def test_round_trip_through_yaml() -> None:
    for c in (MultiMixConfig('dense', attention='cam', m=5, effective=2), MultiMixConfig('multimix', preset='paper'),
              MultiMixConfig('dense', attention='self'),
              MultiMixConfig('dense', attention='uniform', preset='embeddings', keep_norm=True, bce_loss=True,
                             bce_target_thresh=0.2)):
        assert MultiMixConfig.from_dict(yaml.safe_load(yaml.safe_dump(c.to_dict()))) == c


@pytest.mark.parametrize('settings, words', [
    (dict(mode='mutimix'), r"mode \(--multimix\) is 'mutimix'.* Did you mean multimix"),
    (dict(preset='papr'), 'Did you mean paper'),
    (dict(n=0), r'n \(--multimix-n\) is 0'), (dict(n=2.5), 'whole number'), (dict(m=0), r'--multimix-m\) is 0'),
    (dict(alpha=0), r'--multimix-alpha\)'), (dict(alpha=(2, 1)), 'smaller end'),
    (dict(alpha=(1, 2, 3)), 'ends of a range'),
    (dict(alpha='1'), 'finite number'), (dict(alpha=float('nan')), 'finite number'),
    (dict(effective=1), 'above 1'), (dict(effective=4, m=4), 'below m'), (dict(alpha=1, effective=2), 'only one'),
    (dict(prob=1.5), 'from 0 to 1'), (dict(clean_weight=-1), 'at least 0'), (dict(label_smoothing=1.0), '--smoothing'),
    (dict(attention='gpa'), 'Did you mean gap'), (dict(attention_norm='l2'), 'l1_relu'),
    (dict(normalize='x'), 'position'),
    (dict(attention='uniform', attention_norm='softmax'), 'nothing to normalise'),
    (dict(attention='self', attention_norm='softmax'), 'self attention has nothing to normalise'),
    (dict(mode='multimix', attention='gap'), 'only --multimix dense'),
    (dict(cutmix=-1), r'cutmix \(--cutmix\) is -1.*at least 0'),
    (dict(bce_loss=1), r'--bce-loss\) is 1.*True or False'),
    (dict(keep_norm=1), r'--multimix-keep-norm\) is 1.*True or False'),
    (dict(keep_norm=True, attention_detach=False), r'keep_norm .*leave attention_detach'),
    (dict(mode='multimix', keep_norm=True, layer='input'), r'keep_norm .*--multimix-layer embedding'),
    (dict(bce_target_thresh=0.2), 'which is off'), (dict(bce_loss=True, bce_target_thresh=1), r'--bce-target-thresh\)'),
])
def test_bad_settings_name_the_setting_the_value_and_what_is_right(settings: dict, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        MultiMixConfig(**{'mode': 'dense', **settings})


def test_unknown_setting() -> None:
    with pytest.raises(SettingError, match="'atention' is not a setting.* Did you mean attention"):
        MultiMixConfig.from_dict({'mode': 'dense', 'atention': 'gap'})


def test_mixup_alone_is_not_joined_by_the_presets_cutmix() -> None:
    for settings, want in (({'mixup': 0.2}, (0.2, 0)), ({'cutmix': 0.5}, (0, 0.5)), ({'mixup': 0}, (0, 1)),
                           ({'mixup': 0.2, 'cutmix': 1}, (0.2, 1)), ({'preset': 'paper', 'cutmix': 1}, (0, 1))):
        c = MultiMixConfig('dense', **settings)
        assert (c.mixup, c.cutmix) == want
        assert MultiMixConfig.from_dict(c.to_dict()) == c
    assert MultiMixConfig('dense', mixup=0.2).replace(mixup=None).cutmix == 1


def test_checked_against_the_batch() -> None:
    with pytest.raises(SettingError, match='a batch of 8 has no 9'):
        MultiMixConfig('dense', m=9).check_batch(8)
    with pytest.raises(SettingError, match='must be below 2'):
        MultiMixConfig('dense', effective=2).check_batch(2)
    MultiMixConfig('dense', m=2).check_batch(2)  # the preset's own range gives way
    MultiMixConfig('dense', preset='embeddings').check_batch(9)
    with pytest.raises(SettingError, match="--mixup.* is 1.0.*even batch size, not 9.*'embeddings' mixes no inputs"):
        MultiMixConfig('dense').check_batch(9)
    with pytest.raises(SettingError, match='even batch'):
        MultiMixConfig('dense', preset='paper').check_batch(9)
