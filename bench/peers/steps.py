"""A step in PyTorch, timed on command: the counterpart of bench/steps.ts, with the same protocol.

The first line on standard input is the setup as JSON; each following line asks for that many steps. Each is answered by one
line of JSON on standard output. The end of the input ends the process.
"""

import json
import os
import resource
import signal
import sys
import time

import torch

import transformer
import vae

# Compilation of a whole model's blocks may take this long; then the eager step is what counts.
COMPILE_SECONDS = 100
# The model's time at the beginning of sampling.
MIN_TIME = 0.001
FORMATS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}


def device_of(setup):
    """The emulator's peer is the CPU."""
    return setup["device"] if setup["device"].startswith("cuda") else "cpu"


class Training:
    """Forward in autocast, backward, clipping, Adam."""

    def __init__(self, setup, model):
        self.model = model
        self.device = device_of(setup).split(":")[0]
        self.bf16 = setup["dtype"] == "bf16"
        self.optimizer = None

    def prepare(self, adam):
        for p in self.model.parameters():
            p.grad = None
        self.optimizer = torch.optim.Adam(self.model.parameters(), **self.adam, **{adam: True})

    def step(self):
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            loss = self.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


class VaeStep(Training):
    adam = {"lr": 4.5e-6, "betas": (0.5, 0.9)}
    layouts = ("contiguous", "channels_last_3d")

    def __init__(self, setup):
        self.config = setup["config"]
        super().__init__(setup, vae.VideoVae(self.config["vae"]))
        self.input = torch.rand(setup["batch"], *self.config["shape"]).movedim(-1, 1).contiguous()

    def loss(self):
        return vae.training_loss(self.model, self.input, self.config)


class FlowStep(Training):
    adam = {"lr": 2e-4, "betas": (0.9, 0.99)}
    layouts = ("contiguous",)

    def __init__(self, setup):
        super().__init__(setup, transformer.LtxVideoTransformer(setup["config"]["transformer"]))
        self.input, self.text, self.mask = flow_inputs(setup)

    def loss(self):
        return transformer.training_loss(self.model, self.input, self.text, self.mask)


def flow_inputs(setup):
    config, batch = setup["config"], setup["batch"]
    x0 = torch.randn(batch, *config["shape"], dtype=torch.float32).movedim(-1, 1).contiguous()
    text = torch.randn(batch, *config["text"], dtype=torch.float32)
    mask = (torch.arange(config["text"][0]) < config["words"]).float().repeat(batch, 1)
    return x0, text, mask


class Inference:
    """Parameters, too, are in the dtype of the activations."""

    adam = None

    def prepare(self, _):
        pass

    def step(self):
        with torch.inference_mode():
            return self.forward()


class LtxForward(Inference):
    layouts = ("contiguous",)

    def __init__(self, setup):
        self.model = transformer.LtxVideoTransformer(setup["config"]["transformer"]).eval()
        dtype = self.model.proj_out.weight.dtype
        x0, text, self.mask = flow_inputs(setup)
        self.input, self.text = x0.to(dtype), text.to(dtype)
        self.t = torch.rand(setup["batch"], dtype=torch.float32)

    def forward(self):
        return self.model(self.input, self.t, self.text, self.mask)


def check_coder(config):
    if config["norm_layer"] != "pixel_norm" or config.get("spatial_padding_mode", "zeros") != "zeros":
        raise ValueError("this peer knows norm_layer pixel_norm with spatial_padding_mode zeros")


def decoder_of(config):
    check_coder(config)
    return vae.decoder_of(config).eval()


class VaeEncode(Inference):
    layouts = ("contiguous", "channels_last_3d")

    def __init__(self, setup):
        config = setup["config"]["encoder"]
        check_coder(config)
        self.model = vae.Encoder(
            config["in_channels"],
            config["out_channels"],
            config["blocks"],
            config["base_channels"],
            config["patch_size"],
            config["latent_log_var"],
        ).eval()
        video = torch.rand(setup["batch"], *setup["config"]["shape"], dtype=torch.float32)
        self.input = video.movedim(-1, 1).contiguous()

    def forward(self):
        return self.model((self.input * 2 - 1).to(torch.get_default_dtype())).float()


class VaeDecode(Inference):
    layouts = ("contiguous", "channels_last_3d")

    def __init__(self, setup):
        config, batch = setup["config"]["decoder"], setup["batch"]
        self.model = decoder_of(config)
        self.input = torch.randn(batch, *setup["config"]["shape"]).movedim(-1, 1).contiguous()
        self.t = 0.05 * torch.rand(batch, dtype=torch.float32) if config["timestep_conditioning"] else None

    def forward(self):
        return self.model(self.input, self.t).float()


