"""Opens `.pt2` files of `torch.export`, also those that somebody else made.

In:  a file.
Out: its program, and the texts that it carries.

`torch.export.load` trusts a file: it unpickles tensors and sample inputs, loads compiled libraries,
evaluates expressions, and compiles Python that contains the names in the graph. A program of tensor
operations needs little of that. Here the file is read first, and anything else in it is refused
before PyTorch sees it.
"""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Generator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.error_text import one_line
from .contract import METADATA_KEY, MOST_TEXT

if TYPE_CHECKING:
    from torch.export import ExportedProgram

STAGES_KEY = "maskrcnn_stages"
"""Key of the names of a file's intermediate results, for the certificate."""
MOST_GRAPH = 1 << 26
"""Bytes of the graph's text that are read; ResNet-101's takes a twentieth of it."""

_MODEL = "models/model.json"
_CONFIGS = {
    "data/weights/model_weights_config.json": re.compile(r"weight_\d+"),
    "data/constants/model_constants_config.json": re.compile(r"tensor_\d+"),
}
_SAMPLES = "data/sample_inputs/model.pt"
_EXTRA = tuple(f"extra/{key}" for key in (METADATA_KEY, STAGES_KEY))
_RECORD = re.compile(
    "|".join(map(re.escape, (_MODEL, *_CONFIGS, _SAMPLES, *_EXTRA)))
    + r"|data/weights/weight_\d+|data/constants/tensor_\d+"
    + r"|archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id"
)

# No string but these may hold anything that Python could take for more than a name.
_WORD = re.compile(r"[A-Za-z0-9_.]{0,500}")
_TEXTS = {
    "as_string": re.compile(r"[ -~]{0,1000}"),  # written into Python by repr()
    "torch_version": re.compile(r"[A-Za-z0-9_.+]{0,100}"),
    "as_float": re.compile(r"-?Infinity|NaN"),
}
_REFUSED_KEYS = {"as_custom_obj", "as_operator", "custom_obj", "token", "as_token"}
_EMPTY_KEYS = {"guards_code", "metadata", "custom_obj_values", "treespec_namedtuple_fields"}
_SPECS = {"in_spec", "out_spec"}

_ATEN = "torch.ops.aten."
_OTHER_TARGETS = re.compile(
    r"torch\.ops\.higher_order\.while_loop|torch\.sym_(int|float|max|min|not)|math\.(ceil|floor)"
    r"|_operator\.(add|sub|mul|floordiv|mod|neg|eq|ne|lt|le|gt|ge|and_|or_|getitem)"
)
# Operations that PyTorch does not call core, and that are plain all the same: tensors and numbers
# in, tensors out. Others that carry the name of ATen can write files.
_PLAIN_NAMES = """
__and__.Tensor __or__.Tensor _assert_scalar.default _assert_tensor_metadata.default
_unsafe_view.default all.dim arange.default arange.start conv2d.default conv_transpose2d.input
detach.default einsum.default embedding_bag.padding_idx group_norm.default item.default
linear.default logsumexp.default matmul.default max.default max_pool2d.default meshgrid.indexing
new_zeros.default pad.default repeat_interleave.self_int repeat_interleave.self_Tensor rsub.Scalar
softmax.int sort.stable stack.default transpose.int unbind.int where.ScalarOther where.ScalarSelf
zeros.default zeros_like.default
"""
PLAIN = frozenset(_PLAIN_NAMES.split())

_FUNCTION_NAMES = """
Symbol Integer Float Rational Add Mul Pow Mod PythonMod FloorDiv CleanDiv CeilDiv CeilToInt
FloorToInt TruncToInt IntTrueDiv ToFloat Max Min And Or Not Equality Unequality GreaterThan
LessThan StrictGreaterThan StrictLessThan
"""
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_ASSUMPTIONS = {"integer", "positive", "nonnegative", "real", "finite"}
_MOST_EXPRESSION = 4000  # characters
_MOST_NUMBER = 1 << 63
_MOST_POWER = 8


def open_program(path: str | Path) -> tuple[ExportedProgram, dict[str, str]]:
    """Opens a `.pt2` file without running any code of it.

    Args:
        path: the file.

    Returns:
        The program, and the texts in the file by key.

    Raises:
        ValueError: the file is damaged, or contains more than a program of plain tensor operations.
    """
    import torch

    check_archive(path)
    extra = {METADATA_KEY: "", STAGES_KEY: ""}  # those that the file lacks stay empty
    try:
        with _quietly():
            return torch.export.load(str(path), extra_files=extra), extra
    except Exception as error:  # of any kind, if the program contradicts itself
        raise ValueError(f"{path}: PyTorch cannot load the file: {one_line(error)}") from error


