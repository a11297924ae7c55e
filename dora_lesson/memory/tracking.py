"""What running code makes, keeps and saves: its largest temporary, its bytes for the backward pass, its peak."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dora_lesson.adapters.dora import DoRALinear
from dora_lesson.adapters.linear4bit import is_four_bit


def largest_temporary(function: Callable[..., Any], *args: Any) -> int:
    """Elements of the largest tensor that `function(*args)` makes on its way, views of older tensors left out."""
    with _LargestTensor() as largest:
        function(*args)
    return largest.elements


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """Bytes that autograd saves in one forward pass of `x` (..., d_in), each storage counted once.

    What the layer holds anyway is left out: parameters and buffers.
    """

    def held() -> list[Tensor]:
        return [*layer.parameters(), *layer.buffers()]

    return saved_by(lambda: layer(x), held)


def saved_by(run: Callable[[], Any], held: Callable[[], Iterable[Tensor]]) -> int:
    """Bytes that autograd saves while `run()` goes forward, each storage once.

    Those that `held()` gives are left out; it is asked after the run, which may make some.
    """
    saved: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        run()
    held_storages = {_storage(t) for t in held()}
    return _bytes(t for t in saved if _storage(t) not in held_storages)


def _storage(t: Tensor) -> int:
    """What tells a tensor's storage from another; not its address, which fake tensors do not have."""
    key: int = t.untyped_storage()._cdata
    return key


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each counted once."""
    return sum({_storage(t): t.untyped_storage().nbytes() for t in tensors}.values())


def _made(out: Any, *inputs: Any) -> list[Tensor]:
    """The tensors in `out` that are not views of those in `inputs`."""
    older = {_storage(t) for t in tree_leaves(inputs) if isinstance(t, Tensor)}
    return [t for t in tree_leaves(out) if isinstance(t, Tensor) and _storage(t) not in older]


class _LargestTensor(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(t.numel() for t in _made(out, args, kwargs))])
        return out


@dataclass(frozen=True)
class Peak:
    """Bytes that a model and its optimizer `held` before a step, and how much the tensors of the step `rose` above."""

    held: int
    rose: int

    @property
    def total(self) -> int:
        """The peak, in bytes."""
        return self.held + self.rose


def measure_peak_memory(
    step: Callable[[], Any], model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> Peak:
    """Run `step()`, on the model's device, and return the peak of the bytes that its tensors take.

    On a GPU the rise is read from torch's allocator. On a CPU every tensor that an operation makes is followed until
    it is freed: the process's resident memory would count freed pages that the C library keeps, and not count weights
    mapped from a file until they are read. Scratch memory inside one operation is then not seen.

    Measure a second step, if there is an optimizer: most make their states during the first.
    """
    held = sum(held_bytes(model, optimizer).values())
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return Peak(held, torch.cuda.max_memory_allocated(device) - before)
    with _Alive([p.grad for p in model.parameters() if p.grad is not None]) as alive:
        step()
    return Peak(held, alive.peak)


def held_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, int]:
    """Bytes that a model and its optimizer hold, by part, each storage counted once.

    Parts: weights, quantization constants, adapters (trainable in a model that also has frozen parameters, and the
    norms that a `DoRALinear` trains with), gradients, optimizer states. Buffers count as weights.
    """
    parameters = list(model.parameters())
    some_frozen = not all(p.requires_grad for p in parameters)
    trained = [p for p in parameters if p.requires_grad]
    kept = [b for layer in model.modules() if isinstance(layer, DoRALinear) for b in layer.buffers(recurse=False)]
    states = [t for state in (optimizer.state.values() if optimizer else []) for t in state.values()]
    kept_ids = {id(t) for t in kept}
    buffers = [b for b in model.buffers() if id(b) not in kept_ids]
    parts: dict[str, list[Any]] = {
        "weights": [*(p for p in parameters if not (some_frozen and p.requires_grad)), *buffers],
        "quantization constants": [t for layer in model.modules() if is_four_bit(layer) for t in _constants(layer)],
        "adapters": [*trained, *kept] if some_frozen else [],
        "gradients": [p.grad for p in parameters if p.grad is not None],
        "optimizer states": [t for t in states if isinstance(t, Tensor) and t.dim()],
    }
    return {part: _bytes(held) for part, held in parts.items()}


def _constants(layer: Any) -> list[Tensor]:
    """Scales and tables of a 4-bit layer; with double quantization the scales are packed and have their own."""
    state = layer.weight.quant_state
    constants = [state.absmax, state.code]
    return [*constants, state.offset, state.state2.absmax, state.state2.code] if state.nested else constants


def free_bytes(device: torch.device) -> int:
    """Bytes free on the device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


class _Alive(TorchDispatchMode):
    """Follows the bytes above those at its start, and their peak: it sees what is made, and what is freed of it.

    It also sees when one of `there` is freed, tensors that were made before, such as the last step's gradients.
    """

    def __init__(self, there: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.followed: dict[int, int] = {}
        for t in there:
            self._follow(t)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in _made(out, args, kwargs):
            self.now += self._follow(t)
            self.peak = max(self.peak, self.now)
        return out

    def _follow(self, t: Tensor) -> int:
        """The bytes of the tensor's storage, which is followed from now on; 0 if it was before."""
        key, storage = _storage(t), t.untyped_storage()
        if key in self.followed:
            return 0
        self.followed[key] = storage.nbytes()
        weakref.finalize(storage, self._freed, key)
        return storage.nbytes()

    def _freed(self, key: int) -> None:
        self.now -= self.followed.pop(key)
