"""What the lmms-eval harness finds by the entry point of pyproject.toml, once both are installed.

The harness imports this package when it collects its models. With it comes `sab`, and with that the quantizer which
lets the harness's own wrappers (`--model qwen2_5_vl`, `internvl_hf` …) load packed checkpoints. Besides there is
`--model sab` (model.py), which takes runs as well and any family, one question at a time.
"""

from __future__ import annotations

from typing import Any


def manifests() -> list[Any]:
    """The models that the harness learns from here, for the entry point group `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id="sab", chat_class_path="sab.lmms_eval.model.SabModel")]
