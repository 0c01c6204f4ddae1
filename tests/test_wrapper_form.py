"""The form of a wrapped model: what timm's own tests ask of a model holds, and what is attached to it is its own."""
from __future__ import annotations

import copy
import functools
import multiprocessing
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn as nn
from timm.models import create_feature_extractor, get_notrace_functions, get_notrace_modules
from timm.utils import CheckpointSaver, ModelEmaV3
from torch.nn.utils import parametrize
from torchvision.models.feature_extraction import get_graph_node_names

from tests.models import quiet_wrap
from timm_multimix import MultiMixConfig, MultiMixModel, Parts, SettingError, unwrap, wrap
from timm_multimix.policy import MixingPolicy

TARGET = torch.tensor([0, 1, 2, 3])
IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@functools.cache
def both(name: str) -> tuple[nn.Module, MultiMixModel, torch.Tensor]:
    """A timm model, another with the same weights that is wrapped, and two images."""
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=5).eval()
    try:
        wrapped = quiet_wrap(copy.deepcopy(plain), 'dense')
    except SettingError:
        wrapped = quiet_wrap(copy.deepcopy(plain), 'multimix')
    if wrapped.timm_args:
        plain = timm.create_model(name, num_classes=5, **wrapped.timm_args).eval()
        plain.load_state_dict(wrapped.state_dict())
    return plain, wrapped, torch.randn(2, *plain.pretrained_cfg['input_size'])


def resnet(**settings: Any) -> MultiMixModel:
    return quiet_wrap(timm.create_model('test_resnet', num_classes=5), 'dense', **settings)


# ------------------------------------------------------------------- what timm's own tests ask of each of its models

@pytest.mark.parametrize('name', timm.list_models('test_*'))
def test_what_timm_asks_of_a_model(name: str) -> None:
    plain, wrapped, images = both(name)
    assert isinstance(wrapped, (MultiMixModel, type(plain))) and isinstance(wrapped, type(plain))
    with torch.no_grad():
        logits = wrapped(images)
        assert torch.equal(logits, plain(images))
        features = wrapped.forward_features(images)
        assert torch.equal(features, plain.forward_features(images))
        assert torch.equal(wrapped.forward_head(features), logits)
        embedding = plain.forward_head(features, pre_logits=True)
        assert torch.equal(wrapped.forward_head(features, pre_logits=True), embedding)
    assert [type(m) for m in wrapped.children()] == [type(m) for m in plain.children()]
    for names in ('named_children', 'named_modules', 'named_parameters', 'named_buffers'):
        assert [n for n, _ in getattr(wrapped, names)()] == [n for n, _ in getattr(plain, names)()]
    assert list(wrapped.state_dict()) == list(plain.state_dict())
    assert not wrapped.load_state_dict(plain.state_dict()).missing_keys
    wrapped.train()
    loss = wrapped(images, TARGET[:2]).loss
    loss.backward()
    plain.train()
    plain(images).sum().backward()
    assert [p.grad is None for p in wrapped.parameters()] == [p.grad is None for p in plain.parameters()]
    wrapped.load_state_dict(plain.eval().state_dict())
    wrapped.eval().zero_grad()


@pytest.mark.parametrize('name', timm.list_models('test_*'))
def test_copies_and_pickles(name: str) -> None:
    _, wrapped, images = both(name)

    def mixed(model: MultiMixModel) -> torch.Tensor:
        return model(images, TARGET[:2], generator=torch.Generator().manual_seed(1)).loss

    for other in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert type(other) is type(wrapped) and type(unwrap(other)) is type(unwrap(wrapped))
        with torch.no_grad():
            assert torch.equal(other(images), wrapped(images)) and torch.equal(unwrap(other)(images), other(images))
            assert torch.equal(mixed(other), mixed(wrapped))
        assert not {id(p) for p in other.parameters()} & {id(p) for p in wrapped.parameters()}
        assert other.multimix.config == wrapped.multimix.config and other.policy is not wrapped.policy


@pytest.mark.parametrize('name', timm.list_models('test_*'))
def test_reset_classifier(name: str) -> None:
    wrapped = copy.deepcopy(both(name)[1]).train()
    wrapped.reset_classifier(3)
    out = wrapped(both(name)[2], TARGET[:2])
    assert wrapped.num_classes == 3 and out.logits.shape == (2, 3) and out.loss.isfinite()


