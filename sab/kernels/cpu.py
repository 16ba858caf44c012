"""`cpu.c`, compiled on first use with the system's C compiler, and calls into it that cannot crash.

The library lies in the user's cache directory under a name made of the source, the compiler, its flags and the
machine; it is written to a temporary name and renamed, so two processes may compile at once. Without a compiler, or
with one that fails, `load` says so once and the reference computes.

Two modes. `exact`: float32 throughout; only the order of the sums differs from a dense product. `fast`: the sums of
four inputs, of which every weight picks one of sixteen, are rounded to 8 bits with one scale for each token and
block, so that an entry is off by at most 1/254 of the largest sum of four |x| in the block (times column scales).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sab.devices import CHOICE
from sab.errors import SabError
from sab.kernels.tiles import (
    INTEGER,
    LANES,
    LARGEST_KEPT_BLOCK,
    LISTED,
    NONE,
    ONE,
    SHARED,
    SPLIT,
    UNIT,
    Tiles,
)

SOURCE = Path(__file__).with_name("cpu.c")
FLAGS = ("-O2", "-std=c11", "-shared", "-fPIC", "-fno-math-errno", "-Wno-psabi", "-pthread")
PATHS = ("portable", "avx2", "avx512", "avx512vnni")  # in the order of their numbers in cpu.c, slowest first
MODES = ("exact", "fast")
COMPILE_SECONDS = 300
MOST_UNITS = 128  # of a block in the fast mode of AVX2, as in cpu.c
UNITS = ("vectors", "matrix unit")  # for bfloat16, in the order of their numbers in cpu.c, slower first
FIRST_UNIT = 8  # bit of sab_paths
PANEL = 2048  # columns of the prefill in cpu.c that are dequantized at once
SINGLE_THREAD = 1 << 18  # weights times tokens below which starting threads costs more than it saves
SIZES = (
    *("rows", "width", "tiles", "blocks", "block_size", "units", "planes", "main_kind", "tail_kind", "slots"),
    *("residuals", "means", "parameters", "small", "columns", "second_columns", "tail_units"),
    *("scale_blocks", "kept_blocks"),
)
POINTERS = (
    *("words", "second", "scale", "zero", "step", "column", "second_column", "order", "start"),
    *("kept_level", "kept_index", "kept_count", "kept_start", "kept_scale", "kept_zero"),
)


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in SIZES),
        *((name, ctypes.c_void_p) for name in POINTERS),
    ]


@dataclass(frozen=True)
class Library:
    """The loaded library: `path` is the instruction set in use, `parallel` torch's own OpenMP (0: none found), `units`
    what this processor multiplies bfloat16 with, slower first."""

    path: str
    multiply: Callable[..., int]
    unpack: Callable[..., int]
    prefill: Callable[..., int]
    parallel: int
    units: tuple[str, ...]


@functools.cache
def load(choice: str | None = None) -> Library | None:
    """The library with the fastest path of this machine, or with the path named; None where there is no compiler.

    SabError for a name that is not known or a path this machine cannot run.
    """
    if choice is not None and choice not in PATHS:
        raise SabError(f"{CHOICE} is {choice!r}; choose reference, triton, {', '.join(PATHS)}, or leave it out.")
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError, SabError) as error:
        warnings.warn(f"no C kernel ({error}): packed linears run on the torch reference, slowly", stacklevel=2)
        return None
    runs = library.sab_paths()
    usable = [name for number, name in enumerate(PATHS) if runs >> number & 1]
    if choice is not None and choice not in usable:
        raise SabError(f"{CHOICE} is {choice}, which this machine cannot run; choose {' or '.join(usable)}.")
    pointer, whole, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.sab_multiply.argtypes = [pointer, pointer, pointer, whole, number, number, number, pointer]
    library.sab_unpack.argtypes = [pointer, pointer, whole, whole, number, number, number, pointer]
    library.sab_prefill.argtypes = [pointer, pointer, pointer, pointer, whole, number, number, number, pointer]
    functions = library.sab_multiply, library.sab_unpack, library.sab_prefill
    units = tuple(name for number, name in enumerate(UNITS) if runs >> FIRST_UNIT + number & 1)
    return Library(choice or usable[-1], *functions, _torch_threads(), units)


class Weight:
    """A weight in tiles, checked, with the pointers the library takes. The tensors are kept alive here."""

    def __init__(self, tiles: Tiles, library: Library) -> None:
        """SabError for tensors that do not fit the sizes: nothing unchecked reaches the library."""
        self.tiles, self.library = tiles, library
        self.rows, self.width = tiles.shape
        _check(tiles)
        self._layer = _Layer(**tiles.sizes, **{name: tensor.data_ptr() for name, tensor in tiles.tensors.items()})
        self._pointer = ctypes.addressof(self._layer)
        self._path = PATHS.index(library.path)

    def runs(self, mode: str) -> str:
        """The mode that runs where `mode` is asked for. Plain AVX-512 has no shorter way, so its fast mode is the exact
        one; so is that of AVX2 in blocks whose sums leave 16 bits."""
        of = self.tiles.sizes
        wide = self.library.path == "avx2" and of["units"] > MOST_UNITS // (1 + (of["main_kind"] == SPLIT))
        return "exact" if self.library.path == "avx512" or wide else mode

    @property
    def units(self) -> tuple[str, ...]:
        """What `multiply_bfloat16` can work with here, slower first; nothing for small blocks, which it fills up."""
        of = self.tiles.sizes
        places = of["units"] * UNIT
        fits = places <= PANEL and of["blocks"] * places <= 2 * self.width
        return self.library.units if self.library.path == PATHS[-1] and fits else ()

    def multiply(self, x: Tensor, mode: str = "exact") -> Tensor:
        """`x` float32 [tokens, m] to float32 [tokens, n]. SabError for anything else."""
        self._check_input(x)
        if mode not in MODES:
            raise SabError(f"the mode is {mode!r}; choose exact or fast")
        x = x.contiguous()
        y = x.new_empty(len(x), self.rows)
        if len(x):
            threads = self._threads(len(x) * self.rows * self.width)
            fast = int(mode == "fast")
            self._run(self.library.multiply, x.data_ptr(), y.data_ptr(), len(x), self._path, fast, threads)
        return y

    def multiply_bfloat16(self, x: Tensor, dtype: torch.dtype = torch.float32, unit: str | None = None) -> Tensor:
        """`x` bfloat16 [tokens, m] to [tokens, n] in float32 or bfloat16 (float32 sums, rounded at the end), weights
        dequantized to bfloat16 a piece at a time. `unit`: one of `units`, the fastest when left out."""
        self._check_input(x, (torch.bfloat16,))
        if not self.units or unit not in (None, *self.units):
            raise SabError(f"this weight or processor does not take {unit or 'bfloat16'}")
        if dtype not in (torch.float32, torch.bfloat16):
            raise SabError(f"products come in float32 or bfloat16, not in {dtype}")
        y = torch.empty(len(x), self.rows, dtype=dtype)
        if len(x):
            x = x.contiguous()
            of = self.tiles.sizes
            halves = x.new_empty((len(x) + 31) // 32 * 32, of["blocks"] * of["units"] * UNIT)
            threads = self._threads(len(x) * self.rows * self.width)
            how = int(dtype == torch.bfloat16), UNITS.index(unit or self.units[-1]), threads
            self._run(self.library.prefill, x.data_ptr(), halves.data_ptr(), y.data_ptr(), len(x), *how)
        return y

    def multiply_unpacked(self, x: Tensor, weights_at_once: int = 1 << 20) -> Tensor:
        """`x` [tokens, m] to [tokens, n] in its dtype, float32 or bfloat16, by dequantizing a few rows at a time.

        Without AVX-512 torch multiplies bfloat16 matrices many times slower than float32 ones (seen with AVX2)."""
        self._check_input(x, (torch.float32, torch.bfloat16))
        y = x.new_empty(len(x), self.rows)
        if not self.library.path.startswith("avx512"):
            x = x.float()
        tiles = self.tiles.sizes["tiles"]
        count = min(tiles, max(1, weights_at_once // (LANES * self.width)))
        scratch = x.new_empty(self.width * count * LANES)
        for first in range(0, tiles, count):
            here = y[:, first * LANES : (first + count) * LANES]
            dense = self.unpack(first, min(count, tiles - first), x.dtype, scratch)
            here.copy_(torch.mm(x, dense)[:, : here.shape[1]])
        return y

    def unpack(
        self, first: int, count: int, dtype: torch.dtype = torch.float32, scratch: Tensor | None = None
    ) -> Tensor:
        """Weights of `count` tiles from tile `first` on, transposed: [m, 16 count], float32 or bfloat16.

        `scratch`: a flat tensor of that type, large enough, to put them in.
        """
        if not 0 <= first < first + count <= self.tiles.sizes["tiles"]:
            raise SabError(f"there are no tiles {first} to {first + count - 1}")
        if dtype not in (torch.float32, torch.bfloat16):
            raise SabError(f"weights are unpacked to float32 or bfloat16, not to {dtype}")
        size = self.width * count * LANES
        if scratch is None:
            scratch = torch.empty(size, dtype=dtype)
        if scratch.dtype != dtype or scratch.ndim != 1 or scratch.numel() < size or not scratch.is_contiguous():
            raise SabError(f"the scratch tensor is {scratch.dtype} {tuple(scratch.shape)}, not {dtype} ({size},)")
        dense = scratch[:size].view(self.width, count * LANES)
        threads = self._threads(count * LANES * self.width)
        bfloat = int(dtype == torch.bfloat16)
        self._run(self.library.unpack, dense.data_ptr(), first, count, bfloat, self._path, threads)
        return dense

    def _threads(self, work: int) -> int:
        return torch.get_num_threads() if work >= SINGLE_THREAD else 1

    def _run(self, function: Callable[..., int], *arguments: int) -> None:
        failure = function(self._pointer, *arguments, self.library.parallel)
        if failure:
            raise MemoryError("the packed kernel found no memory") if failure == -1 else SabError("no such path")

    def _check_input(self, x: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> None:
        if x.device.type != "cpu" or x.dtype not in dtypes or x.ndim != 2 or x.shape[1] != self.width:
            raise SabError(
                f"the input is {x.dtype} {tuple(x.shape)} on {x.device} instead of "
                f"{' or '.join(map(str, dtypes))} (tokens, {self.width}) on the CPU"
            )


def _expected(of: dict[str, int]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Types and shapes of the tensors of an arrangement, from its sizes."""
    blocks, tiles, places = of["blocks"], of["tiles"], of["units"] * UNIT
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "words": (torch.int32, (blocks, tiles, of["planes"], of["units"] // 2, LANES)),
        "scale": (torch.int8 if of["small"] else torch.int16, (of["scale_blocks"], tiles, of["parameters"], LANES)),
        "order": (torch.int16, (blocks, places)),
        "start": (torch.int32, (blocks,)),
    }
    if of["main_kind"] == INTEGER:
        expected["zero"] = (torch.uint8, (blocks, tiles, LANES))
    else:
        expected["second"] = (torch.int32, (-(-of["tail_units"] // 2), tiles, LANES))
    if of["kept_blocks"]:
        expected["kept_count"] = (torch.uint8, (of["rows"], blocks))
        expected["kept_start"] = (torch.int64, (of["rows"],))
        expected["kept_scale"] = (torch.int16, (tiles, LANES))
        expected["kept_zero"] = (torch.uint8, (tiles, LANES))
    if of["small"]:
        expected["step"] = (torch.int16, (tiles, LANES))
    if of["columns"]:
        expected["column"] = (torch.int16, (of["columns"], blocks, places))
    if of["second_columns"]:
        expected["second_column"] = (torch.int16, (of["second_columns"], of["tail_units"] * UNIT))
    return expected


def _check(tiles: Tiles) -> None:
    """SabError where sizes contradict each other, tensors do not have them, or an index points outside."""
    of = tiles.sizes
    try:
        rows, width = of["rows"], of["width"]
        sound = (
            set(of) == set(SIZES)
            and tiles.shape == (rows, width)
            and min(rows, width, of["block_size"], of["units"], of["planes"]) >= 1
            and of["tiles"] == -(-rows // LANES)
            and of["blocks"] == -(-width // of["block_size"])
            and of["units"] == 2 * -(-of["block_size"] // (2 * UNIT))
            and of["scale_blocks"] == (1 if of["kept_blocks"] else of["blocks"])
            and of["kept_blocks"] in (0, of["blocks"])
            and _kinds_fit(of)
        )
        expected = _expected(of) if sound else {}
    except KeyError:
        sound = False
    if not sound:
        raise SabError(f"the sizes of this packed linear make no sense: {of}")
    if of["kept_blocks"]:
        listed = tiles.tensors["kept_level"].numel() if "kept_level" in tiles.tensors else 0
        expected |= dict.fromkeys(LISTED, (torch.uint8, (listed,)))
    if set(expected) != set(tiles.tensors):
        raise SabError(f"this packed linear has the tensors {sorted(tiles.tensors)} instead of {sorted(expected)}")
    for name, (dtype, shape) in expected.items():
        found = tiles.tensors[name]
        if found.dtype != dtype or tuple(found.shape) != shape or found.device.type != "cpu":
            raise SabError(f"{name} is {found.dtype} {tuple(found.shape)} on {found.device}, not {dtype} {shape}")
        if not found.is_contiguous():
            raise SabError(f"{name} is not contiguous")
    order, start = tiles.tensors["order"].long(), tiles.tensors["start"].long()
    column = order + of["block_size"] * torch.arange(of["blocks"])[:, None]
    inside = (order == -1) | (order >= 0) & (order < of["block_size"]) & (column < width)
    places = of["units"] * UNIT
    columns = torch.minimum(width - of["block_size"] * torch.arange(of["blocks"]), torch.tensor(of["block_size"]))
    wanted = torch.arange(places) - (places - columns)[:, None]  # padding, then each column of the block once
    inside = inside & (order.sort(1).values == wanted.clamp_min(-1))
    if not bool(inside.all()) or not bool(((start >= 0) & (start <= places)).all()):
        raise SabError("the columns of this packed linear lie outside of it")
    if of["kept_blocks"]:
        _check_kept(tiles, columns)
    if int((of["units"] - start // UNIT).sum()) != of["tail_units"] or (of["tail_units"] and of["tail_kind"] == NONE):
        raise SabError("the salient columns of this packed linear do not fit its tail")


def _check_kept(tiles: Tiles, columns: Tensor) -> None:
    """SabError where kept weights lie outside of their block, of `columns` [blocks] each, or of their row."""
    of, tensors = tiles.sizes, tiles.tensors
    count, index = tensors["kept_count"].flatten().long(), tensors["kept_index"]
    of_row = count.view(of["rows"], -1).sum(1)
    sound = len(index) == int(of_row.sum()) + LANES and torch.equal(tensors["kept_start"], of_row.cumsum(0) - of_row)
    if sound:
        index = index[:-LANES]
        inside = index < columns.to(torch.uint8).repeat(of["rows"]).repeat_interleave(count)
        begins = torch.zeros(len(index) + 1, dtype=torch.bool)
        begins[count.cumsum(0) - count] = True  # of a row in a block; the others stand behind a smaller one
        rising = begins[1:-1] | (index[1:] > index[:-1])
        salient = tensors["start"] < of["units"] * UNIT
        places = torch.arange(of["units"] * UNIT)
        moved = (tensors["order"] != places) & (places < columns[:, None])  # a place is a column
        sound = bool(inside.all()) and bool(rising.all()) and not bool(salient.any()) and not bool(moved.any())
    if not sound:
        raise SabError("the kept weights of this packed linear lie outside of it")


def _kinds_fit(of: dict[str, int]) -> bool:
    """Whether the kernel reads no parameter that is not there."""
    main, tail, slots, residuals = of["main_kind"], of["tail_kind"], of["slots"], of["residuals"]
    if main == INTEGER:
        scales = slots == 1 and of["parameters"] == 1 and not of["small"]
        absent = not any(of[name] for name in ("residuals", "means", "columns", "second_columns"))
        return of["planes"] <= 8 and tail == NONE and scales and absent and not of["kept_blocks"]
    grouped = main in (SHARED, SPLIT)
    if of["means"] and (of["columns"] or of["small"] or slots == 4):
        return False
    kept = main == ONE and of["means"] == 1 and tail == NONE and of["block_size"] <= LARGEST_KEPT_BLOCK
    if of["kept_blocks"] and not kept:
        return False
    return (
        main in (ONE, SHARED, SPLIT)
        and of["planes"] == 1 + grouped
        and of["columns"] in ((2,) if main == SPLIT else (0, 1))
        and (tail, slots, residuals)
        in {
            (NONE, 1 + grouped, 0),
            (ONE, 2 + grouped, 1),
            *({(main, 4, 2)} if grouped else set()),
        }
        and of["second_columns"] in ((0, residuals) if main == SPLIT else (0,))
        and of["means"] in (0, 1)
        and of["parameters"] == slots + residuals + of["means"] * slots
    )


def _compiled() -> Path:
    """The library's file, compiled now if it is not there. SabError without a compiler or where it fails."""
    source = SOURCE.read_bytes()
    command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    found = shutil.which(command[0])
    if found is None:
        raise SabError(f"there is no C compiler {command[0]!r}")
    compiler = [found, *command[1:]]
    version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=COMPILE_SECONDS).stdout
    key = hashlib.sha256(repr((source, compiler, version, FLAGS, platform.machine(), _processor())).encode())
    path = _cache() / f"cpu-{key.hexdigest()[:24]}{'.dll' if os.name == 'nt' else '.so'}"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix=path.suffix)
    os.close(handle)
    try:
        made = subprocess.run(
            [*compiler, *FLAGS, str(SOURCE), "-o", temporary], capture_output=True, text=True, timeout=COMPILE_SECONDS
        )
        if made.returncode:
            said = (made.stderr.strip().splitlines() or ["no reason given"])[0]
            raise SabError(f"the C compiler {command[0]!r} failed: {said}")
        os.chmod(temporary, 0o755)
        with open(temporary, "rb") as written:  # on the disk before it has its name, which is never looked at again
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sab-lens" / "kernels"


def _processor() -> str:
    """What the processor calls itself, so that a cache on a shared disk serves machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _torch_threads() -> int:
    """Address of GOMP_parallel in the OpenMP that torch has loaded: a second pool would fight it for the cores."""
    try:
        own: Any = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(own.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0
