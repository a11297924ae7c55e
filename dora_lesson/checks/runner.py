"""What all checks share: run the reader's function safely, and say in one line how it went.

`@check(reference, correct)` stands over a function that examines an attempt: it calls the attempt through `call`, and
raises `Wrong` with a message that says what is wrong and where to look.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import numbers
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

F = TypeVar("F")
Attempt = Callable[..., Any]
Suspects = Sequence[tuple[Tensor | Callable[[], Tensor], str]]  # wrong values that learners give, and what to say

# Where code lies that the reader did not write: this package, the libraries beside torch, the standard library.
_OTHERS = tuple(
    str(path) for path in (Path(__file__).parents[1], Path(torch.__file__).parents[1], Path(io.__file__).parent)
)


class Wrong(Exception):
    """The answer is wrong; the message says what is wrong and where to look."""


class NotYet(Exception):
    """The answer has not been written yet."""


_answered = [0]  # how often the attempt that is being checked has given an answer
CHECKS: dict[str, Callable[[Any], Any]] = {}  # every check of the course, under the name of its exercise


def check(reference: Any, correct: str) -> Callable[[Callable[[Any], None]], Callable[[F], F]]:
    """Make a check of the function below, which examines an attempt.

    The check prints one line and returns the function that the lesson goes on with: the attempt if it is right, else
    `reference`.

    Args:
        reference: the course's own version.
        correct: what to print after `correct: `; one sentence.
    """

    def declare(examine: Callable[[Any], None]) -> Callable[[F], F]:
        @functools.wraps(examine)
        def run(attempt: F) -> F:
            line = _verdict(attempt, examine, correct)
            print(" ".join(line.split()))
            return attempt if line.startswith("correct") else reference

        CHECKS[examine.__name__] = run
        return run  # type: ignore[return-value]

    return declare


def _verdict(attempt: Any, examine: Callable[[Any], None], correct: str) -> str:
    name = getattr(attempt, "__name__", type(attempt).__name__)
    if not callable(attempt):
        return f"wrong: the check was given a {name}; pass it the function itself, without parentheses."
    try:
        with _apart():
            _answered[0] = 0
            examine(attempt)
    except NotYet as reason:
        return f"not yet: {reason} Until then the lesson uses the package's version."
    except Wrong as reason:
        return f"wrong: {reason}"
    except (Exception, SystemExit) as error:
        return f"wrong: the check could not examine what {name} returns ({_summary(error)}); look at what it returns."
    return f"correct: {correct}"


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Keeps from the notebook what an attempt prints, warns of, draws or switches over."""
    dtype = torch.get_default_dtype()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.set_default_dtype(torch.float32)
        try:
            with torch.enable_grad():
                yield
        finally:
            torch.set_default_dtype(dtype)


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call the reader's function, method or class and return its answer.

    Raises:
        NotYet: it raised `NotImplementedError`, or returned nothing (None, ..., or a tuple of those) so far.
        Wrong: it raised anything else, returned nothing after it had returned an answer, or changed a tensor or a
            module that it was given, alone or in a list or dict.
    """
    name = getattr(function, "__name__", type(function).__name__)
    given = [_tensors(arg) for arg in args]
    before = [[tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors] for tensors in given]
    try:
        answer = function(*args)
    except NotImplementedError:
        raise NotYet(f"{name} is still to be written.") from None
    except (Exception, SystemExit) as error:
        raise Wrong(f"{name} raised {_summary(error)}; {_where(error)}") from None
    for number, (old, held, arg) in enumerate(zip(before, given, args, strict=True), start=1):
        now = _tensors(arg) if isinstance(arg, nn.Module) else held  # a module can hold other tensors than before
        if len(now) != len(old) or not all(_same(a, b) for a, b in zip(old, now, strict=True)):
            raise Wrong(
                f"{name} changed its argument number {number} in place; look for assignments into it and for "
                "methods that end in an underscore, and make a new one instead."
            )
    parts = answer if isinstance(answer, tuple) and answer else (answer,)
    if all(part is None or part is ... for part in parts):
        if _answered[0]:
            raise Wrong(f"{name} returns {answer!r} for some of what it is given; let every branch return an answer.")
        raise NotYet(f"{name} returns {answer!r}; end it with a return of the answer.")
    _answered[0] += 1
    return answer


def kind(value: Any) -> str:
    """What a value is, as in "an int"."""
    name = type(value).__name__
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"


def expect(condition: bool, message: str) -> None:
    """Raise `Wrong(message)` unless the condition holds."""
    if not condition:
        raise Wrong(message)


def plain(value: Any) -> Any:
    """The Python value in a NumPy scalar or in a tensor without dims; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def expect_number(value: Any, what: str) -> Any:
    """Return `value` as a Python number if it is one and finite, else raise `Wrong`."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise Wrong(f"{what} is {kind(value)}, but a number is expected; look at what you return.")
    if not math.isfinite(value):
        raise Wrong(f"{what} is {value}, but a finite number is expected; look for 0 / 0 and for a division by 0.")
    return value


def is_whole(value: Any) -> bool:
    """Whether it is a whole number of Python, NumPy or torch; True and False are none."""
    value = plain(value)
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def expect_tensor(value: Any, shape: tuple[int, ...], dtype: torch.dtype, what: str, advice: str = "") -> Tensor:
    """Return `value` if it is a tensor of that shape and dtype, else raise `Wrong`; `advice` says where to look."""
    if not isinstance(value, Tensor):
        raise Wrong(f"{what} is {kind(value)}, but a tensor is expected; look at what you return.")
    if tuple(value.shape) != shape:
        raise Wrong(f"{what} has shape {tuple(value.shape)}, but {shape} is expected; {advice or 'look at the dims.'}")
    if value.dtype == torch.float64:  # computed more precisely than asked for
        value = value.to(dtype)
    if value.dtype != dtype:
        raise Wrong(f"{what} has dtype {value.dtype}, but the inputs have {dtype}; look for a conversion on the way.")
    return value


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether two tensors of one shape agree everywhere; a shape that would broadcast does not count as agreement."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def blame(value: Tensor, suspects: Suspects) -> None:
    """Raise `Wrong` with the message of the first suspected slip that gives this value."""
    for suspect, message in suspects:
        try:
            same = close(value, suspect() if callable(suspect) else suspect)
        except RuntimeError:  # on this shape the slip does not even run
            same = False
        expect(not same, message)


def _tensors(arg: Any) -> list[Tensor]:
    if isinstance(arg, nn.Module):
        return list(arg.state_dict(keep_vars=True).values())
    if isinstance(arg, dict | list | tuple):
        return [tensor for part in (arg.values() if isinstance(arg, dict) else arg) for tensor in _tensors(part)]
    return [arg] if isinstance(arg, Tensor) else []


def _same(a: Tensor, b: Tensor) -> bool:
    return (a.dtype, a.requires_grad) == (b.dtype, b.requires_grad) and torch.equal(a, b)


def _summary(error: BaseException) -> str:
    message = " ".join(str(error).split())
    return (
        f"{type(error).__name__}: {message[:160]}{'...' if len(message) > 160 else ''}"
        if message
        else f"{type(error).__name__}"
    )


def _where(error: BaseException) -> str:
    """Point at the line of the reader's own code that raised, not at a line of torch, of a decorator or of a check."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OTHERS)]
    if not frames:
        return "look at the arguments in its def line."
    last = [frame for frame in frames if frame.filename == frames[0].filename][-1]
    return f"look at line {last.lineno} of the cell" + (f": {last.line}" if last.line else ".")