@pytest.mark.parametrize('name', ['test_resnet', 'test_convnext', 'test_efficientnet', 'test_vit3', 'test_mambaout'])
def test_graphs_are_of_the_plain_forward(name: str) -> None:
    plain, wrapped, images = both(name)
    how = {'leaf_modules': list(get_notrace_modules()), 'autowrap_functions': get_notrace_functions(),
           'param_shapes_constant': True}
    nodes = get_graph_node_names(wrapped, tracer_kwargs=how)[1]
    assert nodes[-1] == get_graph_node_names(plain, tracer_kwargs=how)[1][-1]
    graph = create_feature_extractor(wrapped, {nodes[-1]: 'out'})
    assert torch.equal(graph.eval()(images)['out'], plain(images))


def test_scripts_traces_and_exports_are_of_the_plain_forward() -> None:
    plain, wrapped, images = both('test_resnet')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        graphs = [torch.fx.symbolic_trace(wrapped), torch.jit.script(wrapped), torch.jit.trace(wrapped, images),
                  torch.export.export(wrapped, (images,)).module()]
    for graph in graphs:
        torch.testing.assert_close(graph(images), plain(images))
    assert isinstance(wrapped, MultiMixModel)


# --------------------------------------------------------------------------------------------- one body with two faces

def test_what_is_attached_is_the_models() -> None:
    """A parameter that is attached, trained, saved and deleted; a layer and a buffer too."""
    net = timm.create_model('test_resnet', num_classes=5)
    wrapped = quiet_wrap(net, 'dense')
    wrapped.projector = nn.Linear(4, 2)
    wrapped.temperature = nn.Parameter(torch.ones(()))
    wrapped.register_buffer('queue', torch.zeros(3))
    wrapped.note = 'mine'
    new = {'projector.weight', 'projector.bias', 'temperature', 'queue'}
    for face in (wrapped, net, unwrap(wrapped)):
        assert new <= set(face.state_dict()) and face.note == 'mine'
        assert new - {'queue'} <= {n for n, _ in face.named_parameters()}
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.1)
    (wrapped(IMAGES, TARGET).loss * wrapped.temperature + wrapped.projector(torch.ones(4)).sum()).backward()
    optimizer.step()
    again = resnet()
    again.projector, again.temperature = nn.Linear(4, 2), nn.Parameter(torch.zeros(()))
    again.register_buffer('queue', torch.zeros(3))
    again.load_state_dict(wrapped.state_dict())
    assert again.temperature == wrapped.temperature != 1
    del wrapped.projector, wrapped.temperature, wrapped.queue, wrapped.note
    assert not hasattr(net, 'note') and list(net.state_dict()) == list(timm.create_model('test_resnet').state_dict())
    body = nn.Sequential(*list(wrapped.children())[:-1])
    assert torch.equal(wrapped.eval().fc(body(IMAGES)), wrapped(IMAGES))


def test_the_object_that_was_given_stays_a_plain_model() -> None:
    net = timm.create_model('test_resnet', num_classes=5)
    kind, keys = type(net), set(vars(net))
    wrapped = quiet_wrap(net, 'dense')
    assert unwrap(wrapped) is net and type(net) is kind and set(vars(net)) == keys
    wrapped(IMAGES, TARGET).loss.backward()
    torch.optim.SGD(wrapped.parameters(), 0.1).step()
    wrapped.eval()
    assert not net.training and torch.equal(net(IMAGES), wrapped(IMAGES))
    net.to(torch.float64)
    assert wrapped(IMAGES.double(), TARGET).loss.dtype == torch.float64
    assert b'timm_multimix' not in pickle.dumps(net)
    other = quiet_wrap(net, 'multimix')  # with other settings, beside the first
    assert type(other) is type(wrapped) and not other.multimix.config.dense and wrapped.multimix.config.dense


