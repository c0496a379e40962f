"""CUDA on paper: a machine without a GPU computes shapes as a GPU would, and complains of what a GPU would suffer from.

Inside `OnPaper`, tensors on "cuda:0" are fake (they have a shape and no content), tensors on the CPU are real. Raised
is `HostWaits` where the host would have to wait for the GPU: a number that is read, a copy that is not asynchronous, a
CPU tensor used as an index, an operation whose result's shape depends on values; and `MixedDevices` where tensors meet.
"""
import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda:0")
aten = torch.ops.aten


class HostWaits(RuntimeError):
    "The host would wait for the GPU here."


class MixedDevices(RuntimeError):
    "Tensors of the CPU and of the GPU meet in one operation."


class PaperGenerator(torch.Generator):
    "A generator of the CPU that may be asked for one of the GPU; the seeds of the latter are remembered."

    seeds = set()

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.gpu = torch.device(device).type == "cuda"
        return made

    def manual_seed(self, seed):
        if self.gpu:
            self.seeds.add(seed)
        return super().manual_seed(seed)


class OnPaper(TorchDispatchMode):
    "A `with` block with a GPU on paper. `strict`: complain of copies that wait; off while things are set up."

    def __init__(self):
        super().__init__()
        self.fake, self.strict = FakeTensorMode(), False

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(torch.cuda, "_lazy_init", lambda: None)  # there is no driver to be asked
        self.patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        self.patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        self.patch.setattr(torch, "Generator", PaperGenerator)
        return super().__enter__()

    def __exit__(self, *error):
        self.patch.undo()
        return super().__exit__(*error)

    def _copy(self, name, real, args, kwargs):
        patient = kwargs.get("non_blocking") or (name is aten.copy_ and len(args) > 2 and args[2])
        if self.strict and not patient and (real or torch.device(kwargs.get("device") or DEVICE).type == "cpu"):
            raise HostWaits(f"{name}: a copy between CPU and GPU that waits; use non_blocking=True, or make it there")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        real = [x for x in tensors if not isinstance(x, FakeTensor)]
        here = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda"
        if len(real) == len(tensors) and not here:
            return func(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None and generator.initial_seed() not in PaperGenerator.seeds:
            raise MixedDevices(f"{name}: a draw on the GPU from a generator of the CPU")
        if name in (aten._local_scalar_dense, aten.is_nonzero, aten.equal):
            raise HostWaits(f"{name}: a number is read from the GPU")
        if name in (aten._to_copy, aten.copy_):
            self._copy(name, real, args, kwargs)
        elif any(x.ndim for x in real):
            kind = HostWaits if name in (aten.index, aten.index_put, aten.index_put_) else MixedDevices
            shapes = [tuple(x.shape) for x in real if x.ndim]
            raise kind(f"{name}: CPU tensors of shape {shapes} among those of the GPU")
        kwargs = kwargs | {"generator": None} if generator else kwargs
        args, kwargs = tree_map(self._fake, args), tree_map(self._fake, kwargs)
        try:
            with self.fake:
                if name is aten._thnn_fused_gru_cell:  # the kernel of a GPU; torch knows no shapes of it
                    gates, state = args[0], args[2]
                    return torch.empty_like(state), gates.new_empty(len(state), 5 * state.shape[1])
                return func(*args, **kwargs)
        except DynamicOutputShapeException as error:
            raise HostWaits(f"{name}: the shape of its result depends on values") from error

    def _fake(self, x):
        return self.fake.from_tensor(x) if isinstance(x, torch.Tensor) and not isinstance(x, FakeTensor) else x
