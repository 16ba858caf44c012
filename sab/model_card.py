"""The README.md of an exported checkpoint: what it is, how it is loaded, what it stores. Figures come from the run."""

from __future__ import annotations

from pathlib import Path

from sab.binarizers import METHODS
from sab.hub import HUB_ID
from sab.runs import Run

LOADING = {
    "packed": """```python
import sab  # before loading: teaches transformers the quantizer "sab"; `pip install .` in the source of SAB Lens
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}", dtype="auto")
processor = AutoProcessor.from_pretrained("{name}")
```

`import sab` is needed because transformers finds quantizers in a table of its own and has no plug-ins; without it the
packed tensors are taken for unknown weights. Nothing in this folder is run as code and nothing is pickled.""",
    "dense": """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}", dtype="auto")
processor = AutoProcessor.from_pretrained("{name}")
```

This is an ordinary checkpoint for tools that know nothing of packed weights.""",
}
STORED = {
    "packed": "The linears lie here as bits (format_version 1 of SAB Lens) and are multiplied from them: by a C kernel "
    "on a processor with a C compiler, elsewhere by a reference that dequantizes a few rows at a time. "
    "`python -m sab chat {name}` names what runs, `python -m sab inspect {name}` accounts for every byte.",
    "dense": "**Simulated**: the linears hold the dequantized values of what the run stores. The answers are those of "
    "the binarized model up to rounding to {dtype}; this folder saves neither memory nor time. The bits and bytes "
    "below are those of the packed form.",
}


def model_card(run: Run, form: str, name: str, dtype: str, stored_bytes: int) -> str:
    """Markdown with front matter for an export of a finished run. `form` is packed or dense, `name` what the folder
    is called, `dtype` that of the tensors that were not binarized, `stored_bytes` the size of all weight files."""
    recipe = run.recipe
    base = recipe.model or ""
    known = bool(HUB_ID.fullmatch(base)) and not Path(base).exists()
    original = f"[{base}](https://huggingface.co/{base})" if known else (Path(base).name or "the embedded model")
    reports = list(run.reports.values())
    weights = sum(report.weights for report in reports)
    noted = run.header.get("calibration") or {}
    source = Path(noted["source"]).name if Path(noted.get("source", "")).is_absolute() else noted.get("source", "")
    labels = f"{METHODS[recipe.method].label} ({recipe.method})"
    front = [
        "---",
        "library_name: transformers",
        "pipeline_tag: image-text-to-text",
        *([f"base_model: {base}", "base_model_relation: quantized"] if known else []),
        "tags:",
        *(f"- {tag}" for tag in ("sab", "binarized", "quantized", "vision-language")),
        "---",
    ]
    rows = {
        "Method": labels,
        "Binarized": f"{len(reports)} linears of the {' and the '.join(recipe.parts)}, {weights:,} weights",
        "Bits a weight, nominal": f"{run.bits_nominal:.2f} (what the papers print: 1 + share of salient columns)",
        "Bits a weight, all-in": f"{run.bits_all_in:.2f} (every stored bit of these linears)",
        "Bytes of these linears": f"{run.bytes:,} (16-bit: {2 * weights:,})",
        "Bytes of all weight files": f"{stored_bytes:,}; everything not binarized is {dtype}",
        "Calibration": f"{noted.get('samples', recipe.samples)} samples{f' ({source})' if source else ''}, "
        f"seed {recipe.seed}; up to "
        f"{max(report.tokens_language for report in reports):,} language and "
        f"{max(report.tokens_vision for report in reports):,} vision tokens for a linear",
        "Sensitivity, split, compensation": f"{recipe.sensitivity}, {recipe.split}, {recipe.compensation}",
    }
    return "\n".join(
        [
            *front,
            "",
            f"# {original if not known else base}, {run.description}",
            "",
            f"Made from {original} by SAB Lens; `recipe.json` is the whole recipe. The licence of the original holds.",
            "",
            LOADING[form].format(name=name),
            "",
            STORED[form].format(name=name, dtype=dtype),
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in rows.items()),
            "",
            "What binarization costs this model in answers is not measured here; `python -m sab eval` measures it on "
            "the suite of SAB Lens, which says little of other tasks.",
            "",
        ]
    )
