"""Several processes quantize one model: `torchrun --nproc-per-node N -m sab quantize …`, over torch.distributed.

Calibration batches are dealt out in turn; each process runs its own through the blocks and all sums (moments, Fisher
information, gradients of refined codes) are added up over the processes, in the same order of calls everywhere. The
linears of a block are dealt out by cost, and codes are handed round, packed as they are stored. So given the same sums
the codes are the same to the last bit as those of one process; sums over other groups of batches differ in rounding.
Process 0, which leads, alone writes the run and speaks.

Without several processes every function here does nothing: whether there are any, torch.distributed knows.

Before each exchange the processes tell each other whether one has failed; then all end, and the leader says the
sentence of the one that did. A process that vanishes, or answers no more within the patience, ends all as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor
from torch import distributed as processes

from sab.errors import LostError, SabError

PATIENCE = 1800.0  # seconds that a process waits for the others: for the fit of a large linear, or a slow disk
LOST = "Another process has vanished or does not answer; what is finished is kept, so start it again with --resume."
TOLD = "told"  # counts in the store of the processes who may say the sentence


class _Ended(Exception):
    """All processes have been told that one has failed."""


class _Vanished(Exception):
    """An exchange failed, because a process is not there any more."""


def launched() -> bool:
    """Whether torchrun, or something like it, has started several processes."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def size() -> int:
    """Number of processes that work together."""
    return processes.get_world_size() if processes.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return processes.get_rank() if processes.is_initialized() else 0


def leads() -> bool:
    """Whether this process writes and speaks."""
    return rank() == 0


@contextmanager
def joined(device: str | None, patience: float = PATIENCE) -> Iterator[str | None]:
    """Work with the other processes while the context is open; gives the device of this one. Raises SabError in one
    process, with the sentence of the one that failed, and ends the others silently (SystemExit)."""
    number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    on_cuda = torch.cuda.is_available() if device is None else device.split(":")[0] == "cuda"
    if on_cuda:
        local = int(os.environ.get("LOCAL_RANK", number))
        if local >= torch.cuda.device_count():
            raise SabError(f"There are {torch.cuda.device_count()} GPUs here; start at most as many processes.")
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    limit, backend = timedelta(seconds=patience), "nccl" if on_cuda else "gloo"
    store, number, count = next(processes.rendezvous("env://", number, count, timeout=limit))
    processes.init_process_group(backend, store=store, rank=number, world_size=count, timeout=limit)
    try:
        yield device
        _agree()
    except _Ended as ended:
        if leads():
            raise SabError(str(ended)) from ended
        raise SystemExit(2) from ended
    except _Vanished as error:
        raise _lost(store) from error
    except Exception as error:
        is_ours = isinstance(error, SabError)
        heard = _tell(str(error) if is_ours else f"Process {number} failed: {type(error).__name__}: {error}")
        if is_ours and heard and not leads():
            raise SystemExit(2) from error  # the leader says it
        if is_ours and not heard:
            raise LostError(str(error)) from error
        raise
    finally:
        with suppress(Exception):  # where a process is lost, the others are not waited for
            processes.destroy_process_group()


def share(count: int, what: str) -> range:
    """Which of `count` things are this process's, in their order. SabError where some process would have none."""
    if count < size():
        raise SabError(f"There are {count} {what} for {size()} processes; take more samples or fewer processes.")
    return range(rank(), count, size())


def total(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes, where the tensor lies; itself where there is one process."""
    if size() == 1:
        return values
    _agree()
    summed = values.to(_exchange(), copy=True)
    _exchanged(processes.all_reduce, summed)
    return summed.to(values.device)


def total_count(value: int) -> int:
    """The sum of a whole number over all processes."""
    return int(total(torch.tensor(value, dtype=torch.int64)))


def deal(costs: Sequence[float]) -> list[int]:
    """Which process does what: the costliest first, each to the process with the least to do."""
    load, owners = [0.0] * size(), [0] * len(costs)
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        owners[place] = min(range(size()), key=lambda number: load[number])
        load[owners[place]] += costs[place]
    return owners


def hand_round(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any], owner: int = 0
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the owner gives, for every process: tensors, on the host, and values that JSON can hold."""
    if size() == 1:
        return dict(tensors), dict(values)
    data = b""
    if rank() == owner:
        there = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        data = tensor_bytes(there, metadata={"sab": json.dumps(values)})
    _agree()
    data = _broadcast(data, owner)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return read_tensors(data), json.loads(header["__metadata__"]["sab"])


def check_alike(what: str, value: str) -> None:
    """SabError where the processes have different values of what they must share."""
    if hand_round({}, {"value": value})[1]["value"] != value:
        raise SabError(f"Process {rank()} has other {what} than process 0; give every process the same files.")


def _exchange() -> torch.device:
    """Where tensors must lie to be exchanged."""
    return torch.device("cuda" if processes.get_backend() == "nccl" else "cpu")


def _broadcast(data: bytes, owner: int) -> bytes:
    length = torch.tensor(len(data), device=_exchange())
    _exchanged(processes.broadcast, length, owner)
    sent = torch.empty(int(length), dtype=torch.uint8, device=_exchange())
    if rank() == owner and data:
        sent.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    _exchanged(processes.broadcast, sent, owner)
    return sent.cpu().numpy().tobytes()


def _agree(failure: str | None = None) -> None:
    """Raises _Ended in every process, with the sentence of one that failed, if any has."""
    if size() == 1:
        return
    failed = torch.tensor(rank() + 1 if failure is not None else 0, device=_exchange())
    _exchanged(processes.all_reduce, failed, op=processes.ReduceOp.MAX)
    if int(failed):
        raise _Ended(_broadcast((failure or "").encode(), int(failed) - 1).decode())


def _tell(failure: str) -> bool:
    """End the other processes with this sentence; whether they could be reached."""
    try:
        _agree(failure)
    except _Ended:
        return True
    except _Vanished:
        return False
    raise AssertionError("a failure was told and nobody ended")


def _exchanged(exchange: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    try:
        exchange(*arguments, **options)
    except RuntimeError as error:
        raise _Vanished from error


def _lost(store: Any) -> BaseException:
    """What ends a process that has lost another: the first to notice says so."""
    with suppress(Exception):
        if store.add(TOLD, 1) > 1:
            return SystemExit(2)
    return LostError(LOST)
