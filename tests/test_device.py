"""Devices, number formats and the order in memory. Nothing here is timed."""
import builtins
import math
import platform
import warnings

import pytest
import torch
from conftest import needs_bf16
from torch import nn

from be_nb.machine import device as D

CPU = torch.device("cpu")


def pretend(monkeypatch, gpus=1, capability=(9, 0), cudnn=91900):
    "As if this machine had GPUs."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_a_device_is_there_or_it_is_an_error(monkeypatch, gpus):
    pretend(monkeypatch, gpus)
    assert D.pick_device().type == ("cuda" if gpus else "cpu")
    assert D.pick_device("cpu") == D.pick_device(CPU) == CPU
    for n in range(3):
        if n < gpus:
            assert D.pick_device(f"cuda:{n}") == torch.device("cuda", n)
        else:
            with pytest.raises(ValueError, match=f"cuda:{n}.* sees {gpus} GPUs"):
                D.pick_device(f"cuda:{n}")
    if not gpus:
        with pytest.raises(ValueError, match="sees 0 GPUs"):
            D.pick_device("cuda")


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:x", "mps", "cuda:0 ", "cpu\n", None])
def test_an_unknown_device_is_a_value_error(name):
    with pytest.raises(ValueError, match="Unknown device .*auto, cpu, cuda"):
        D.pick_device(name)


@pytest.mark.parametrize("cudnn, warned", [(91300, "9.13"), (91002, "9.10"), (91500, None), (None, None)])
def test_a_cudnn_that_is_slow_in_3d_is_told(monkeypatch, cudnn, warned):
    pretend(monkeypatch, cudnn=cudnn)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        D.pick_device("auto")
        D.pick_device("cpu")  # never for the CPU
    assert len(caught) == (warned is not None)
    assert warned is None or f"cuDNN {warned} is older than 9.15" in str(caught[0].message)
    assert warned is None or caught[0].filename == __file__  # points at the caller


def test_bf16_is_fast_asks_the_hardware(monkeypatch):
    gpu = torch.device("cuda", 0)
    for capability, fast in (((7, 5), False), ((8, 0), True), ((8, 9), True), ((10, 0), True)):
        pretend(monkeypatch, capability=capability)
        assert D.bf16_is_fast(gpu) is fast
    for amx, avx512 in ((False, False), (True, True), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda avx512=avx512: avx512, raising=False)
        assert D.bf16_is_fast(CPU) is amx and D.bf16_is_safe(CPU) is (amx or not avx512)
        with D.autocast(CPU, "auto"):
            out = nn.Conv3d(1, 1, 1)(torch.ones(1, 1, 1, 1, 1))
        assert out.dtype == (torch.bfloat16 if amx else torch.float32)
    with pytest.raises(ValueError, match="Use amp='auto' or 'fp32'"):
        D.autocast(CPU, "bf16")
    assert D.bf16_is_safe(gpu)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")  # private: may go one day
    monkeypatch.delattr(torch.cpu, "_is_avx512_supported")
    assert D.bf16_is_fast(CPU) is False and D.bf16_is_safe(CPU)
    assert D.bf16_is_fast(torch.device("meta")) is False


FORMATS = [pytest.param(torch.bfloat16, .02, marks=needs_bf16), (torch.float32, 1e-4)]


@pytest.mark.parametrize("dtype, tolerance", FORMATS, ids=["bfloat16", "float32"])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last_3d], ids=["default", "channels-last"])
@pytest.mark.parametrize("kernel, stride, frames, side", [
    ((3, 3, 3), 1, 2, 2), ((3, 3, 3), 1, 2, 7), ((3, 1, 1), 1, 2, 4), ((3, 3, 3), 2, 4, 7)])
