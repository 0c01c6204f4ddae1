"""docs/settings.md: every setting of the method, from what `MultiMixConfig` says of them. `python tools/settings.py`"""
from __future__ import annotations

from pathlib import Path

from timm_multimix.config import PRESETS, SETTINGS, MultiMixConfig, flag, setting_text
from timm_multimix.setting import Number, Setting

PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'settings.md'

TOP = """# Settings

`python tools/settings.py` writes this page from `timm_multimix/config.py`, and the tests hold it complete.

`wrap` and `MultiMixConfig` take the names. `train.py` takes the flags. A YAML file takes the flags without their first
dashes and with underscores (`multimix_n: 500`). What is not given comes from the preset. The settings to try first are
`prob`, `effective` and `ramp`.

| setting | flag | values | default preset | meaning |
|---|---|---|---|---|
"""
BOTTOM = """

`manifold` and `regmixup` are [other methods](changing_the_method.md#other-methods-as-settings-of-this-one). `regmixup`
goes with `multimix` alone. [Ranks and resuming](ranks_and_resuming.md#mix-the-batch-of-all-ranks) explains `gather`.
[Coming from timm](from_timm.md#binary-cross-entropy) explains binary cross-entropy.
[Method](method.md#why-the-default-is-not-the-papers-setting) says why `default` is not `paper`.
"""


def values(about: Setting) -> str:
    if about.values is bool:
        return 'yes or no'
    if isinstance(about.values, tuple):
        return ', '.join(f'`{word}`' for word in about.values)
    if isinstance(about.values, Number):
        text = ('whole, ' if about.values.whole else '') + about.values.words
        return f'{text}; one or two' if about.many else text
    return 'one or several' if about.many else ''


def value(config: MultiMixConfig, name: str) -> str:
    found = getattr(config, name)
    if found is None and SETTINGS[name].needs:
        found = SETTINGS[name].usual
    if isinstance(found, bool):
        return 'yes' if found else 'no'
    return '' if found is None else setting_text(name, found)


def page() -> str:
    """Markdown."""
    default = MultiMixConfig('dense')
    presets = {name: MultiMixConfig('multimix', preset=name) for name in PRESETS}
    decided = [name for name in SETTINGS if any(name in preset for preset in PRESETS.values())]
    rows = [f'| `{name}` | `{flag(name)}` | {values(about)} | {value(default, name)} | {about.text}. {about.more} |'
            for name, about in SETTINGS.items()]
    rows += ['', '## Presets', '', f'| | {" | ".join(f"`{name}`" for name in presets)} |',
             '|---' * (len(presets) + 1) + '|']
    rows += [f'| `{name}` | {" | ".join(value(config, name) for config in presets.values())} |' for name in decided]
    return TOP + '\n'.join(' '.join(row.split()) for row in rows) + BOTTOM


if __name__ == '__main__':
    PAGE.write_text(page())
