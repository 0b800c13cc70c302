"""The kernel lab's cases in PyTorch: the counterpart of bench/kernels/worker.ts, with the same protocol.

The first line on standard input says where and how to measure; each following one is a case: its op, dtype and sizes. Each
is answered by one line of JSON on standard output. Of the ways to compute a case the fastest counts: memory layouts, eager
and torch.compile where the op is a composition.
"""

import json
import math
import os
import signal
import statistics
import sys
import time

import torch
import torch.nn.functional as F

import transformer
import vae

COMPILE_SECONDS = 40
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
MAX_CALLS = 20_000


class Case:
    """A case's sizes as attributes, and operands in its dtype on its device."""

    def __init__(self, spec, device):
        self.__dict__.update(spec["sizes"])
        self.dtype = DTYPES[spec["dtype"]]
        self.device = device

    def input(self, *shape, dtype=None, grad=False):
        return torch.randn(shape, dtype=dtype or self.dtype, device=self.device, requires_grad=grad)

    def uniform(self, *shape, grad=False):
        return torch.rand(shape, dtype=torch.float32, device=self.device, requires_grad=grad)


def gradients(forward, outputs_like, wanted):
    """A call that runs the backward pass of `forward` again and again, and the same of the compiled `forward`."""

    def of(function):
        y = function()
        dy = torch.randn_like(outputs_like(y))
        return lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)

    return of


def ways(forward, prepare=lambda function: function):
    """Eager and compiled; prepare makes of a forward pass what is timed."""
    return {"eager": lambda: prepare(forward), "compile": lambda: prepare(torch.compile(forward, dynamic=False))}


def forward_and_backward(build, compiled=True):
    """Both ops of a family. build(case, grad) returns the forward pass and what it is differentiated by."""

    def run_forward(case):
        function, _ = build(case, False)
        return ways(function) if compiled else {"eager": lambda: function}

    def run_backward(case):
        function, wanted = build(case, True)
        prepare = gradients(function, lambda y: y, wanted)
        return ways(function, prepare) if compiled else {"eager": lambda: prepare(function)}

    return run_forward, run_backward


def attention(c, grad):
    dim = c.heads * c.width
    q = c.input(c.batch, c.queries, dim, grad=grad)
    k, v = (c.input(c.batch, c.keys, dim, grad=grad) for _ in range(2))
    weights = [c.uniform(dim, grad=grad) for _ in range(2)] if c.norm else None
    tables = [c.uniform(c.queries, dim).to(c.dtype) for _ in range(2)] if c.rope else None
    mask = None
    if c.mask:
        dropped = torch.arange(c.keys, device=c.device) >= c.keys / 4
        mask = (dropped * -10000.0).to(c.dtype).expand(c.batch, 1, 1, c.keys)

    def forward():
        a, b = q, k
        if weights:
            a, b = (F.rms_norm(x, (dim,), w.to(x.dtype), eps=1e-5) for x, w in zip((a, b), weights))
        if tables:
            a, b = (transformer.rotate(x, *tables) for x in (a, b))
        a, b, d = (x.unflatten(-1, (c.heads, -1)).transpose(1, 2) for x in (a, b, v))
        return F.scaled_dot_product_attention(a, b, d, attn_mask=mask).transpose(1, 2).flatten(2)

    return forward, [q, k, v, *(weights or [])]


def convolution(what):
    """Eagerly, in both memory layouts. what: `forward`, `input` or `weight`."""

    def build(c, layout):
        x = c.input(c.batch, c.inputs, c.frames, c.height, c.width).contiguous(memory_format=layout)
        w = c.input(c.outputs, c.inputs, c.kt, c.kh, c.kw).mul_(0.05).contiguous(memory_format=layout)
        bias = c.input(c.outputs)
        x.requires_grad_(what == "input")
        for parameter in (w, bias):
            parameter.requires_grad_(what == "weight")

        def forward():
            padded, pad = x, (0, c.ph, c.pw)
            if c.replicate and c.front + c.back:
                edges = [x[:, :, :1]] * c.front, [x[:, :, -1:]] * c.back
                padded = torch.cat([*edges[0], x, *edges[1]], dim=2)
            elif c.front == c.back:
                pad = (c.front, c.ph, c.pw)
            else:
                padded = F.pad(x, (0, 0, 0, 0, c.front, c.back))
            return F.conv3d(padded, w, bias, stride=(c.st, c.sh, c.sw), padding=pad)

        if what == "forward":
            return forward
        return gradients(forward, lambda y: y, [x] if what == "input" else [w, bias])(forward)

    def run(c):
        layouts = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}
        return {name: (lambda layout=layout: build(c, layout)) for name, layout in layouts.items()}

    return run


