"""A value kept between calls, together with the tensors that it was computed from."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Kept:
    """Gives its value back only for the memory it was put in for, and only while nothing was written there.

    Autograd counts the writes. It does not see those through `.data`, through NumPy and by some fused optimizers, and
    counts none for a tensor of inference mode. A copy or a pickle starts empty, because its tensors are others.
    """

    def __init__(self) -> None:
        self._held: tuple[list[Any], list[Any], Any] | None = None

    def put(self, value: Any, *sources: Tensor | float) -> Any:
        """Keep the value, made from these tensors and numbers, and return it."""
        # Aliases, so that no other tensor comes to lie at the same address. One assignment: another thread reads all
        # of it or nothing.
        self._held = [t.detach() for t in sources if isinstance(t, Tensor)], [_state(t) for t in sources], value
        return value

    def get(self, *sources: Tensor | float) -> Any:
        """The value, or None where there is none for these tensors and numbers as they are now."""
        held = self._held
        return None if held is None or held[1] != [_state(t) for t in sources] else held[2]

    def drop(self) -> None:
        """Forget the value."""
        self._held = None

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


def _state(t: Tensor | float) -> Any:
    """Where the tensor lies, as what, and how often it was written to; equal to nothing where it has no memory."""
    if not isinstance(t, Tensor):
        return t
    try:
        place = t.data_ptr()
    except RuntimeError:  # a tensor inside `torch.func`, or a fake one, holds no numbers of its own
        return object()
    return place, t.shape, t.stride(), t.dtype, 0 if t.is_inference() else t._version
