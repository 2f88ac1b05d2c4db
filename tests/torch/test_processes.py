"""Layers in other processes: DataLoader workers, data-parallel training, graphs that travel."""

import io
import os
import pickle
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.utils.data import DataLoader, Dataset

from layercompiler.torch import Layer
from tests.torch.fake import difference
from tests.torch.problems import compiled_with_data


class Solved(Dataset):
    """Solutions made in the workers."""

    def __init__(self, layer, values):
        self.layer, self.values = layer, values

    def __len__(self):
        return 6

    def __getitem__(self, i):
        q, *rest = self.values
        return self.layer(q * (1 + 0.01 * i), *rest)[0]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_loader_workers(context):
    torch.multiprocessing.set_sharing_strategy("file_system")
    compiled, values = compiled_with_data("qp")
    data = Solved(Layer(compiled), values)
    alone = torch.stack([data[i] for i in range(len(data))])  # also starts whatever threads there are before the fork
    loader = DataLoader(data, batch_size=3, num_workers=2, multiprocessing_context=context, timeout=60)
    assert torch.equal(torch.cat(list(loader)), alone)


class Model(torch.nn.Module):
    def __init__(self, layer, values):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3, dtype=torch.float64)
        self.layer, self.rest = layer, values[1:]

    def forward(self, features):
        return self.layer(self.linear(features), *self.rest)[0]


def make_model():
    compiled, values = compiled_with_data("qp")
    torch.manual_seed(0)
    return Model(Layer(compiled), values)


def features():
    return torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def train(rank, path):
    dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(make_model())
    model(features()[4 * rank : 4 * rank + 4]).pow(2).mean().backward()
    torch.save([p.grad for p in model.parameters()], f"{path}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # torch's own end of a gloo group now and then waits for a thread that waits for the GIL


def test_distributed_data_parallel(tmp_path):
    multiprocessing.spawn(train, (str(tmp_path),), nprocs=2)
    model = make_model()
    model(features()).pow(2).mean().backward()
    expected = [p.grad for p in model.parameters()]
    for rank in range(2):
        assert difference(torch.load(tmp_path / f"{rank}.pt"), expected) < 1e-12


RUN = """
import io, pickle, sys
import torch
layer, graph, values = pickle.load(sys.stdin.buffer)
program = torch.export.load(io.BytesIO(graph)).module()
assert all(torch.equal(a, b) for a, b in zip(program(*values), layer(*values)))
del layer, program
try:
    torch.export.load(io.BytesIO(graph)).module()(*values)
except Exception as error:
    print(type(error).__name__)
"""


def test_an_exported_graph_runs_where_the_layer_is_and_says_so_elsewhere():
    compiled, values = compiled_with_data("socp")
    layer = Layer(compiled)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(layer, tuple(values)), buffer)
    payload = pickle.dumps((layer, buffer.getvalue(), values))
    done = subprocess.run([sys.executable, "-c", RUN], input=payload, capture_output=True, timeout=120, check=False)
    assert done.stdout.decode().strip() == "UnsupportedTransformError", done.stderr.decode()[-2000:]
