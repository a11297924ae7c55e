"""`multi_gpu.train` on two processes: as one process trains, through a kill, and refused where it would pretend.

The processes are real, on a CPU, started by accelerate with the ready configuration and by torchrun. They take two
minutes of processor time, so they run at night.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dora_lesson import load_base
from dora_lesson.adapters.dora import DoRALinear
from dora_lesson.adapters.peft_format import WEIGHTS, load_adapters
from dora_lesson.multi_gpu import sharding, train
from dora_lesson.multi_gpu.config import MultiGpuConfig, read_config
from tests.conftest import ROOT
from tests.test_adapters import SOME, TOKENS, small_llama

CONFIGS = ROOT / "dora_lesson" / "multi_gpu"
SETTINGS = {"r": 4, "lora_alpha": 8, "target_modules": SOME, "steps": 4, "learning_rate": 1e-2, "seed": 5}
WAYS, METHODS = ["data_parallel", "fsdp"], ["lora", "dora", "qdora"]
RUNS = [("data_parallel", "dora"), ("data_parallel", "qdora"), ("fsdp", "lora"), ("fsdp", "dora"), ("fsdp", "qdora")]
CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
ACCELERATE = ["accelerate.commands.launch", "--config_file", str(CONFIGS / "one_machine.yaml")]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

# Runs each configuration; writes what a process holds of the frozen weights, and what the trained model answers.
WATCHED = """
import os, sys, torch
from dora_lesson.multi_gpu import train
from dora_lesson.training import finetune as training
from tests.test_adapters import TOKENS
finetune = training.finetune

def watched(model, *arguments, **settings):
    frozen = [p for p in model.parameters() if not p.requires_grad]
    held, whole = (sum(p.nbytes for p in ps) for ps in ([getattr(p, "_local_tensor", p) for p in frozen], frozen))
    result = finetune(model, *arguments, **settings)
    found = {"held": held / whole}
    if not hasattr(model, "hf_quantizer"):
        with torch.no_grad():
            found["logits"] = model(TOKENS).logits
    torch.save(found, settings["output_dir"] + "/watched-" + os.environ["RANK"])
    return result

training.finetune = watched
sys.exit(max(train.main(["--config", path]) for path in sys.argv[1:]))
"""

# Runs one configuration; the second process kills itself after the third step.
KILLED = """
import functools, os, signal, sys
from transformers import TrainerCallback
from dora_lesson.multi_gpu import train
from dora_lesson.training import finetune as training

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 3 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

training.finetune = functools.partial(training.finetune, callbacks=[Kill()])
sys.exit(train.main(["--config", sys.argv[1]]))
"""


def launch(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        env={**os.environ, **CPU, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bundled) -> Path:
    """A folder with a small base and its tokenizer, for configurations and runs."""
    folder = tmp_path_factory.mktemp("train")
    small_llama(vocab_size=49152, hidden_size=64, intermediate_size=128).save_pretrained(folder / "base")
    bundled[1].save_pretrained(folder / "base")
    return folder


def write(folder: Path, name: str, **changed) -> Path:
    config = {"model": str(folder / "base"), "output_dir": str(folder / name), "batch_size": 2, **SETTINGS} | changed
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture(scope="module")
def two(folder):
    """All runs on two processes, in one launch."""
    runs = [write(folder, f"{way}_{method}", method=method, distributed=way) for way, method in RUNS]
    (folder / "watched.py").write_text(WATCHED)
    done = launch(*ACCELERATE, str(folder / "watched.py"), *map(str, runs))
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def one(folder):
    """The same runs on one process, at the same number of chats a step."""
    for m in METHODS:
        assert train.main(["--config", str(write(folder, m, method=m, distributed="none", batch_size=4))]) == 0


def adapter(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / name / "adapter" / WEIGHTS)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest relative distance of two tensors of the same name."""
    assert a.keys() == b.keys()
    return max(((a[key] - b[key]).norm() / a[key].norm()).item() for key in a)


