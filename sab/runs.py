"""Run directories: a recipe, one code file and one report per linear, sensitivities, and a manifest.

    recipe.json                      what was asked for, of which weights and samples, with which versions and machine
    sensitivity-<kind>.safetensors   "<linear>.language", "<linear>.vision": [m] (input) or [n, m] (fisher)
    codes/<linear>.safetensors       packed codes (see packing.py), metadata in the header
    reports/<linear>.json            a LinearReport and the SHA-256 of the code file; written after the codes
    accuracy.json                    what `eval` found, if it was run
    events.jsonl                     a log with times
    label.txt                        what a person calls the run, if anything
    manifest.json                    SHA-256 and size of every file above but the log and the label; written last

Every file is written so that a killed run leaves whole files only (files.py). A report vouches for its codes: a linear
without a report is fitted again, a code file that does not match its report is refused; a `.sha256` file does the same
for sensitivities. Reports, sensitivities and the manifest are sealed with the run's identity, which is made of format,
recipe, weights, linears and calibration samples: what was changed, or copied from another run, is refused. Runs that
were begun before calibration samples were noted have no seals, and are read without.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import secrets
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import save as tensor_bytes
from torch import Tensor

from sab import distributed
from sab.binarizers import METHODS
from sab.errors import SabError
from sab.files import (
    SEAL,
    TEMPORARY,
    append_line,
    clear_leftovers,
    digest_of,
    is_intact,
    make_directory,
    read_json,
    remove,
    sealed,
    tensors_of,
    vouch,
    vouched_bytes,
    write_bytes,
    write_json,
)
from sab.forms import FORMS
from sab.packing import pack, unpack
from sab.recipes import CHOICES, Recipe
from sab.significance import Thresholds

if TYPE_CHECKING:
    from sab.binarizers import LinearCodes
    from sab.calibration import SampleSet
    from sab.models import LVLM

FORMAT_VERSION = 1
HEADER = {"recipe": dict, "fingerprint": str, "linears": list, "machine": dict, "calibration": dict}  # what is read
LABEL = "label.txt"
EVALUATION = ("accuracy.json", "answers.json")
LONGEST_LABEL = 80
ASSET_RUNS = Path(__file__).resolve().parent.parent / "assets" / "runs"
USER_RUNS = Path(os.environ.get("SAB_RUNS") or Path.home() / ".cache" / "sab-lens" / "runs")


@dataclass(frozen=True)
class LinearReport:
    """What became of one linear.

    `relative_loss` is tr(ΔHΔᵀ)/tr(WHWᵀ); `bits_*` are bits per weight, `bytes` the stored size; `counts` maps
    each class of the partition to its number of weights; `tokens_*` fed the compensation Hessians; `done` of
    `total` linears are finished; `seconds` is this linear's fit, `eta_seconds` the estimate for the rest.
    `part`: of the model; `damping_used`: the strength with which the Hessian was positive definite (None in
    runs that did not note it); `switched_off`: why the map had no say here, if it had none.
    """

    name: str
    block: int
    kind: str
    shape: tuple[int, int]
    relative_loss: float
    salient_fraction: float
    bits_nominal: float
    bits_all_in: float
    bytes: int
    unimodal_ratio: float
    counts: dict[str, int]
    seconds: float
    tokens_language: int
    tokens_vision: int
    done: int
    total: int
    eta_seconds: float
    part: str = "decoder"
    damping_used: float | None = None
    switched_off: str | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LinearReport:
        """The inverse of `asdict`, also after a way through JSON. TypeError or KeyError for anything else."""
        return cls(**{**values, "shape": tuple(values["shape"])})

    @property
    def weights(self) -> int:
        """Number of weights, n·m."""
        return self.shape[0] * self.shape[1]


class Run:
    """A run on disk, finished or not. Cheap to open; tensors are read when asked for."""

    def __init__(self, directory: Path, header: dict[str, Any]) -> None:
        self.directory = directory
        self.id = directory.name
        self.recipe = Recipe.from_json(header["recipe"])
        self.fingerprint: str = header["fingerprint"]
        self.names: tuple[str, ...] = tuple(header["linears"])
        self.header = header

    @classmethod
    def open(cls, directory: str | Path) -> Run:
        """Open a run directory. Raises SabError where there is none or its recipe is damaged."""
        directory = Path(directory)
        header = read_json(directory / "recipe.json")
        try:
            if header["format_version"] != FORMAT_VERSION:
                raise SabError(
                    f"The run in {directory} has format {header['format_version']}, this program reads "
                    f"{FORMAT_VERSION}; make the run again."
                )
            _check_header(header)
            return cls(directory, header)
        except (KeyError, TypeError) as error:
            raise SabError(f"{directory / 'recipe.json'} is damaged; make the run again.") from error

    @cached_property
    def label(self) -> str:
        """What a person has called the run, or ""."""
        try:
            return (self.directory / LABEL).read_text(encoding="utf-8")[:LONGEST_LABEL]
        except (OSError, ValueError):
            return ""

    @property
    def name(self) -> str:
        """What a person reads: the run's label, or what it is."""
        return self.label or self.description

    @property
    def description(self) -> str:
        """The method's label, and what differs from the defaults that matter most."""
        recipe = self.recipe
        notes = [
            *([f"{recipe.sensitivity} sensitivity"] if recipe.sensitivity != "input" else []),
            *([f"{recipe.samples} samples"] if recipe.samples != Recipe.samples else []),
            *([f"seed {recipe.seed}"] if recipe.seed != Recipe.seed else []),
            *([f"calibrated on {Path(recipe.calibration).name}"] if recipe.calibration is not None else []),
            *([f"{len(recipe.linears)} linears"] if recipe.linears is not None else []),
            *(["custom thresholds"] if recipe.thresholds != Thresholds() else []),
            *([" + ".join(recipe.parts)] if recipe.parts != Recipe.parts else []),
            *([f"{recipe.compensation} compensation"] if recipe.compensation != Recipe.compensation else []),
            *([f"beta {recipe.beta:g}"] if recipe.beta is not None else []),
            *([f"budget {recipe.bits:g} bits"] if recipe.bits is not None else []),
            *([f"{recipe.refine} epochs of refinement"] if recipe.refine is not None else []),
        ]
        return METHODS[recipe.method].label + (f" ({', '.join(notes)})" if notes else "")

    @cached_property
    def _vouched(self) -> dict[str, tuple[LinearReport, str]]:
        """Report and SHA-256 of the codes, for each linear that has a report, in forward order."""
        vouched = {}
        for name in self.names:
            path = self.directory / "reports" / f"{name}.json"
            if path.exists():
                values = read_json(path)
                self._check_seal(path, values)
                try:
                    values.pop(SEAL, None)
                    digest = values.pop("codes_sha256")
                    vouched[name] = (LinearReport.from_json(values), digest)
                except (KeyError, TypeError) as error:
                    raise SabError(f"{path} is damaged; delete the run and make it again.") from error
        return vouched

    @property
    def reports(self) -> dict[str, LinearReport]:
        """Reports of the linears that are done, in forward order."""
        return {name: report for name, (report, _) in self._vouched.items()}

    @property
    def finished(self) -> bool:
        """Whether the manifest, which is written last, is there."""
        return (self.directory / "manifest.json").exists()

    @property
    def bits_nominal(self) -> float:
        """Bits per binarized weight as the papers print them, averaged over weights (NaN if none)."""
        return _weighted(self.reports.values(), "bits_nominal")

    @property
    def bits_all_in(self) -> float:
        """Stored bits per binarized weight, everything counted (NaN before the first linear is done)."""
        return _weighted(self.reports.values(), "bits_all_in")

    @property
    def bytes(self) -> int:
        """Size of all packed codes."""
        return sum(report.bytes for report in self.reports.values())

    @property
    def seconds(self) -> float:
        """Time spent fitting the linears that are done."""
        return sum(report.seconds for report in self.reports.values())

    @property
    def accuracy(self) -> dict[str, Any] | None:
        """What `record_accuracy` stored, or None."""
        path = self.directory / "accuracy.json"
        return read_json(path) if path.exists() else None

    def sensitivity(self, name: str, kind: str = "input") -> tuple[Tensor, Tensor] | None:
        """(language, vision) sensitivities of one linear; None where the run holds none of this kind."""
        stored = self._sensitivities(kind)
        if f"{name}.language" not in stored:
            return None
        return stored[f"{name}.language"], stored[f"{name}.vision"]

    def sensitivities(self, kind: str = "input") -> dict[str, tuple[Tensor, Tensor]]:
        """Stored sensitivities by linear; empty where the run holds none of this kind."""
        stored = self._sensitivities(kind)
        return {
            name: (stored[f"{name}.language"], stored[f"{name}.vision"])
            for name in self.names
            if f"{name}.language" in stored
        }

    def _sensitivities(self, kind: str) -> dict[str, Tensor]:
        path = self.directory / f"sensitivity-{kind}.safetensors"
        vouching = path.with_suffix(".sha256")
        if kind not in CHOICES["sensitivity"] or not vouching.exists():
            return {}
        digest = vouching.read_text(encoding="utf-8", errors="replace").strip()
        return tensors_of(path, vouched_bytes(path, digest, self._binding))[0]

    def codes(self, name: str) -> LinearCodes:
        """Codes of one linear. SabError where it is not done, or its file does not match its report."""
        if name not in self._vouched:
            raise SabError(f"The run in {self.directory} has no codes of {name}; finish it first.")
        path = self.directory / "codes" / f"{name}.safetensors"
        return unpack(*tensors_of(path, vouched_bytes(path, self._vouched[name][1])))

    def require_finished(self) -> None:
        """SabError for a run that is unfinished, or that has lost reports since it was finished."""
        if not self.finished:
            raise SabError(f"The run in {self.directory} is unfinished; finish it with quantize --resume.")
        if len(self.reports) < len(self.names):
            raise SabError(
                f"The run in {self.directory} is marked as finished and has reports of only {len(self.reports)} of its "
                f"{len(self.names)} linears; delete it and make it again."
            )

    def check_model(self, lvlm: LVLM) -> None:
        """SabError when the model is not the one the run was made from."""
        if lvlm.fingerprint != self.fingerprint:
            raise SabError(
                f"The run in {self.directory} was made from other weights than those of {lvlm.source}; "
                "load the model it names, or make the run again."
            )

    def apply(self, lvlm: LVLM) -> None:
        """Put the dense weights of all finished linears into a model ("simulated": dequantized); a streamed one will
        read them from this run.

        Raises SabError when the model is not the one the run was made from.
        """
        self.check_model(lvlm)
        for name in self._vouched:
            if lvlm.streamed is not None:
                lvlm.streamed.replaced[f"{name}.weight"] = partial(_dense, self, name)
            else:
                put_weight(lvlm, name, self.codes(name).dense())

    def record_accuracy(self, accuracy: Mapping[str, Any], answers: Mapping[str, Any] | None = None) -> None:
        """Store an evaluation with the run (see `write_evaluation`). The manifest of a finished run first forgets an
        earlier one and then learns of this, so that it holds at every moment."""
        if not self.finished:
            write_evaluation(self.directory, accuracy, answers)
            return
        manifest = self._manifest()
        for name in EVALUATION:
            manifest["files"].pop(name, None)
        _store_manifest(self, manifest)
        write_evaluation(self.directory, accuracy, answers)
        for name in EVALUATION:
            if (self.directory / name).exists():
                manifest["files"][name] = _file_entry(self.directory / name)
        _store_manifest(self, manifest)

    def withdraw(self) -> None:
        """Take back a run that has been begun and holds nothing yet."""
        for name in ("recipe.json", "events.jsonl"):
            (self.directory / name).unlink(missing_ok=True)
        for entry in self.directory.iterdir():
            if entry.is_dir() and not any(entry.iterdir()):
                entry.rmdir()

    def verify(self) -> dict[str, int]:
        """Check every file against the manifest and return sizes. SabError for the first that differs."""
        manifest = self._manifest()
        try:
            digests = {relative: entry["sha256"] for relative, entry in manifest["files"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged(self.directory / "manifest.json") from error
        return {
            relative: len(vouched_bytes(self.directory / relative, digest)) for relative, digest in digests.items()
        }

    @property
    def _noted(self) -> bool:
        """Whether the run noted its calibration samples when it was begun, and is sealed."""
        return "calibration" in self.header

    @property
    def _identity(self) -> str:
        """A digest of everything that the codes depend on besides the machine."""
        names = ("format_version", "recipe", "fingerprint", "linears")
        noted = self.header.get("calibration")
        samples = noted.get("fingerprint") if isinstance(noted, dict) else None
        return digest_of([*(self.header.get(name) for name in names), samples])

    @property
    def _binding(self) -> str:
        return self._identity if self._noted else ""

    def _check_seal(self, path: Path, values: Mapping[str, Any]) -> None:
        """SabError for values that were changed or sealed by another run."""
        if (self._noted or SEAL in values) and not is_intact(values, self._identity):
            raise SabError(f"{path} is damaged or belongs to another run; delete the run and make it again.")

    def _manifest(self) -> dict[str, Any]:
        path = self.directory / "manifest.json"
        manifest = read_json(path)
        self._check_seal(path, manifest)
        if not isinstance(manifest.get("files"), dict):
            raise _damaged(path)
        return manifest


def _check_header(header: Mapping[str, Any]) -> None:
    """KeyError or TypeError for a header whose values are not of their kind, or which names no linears."""
    for name, kind in HEADER.items():
        if name in header and not isinstance(header[name], kind):
            raise TypeError(f"{name} is no {kind.__name__}")
    if not header["linears"] or not all(isinstance(name, str) for name in header["linears"]):
        raise TypeError("linears are no names")


def _dense(run: Run, name: str) -> Tensor:
    return run.codes(name).dense()


def put_weight(lvlm: LVLM, name: str, dense: Tensor) -> None:
    """Replace one linear's weight [n, m] in the model's dtype."""
    with torch.no_grad():
        lvlm.linears[name].weight.copy_(dense)


def list_runs(*directories: str | Path) -> list[Run]:
    """All readable runs below the directories (default: the shipped ones, then the user's), by name.

    An id is the folder's name; a second folder of the same name gets a suffix from its place.
    """
    found: list[Run] = []
    taken: set[str] = set()
    for parent in map(Path, directories or (ASSET_RUNS, USER_RUNS)):
        for path in sorted(parent.iterdir()) if parent.is_dir() else []:
            if path.name.startswith(".") or not (path / "recipe.json").is_file():
                continue
            try:
                run = Run.open(path)
                _ = run.reports
            except SabError:
                continue  # a damaged run must not hide the others; opening it by name tells what is wrong
            if run.id in taken:
                run.id += "-" + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:6]
            taken.add(run.id)
            found.append(run)
    return found


def fresh_directory(parent: str | Path, method: str) -> Path:
    """A new, empty directory for a run of `method` below `parent`."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = Path(parent) / f"{method}-{stamp}-{secrets.token_hex(2)}"
    make_directory(path)
    return path


def start(directory: str | Path, recipe: Recipe, lvlm: LVLM, names: Sequence[str]) -> Run:
    """Begin a run, or continue the unfinished one that is already there.

    Raises SabError when the directory holds something else: other files, another recipe, another model.
    """
    directory = Path(directory)
    header = {
        "format_version": FORMAT_VERSION,
        "recipe": recipe.to_json(),
        "family": lvlm.family,
        "fingerprint": lvlm.fingerprint,
        "linears": list(names),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "machine": {
            "platform": f"{platform.system()} {platform.machine()}",
            "device": str(lvlm.device),
            "dtype": str(lvlm.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            **({"processes": distributed.size()} if distributed.size() > 1 else {}),
        },
    }
    if directory.exists() and not directory.is_dir():
        raise SabError(f"{directory} is a file; name a directory for the run.")
    if (directory / "recipe.json").exists():
        run = Run.open(directory)
        if run.recipe.calibration != recipe.calibration:
            raise SabError(
                f"{directory} holds a run that was calibrated on {run.recipe.calibration or 'the embedded world'}; "
                "name that source, or another directory."
            )
        if run.recipe != recipe or run.fingerprint != lvlm.fingerprint or list(run.names) != list(names):
            raise SabError(f"{directory} holds a run of another recipe or model; name another directory or delete it.")
        begun, now = run.header.get("machine", {}).get("dtype"), str(lvlm.dtype).removeprefix("torch.")
        if begun not in (None, now) and not run.finished:
            raise SabError(
                f"{directory} was begun in {begun}, not in {now}: go on with --dtype {begun} or name another directory."
            )
        if any(run.header.get(key) != header[key] for key in ("versions", "machine")) and not run.finished:
            warnings.warn(
                f"{directory} was begun with other versions, threads, processes or hardware; "
                "the linears still to come may differ in their last bits from an uninterrupted run.",
                stacklevel=3,
            )
        clear_leftovers(directory)
        return run
    if directory.exists() and any(not entry.name.startswith(TEMPORARY) for entry in directory.iterdir()):
        raise SabError(f"{directory} is not empty and holds no run; name another directory.")
    make_directory(directory)
    clear_leftovers(directory)
    write_json(directory / "recipe.json", header)
    return Run.open(directory)


def settle_calibration(run: Run, samples: SampleSet, **tokens: int) -> None:
    """Note in the header what the run is calibrated on, and how many `tokens_<modality>` that is, once it is counted.

    SabError where the run was begun on other samples. Runs that were begun before this was noted stay as they are.
    """
    noted = run.header.get("calibration")
    if noted is None and run.reports:
        return
    found = {**samples.summary(), **tokens}
    if noted is not None and noted.get("fingerprint") != found["fingerprint"]:
        raise SabError(
            f"The calibration samples of {found['source']} are not those that the run in {run.directory} was begun "
            "with; bring them back, or name another directory."
        )
    if noted is None or any(noted.get(key) != value for key, value in found.items()):
        run.header = {**run.header, "calibration": {**(noted or {}), **found}}
        write_json(run.directory / "recipe.json", run.header)


def store_linear(run: Run, report: LinearReport, codes: LinearCodes) -> None:
    """Write codes, then the report that vouches for them. SabError, naming the linear, for NaN or infinity."""
    for field_name, value in asdict(report).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise SabError(f"{report.name}: {field_name} is {value}, so the fit has failed and is not stored.")
    try:
        tensors, metadata = pack(codes)
    except SabError as refusal:
        raise SabError(f"{report.name}: {refusal}") from refusal
    data = tensor_bytes(
        {key: value.contiguous() for key, value in tensors.items()},
        metadata={"sab": json.dumps(metadata, sort_keys=True)},
    )
    vouching = run.directory / "reports" / f"{report.name}.json"
    vouching.unlink(missing_ok=True)  # of a block that is fitted again: it must not speak of other codes
    write_bytes(run.directory / "codes" / f"{report.name}.safetensors", data)
    values = {**asdict(report), "codes_sha256": vouch(data)}
    write_json(vouching, sealed(values, run._identity) if run._noted else values)
    run.__dict__.pop("_vouched", None)


def store_sensitivities(run: Run, kind: str, maps: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Write the sensitivities of every linear, float32. SabError, naming the linear, for NaN or infinity."""
    tensors = {}  # cloned, because linears that share an input share their sensitivity
    for name, (language, vision) in maps.items():
        if not bool(torch.isfinite(language).all() & torch.isfinite(vision).all()):
            raise SabError(f"{name}: its {kind} sensitivity holds NaN or infinity.")
        tensors[f"{name}.language"] = language.float().cpu().clone()
        tensors[f"{name}.vision"] = vision.float().cpu().clone()
    path = run.directory / f"sensitivity-{kind}.safetensors"
    data = tensor_bytes(tensors)
    write_bytes(path, data)
    write_bytes(path.with_suffix(".sha256"), vouch(data, run._binding).encode())


def write_evaluation(directory: Path, accuracy: Mapping[str, Any], answers: Mapping[str, Any] | None) -> None:
    """Store the figures of an evaluation and its single answers (`compare.Asked.stored`) together; those of an earlier
    evaluation go first, for they belong to other figures."""
    remove(directory / "answers.json")
    write_json(directory / "accuracy.json", dict(accuracy))
    if answers is not None:
        write_json(directory / "answers.json", dict(answers))


def write_manifest(run: Run) -> None:
    """Write the manifest: SHA-256 and size of every file but the log and exported checkpoints, and the run's totals."""
    files = {}
    for path in sorted(run.directory.rglob("*")):
        inside = path.relative_to(run.directory).parts[0]
        skipped = inside.startswith(".") or inside in (*FORMS.values(), "manifest.json", "events.jsonl", LABEL)
        skipped = skipped or path.name.startswith(TEMPORARY)
        if path.is_file() and not skipped:
            files[path.relative_to(run.directory).as_posix()] = _file_entry(path)
    totals = {
        "bits_nominal": run.bits_nominal,
        "bits_all_in": run.bits_all_in,
        "bytes": run.bytes,
        "seconds": run.seconds,
    }
    _store_manifest(run, {"format_version": FORMAT_VERSION, **totals, "files": files})


def _store_manifest(run: Run, manifest: Mapping[str, Any]) -> None:
    rest = {name: value for name, value in manifest.items() if name != SEAL}
    write_json(run.directory / "manifest.json", sealed(rest, run._identity) if run._noted else rest)


def _file_entry(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": vouch(data)}


def _damaged(path: Path) -> SabError:
    return SabError(f"{path} is damaged; delete the run and make it again.")


def log_event(run: Run, event: str, **details: Any) -> None:
    """Append one line to the run's log."""
    line = json.dumps({"time": round(time.time(), 3), "event": event, **details})
    append_line(run.directory / "events.jsonl", line)


def _weighted(reports: Iterable[LinearReport], attribute: str) -> float:
    entries = list(reports)
    total = sum(report.weights for report in entries)
    if not total:
        return math.nan
    return sum(getattr(report, attribute) * report.weights for report in entries) / total
