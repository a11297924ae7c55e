"""What a model will ask of the machine: said before it is fetched, and without fetching it."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from dora_lesson.memory import plan as planning
from dora_lesson.memory.plan import KNOWN, plan_base
from dora_lesson.models.load import OPEN_ALTERNATIVE
from tests.test_adapters import small_llama

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("DORA_LESSON_BASE", raising=False)
    monkeypatch.setattr(planning, "_token", lambda: None)


def a_t4(monkeypatch, free: float = 15.0e9):
    """The planning of a T4, without one: no bfloat16, 15 GB, a product timed on the CPU."""
    monkeypatch.setattr(planning, "default_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(planning, "default_dtype", lambda device: torch.float16)
    monkeypatch.setattr(planning, "free_bytes", lambda device: int(free))
    monkeypatch.setattr(planning, "_operations_per_second", lambda device, dtype: 20e12)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")


def test_the_bundled_model_needs_no_download_and_no_token():
    plan = plan_base(batch_size=1, sequence_length=64)
    assert plan.download == 0 and not plan.needs_token and plan.fits and not plan.gradient_checkpointing
    assert plan.seconds > 0
    assert "none, it is here" in str(plan) and "token" not in str(plan)


def test_an_8b_llama_on_a_t4(monkeypatch):
    a_t4(monkeypatch)
    plan = plan_base(LLAMA_8B)
    assert plan.dtype == torch.float16
    assert plan.gradient_checkpointing and plan.fits
    assert plan.download == 2 * 8_030_261_248
    said = str(plan)
    assert "Tesla T4" in said and "float16" in said and "with gradient checkpointing; fits in 15.0 GB" in said
    assert f"https://huggingface.co/{LLAMA_8B}" in said and f"{OPEN_ALTERNATIVE} needs none" in said


def test_what_fits_without_checkpointing_goes_without(monkeypatch):
    a_t4(monkeypatch)
    plan = plan_base("meta-llama/Llama-3.2-1B-Instruct")
    assert plan.fits and not plan.gradient_checkpointing
    # Twice the work of one product forward and one backward; on checkpointing, once more.
    again = plan_base(LLAMA_8B)
    ratio = again.seconds / plan.seconds
    assert ratio == pytest.approx(6 * 8_030_261_248 / (4 * 1_235_814_400), rel=1e-6)


def test_what_does_not_fit_says_so(monkeypatch):
    a_t4(monkeypatch, free=5e9)
    plan = plan_base(LLAMA_8B)
    assert not plan.fits and "does not fit in 5.0 GB" in str(plan)


def test_a_gigabyte_stays_free_on_a_gpu(monkeypatch):
    a_t4(monkeypatch)
    peak = plan_base(LLAMA_8B).peak
    a_t4(monkeypatch, free=peak + 0.5e9)
    assert not plan_base(LLAMA_8B).fits


def test_a_model_that_is_open_never_asks_for_a_token(monkeypatch):
    a_t4(monkeypatch)
    plan = plan_base(OPEN_ALTERNATIVE)
    assert plan.fits and not plan.needs_token and plan.download == 2 * 1_711_376_384


@pytest.mark.parametrize("gated", [model for model, (_, gated) in KNOWN.items() if gated])
def test_a_token_in_colabs_secrets_is_found(gated, monkeypatch):
    monkeypatch.undo()  # the real look for a token
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    from huggingface_hub.utils import _auth

    for name in ("is_google_colab", "is_colab_enterprise"):
        monkeypatch.setattr(_auth, name, lambda name=name: name == "is_google_colab")
    monkeypatch.setattr(_auth, "_GOOGLE_COLAB_SECRET", None, raising=False)
    monkeypatch.setattr(_auth, "_IS_GOOGLE_COLAB_CHECKED", False, raising=False)
    userdata = types.ModuleType("google.colab.userdata")
    userdata.get = lambda name: "hf_secret" if name == "HF_TOKEN" else None
    errors = types.ModuleType("google.colab.errors")
    errors.Error = RuntimeError
    colab = types.ModuleType("google.colab")
    colab.userdata, colab.errors = userdata, errors
    for name, module in {
        "google.colab": colab,
        "google.colab.userdata": userdata,
        "google.colab.errors": errors,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    userdata.NotebookAccessError = userdata.SecretNotFoundError = type("Refused", (Exception,), {})
    plan = plan_base(gated, batch_size=1, sequence_length=8)
    assert not plan.needs_token and "token" not in str(plan)


def test_a_folder_is_planned_from_its_own_configuration(tmp_path, monkeypatch):
    small_llama().save_pretrained(tmp_path)
    monkeypatch.setenv("DORA_LESSON_BASE", str(tmp_path))
    plan = plan_base(batch_size=1, sequence_length=16, r=2)
    assert plan.model_id == str(tmp_path) and plan.download == 0 and plan.peak < 10e6


def test_a_model_that_cannot_be_had_is_one_sentence(tmp_path):
    from dora_lesson import SetupError

    with pytest.raises(SetupError, match="neither a folder here nor a model"):
        plan_base(str(tmp_path / "nothing"))