@pytest.mark.nightly
@pytest.mark.parametrize(("way", "method"), RUNS)
def test_two_processes_train_what_one_does(way, method, folder, two, one):
    # Measured: 3e-7 to 1.5e-5. AdamW divides a gradient by its own size, so that rounding counts where that is small.
    assert distance(adapter(folder, method), adapter(folder, f"{way}_{method}")) < 1e-4


@pytest.mark.nightly
@pytest.mark.parametrize(("way", "method"), RUNS)
def test_fsdp_holds_half_of_the_frozen_weights_in_each_process(way, method, folder, two):
    for rank in (0, 1):
        held = torch.load(folder / f"{way}_{method}" / f"watched-{rank}")["held"]
        assert held == pytest.approx(0.5 if way == "fsdp" else 1, abs=0.01)


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_adapter_trained_with_fsdp_answers_the_same_in_one_process(method, folder, two):
    model = load_adapters(load_base(str(folder / "base"))[0], folder / f"fsdp_{method}" / "adapter")
    with torch.no_grad():
        found = model(TOKENS).logits
    assert torch.allclose(found, torch.load(folder / f"fsdp_{method}" / "watched-0")["logits"], atol=1e-5)


@pytest.mark.nightly
def test_one_process_alone_speaks(folder, two):
    sentences = [line for line in two.stdout.splitlines() if line.strip()]
    assert len(sentences) == len(RUNS)
    assert sentences[0].startswith(
        f"The dora adapter is in {folder / 'data_parallel_dora' / 'adapter'}: 4 steps on 2 CPU"
    )
    assert all("GB in a process" in sentence for sentence in sentences)


@pytest.mark.nightly
def test_a_killed_worker_ends_the_run_with_its_reason_and_the_same_command_goes_on(folder, two):
    file = write(folder, "killed", method="dora", distributed="fsdp")
    (folder / "killed.py").write_text(KILLED)
    killed = launch(*TORCHRUN, str(folder / "killed.py"), str(file))
    assert killed.returncode != 0
    assert "Signal 9 (SIGKILL)" in killed.stderr and "rank      : 1" in killed.stderr
    assert not (folder / "killed" / "adapter").exists()

    resumed = launch(*TORCHRUN, "-m", "dora_lesson.multi_gpu.train", "--config", str(file))
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "resumed after step 2" in resumed.stdout
    assert distance(adapter(folder, "fsdp_dora"), adapter(folder, "killed")) == 0


def test_a_layer_whose_weight_is_sharded_keeps_the_norm_of_the_whole_weight(monkeypatch):
    layer = DoRALinear(torch.nn.Linear(8, 6), 2, 4).train()
    x = torch.randn(3, 8)
    before = layer(x)
    sharding._keep_norm(layer, torch.device("cpu"))
    layer.base.weight.data = layer.base.weight.data.clone()  # put together again, elsewhere
    monkeypatch.setattr("dora_lesson.adapters.dora.vector_norm", None)
    assert torch.equal(layer(x), before)


# Refusals.


def test_copies_that_would_train_alone_are_refused(folder):
    file = write(folder, "alone", method="dora", distributed="data_parallel")
    command = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    done = launch(*command, "-m", "dora_lesson.multi_gpu.train", "--config", str(file))
    assert done.returncode != 0
    assert "distributed is data_parallel, but accelerate reports the type NO and 1 process" in done.stderr
    assert not (folder / "alone").exists()


@pytest.mark.parametrize(
    ("wanted", "kind", "processes", "words"),
    [
        ("none", "NO", 1, None),
        ("data_parallel", "MULTI_CPU", 2, None),
        ("fsdp", "MULTI_GPU", 8, None),
        ("fsdp", "NO", 1, "would train alone"),
        ("data_parallel", "MULTI_GPU", 1, "the type MULTI_GPU and 1 process,"),
        ("data_parallel", "NO", 2, "the type NO and 2 processes"),
        ("data_parallel", "FSDP", 2, "the type FSDP"),
        ("fsdp", "DEEPSPEED", 2, "the type DEEPSPEED"),
        ("none", "MULTI_GPU", 2, "distributed is none"),
    ],
)
def test_processes_that_are_not_what_was_asked_for_are_refused(wanted, kind, processes, words):
    problem = train.processes_problem(wanted, kind, processes)
    assert problem is None if words is None else words in problem