@contextlib.contextmanager
def _quietly() -> Generator[None]:
    """Keeps PyTorch's remarks on its own format off the terminal."""
    logger = logging.getLogger("torch._export.serde.serialize")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def check_archive(path: str | Path) -> None:
    """Checks that a file contains a program of plain tensor operations, and nothing else.

    Raises:
        ValueError: it is damaged, or contains something else; the message says what.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        reader = torch._C.PyTorchFileReader(str(path))  # what PyTorch will read
    except (zipfile.BadZipFile, RuntimeError, ValueError, OSError) as error:
        first = one_line(error)
        raise ValueError(f"{path}: expected a .pt2 file, got a damaged one: {first}") from None

    records = _records(path, entries)
    if {*records} != {*reader.get_all_records()}:
        raise ValueError(f"{path}: two tables of contents that differ; export the model again")
    texts = {}
    for name, most in ((_MODEL, MOST_GRAPH), *((c, MOST_GRAPH) for c in _CONFIGS)):
        texts[name] = _read(path, reader, name, most)
    for name in _EXTRA:
        if name in records:
            _read(path, reader, name, MOST_TEXT)
    if _read(path, reader, _SAMPLES, MOST_GRAPH):
        raise _refusal(path, "sample inputs, which PyTorch would unpickle")

    try:
        graph = json.loads(texts[_MODEL])
        for name, file_name in _CONFIGS.items():
            _check_payload(path, json.loads(texts[name]), name, file_name, records)
        _check_value(path, graph, "")
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: its graph cannot be read ({error})") from None


def _records(path: str | Path, entries: list[zipfile.ZipInfo]) -> dict[str, int]:
    """The names in the archive, without its folder, and the number of bytes of each."""
    names = [entry.filename.partition("/")[2] for entry in entries]
    if len({entry.filename.partition("/")[0] for entry in entries}) != 1:
        raise _refusal(path, "more than one folder")
    if len(set(names)) != len(names):
        raise _refusal(path, "two parts of one name")
    for entry, name in zip(entries, names, strict=True):
        if not _RECORD.fullmatch(name):
            raise _refusal(path, f'a part "{name:.100}"')
        if entry.compress_type != zipfile.ZIP_STORED:
            raise _refusal(path, f'a compressed part "{name}"')
    if missing := {_MODEL, _SAMPLES, *_CONFIGS} - set(names):
        raise ValueError(f"{path}: the file lacks {', '.join(sorted(missing))}")
    return {name: entry.file_size for entry, name in zip(entries, names, strict=True)}


def _read(path: str | Path, reader: Any, name: str, most: int) -> bytes:
    try:
        content = reader.get_record(name)
    except RuntimeError as error:
        raise ValueError(f"{path}: {name} is damaged: {one_line(error)}") from None
    if len(content) > most:
        raise ValueError(f"{path}: {name} has {len(content):,} bytes, at most {most:,} are read")
    return content


def _check_payload(
    path: str | Path,
    config: Any,
    part: str,
    file_name: re.Pattern[str],
    records: Mapping[str, int],
) -> None:
    """Checks where the tensors of a file are: raw numbers in parts of the archive, no pickles.

    Each has its numbers in the file: PyTorch makes a tensor of zeros where the part is empty, and
    one number repeated without end where its stride is 0, of whatever size the table says.
    """
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise ValueError(f"{path}: expected a table of tensors, got none")
    for entry in config["config"].values():
        if not isinstance(entry, dict) or entry.get("use_pickle") is not False:
            raise _refusal(path, "pickled tensors")
        if not file_name.fullmatch(str(entry.get("path_name"))):
            raise _refusal(path, "objects that are no tensors")
        stored = records.get(f"{part.rpartition('/')[0]}/{entry['path_name']}", 0)
        if (count := _num_values(entry.get("tensor_meta"))) is None or count > stored:
            raise ValueError(
                f"{path}: {part}: expected at most {stored:,} values in {entry['path_name']}, "
                f"which has {stored:,} bytes, got {'no size' if count is None else f'{count:,}'}"
            )
    _check_value(path, config, "")


def _num_values(meta: Any) -> int | None:
    """The number of values that a table declares for a tensor; None if it declares none."""
    sizes = meta.get("sizes") if isinstance(meta, dict) else None
    if not isinstance(sizes, list):
        return None
    count = 1
    for size in sizes:
        side = size.get("as_int") if isinstance(size, dict) else None
        if type(side) is not int or side < 0:
            return None
        count *= side
    return count


def _check_value(path: str | Path, value: Any, key: str) -> None:
    """Checks a value of the graph's JSON, and all within; `key` is the name under which it is."""
    if key in _REFUSED_KEYS and value is not None:
        raise _refusal(path, f'a "{key}"')
    if key in _EMPTY_KEYS and value:
        raise _refusal(path, f'"{key}", expected none')

    if isinstance(value, dict):
        for name, part in value.items():
            if not _WORD.fullmatch(name):
                raise _refusal(path, f"a name {name!r:.100}")
            _check_value(path, part, name)
    elif isinstance(value, list):
        for part in value:
            _check_value(path, part, key)
    elif isinstance(value, str):
        _check_text(path, value, key)


