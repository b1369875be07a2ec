"""Reading of states: tensors, numbers, strings, None, and dicts, lists and tuples of these, and nothing that grows.

torch's loader for plain data calls no code, yet a file of 1 kB can make it and all that follows it spin for ever: lists
that contain one another twice at each of 60 levels have 2^60 paths, a tuple of such tuples as a key is hashed along all
of them, and a tensor of one number can be viewed as one of 10^15. Three checks keep the work in proportion to the file:

    the archive     nothing is compressed, each name is there once, all sizes together fit into the file
    the pickle      its instructions are read without being followed: which names they import, how many values arise
    the state       types, depth, number of values, and bytes of all tensors as their users will see them
"""

import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from typing import IO, Any

import torch
from torch import Tensor, nn

from ddp_agent.config.untrusted import MAX_DEPTH, plain

PLAIN = (Tensor, nn.Parameter, str, bool, int, float, type(None))
_CONTAINERS = (dict, OrderedDict, list, tuple)
_VALUES_PER_BYTE = 8  # of a pickle: an instruction of 2 bytes can repeat a pair, such as the betas of an optimizer
_REPEATED_BYTES = 8  # tensors may share a storage: a mode's own ones are views of the weights
_IMPORTS = re.compile(
    r"torch\._utils _rebuild_(tensor_v2|tensor_v3|parameter)|collections OrderedDict"
    r"|torch(\.storage)? \w+Storage|torch (b?float|u?int|complex|bool)\w*"
)
_PROTOCOL = 2  # of torch.save
_NO_VALUE = ("PROTO", "STOP")
_GET, _PUT = ("GET", "BINGET", "LONG_BINGET"), ("PUT", "BINPUT", "LONG_BINPUT")


class NotPlainError(ValueError):
    """A file that holds no state, or one that would take more work than its size justifies."""


def read(file: IO[bytes]) -> Any:
    """Return the state in a file of `torch.save`, on the CPU. Raises NotPlainError."""
    file.seek(0, 2)
    size_bytes = file.tell()
    values = _check_pickle(_pickle_of(file, size_bytes))
    file.seek(0)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own text advises to switch the restriction off
        raise NotPlainError("refused by torch's loader for plain data, it is not in torch's format") from error
    _check_state(state, values, size_bytes)
    return state


def _pickle_of(file: IO[bytes], size_bytes: int) -> bytes:
    """Return the archive's pickle. torch's reader of archives must find what Python's finds, so names are unique."""
    file.seek(0)
    if file.read(4) != b"PK\3\4":  # torch would take it for a file of its old format
        raise NotPlainError("found no file of torch.save")
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            claimed = sum(member.file_size for member in members)
            if claimed > size_bytes or any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise NotPlainError(f"found {claimed:,} bytes packed into {size_bytes:,}, expected them uncompressed")
            names = [member.filename.lower() for member in members]
            pickles = [member for member in members if re.fullmatch(r"[^/]+/data\.pkl", member.filename)]
            if len(set(names)) < len(names) or len(pickles) != 1:
                raise NotPlainError("found names that are there twice, expected one data.pkl")
            return archive.read(pickles[0])
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        EOFError,
        struct.error,
    ) as error:
        if isinstance(error, NotPlainError):
            raise
        raise NotPlainError(f"found no file of torch.save ({plain(error, 200)})") from error


def _check_pickle(content: bytes) -> int:
    """Return how many values the pickle may stand for. Raises NotPlainError for more, and for other imports."""
    limit = 1000 + _VALUES_PER_BYTE * len(content)
    try:
        for count in _counts(content):
            if count > limit:
                raise NotPlainError(f"found {len(content):,} bytes that stand for more than {limit:,} values")
    except NotPlainError:
        raise
    except (ValueError, LookupError, TypeError) as error:
        raise NotPlainError(f"found a damaged pickle ({plain(error, 200)})") from error
    return limit


def _counts(content: bytes) -> Iterator[int]:
    """Yield after each instruction of a pickle how many values its newest object consists of."""
    stack: list[int | None] = []  # numbers of values, None for a mark
    memo: dict[int, int | None] = {}
    for code, argument, _ in pickletools.genops(content):
        if code.name == "GLOBAL" and not _IMPORTS.fullmatch(str(argument)):
            named = plain(str(argument).replace(" ", "."), 80)
            raise NotPlainError(f"refused by the list of plain data, it names {named}, which is code")
        if code.name == "PROTO" and argument != _PROTOCOL:
            raise NotPlainError(f"found pickle protocol {argument}, expected {_PROTOCOL}")
        if code.name in _PUT:
            memo[int(str(argument))] = stack[-1]
        elif code.name in _GET:
            stack.append(memo[int(str(argument))])
        elif code.name == "MARK":
            stack.append(None)
        elif code.name not in _NO_VALUE:
            stack.append(_popped(code, stack) + 1)
        if stack and stack[-1] is not None:
            yield stack[-1]


def _popped(code: pickletools.OpcodeInfo, stack: list[int | None]) -> int:
    """Remove what an instruction takes from the stack. Return how many values that is."""
    if len(code.stack_after) != 1:
        raise NotPlainError(f"found the instruction {code.name}, which no state needs")
    taken = list(code.stack_before)
    count = 0
    if pickletools.markobject in taken:
        while (top := stack.pop()) is not None:
            count += top
        taken = taken[: taken.index(pickletools.markobject)]
    return count + sum(stack.pop() or 0 for _ in taken)


def _check_state(state: Any, most_values: int, size_bytes: int) -> None:
    """Raise NotPlainError for another type, deep nesting, or more values and bytes than the file accounts for.

    Values are counted as often as they can be reached, which is how often a copy would hold them.
    """
    level, values, tensor_bytes = [state], 0, 0
    for _ in range(MAX_DEPTH + 1):
        values += len(level)
        tensor_bytes += sum(_bytes_of(each) for each in level)
        inner = [each for each in level if isinstance(each, _CONTAINERS)]
        if values + sum(map(len, inner)) > most_values:
            raise NotPlainError(f"found more than {most_values:,} values, expected less in {size_bytes:,} bytes")
        if tensor_bytes > _REPEATED_BYTES * size_bytes:
            raise NotPlainError(f"found tensors of {tensor_bytes:,} bytes in a file of {size_bytes:,}")
        if not inner:
            return
        level = [one for each in inner for one in (_items(each) if isinstance(each, dict) else each)]
    raise NotPlainError(f"found values nested too deeply, expected at most {MAX_DEPTH} levels")


def _items(tree: dict[Any, Any]) -> Iterator[Any]:
    yield from tree.keys()
    yield from tree.values()


def _bytes_of(value: Any) -> int:
    kind = type(value)
    if kind not in (*PLAIN, *_CONTAINERS):
        raise NotPlainError(f"found a {kind.__name__}, expected tensors, numbers, strings, and dicts or lists of them")
    if not isinstance(value, Tensor):
        return 0
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        raise NotPlainError("found a sparse, quantised or absent tensor, expected a dense one")
    return value.numel() * value.element_size()