def test_accelerates_own_sharding_and_deepspeed_are_refused(folder, monkeypatch, capsys):
    file = write(folder, "launcher", method="dora", distributed="fsdp")
    for plugin, words in {"DEEPSPEED": "ZeRO-2", "FSDP": "its own FSDP plugin"}.items():
        with monkeypatch.context() as patched:
            patched.setenv(f"ACCELERATE_USE_{plugin}", "true")
            assert train.main(["--config", str(file)]) == 1
        assert words in capsys.readouterr().err
    assert train.launcher_problem({"ACCELERATE_USE_FSDP": "false"}) is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"method": "ddora"}, "method is 'ddora': Input should be 'lora', 'dora', 'qlora' or 'qdora'"),
        ({"distributed": "ddp"}, "distributed is 'ddp'"),
        ({"lora_alhpa": 8}, "did you mean lora_alpha?"),
        ({"zero_stage": 2}, "'zero_stage', which is not a key of a run: the keys are model"),
        ({"r": 4.5}, "r is 4.5: Input should be a valid integer"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast': Input should be a valid number"),
        ({"seed": True}, "seed is True"),
        ({"target_modules": [1]}, "target_modules"),
        ({"output_dir": None}, "output_dir is None"),
        ({"model": 7}, "model is 7"),
    ],
)
def test_a_wrong_key_or_value_is_refused(changed, words, folder, capsys):
    file = write(folder, "refused", **({"method": "dora", "distributed": "none"} | changed))
    assert train.main(["--config", str(file)]) == 1
    assert words in capsys.readouterr().err


def test_a_file_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.yaml is not there"):
        read_config(tmp_path / "nowhere.yaml")
    for text, words in {"a: [": "not valid YAML", "- a": "valid dictionary", "r: 4": "model is missing"}.items():
        (tmp_path / "run.yaml").write_text(text)
        with pytest.raises(ValueError, match=words):
            read_config(tmp_path / "run.yaml")


def test_a_rate_as_people_write_it_is_a_number(folder):
    file = write(folder, "rate", method="dora", distributed="none")
    file.write_text(file.read_text().replace("learning_rate: 0.01", "learning_rate: 2e-4"))
    assert read_config(file).learning_rate == 2e-4


def test_the_folder_of_another_run_is_refused(folder, one, capsys):
    file = write(folder, "dora", method="dora", distributed="none", batch_size=4, lora_alpha=16)
    assert train.main(["--config", str(file)]) == 1
    assert "holds another run (lora_alpha 8.0 there, 16.0 here)" in capsys.readouterr().err


def test_a_folder_that_a_machine_does_not_see_is_refused(folder):
    class Second:
        is_main_process, num_processes = False, 2

        def wait_for_everyone(self) -> None: ...

    config = MultiGpuConfig(
        **{**yaml.safe_load(write(folder, "unseen", method="dora", distributed="fsdp").read_text())}
    )
    with pytest.raises(train.SetupError, match="not seen by every machine"):
        train.claim_folder(config, Second())


# The ready configurations.


@pytest.mark.parametrize("way", WAYS)
def test_ready_runs_are_read(way):
    config = read_config(CONFIGS / f"{way}.yaml")
    assert config.distributed == way and config.how.adapter == "dora" and config.r == 16


def test_ready_launches_are_what_accelerate_takes_and_this_package_accepts():
    from accelerate.commands.config.config_args import load_config_from_file

    for name, machines in {"one_machine": 1, "several_machines": 2}.items():
        config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
        assert config.num_machines == machines and config.num_processes >= 2
        assert train.processes_problem("fsdp", config.distributed_type.value, config.num_processes) is None