def test_names_of_ours_give_way_to_the_models_own() -> None:
    net = timm.create_model('test_resnet', num_classes=5)
    net.config, net.policy, net.sampler = 'theirs', nn.Linear(2, 2), None
    wrapped = wrap(net, 'multimix')
    wrapped.set_progress(0)
    wrapped(IMAGES, TARGET)
    assert wrapped.config == 'theirs' and wrapped.policy is net.policy and wrapped.sampler is None
    assert isinstance(wrapped.multimix.config, MultiMixConfig) and wrapped.multimix.policy.step == 1
    wrapped.policy = nn.Linear(3, 3)
    assert 'policy.weight' in net.state_dict()

    wrapped = resnet()
    wrapped.config = {'of': 'a framework'}  # as those write it who train models of several kinds
    assert wrapped(IMAGES, TARGET).loss.isfinite() and wrapped.config == {'of': 'a framework'}
    assert wrapped.multimix.config.n == 20
    del wrapped.config
    assert not hasattr(wrapped, 'config')
    wrapped.policy = MixingPolicy(wrapped.multimix.config, 5)
    wrapped.sampler = lambda lam, y, logits: lam
    assert wrapped.multimix.policy is wrapped.policy and wrapped.multimix.sampler is wrapped.sampler is not None
    assert not {'policy', 'sampler', 'multimix'} & set(vars(unwrap(wrapped)))


def test_averaged_models_count_for_themselves() -> None:
    wrapped = resnet()
    wrapped(IMAGES, TARGET)
    ema = ModelEmaV3(wrapped, decay=0.5)
    wrapped(IMAGES, TARGET)
    ema.update(wrapped)
    assert (ema.module.policy.step, wrapped.policy.step) == (1, 2)
    assert type(unwrap(ema)) is type(unwrap(wrapped)) and unwrap(ema) is not unwrap(wrapped)
    assert ema.module(IMAGES, TARGET).loss.isfinite()  # ModelEmaV3 holds it in eval mode


def test_a_copy_of_a_model_that_refers_to_itself() -> None:
    wrapped = resnet()
    wrapped.me = [wrapped]
    other = copy.deepcopy(wrapped)
    assert other.me[0] is other and unwrap(other).me[0] is other


def test_saved_whole_and_by_timms_saver(tmp_path: Path) -> None:
    wrapped = resnet().eval()
    torch.save(wrapped, tmp_path / 'whole.pt')
    loaded = torch.load(tmp_path / 'whole.pt', weights_only=False)
    assert isinstance(loaded, MultiMixModel) and torch.equal(loaded(IMAGES), wrapped(IMAGES))
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.1)
    CheckpointSaver(wrapped, optimizer, checkpoint_dir=str(tmp_path)).save_checkpoint(0)
    plain = timm.create_model('test_resnet', num_classes=5, checkpoint_path=str(tmp_path / 'last.pth.tar')).eval()
    assert torch.equal(plain(IMAGES), wrapped(IMAGES))


def _loss(model: MultiMixModel, queue: Any) -> None:
    queue.put(model.eval()(IMAGES, TARGET).loss.item())


@pytest.mark.slow
def test_a_spawned_process_takes_it() -> None:
    wrapped = resnet()
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    process = context.Process(target=_loss, args=(wrapped, queue))
    process.start()
    assert queue.get(timeout=120) == pytest.approx(wrapped.eval()(IMAGES, TARGET).loss.item())
    process.join()


class Own(nn.Module):
    """A network with a class attribute, a submodule and a method of names that wrapping has too."""
    config = 'of the class'

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)

    def set_progress(self) -> str:
        return 'mine'

    def forward(self, x: torch.Tensor, again: bool = False) -> torch.Tensor:
        if again:
            assert self.set_progress() == 'mine' and self.config == 'of the class'
            return self.fc(self.policy(x).mean((2, 3)))  # type: ignore[no-any-return]
        return self.forward(x, again=True)


def test_a_network_of_ones_own_runs_as_its_own_class() -> None:
    parts = Parts(lambda net, x: net.policy(x) + 0 * net(x, again=True).sum(), lambda net, f: f.mean((2, 3)), 'fc')
    net = Own()
    wrapped = quiet_wrap(net, 'dense', parts=parts, input_size=(3, 64, 64))
    assert torch.equal(wrapped(IMAGES), net(IMAGES)) and wrapped(IMAGES, TARGET).loss.isfinite()
    assert wrapped.config == 'of the class' and wrapped.policy is net.policy
    assert torch.equal(copy.deepcopy(wrapped)(IMAGES), net(IMAGES))


# ------------------------------------------------------------------------------------------------- torch's other tools