class Sample(Inference):
    """Euler steps from noise, each told the time k / steps, from 0.001 up; then the decoder, told what noise is left."""

    layouts = ("contiguous", "channels_last_3d")

    def __init__(self, setup):
        config, self.batch = setup["config"], setup["batch"]
        self.steps, self.skipped, self.guidance = config["steps"], config["initial_timestep"], config["guidance"]
        self.dtype = torch.get_default_dtype()
        self.flow = transformer.LtxVideoTransformer(config["transformer"]).eval()
        self.decoder = decoder_of(config["decoder"]) if config["decoder"] else None
        self.model = torch.nn.ModuleList([self.flow, self.decoder] if self.decoder else [self.flow])
        self.conditioned = self.decoder is not None and config["decoder"]["timestep_conditioning"]
        self.input, _, _ = flow_inputs(setup)
        both = setup | {"batch": (1 if self.guidance == 1 else 2) * self.batch}
        _, text, self.mask = flow_inputs(both)
        self.text = text.to(self.dtype)

    def velocity(self, x, time):
        x = x.to(self.dtype)
        if self.guidance != 1:
            x = torch.cat([x, x])
        t = torch.full((x.shape[0],), time, dtype=torch.float32, device=x.device)
        v = self.flow(x, t, self.text, self.mask)
        if self.guidance == 1:
            return v
        prompted, empty = v.chunk(2)
        return empty + self.guidance * (prompted - empty)

    def forward(self):
        x, done = self.input, self.steps - self.skipped
        for k in range(done):
            x = x + self.velocity(x, k / self.steps * (1 - MIN_TIME) + MIN_TIME) / self.steps
        time = done / self.steps
        x = x / time
        if self.decoder is None:
            return x
        noise = torch.full((self.batch,), (1 - time) / time, dtype=torch.float32, device=x.device)
        return self.decoder(x.to(self.dtype), noise if self.conditioned else None).float()


TASKS = {
    "vae-step": VaeStep,
    "vae-encode": VaeEncode,
    "vae-decode": VaeDecode,
    "flow-step": FlowStep,
    "flow-step-padded": FlowStep,
    "sample": Sample,
    "ltx-forward": LtxForward,
}


def create(setup):
    kind = TASKS[setup["name"]]
    inference = issubclass(kind, Inference)
    torch.set_default_dtype(torch.bfloat16 if inference and setup["dtype"] == "bf16" else torch.float32)
    with torch.device(device_of(setup)):
        return kind(setup)


class Worker:
    def __init__(self, setup):
        self.cuda = setup["device"].startswith("cuda")
        self.task = create(setup)
        self.others = {}

    def use(self, layout, adam, mode):
        """Puts parameters into a memory layout; adam is `fused`, `foreach` or none; mode is `eager` or `compile`."""
        task = self.task
        for p in task.model.parameters():
            if p.dim() == 5:
                p.data = p.data.contiguous(memory_format=FORMATS[layout])
        if task.input.dim() == 5:
            task.input = task.input.contiguous(memory_format=FORMATS[layout])
        # Block by block, as blocks of one shape then share one compilation.
        for block in task.model.modules():
            if isinstance(block, (transformer.Block, vae.ResnetBlock3D)):
                if mode == "compile":
                    block.compile()
                else:
                    block._compiled_call_impl = None
        task.prepare(adam)

    def synchronize(self):
        if self.cuda:
            torch.cuda.synchronize()

    def timed(self, steps):
        """Seconds of one step, and the last step's result; only the last one is waited for."""
        begun = time.perf_counter()
        for _ in range(steps):
            result = self.task.step()
        self.synchronize()
        return (time.perf_counter() - begun) / steps, result

    def cost(self, *variant):
        self.use(*variant)
        self.timed(1)
        seconds, _ = self.timed(1)
        seconds = seconds if seconds > 3 else min(seconds, self.timed(2)[0])
        self.others[", ".join(variant)] = seconds
        return seconds

    def compiled_cost(self, layout, adam):
        """As cost; None, with the reason among the others, where compilation fails or takes too long."""

        def late(*_):
            raise TimeoutError(f"not compiled in {COMPILE_SECONDS} s")

        variant = (layout, adam, "compile")
        before = signal.signal(signal.SIGALRM, late)
        signal.alarm(COMPILE_SECONDS)
        try:
            return self.cost(*variant)
        except Exception as error:
            self.others[", ".join(variant)] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return None
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)

    def choose(self, fixed):
        """The fastest layout, optimizer and mode; these steps are the warm-up too. Returns their names."""
        if fixed:
            self.use(*fixed)
            self.timed(2)
            return fixed
        first, *rest = ["fused", "foreach"] if self.task.adam else ["none"]
        costs = {layout: self.cost(layout, first, "eager") for layout in self.task.layouts}
        layout = min(costs, key=costs.get)
        best, adam = costs[layout], first
        # On a GPU the fused one is never the slower one.
        for other in [] if self.cuda else rest:
            seconds = self.cost(layout, other, "eager")
            if seconds < best:
                best, adam = seconds, other
        mode = "eager"
        compiled = self.compiled_cost(layout, adam)
        if compiled is not None and compiled < best:
            mode = "compile"
        self.use(layout, adam, mode)
        self.timed(1)
        return layout, adam, mode


def reply(cuda, **values):
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = {"peak_bytes": torch.cuda.max_memory_allocated()} if cuda else {}
    print(json.dumps(values | {"rss_bytes": rss} | peak), flush=True)


def versions(cuda):
    about = {"version": torch.__version__, "threads": torch.get_num_threads()}
    if cuda:
        about |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return about


def configure(cuda):
    """f32 means f32 on both sides; convolutions may try out algorithms; blocks of many shapes may each be compiled."""
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    if cuda:
        from torch._dynamo import config

        name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
        setattr(config, name, 64)


def main():
    setup = json.loads(sys.stdin.readline())
    configure(device_of(setup) != "cpu")
    worker = Worker(setup)
    variant = worker.choose(setup.get("variant"))
    if worker.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds, _ = worker.timed(1)
    reply(worker.cuda, seconds=seconds, variant=variant, others=worker.others, about=versions(worker.cuda))
    for line in sys.stdin:
        seconds, result = worker.timed(int(line))
        loss = result.item() if result.numel() == 1 else None
        reply(worker.cuda, seconds=seconds, loss=loss)


if __name__ == "__main__":
    main()