def test_convolutions_write_all_of_their_gradients(dtype, tolerance, order, kernel, stride, frames, side):
    "Shapes at the end of a 3D network, for which some CPUs' kernels leave memory unwritten; the memory is full of NaN."
    def tensors(number):
        generator = torch.Generator().manual_seed(0)
        shapes = (8, 32, frames, side, side), (32, 32, *kernel)
        return [torch.randn(s, generator=generator, dtype=torch.float64).to(number).contiguous(memory_format=order)
                for s in shapes]

    def answers(clips, weight):
        clips, weight = clips.requires_grad_(), weight.requires_grad_()
        out = nn.functional.conv3d(clips, weight, None, stride, [k // 2 for k in kernel])
        litter = [torch.full((2**k,), math.nan, dtype=out.dtype) for k in range(5, 20) for _ in range(6)]
        del litter
        return [t.double() for t in (out, *torch.autograd.grad(out.square().sum() / 2, (clips, weight)))]
    exact = answers(*tensors(torch.float64))
    for _ in range(4):
        for found, wanted in zip(answers(*tensors(dtype)), exact):
            assert (found - wanted).norm() < tolerance * wanted.norm()


@needs_bf16
def test_autocast_rounds_the_work_and_nothing_else():
    conv, x = nn.Conv3d(2, 4, 1), torch.randn(1, 2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    with D.autocast(CPU, "bf16"):
        out = conv(x)
        loss = nn.functional.cross_entropy(out.mean((2, 3, 4)), torch.tensor([1]))
        with D.autocast(CPU, "fp32"):  # fp32 means fp32, also inside
            assert conv(x).dtype == torch.float32
    loss.backward()
    assert out.dtype == torch.bfloat16 and loss.dtype == conv.weight.dtype == conv.weight.grad.dtype == torch.float32
    exact = conv(x)
    assert 0 < (out.float() - exact).abs().max() < 0.02 * exact.abs().max()
    for wrong in ("fp16", "", None, True):
        with pytest.raises(ValueError, match="Unknown number format"):
            D.autocast(CPU, wrong)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 6, 1),
                         nn.MaxPool3d(2), nn.Conv3d(6, 4, (1, 3, 3), stride=2, groups=2), nn.AdaptiveAvgPool3d(1),
                         nn.Flatten(), nn.Linear(4, 2))


def test_channels_last_changes_the_order_and_nothing_else():
    plain, last = network(), network()
    parameters = dict(last.named_parameters())
    assert D.lay_out(last, CPU, "channels_last") is last
    assert all(a is b for a, b in zip(parameters.values(), last.parameters())), "an optimiser would lose its weights"
    assert all(torch.equal(a, b) and a.requires_grad for a, b in zip(plain.parameters(), last.parameters()))
    x = torch.randn(16, 3, 4, 14, 14, generator=torch.Generator().manual_seed(1))
    seen = []
    for layer in last:
        layer.register_forward_hook(lambda module, _, out: seen.append((type(module), out)))
    a, b = plain(x), last(x)
    assert torch.allclose(a, b, atol=1e-5)
    a.sum().backward(), b.sum().backward()
    for one, other in zip(plain.parameters(), last.parameters()):
        assert torch.allclose(one.grad, other.grad, atol=1e-4)
    for kind, out in seen:  # from the first convolution on, without touching the input
        assert out.ndim < 5 or out.is_contiguous(memory_format=torch.channels_last_3d), kind
    plain.load_state_dict(last.state_dict()), last.load_state_dict(plain.state_dict())
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert D.lay_out(last, CPU, "default")[0].weight.is_contiguous(), "and back again"


@pytest.mark.parametrize("fast", [True, False])
def test_auto_goes_channels_last_where_bf16_is_fast_or_layers_are_small(monkeypatch, fast):
    pretend(monkeypatch, capability=(9, 0) if fast else (7, 5))
    gpu, small, wide = torch.device("cuda"), network(), nn.Conv3d(256, 256, 3)
    assert D.goes_channels_last(small, gpu) and D.goes_channels_last(wide, gpu) == fast
    for net in (small, wide):
        assert D.goes_channels_last(net, gpu, "channels_last") and not D.goes_channels_last(net, gpu, "default")
    with pytest.raises(ValueError, match="order in memory"):
        D.lay_out(small, CPU, "channels-first")


def test_machine_is_one_line_that_names_processor_threads_and_torch(monkeypatch):
    assert D.machine("cpu") == D.machine(CPU)
    line = D.machine("cpu")
    assert "\n" not in line and torch.__version__ in line and f"{torch.get_num_threads()} threads" in line
    pretend(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA Test")
    assert D.machine() == D.machine("cuda") == f"NVIDIA Test, torch {torch.__version__}"
    monkeypatch.setattr(D.os.path, "exists", lambda path: False)  # no /proc/cpuinfo: macOS, Windows
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.delattr(D.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(builtins, "open", lambda *a, **k: pytest.fail("there is nothing to open"))
    assert D.machine("cpu").startswith("arm64, ")