def _check_text(path: str | Path, text: str, key: str) -> None:
    if key == "target":
        if not is_plain(text):
            raise _refusal(path, f"the operation {text:.200}")
    elif key == "expr_str":
        if len(text) > _MOST_EXPRESSION or not _is_arithmetic(text):
            raise _refusal(path, f"the expression {text:.200}")
    elif key in _SPECS:
        _check_structure(path, json.loads(text))
    elif not _TEXTS.get(key, _WORD).fullmatch(text):
        raise _refusal(path, f"a name {text!r:.100}")


@cache
def is_plain(target: str) -> bool:
    """Whether an operation, by its name in a file, is a plain tensor operation."""
    if not target.startswith(_ATEN):
        return bool(_OTHER_TARGETS.fullmatch(target))
    import torch

    name = target.removeprefix(_ATEN)
    if name in PLAIN:
        return True
    packet, _, overload = name.partition(".")
    if not packet.isidentifier() or not overload.isidentifier():
        return False
    if not torch._C._dispatch_has_kernel(f"aten::{name.removesuffix('.default')}"):
        return False  # of TorchScript, whose functions have names in ATen, too
    return torch.Tag.core in getattr(getattr(torch.ops.aten, packet), overload).tags


def _is_arithmetic(text: str) -> bool:
    """Whether an expression, which PyTorch evaluates, is arithmetic of named sizes."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return _is_term(tree)


def _is_term(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and _is_term(node.operand)
    if isinstance(node, ast.Constant):
        value = node.value
        return isinstance(value, int | float) and abs(value) <= _MOST_NUMBER
    if isinstance(node, ast.Name):
        return node.id in {"true", "false", "oo", "int_oo"}
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    if node.func.id not in _FUNCTIONS:
        return False

    for word in node.keywords:
        if word.arg not in _ASSUMPTIONS or not isinstance(word.value, ast.Constant):
            return False
    if node.func.id == "Symbol":
        (name,) = node.args if len(node.args) == 1 else (None,)
        return (
            isinstance(name, ast.Constant)
            and isinstance(name.value, str)
            and name.value.isidentifier()
        )
    if node.func.id == "Pow":
        # powers of powers would have numbers that fill any memory
        calls = [part.func for part in ast.walk(node) if isinstance(part, ast.Call)]
        has_one = sum(isinstance(call, ast.Name) and call.id == "Pow" for call in calls) == 1
        is_whole = has_one and len(node.args) == 2
        return is_whole and _is_term(node.args[0]) and _is_low_power(node.args[1])
    return all(map(_is_term, node.args))


def _is_low_power(node: ast.expr) -> bool:
    """Whether this is Integer(n) with a small n."""
    if not isinstance(node, ast.Call) or len(node.args) != 1 or not _is_term(node):
        return False
    (number,) = node.args
    return (
        isinstance(number, ast.Constant)
        and isinstance(number.value, int)
        and abs(number.value) <= _MOST_POWER
    )


def _check_structure(path: str | Path, spec: Any) -> None:
    """Checks how arguments or results are nested: in tuples, lists and dictionaries alone."""
    if isinstance(spec, list):
        for part in spec:
            _check_structure(path, part)
    elif isinstance(spec, dict):
        if spec.get("type") not in ("builtins.tuple", "builtins.list", "builtins.dict", None):
            raise _refusal(path, f"results of the type {spec['type']!r:.100}")
        context = spec.get("context") or "null"
        if not isinstance(context, str):
            raise _refusal(path, f"results with the names {context!r:.100}")
        context = json.loads(context)
        names = context if isinstance(context, list) else [context or ""]
        if not all(isinstance(name, str) and _WORD.fullmatch(name) for name in names):
            raise _refusal(path, f"results with the names {context!r:.100}")
        _check_structure(path, spec.get("children_spec"))


def _refusal(path: str | Path, what: str) -> ValueError:
    return ValueError(
        f"{path}: expected a program of plain tensor operations, got {what}. Files of others "
        "could run code that way; open such a file with PyTorch if you trust its maker"
    )
