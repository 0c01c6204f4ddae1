"""`hf_loss` in the real Trainer, on tiny networks made from configurations; and called as the Trainer calls it."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import timm_multimix
from tests import forked
from timm_multimix import LamSampler, MultiMixConfig, SettingError
from timm_multimix.mixing import extensions

C, B = 5, 8


def logits_and_labels(seed: int = 0, n: int = B) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, C, generator=g), torch.randint(0, C, (n,), generator=g)


# ------------------------------------------------------------------------------------- as the Trainer calls it, alone


def test_in_evaluation_it_is_the_plain_loss() -> None:
    loss = timm_multimix.hf_loss(label_smoothing=0.1, class_weight=[1, 2, 3, 4, 5])
    x, y = logits_and_labels()
    with torch.no_grad():
        got = loss({'logits': x.requires_grad_()}, y, num_items_in_batch=torch.tensor(B))
    assert torch.allclose(got, F.cross_entropy(x, y)) and not loss.counts
    assert torch.allclose(loss((x.detach(),), y), F.cross_entropy(x, y))  # no gradient is wanted either
    several = torch.rand(B, C).round()
    with torch.no_grad():
        assert torch.allclose(timm_multimix.hf_loss()((x,), several, torch.tensor(B * C)),
                              F.binary_cross_entropy_with_logits(x, several))


@pytest.mark.parametrize('several', [False, True])
def test_micro_batches_count_by_their_labels(several: bool) -> None:
    """Of one batch in pieces, not of one size, the losses sum to that of the batch."""
    loss = timm_multimix.hf_loss(prob=0.0)
    x, y = logits_and_labels()
    labels = torch.rand(B, C).round() if several else y
    x.requires_grad_()
    pieces = [slice(0, 1), slice(1, 6), slice(6, 8)]
    total = sum(loss((x[p],), labels[p], torch.tensor(labels.numel())) for p in pieces)
    want = F.binary_cross_entropy_with_logits(x, labels) if several else F.cross_entropy(x, y)
    assert torch.allclose(total, want)  # type: ignore[arg-type]
    assert loss.counts == Counter(steps=3, nothing=3)


def test_examples_without_a_label_are_left_out() -> None:
    x, y = logits_and_labels()
    x.requires_grad_()
    some = y.clone()
    some[2:5] = -100
    loss = timm_multimix.hf_loss(prob=0.0)
    assert torch.allclose(loss((x,), some, torch.tensor(5)), F.cross_entropy(x, some))
    nothing = timm_multimix.hf_loss()((x,), torch.full((B,), -100), torch.tensor(5))
    nothing.backward()
    assert nothing == 0 and not x.grad.any()  # type: ignore[union-attr]
    mixed = timm_multimix.hf_loss()((x,), some, torch.tensor(5))
    x.grad = None
    mixed.backward()
    assert not x.grad[2:5].any() and x.grad[:2].any()  # type: ignore[union-attr, index]


@pytest.mark.parametrize('kind', ['hard', 'soft', 'several'])
def test_a_mixed_step_is_that_of_the_equations(kind: str) -> None:
    x, y = logits_and_labels()
    labels = {'hard': y, 'soft': torch.rand(B, C).softmax(1), 'several': torch.rand(B, C).round()}[kind]
    loss = timm_multimix.hf_loss(n=300, effective=2, clean_weight=0.5, problem_type=(
        'single_label_classification' if kind == 'soft' else None))
    torch.manual_seed(3)
    got = loss((x.requires_grad_(),), labels)
    torch.manual_seed(3)
    step = int(torch.randint(2**62, ()))
    lam = LamSampler(300, 1, B, MultiMixConfig('multimix', effective=2).alpha_range(B),
                     loss.policy.choose(step).generator(x.device)).draw_many(1, 300)[0]
    Y = F.one_hot(y, C).float() if kind == 'hard' else labels
    eye, zero = torch.eye(C), torch.zeros(C)
    mixed = extensions.multimix_loss(x, Y, lam, eye, zero, binary=kind == 'several')
    clean = F.binary_cross_entropy_with_logits(x, Y) if kind == 'several' else F.cross_entropy(x, Y)
    assert torch.allclose(got, (mixed + 0.5 * clean) / 1.5, atol=1e-5)
    assert loss.counts == Counter(steps=1, embeddings=1)


def test_a_first_batch_of_few_labels() -> None:
    loss = timm_multimix.hf_loss(m=8, effective=4, ramp=0)
    x, y = logits_and_labels(n=8)
    y[3:] = -100
    assert torch.isfinite(loss({'logits': x.requires_grad_()}, y))


def test_dataparallel_tells_a_number_for_each_device_and_multiplies() -> None:
    x, y = logits_and_labels()
    x.requires_grad_()
    loss = timm_multimix.hf_loss(prob=0.0)
    told = torch.tensor(2 * B).unsqueeze(0).expand(2, -1)  # this micro-batch is half of the step's
    assert torch.allclose(loss((x,), y, told) * 2, F.cross_entropy(x, y) / 2)


def test_what_cannot_be_mixed_is_refused() -> None:
    x, y = logits_and_labels()
    x.requires_grad_()
    for settings, said in (({'mode': 'dense'}, 'mode is'), ({'preset': 'default'}, 'mixup is 1.0'),
                           ({'layer': 2, 'n': None}, 'layer is 2'), ({'gather': True}, 'gather is'),
                           ({'teacher': 'ema'}, 'no images to ask a teacher about'),
                           ({'problem_type': 'regression'}, 'problem_type is'), ({'n': 0}, 'n .* is 0')):
        with pytest.raises(SettingError, match=said):
            timm_multimix.hf_loss(**settings)  # type: ignore[arg-type]
    loss = timm_multimix.hf_loss()
    with pytest.raises(SettingError, match="no 'labels'"):
        loss((x,), None)
    with pytest.raises(SettingError, match='regression'):
        loss((x[:, :1],), y.float())
    with pytest.raises(SettingError, match='a label for each position'):
        loss((x[:, None],), y[:, None])
    with pytest.raises(SettingError, match='look like soft targets'):
        loss((x,), torch.rand(B, C).softmax(1))
    with pytest.raises(SettingError, match='problem_type is'):
        timm_multimix.hf_loss(problem_type='multi_label_classification')((x,), y)
    with pytest.raises(SettingError, match='callbacks='):
        timm_multimix.hf_loss(ramp=0.5)((x,), y)
    with pytest.raises(SettingError, match='class 7'):
        loss((x,), y + 7 - y)
    with pytest.warns(UserWarning, match='per_device_train_batch_size'):
        timm_multimix.hf_loss()((x[:1],), y[:1])
    with pytest.warns(UserWarning, match='Nothing will be learned'):
        timm_multimix.hf_loss(alpha=(5, 5), clean_weight=0)((x,), y)


# ------------------------------------------------------------------------------------------------ in the real Trainer

needs_transformers = pytest.mark.skipif(
    find_spec('transformers') is None, reason="needs transformers: pip install '.[examples]'")


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification
    return BertForSequenceClassification(BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_labels=C, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))


def wav2vec2() -> nn.Module:
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification
    return Wav2Vec2ForSequenceClassification(Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
        conv_stride=(5, 4), conv_kernel=(10, 4), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, classifier_proj_size=8, num_labels=C, hidden_dropout=0.0,
        attention_dropout=0.0, feat_proj_dropout=0.0, activation_dropout=0.0, layerdrop=0.0,
        apply_spec_augment=False))


def spectrogram_transformer() -> nn.Module:
    from transformers import ASTConfig, ASTForAudioClassification
    return ASTForAudioClassification(ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_mel_bins=32,
        max_length=40, num_labels=C))


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification
    return ViTForImageClassification(ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32,
        patch_size=16, num_labels=C))


def of_timm() -> nn.Module:
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification
    return TimmWrapperForImageClassification(TimmWrapperConfig(
        architecture='test_vit', num_labels=C, model_args={'img_size': 32}))


INPUTS: dict[Callable[[], nn.Module], Callable[[torch.Generator], dict[str, Tensor]]] = {
    bert: lambda g: {'input_ids': torch.randint(1, 40, (6,), generator=g)},
    wav2vec2: lambda g: {'input_values': torch.randn(400, generator=g)},
    spectrogram_transformer: lambda g: {'input_values': torch.randn(40, 32, generator=g)},
    vit: lambda g: {'pixel_values': torch.randn(3, 32, 32, generator=g)},
    of_timm: lambda g: {'pixel_values': torch.randn(3, 32, 32, generator=g)},
}


def examples(make: Callable[[], nn.Module], n: int, several: bool = False) -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(0)
    return [{**INPUTS[make](g), 'labels': torch.rand(C, generator=g).round() if several else i % C} for i in range(n)]


def trainer(make: Callable[[], nn.Module], folder: Path, loss: Any, *, n: int = 20, several: bool = False,
            callbacks: Optional[list[Any]] = None, **args: Any) -> Any:
    from transformers import Trainer, TrainingArguments
    torch.manual_seed(0)
    model = make()
    if several:
        model.config.problem_type = 'multi_label_classification'  # type: ignore[union-attr]
    return Trainer(
        model=model, train_dataset=examples(make, n, several), eval_dataset=examples(make, 7, several),
        compute_loss_func=loss, callbacks=callbacks,
        args=TrainingArguments(**{
            'output_dir': str(folder), 'per_device_train_batch_size': 4, 'per_device_eval_batch_size': 4,
            'learning_rate': 1e-2, 'logging_steps': 1, 'use_cpu': True, 'report_to': 'none', 'disable_tqdm': True,
            'save_strategy': 'no', 'max_steps': 3, 'dataloader_pin_memory': False, **args}))


def weights(trained: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trained.model.parameters()])


def losses(trained: Any) -> list[float]:
    return [entry['loss'] for entry in trained.state.log_history if 'loss' in entry]


@needs_transformers
@pytest.mark.parametrize('make', INPUTS)
def test_trains_mixes_and_evaluates_plainly(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    loss = timm_multimix.hf_loss(n=50)
    trained = trainer(make, tmp_path, loss)
    before = weights(trained).clone()
    trained.train()
    assert loss.counts == Counter(steps=3, embeddings=3) and not torch.equal(weights(trained), before)

    found = trained.evaluate()
    logits, labels = (torch.tensor(x) for x in trained.predict(trained.eval_dataset)[:2])
    assert loss.counts['steps'] == 3
    assert found['eval_loss'] == pytest.approx(float(F.cross_entropy(logits, labels)), abs=1e-5)


@needs_transformers
@pytest.mark.parametrize('several', [False, True])
@pytest.mark.parametrize('make', [bert, of_timm])
def test_unmixed_it_is_the_trainers_own_training(make: Callable[[], nn.Module], several: bool, tmp_path: Path) -> None:
    ours = trainer(make, tmp_path, timm_multimix.hf_loss(prob=0.0), several=several)
    theirs = trainer(make, tmp_path, None, several=several)
    for each in (ours, theirs):
        each.train()
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-5)
    assert torch.allclose(weights(ours), weights(theirs), atol=1e-5)
    assert ours.evaluate()['eval_loss'] == pytest.approx(theirs.evaluate()['eval_loss'], abs=1e-5)


@needs_transformers
@pytest.mark.parametrize('several', [False, True])
@pytest.mark.parametrize('n', [32, 26])  # the last step has fewer micro-batches, and the last of these fewer examples
def test_accumulation_of_four_equals_one_batch(several: bool, n: int, tmp_path: Path) -> None:
    args = {'n': n, 'several': several, 'max_steps': -1, 'num_train_epochs': 2, 'optim': 'sgd', 'learning_rate': 0.1}
    whole = trainer(bert, tmp_path, timm_multimix.hf_loss(prob=0.0), per_device_train_batch_size=16, **args)
    loss = timm_multimix.hf_loss(prob=0.0)
    parts = trainer(bert, tmp_path, loss, gradient_accumulation_steps=4, **args)
    for each in (whole, parts):
        each.train()
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)
    assert torch.allclose(weights(parts), weights(whole), atol=1e-5)
    assert loss.counts['steps'] == 2 * -(-n // 4)


@needs_transformers
@pytest.mark.parametrize('average', [True, False])
def test_on_two_devices_of_dataparallel_it_is_the_same(average: bool, tmp_path: Path) -> None:
    """Without a GPU nn.DataParallel runs the network as it is; what the Trainer does about two is its own."""
    one = trainer(bert, tmp_path, timm_multimix.hf_loss(prob=0.0), optim='sgd', learning_rate=0.1)
    two = trainer(bert, tmp_path, timm_multimix.hf_loss(prob=0.0), optim='sgd', learning_rate=0.1,
                  average_tokens_across_devices=average)
    two.args._n_gpu = 2  # after the loader was told its batch size
    for each in (one, two):
        each.train()
    assert isinstance(two.model_wrapped, nn.DataParallel)
    assert torch.allclose(weights(one), weights(two), atol=1e-6)


@needs_transformers
def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path: Path) -> None:
    args = {'n': 24, 'max_steps': 9, 'gradient_accumulation_steps': 2, 'save_strategy': 'steps', 'save_steps': 5}

    def run(folder: str, from_checkpoint: Optional[str] = None) -> Any:
        loss = timm_multimix.hf_loss(n=40, ramp=0.8, prob=0.7)
        found = trainer(bert, tmp_path / folder, loss, callbacks=[loss], **args)
        found.train(resume_from_checkpoint=from_checkpoint)
        return found

    whole = run('whole')
    rest = run('rest', str(tmp_path / 'whole' / 'checkpoint-5'))
    mixed = [entry.get('mixed') for entry in whole.state.log_history if 'loss' in entry]
    assert mixed == [entry.get('mixed') for entry in rest.state.log_history if 'loss' in entry]
    assert {0.0} < set(mixed)  # some steps mixed, and some did not
    assert torch.equal(weights(whole), weights(rest))


@needs_transformers
def test_as_a_callback_it_knows_the_progress_and_logs(tmp_path: Path) -> None:
    seen: list[float] = []

    def schedule(progress: float) -> float:
        seen.append(progress)
        return float(progress >= 0.5)

    loss = timm_multimix.hf_loss(schedule=schedule)
    trained = trainer(bert, tmp_path, loss, callbacks=[loss], max_steps=4, logging_steps=2)
    trained.train()
    assert seen == [0, 0.25, 0.5, 0.75] and loss.counts == Counter(steps=4, nothing=2, embeddings=2)
    first, second = (entry for entry in trained.state.log_history if 'loss' in entry)
    assert first['mixed'] == 0 and second['mixed'] == 1
    assert first['loss'] == pytest.approx(first['loss_clean'], abs=1e-4) and 'effective' not in first
    assert second['loss'] == pytest.approx((second['loss_clean'] + second['loss_mixed']) / 2, abs=1e-4)
    assert 1 < second['effective'] < 4 and 0 < second['target_entropy'] < 1

    with pytest.raises(SettingError, match='label_smoothing_factor is 0.1'):
        trainer(bert, tmp_path, loss, callbacks=[loss], label_smoothing_factor=0.1).train()


@needs_transformers
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Where nothing is mixed, two processes of 2 examples do what one of 4 does; and they mix each their own."""
    common = {'n': 24, 'optim': 'sgd', 'learning_rate': 0.1, 'gradient_accumulation_steps': 2}
    one = trainer(bert, tmp_path, timm_multimix.hf_loss(prob=0.0), **common)
    one.train()
    script = tmp_path / 'script.py'
    script.write_text(f'''
import torch, timm_multimix
from tests.test_huggingface import bert, trainer, weights
for prob in (0.0, 1.0):
    loss = timm_multimix.hf_loss(prob=prob)
    two = trainer(bert, {str(tmp_path)!r}, loss, per_device_train_batch_size=2, **{common})
    two.train()
    assert loss.counts['steps'] == 6 and loss.counts['embeddings'] == 6 * prob
    if two.is_world_process_zero():
        torch.save(weights(two), f'{tmp_path}/{{prob}}.pt')
''')
    done = forked.run('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', str(script), timeout=600,
                      deep=True)
    assert done.returncode == 0, done.stderr
    plain, mixed = (torch.load(tmp_path / f'{prob}.pt', weights_only=True) for prob in (0.0, 1.0))
    assert torch.allclose(weights(one), plain, atol=1e-6) and not torch.allclose(plain, mixed, atol=1e-6)


def test_settings_are_named() -> None:
    for wrong in ('multimix', {'n': 5}):
        with pytest.raises(SettingError, match='it must be a MultiMixConfig'):
            timm_multimix.hf_loss(wrong)  # type: ignore[arg-type]
