"""A step as one compiled function, for a CPU: traced once, and from then on asked without a question.

What `torch.compile` has compiled is compared at each call with all that it was compiled for, matrix by matrix: a fifth of a token's
time. A step that `torch.export` has traced whole is of these shapes and no others, and there is nothing to compare.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.export.graph_signature import InputKind

Cached = list[tuple[Tensor, Tensor]]
TRACING = threading.Lock()  # two threads that trace at once find each other's tensors


class Captured:
    """step(tokens_B, real_BE, cached) → a tensor, for a cache as long as this one and any E ≥ 2 that leaves a place of it.

    several: for any B ≥ 2; else for one row. frozen: the matrices are constants to the compiler, which packs them for a few rows.
    """

    def __init__(self, step: nn.Module, inputs: Sequence[Tensor], cached: Cached, several: bool, frozen: bool):
        rows = {0: Dim("B", min=2, max=2**20)} if several else {}  # PyTorch 2.6 wants an end
        looked_at = {1: Dim("E", min=2, max=cached[0][0].shape[2] - 1)}
        sizes = rows, rows | looked_at, [(rows, rows)] * len(cached)
        # Of tensors like them: the cache's layers are parts of one memory, and the compiler would make sure for this number of rows that they do not overlap.
        inputs, cached = [torch.zeros_like(x) for x in inputs], [(torch.empty_like(k), torch.empty_like(v)) for k, v in cached]
        with TRACING, torch.no_grad():
            graph = graph_of(step, (*inputs, cached), sizes)
            with counted(), freezing() if frozen else contextlib.nullcontext():
                self.compiled = torch._inductor.compile(graph, [*inputs, *chain(*cached)], options={"cpp_wrapper": True})

    def __call__(self, inputs: Sequence[Tensor], cached: Cached) -> Tensor:
        return self.compiled(*inputs, *chain(*cached))[0]


def graph_of(step: nn.Module, inputs: tuple, sizes: tuple) -> fx.GraphModule:
    """What `step` does with inputs of these shapes but for named `sizes`, one operation after the other; its tensors are the graph's own."""
    program = torch.export.export(step, inputs, dynamic_shapes=sizes, strict=False)
    graph, tensors = program.graph_module, {**program.state_dict, **program.constants}
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in graph.graph.find_nodes(op="placeholder"):  # export has made inputs of them
        if kinds[node.name].kind != InputKind.USER_INPUT:
            graph.register_buffer(node.name, tensors[kinds[node.name].target].detach())
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(graph.graph.get_attr(node.name))
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def freezing() -> contextlib.AbstractContextManager:
    """Given as an option of the compilation it would come too late: the matrices are inputs by then."""
    from torch._inductor import config

    return config.patch(freezing=True)


@contextlib.contextmanager
def counted() -> Iterator[None]:
    """PyTorch 2.6 and 2.7 count how often a compilation lay in their cache already, and fail where nobody collects that."""
    from torch._dynamo.utils import dynamo_timed, get_metrics_context

    with get_metrics_context(), dynamo_timed("captured"):
        yield
