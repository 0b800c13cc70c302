"""A training step in PyTorch, timed on command: the counterpart of bench/steps.ts, with the same protocol.

The first line on standard input is the setup as JSON; each following line asks for that many steps. Each is answered by one
line of JSON on standard output. The end of the input ends the process.
"""

import json
import os
import resource
import sys
import time

import torch

import transformer
import vae


class VaeStep:
    adam = {"lr": 4.5e-6, "betas": (0.5, 0.9)}
    layouts = ("contiguous", "channels_last_3d")

    def __init__(self, setup):
        self.config = setup["config"]
        self.model = vae.VideoVae(self.config["vae"])
        self.video = torch.rand(setup["batch"], *self.config["shape"]).movedim(-1, 1).contiguous()

    def loss(self):
        return vae.training_loss(self.model, self.video, self.config)


class FlowStep:
    adam = {"lr": 2e-4, "betas": (0.9, 0.99)}
    layouts = ("contiguous",)

    def __init__(self, setup):
        config, batch = setup["config"], setup["batch"]
        self.model = transformer.LtxVideoTransformer(config["transformer"])
        self.x0 = torch.randn(batch, *config["shape"]).movedim(-1, 1).contiguous()
        self.text = torch.randn(batch, *config["text"])
        self.mask = (torch.arange(config["text"][0]) < config["words"]).float().repeat(batch, 1)

    def loss(self):
        return transformer.training_loss(self.model, self.x0, self.text, self.mask)


class Worker:
    def __init__(self, setup):
        self.task = {"vae-step": VaeStep, "flow-step": FlowStep}[setup["name"]](setup)
        self.bf16 = setup["dtype"] == "bf16"
        self.optimizer = None

    def use(self, layout, adam):
        """Puts the parameters into a memory layout; adam is `fused` or `foreach`."""
        self.optimizer = None
        formats = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}
        for p in self.task.model.parameters():
            p.grad = None
            if p.dim() == 5:
                p.data = p.data.contiguous(memory_format=formats[layout])
        if layout != "contiguous":
            self.task.video = self.task.video.contiguous(memory_format=formats[layout])
        self.optimizer = torch.optim.Adam(self.task.model.parameters(), **self.task.adam, **{adam: True})

    def step(self):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.task.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.task.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def timed(self, steps):
        begun = time.perf_counter()
        for _ in range(steps):
            loss = self.step()
        return (time.perf_counter() - begun) / steps, loss

    def choose(self, fixed):
        """The fastest layout, then the faster optimizer; these steps are the warm-up too. Returns their names."""
        if fixed:
            self.use(*fixed)
            self.step()
            return fixed

        def cost(layout, adam):
            self.use(layout, adam)
            self.step()
            seconds, _ = self.timed(1)
            return seconds if seconds > 3 else min(seconds, self.timed(2)[0])

        costs = {layout: cost(layout, "fused") for layout in self.task.layouts}
        layout = min(costs, key=costs.get)
        adam = "fused" if costs[layout] <= cost(layout, "foreach") else "foreach"
        self.use(layout, adam)
        self.step()
        return layout, adam


def reply(**values):
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(values | {"rss_bytes": rss}), flush=True)


def main():
    setup = json.loads(sys.stdin.readline())
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    worker = Worker(setup)
    variant = worker.choose(setup.get("variant"))
    seconds, _ = worker.timed(1)
    about = {"version": torch.__version__, "threads": torch.get_num_threads()}
    reply(seconds=seconds, variant=variant, about=about)
    for line in sys.stdin:
        seconds, loss = worker.timed(int(line))
        reply(seconds=seconds, loss=loss)


if __name__ == "__main__":
    main()