def test_functional_call() -> None:
    wrapped = resnet().eval()
    params = {k: v.detach().clone().requires_grad_() for k, v in wrapped.named_parameters()}

    def loss(params: dict[str, torch.Tensor], **how: Any) -> torch.Tensor:
        return torch.func.functional_call(wrapped, params, (IMAGES, TARGET), how).loss  # type: ignore[no-any-return]

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    got = torch.autograd.grad(loss(params, generator=generator()), list(params.values()))
    wrapped(IMAGES, TARGET, generator=generator()).loss.backward()
    for g, p in zip(got, wrapped.parameters()):
        assert torch.equal(g, p.grad)
    doubled = {k: v * 2 for k, v in params.items()}  # at the root and below it
    assert not torch.equal(torch.func.functional_call(wrapped, doubled, (IMAGES,)), wrapped(IMAGES))
    unmixed = torch.func.grad(loss)(params)  # in eval mode the loss is the plain one
    for g, want in zip(unmixed.values(), torch.autograd.grad(loss(params), list(params.values()))):
        torch.testing.assert_close(g, want)
    with pytest.raises(SettingError, match=r'torch\.func\.grad and vmap cannot look.*torch\.autograd\.grad'):
        torch.func.grad(functools.partial(loss, generator=generator()))(params)


def test_hooks_see_a_call_once() -> None:
    wrapped = resnet()
    seen: list[str] = []
    unwrap(wrapped).register_forward_hook(lambda module, args, out: seen.append(type(out).__name__))
    wrapped(IMAGES)
    wrapped(IMAGES, TARGET)
    unwrap(wrapped)(IMAGES)
    assert seen == ['Tensor', 'MultiMixOutput', 'Tensor']


def test_parametrized_before_wrapping() -> None:
    class Half(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / 2

    net = timm.create_model('test_vit2', num_classes=5)
    want = net.pos_embed.detach() / 2
    parametrize.register_parametrization(net, 'pos_embed', Half())
    wrapped = quiet_wrap(net, 'dense')
    assert torch.equal(wrapped.pos_embed, want)
    images = torch.randn(2, 3, 160, 160)
    wrapped(images, TARGET[:2]).loss.backward()
    assert net.parametrizations.pos_embed.original.grad.abs().sum() > 0


def test_compiled_in_place() -> None:
    wrapped = resnet().eval()
    want = wrapped(IMAGES), wrapped(IMAGES, TARGET).loss
    wrapped.compile(backend='eager')
    torch.testing.assert_close((wrapped(IMAGES), wrapped(IMAGES, TARGET).loss), want)
    net = timm.create_model('test_resnet', num_classes=5)
    net.compile(backend='eager')
    with pytest.raises(SettingError, match='Wrap it first'):
        wrap(net)


def test_models_whose_forward_cannot_be_replaced() -> None:
    net = timm.create_model('test_resnet', num_classes=5)
    net.forward = net.forward
    with pytest.raises(SettingError, match='set on the object'):
        wrap(net)
    with warnings.catch_warnings(), pytest.raises(SettingError, match=r'script unwrap\(model\)'):
        warnings.simplefilter('ignore')
        wrap(torch.jit.script(timm.create_model('test_resnet', num_classes=5)))


def test_frameworks_that_set_forward_on_the_object() -> None:
    """As accelerate does, to run it under autocast."""
    wrapped = resnet()
    wrapped.forward = torch.autocast('cpu', torch.bfloat16)(wrapped.forward)
    assert wrapped(IMAGES).dtype == torch.bfloat16 and wrapped(IMAGES, TARGET).logits.dtype == torch.bfloat16
    assert unwrap(wrapped)(IMAGES).dtype == torch.bfloat16


def test_a_trainer_of_several_kinds_of_models_finds_no_config() -> None:
    """As such trainers look for one: they set its fields, write it to their logs, and do without."""
    wrapped = resnet()
    logged: list[Any] = []
    if getattr(wrapped, 'config', None) is not None:
        wrapped.config.use_cache = False
        logged += [wrapped.config.to_json_string(), wrapped.config.to_dict()]
    assert not logged and wrapped(IMAGES, TARGET).loss.isfinite()

    class Config(dict):  # type: ignore[type-arg]
        def to_dict(self) -> dict[str, Any]:
            return dict(self)

    before = wrapped.multimix.config
    wrapped.config = Config(model_type='theirs')
    assert wrapped.config.to_dict() == {'model_type': 'theirs'} and wrapped.multimix.config is before
    other = copy.deepcopy(wrapped)
    assert other.config.to_dict() == {'model_type': 'theirs'} and other.multimix.config == before
    assert list(wrapped.state_dict()) == list(timm.create_model('test_resnet', num_classes=5).state_dict())
