"""`.pt2` files: a traced model as a program of PyTorch's own tensor operations (`torch.export`).

Such a file needs PyTorch alone, neither this package nor torchvision. It takes prepared pixels and
returns a dictionary of tensors.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument
from torch.fx import GraphModule, Node
from torch.utils import _pytree

from ..graph_files.contract import METADATA_KEY, InputKind, metadata_of, output_names, stage_names
from ..graph_files.pt2_archive import STAGES_KEY, is_plain, open_program
from ..model.maskrcnn import MaskRCNN
from .export_format import ExportFormat
from .network import Tracing
from .pt2_operators import plain_forms


def write(tracing: Tracing, kind: InputKind, path: Path) -> None:
    """Writes a traced model as a `.pt2` file.

    Raises:
        ValueError: the model computes something that no file can hold.
    """
    config = tracing.model.config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, about its own modules
        program = tracing.program.run_decompositions(_forms())
    _check_operations(program)
    nodes = dict(zip(tracing.output_names, _outputs(program), strict=True))
    names = output_names(config)
    metadata = metadata_of(config, kind, names)
    stages = {name: nodes[name].name for name in stage_names(config) if name in nodes}
    program = returning(program, {name: nodes[name] for name in names})
    save(program, path, {METADATA_KEY: json.dumps(metadata), STAGES_KEY: json.dumps(stages)})


def write_stages(path: Path, model: MaskRCNN, to: Path) -> None:
    """Writes a file again, with its named intermediate results as outputs."""
    program, extra = open_program(path)
    named = {node.name: node for node in program.graph.nodes}
    metadata = json.loads(extra[METADATA_KEY])
    nodes = dict(zip(metadata["outputs"], _outputs(program), strict=True))
    stages = json.loads(extra[STAGES_KEY])
    nodes |= {name: named[stages[name]] for name in stage_names(model.config)}
    save(returning(program, nodes), to, extra)


def returning(program: ExportedProgram, nodes: Mapping[str, Node]) -> ExportedProgram:
    """Returns a program that returns the values of the given nodes, by name."""
    graph = program.graph_module.graph
    graph.output_node().args = (tuple(nodes.values()),)
    signature = program.graph_signature
    signature.output_specs = [
        OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None)
        for node in nodes.values()
    ]
    calls = program.module_call_graph
    assert calls[0].signature is not None

    calls[0].signature.out_spec = _pytree.tree_structure(dict.fromkeys(nodes))
    calls[0].signature.outputs = []
    return ExportedProgram(
        root=program.graph_module,
        graph=graph,
        graph_signature=signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=calls[:1],
        constants=program.constants,
        verifiers=[program.verifier],
    )


def _check_operations(program: ExportedProgram) -> None:
    """Reports operations that a `.pt2` file of this package may not contain."""
    parts = [part for part in program.graph_module.modules() if isinstance(part, GraphModule)]
    targets = {node.target for part in parts for node in part.graph.nodes}
    operations = (t for t in targets if isinstance(t, torch._ops.OpOverload))
    if other := sorted(str(t) for t in operations if not is_plain(f"torch.ops.{t}")):
        raise ValueError(
            f"the model has no .pt2 form: {', '.join(other)} has no plain form; export to ONNX"
        )


def save(program: ExportedProgram, path: Path, extra: Mapping[str, str]) -> None:
    """Writes a program, without traces of the machine, and without code to run when loading."""
    for part in program.graph_module.modules():
        if isinstance(part, GraphModule):
            part.meta.clear()
            for node in part.graph.nodes:
                node.meta = {key: node.meta[key] for key in ("val",) if key in node.meta}
    program._guards_code = []
    program._example_inputs = None
    torch.export.save(program, path, extra_files=dict(extra))


def _forms() -> dict[Any, Callable[..., Any]]:
    """What stands for each operation that is not plain, in PyTorch's own forms and ours."""
    default = torch.export.default_decompositions()
    return plain_forms() | {
        op: form for op, form in default.items() if not is_plain(f"torch.ops.{op}")
    }


def _outputs(program: ExportedProgram) -> tuple[Node, ...]:
    (values,) = program.graph_module.graph.output_node().args
    return values


PT2 = ExportFormat(
    "pt2",
    ".pt2",
    inputs=("prepared",),
    packages=(),
    extra="",
    write=write,
    write_stages=write_stages,
)
