"""The model of a request: a known Llama as people write its name, one of the hub, a folder, or a configuration."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

from dora_lesson.memory.plan import KNOWN, hub_config
from dora_lesson.memory.shapes import SHAPE_OF, SHAPES, llama_config, spelled_alike

HUB = {shape: name for name, (shape, _) in KNOWN.items()} | {
    "llama-2-7b": "meta-llama/Llama-2-7b-chat-hf",
    "llama-3.1-70b": "meta-llama/Llama-3.1-70B-Instruct",
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
}


def look_up(model: Any, base_format: str) -> tuple[str, str, Any]:
    """What to call the model, what to load, and its configuration.

    Raises:
        ValueError, SetupError: it is not known, or its configuration cannot be had.
    """
    if isinstance(model, Path):
        model = str(model)
    if isinstance(model, str):  # as copied from a browser
        page = r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/]+/[^/?#]+).*"
        model = re.sub(f"^{page}", r"\1", model.strip())
    if not isinstance(model, str):
        if not hasattr(model, "to_json_string"):
            raise ValueError(f"model is a {type(model).__name__}, but a name or a configuration is expected.")
        name = getattr(model, "_name_or_path", "") or "path/to/your/model"
        return name, name, model
    if os.path.isdir(model):
        return model, model, hub_config(model)
    if shape := SHAPE_OF.get(spelled_alike(model)):
        model_id = model if "/" in model else HUB[shape]
        if base_format != "16-bit":  # the checkpoint known for this shape is not packed
            model_id = f"path/to/your-{base_format}-checkpoint"
        return shape, model_id, llama_config(shape)
    if model.strip("/").count("/") != 1:
        spelled = spelled_alike(model)
        size = re.search(r"-\d+-[bm]\b", spelled)  # one of another size is not meant
        alike = [known for known in SHAPE_OF if not size or size[0] in known]
        near = difflib.get_close_matches(spelled, alike, n=1, cutoff=0.75)
        meant = f" Do you mean {SHAPE_OF[near[0]]}?" if near else ""
        hub = "a model of the hub with its owner, such as Qwen/Qwen2.5-7B-Instruct"
        raise ValueError(f"model is {model!r}, but a folder, {hub}, or one of {', '.join(SHAPES)} is expected.{meant}")
    return model, model, hub_config(model)