def norm_act(c, grad):
    x = c.input(c.rows, c.channels, grad=grad)
    table = c.uniform(c.groups, 6, c.channels, grad=grad) if c.groups else None
    kind = ["none", "pixel_norm", "rms_norm", "layer_norm"][c.norm]

    def forward():
        if kind == "layer_norm":
            y = F.layer_norm(x, (c.channels,), eps=1e-6)
        elif kind == "rms_norm":
            y = F.rms_norm(x, (c.channels,), eps=1e-6)
        else:
            y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        if table is not None:
            shift, scale = table[:, None, :2].to(x.dtype).unbind(2)
            y = (y.view(c.groups, -1, c.channels) * (1 + scale) + shift).view(x.shape)
        return F.silu(y) if c.silu else y

    return forward, [x] if table is None else [x, table]


def gated_add(c, grad):
    x, h = (c.input(c.groups, c.rows // c.groups, c.channels, grad=grad) for _ in range(2))
    table = c.uniform(c.groups, 6, c.channels, grad=grad)
    return lambda: x + h * table[:, None, 2].to(x.dtype), [h, table]


def batch_norm(c, grad):
    x = c.input(c.rows, c.channels, grad=grad)
    weight, bias = (c.uniform(c.channels, grad=grad) for _ in range(2))
    mean, variance = c.uniform(c.channels), c.uniform(c.channels)
    return lambda: F.batch_norm(x, mean, variance, weight, bias, training=True), [x, weight, bias]


def haar_l1(c, grad):
    a = c.input(c.batch, c.channels, c.frames, c.height, c.width, grad=grad)
    b = c.input(c.batch, c.channels, c.frames, c.height, c.width)
    return lambda: vae.haar_loss(a, b), [a]


def linear(c):
    x = c.input(c.rows, c.inputs)
    w = c.input(c.outputs, c.inputs).mul_(0.05)
    bias = c.input(c.outputs) if getattr(c, "bias", 0) else None
    if getattr(c, "gelu", 0):
        return ways(lambda: F.gelu(F.linear(x, w, bias), approximate="tanh"))
    return {"eager": lambda: lambda: F.linear(x, w, bias)}


def linear_backward_input(c):
    dy, w = c.input(c.rows, c.outputs), c.input(c.outputs, c.inputs)
    return {"eager": lambda: lambda: dy @ w}


def linear_backward_weight(c):
    x, dy = c.input(c.rows, c.inputs), c.input(c.rows, c.outputs)
    return ways(lambda: (dy.T @ x, dy.sum(0)))


def copy(c):
    x, y = c.input(c.count), c.input(c.count)
    return {"eager": lambda: lambda: y.copy_(x)}


def launch(c):
    y = c.input(1)
    return {"eager": lambda: lambda: y.fill_(0)}


def triad(c):
    a, b, y = c.input(c.count), c.input(c.count), c.input(c.count)
    return {"eager": lambda: lambda: torch.add(a, b, alpha=2, out=y)}


def axpby(c):
    a, b = c.input(c.count), c.input(c.count)
    return ways(lambda: 0.5 * a + 2 * b)


def sum_squares(c):
    x = c.input(c.count)
    return ways(lambda: x.float().square().sum())


def normal(c):
    y = c.input(c.count)
    return {"eager": lambda: y.normal_}


def rope(c):
    x = c.input(c.batch, c.tokens, c.channels)
    tables = [c.uniform(c.tokens, c.channels).to(c.dtype) for _ in range(2)]
    return ways(lambda: transformer.rotate(x, *tables))


def space_to_depth(c):
    """(B, C, F, H, W), as PyTorch's convolutions have it."""
    x = c.input(c.batch, c.channels, c.frames, c.height, c.width)
    split = (c.batch, c.channels, c.frames // c.st, c.st, c.height // c.sh, c.sh, c.width // c.sw, c.sw)

    def forward():
        y = x.view(split).permute(0, 1, 3, 5, 7, 2, 4, 6)
        return y.reshape(c.batch, -1, c.frames // c.st, c.height // c.sh, c.width // c.sw)

    return ways(forward)


def depth_to_space(c):
    shape = c.batch, c.channels * c.st * c.sh * c.sw, c.frames // c.st, c.height // c.sh, c.width // c.sw
    x = c.input(*shape)
    return ways(lambda: vae.depth_to_space(x, (c.st, c.sh, c.sw), False))


def channels_last(c):
    x = c.input(c.batch, c.channels, c.positions)
    return ways(lambda: x.transpose(1, 2).contiguous())


def adam(c):
    params = [c.uniform(c.count, grad=True) for _ in range(c.tensors)]
    for p in params:
        p.grad = torch.randn_like(p)

    def way(kind):
        optimizer = torch.optim.Adam(params, lr=1e-6, betas=(0.9, 0.99), **{kind: True})

        def step():
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()

        return step

    # On a GPU the fused one is never the slower one.
    kinds = ["fused", "foreach"] if c.device == "cpu" else ["fused"]
    return {kind: (lambda kind=kind: way(kind)) for kind in kinds}


def family(name, build, **options):
    forward, backward = forward_and_backward(build, **options)
    return {name: forward, f"{name}_backward": backward}


OPS = {
    **family("attention", attention),
    "conv3d": convolution("forward"),
    "conv3d_backward_input": convolution("input"),
    "conv3d_backward_weight": convolution("weight"),
    **family("norm_act", norm_act),
    **family("gated_add", gated_add),
    **family("batch_norm", batch_norm, compiled=False),
    **family("haar_l1", haar_l1),
    "linear": linear,
    "matmul": linear,
    "linear_backward_input": linear_backward_input,
    "linear_backward_weight": linear_backward_weight,
    **{f.__name__: f for f in (copy, triad, launch, axpby, sum_squares, normal, rope, space_to_depth, depth_to_space)},
    "channels_last": channels_last,
    "adam": adam,
}


class Clock:
    """Seconds of a call, by the device's own clock where it has one: as bench/kernels/timing.ts."""

    def __init__(self, cuda, seconds, rounds):
        self.cuda, self.seconds, self.rounds = cuda, seconds, rounds

    def round(self, call, calls):
        if not self.cuda:
            begun = time.perf_counter()
            for _ in range(calls):
                call()
            return time.perf_counter() - begun
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(calls):
            call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1000

    def time(self, call):
        self.round(call, 2)
        calls, took = 1, self.round(call, 1)
        while took < self.seconds / 2 and calls < MAX_CALLS:
            factor = min(10, 1.2 * self.seconds / took) if took > 0 else 10
            calls = min(MAX_CALLS, math.ceil(calls * factor))
            took = self.round(call, calls)
        return statistics.median(self.round(call, calls) / calls for _ in range(self.rounds))


def limited(seconds, body):
    """body(), interrupted when it takes too long: a compiler at work."""

    def late(*_):
        raise TimeoutError(f"not compiled in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        return body()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def memory(device):
    """Bytes allocated, and forgets older peaks."""
    if device == "cpu":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def measure(spec, device, clock):
    found, extra = {}, {}
    for name, prepare in OPS[spec["op"]](Case(spec, device)).items():
        try:
            call = limited(COMPILE_SECONDS, lambda: (c := prepare(), c())[0]) if name == "compile" else prepare()
            before = memory(device)
            found[name] = clock.time(call)
            if clock.cuda:
                extra[name] = torch.cuda.max_memory_allocated() - before
            del call
        except Exception as error:
            if name != "compile":
                raise
            found[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    times = {name: value for name, value in found.items() if not isinstance(value, str)}
    best = min(times, key=times.get)
    others = {name: value for name, value in found.items() if name != best}
    reply = {"id": spec["id"], "seconds": times[best], "variant": best, "others": others}
    return reply | ({"extra_bytes": extra[best]} if clock.cuda else {})


def main():
    setup = json.loads(sys.stdin.readline())
    device = setup["device"] if setup["device"].startswith("cuda") else "cpu"
    cuda = device != "cpu"
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    # f32 means f32 on both sides.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    about = {"version": torch.__version__, "threads": torch.get_num_threads()}
    from torch._functorch import config

    config.donated_buffer = False  # the same backward pass runs again and again
    if cuda:
        about |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    print(json.dumps({"about": about}), flush=True)
    clock = Clock(cuda, setup["seconds"], setup["rounds"])
    for line in sys.stdin:
        spec = json.loads(line)
        try:
            reply = measure(spec, device, clock)
        except Exception as error:
            reply = {"id": spec["id"], "error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        print(json.dumps(reply), flush=True)
        torch._dynamo.reset()
        if cuda:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
