"""FSDP for a frozen Llama with hand-written adapters: each process keeps a slice of every frozen weight.

Torch's own `fully_shard` (FSDP2) does it, on GPUs and on a CPU alike, so that GPUs run what the tests run; accelerate's
FSDP plugin does nothing on a CPU. To accelerate and the trainer such a run is a data-parallel one.

Only the frozen base is sharded. The adapter, a few hundredths of it at most, stays whole on every process, as in data
parallel: checkpoints and saved adapters are the same files, and a norm is taken of whole factors. FSDP leaves alone the
gradients of what it does not shard, so they are averaged here.

4-bit weights are sharded as the bytes that they are. FSDP1 lays a layer's weights out in one tensor of one dtype, which
is why it needs `bnb_4bit_quant_storage` equal to the compute dtype; FSDP2 keeps them apart, and needs no such thing.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from dora_lesson.adapters.dora import DoRALinear
from dora_lesson.adapters.inject import require_adapters
from dora_lesson.adapters.kept import Kept
from dora_lesson.adapters.linear4bit import is_four_bit
from dora_lesson.core import SetupError


def shard_frozen(model: Any, device: torch.device) -> Any:
    """Spread the frozen weights over all processes, decoder layer by decoder layer, in place; return the model.

    A decoder layer's weights are whole on `device` only while that layer computes, so a model loaded on the CPU needs
    the device memory of its share and of the largest layer. Adapters start as process 0 has them.

    Args:
        model: a transformers model with hand-written adapters, the same on every process.
        device: this process's own.

    Raises:
        ValueError: the model has no hand-written adapters.
        SetupError: this torch cannot leave the adapters out.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise SetupError(f"FSDP needs torch 2.7, and this is {torch.__version__}: run `pip install -U torch`.")
    layers = require_adapters(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        _replicate(p, device)
    for layer in layers.values():
        if isinstance(layer, DoRALinear):
            _keep_norm(layer, device)
    for module in model.modules():
        if is_four_bit(module):
            _keep_quant_state(module, device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in [*model.get_decoder().layers, model]:
        fully_shard(block, mesh=mesh, ignored_params=set(trained))
    model._is_accelerate_prepared = True  # accelerate then leaves it as it is, where it would wrap it for data parallel
    return model


def _keep_norm(layer: DoRALinear, device: torch.device) -> None:
    """Hold on to ‖W‖ from before FSDP shards W, which changes its memory at every step and its values never."""
    layer._W2 = layer._W2.to(device)
    layer._W2_of = _Always()
    layer._W2_of.put(layer._W2)


class _Always(Kept):
    def get(self, *sources: torch.Tensor | float) -> torch.Tensor:
        assert self._held is not None
        return self._held[2]


def _keep_quant_state(layer: Any, device: torch.device) -> None:
    """Make a 4-bit layer's weight an ordinary tensor of bytes, and let the layer itself keep what unpacks it."""
    layer.quant_state = layer.weight.quant_state
    layer.quant_state.to(device)
    layer.weight = nn.Parameter(layer.weight.data.as_subclass(torch.Tensor), requires_grad=False)


@torch.no_grad()
def _replicate(p: nn.Parameter, device: torch.device) -> None:
    p.data = p.data.to(device)
    dist.broadcast(p.data, src=0)
    p.register_post_accumulate_grad_hook(_average)


def _average(p: torch.Tensor) -> None:
    """Average a gradient over the processes; what was accumulated before is the same on all, and stays what it is."""
    assert p.grad is not None
    dist.all_reduce(p.grad)
    p.grad /= dist.get_world_size()
