"""A step of flow training in PyTorch as the reference has it: the VAE encodes the clips and T5 their prompts, each time.

The first line on standard input is the setup as JSON; each following line asks for one step. Each is answered by one line
of JSON on standard output. The end of the input ends the process.
"""

import json
import math
import os
import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

import transformer
import vae

FORMATS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}


class T5Norm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), eps=self.eps)


class T5Block(nn.Module):
    """Self-attention, whose scores are not scaled, and a feed-forward layer with a gated GELU."""

    def __init__(self, size):
        super().__init__()
        width, inner, self.heads = size["d_model"], size["num_heads"] * size["d_kv"], size["num_heads"]
        eps = size["layer_norm_epsilon"]
        self.norm1, self.norm2 = T5Norm(width, eps), T5Norm(width, eps)
        self.q, self.k, self.v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, width, bias=False)
        self.wi_0, self.wi_1 = (nn.Linear(width, size["d_ff"], bias=False) for _ in range(2))
        self.wo = nn.Linear(size["d_ff"], width, bias=False)

    def forward(self, x, bias):
        h = self.norm1(x)
        q, k, v = (p(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.wo(F.gelu(self.wi_0(h), approximate="tanh") * self.wi_1(h))


class T5Encoder(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size
        self.shared = nn.Embedding(size["vocab_size"], size["d_model"])
        self.bias = nn.Embedding(size["relative_attention_num_buckets"], size["num_heads"])
        self.blocks = nn.ModuleList(T5Block(size) for _ in range(size["num_layers"]))
        self.norm = T5Norm(size["d_model"], size["layer_norm_epsilon"])

    def buckets(self, length):
        """Half of the buckets for keys in front and half for those behind; of each, half for single distances."""
        half = self.size["relative_attention_num_buckets"] // 2
        exact = half // 2
        place = torch.arange(length)
        distance = place[None, :] - place[:, None]
        n = distance.abs()
        share = torch.log(n.clamp(min=1) / exact) / math.log(self.size["relative_attention_max_distance"] / exact)
        far = (exact + (share * (half - exact)).long()).clamp(max=half - 1)
        return half * (distance > 0) + torch.where(n < exact, n, far)

    def forward(self, ids, mask):
        bias = self.bias(self.buckets(ids.shape[1])).permute(2, 0, 1)[None]
        bias = bias + (1 - mask[:, None, None]) * -1e9
        x = self.shared(ids)
        for block in self.blocks:
            x = block(x, bias)
        return self.norm(x)


class Epoch:
    """Everything that a step does, with the seconds of its three parts."""

    def __init__(self, setup):
        config = setup["config"]
        self.bf16 = setup["dtype"] == "bf16"
        self.batch, self.dropout = setup["batch"], setup["dropout"]
        self.vae = vae.VideoVae(config["vae"]).requires_grad_(False)
        self.text = T5Encoder(config["t5"]).requires_grad_(False)
        self.transformer = transformer.LtxVideoTransformer(config["transformer"])
        self.optimizer = torch.optim.Adam(self.transformer.parameters(), lr=2e-4, betas=(0.9, 0.99), fused=True)
        # The reference has all clips in memory, as bytes.
        self.clips = torch.randint(0, 256, (setup["clips"], *config["shape"]), dtype=torch.uint8)
        # The words of each prompt and the end of the text, then padding. Which tokens they are does not matter.
        length, words = config["text"]
        self.ids = torch.randint(3, config["t5"]["vocab_size"], (setup["clips"], length))
        self.mask = (torch.arange(length) < words).float().repeat(setup["clips"], 1)
        self.empty = (torch.arange(length) < 1).float()
        self.format = torch.contiguous_format
        self.order = []

    def use(self, layout):
        self.format = FORMATS[layout]
        for p in self.vae.parameters():
            if p.dim() == 5:
                p.data = p.data.contiguous(memory_format=self.format)

    def indices(self):
        """The next batch; every epoch has an order of its own."""
        if len(self.order) < self.batch:
            self.order = torch.randperm(len(self.clips)).tolist()
        batch, self.order = self.order[: self.batch], self.order[self.batch :]
        return torch.tensor(batch)

    def step(self):
        times = [time.perf_counter()]
        rows = self.indices()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            with torch.no_grad():
                video = self.clips[rows].movedim(-1, 1).float().div(255).contiguous(memory_format=self.format)
                moments = self.vae.encode_moments(video)
                noise = torch.randn_like(moments[:, : moments.shape[1] // 2])
                latents = vae.sample(moments, noise).contiguous()
                times.append(time.perf_counter())
                dropped = torch.rand(self.batch, 1) < self.dropout
                mask = torch.where(dropped, self.empty, self.mask[rows])
                text = self.text(self.ids[rows], mask).float()
                times.append(time.perf_counter())
            loss = transformer.training_loss(self.transformer, latents, text, mask)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.transformer.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        times.append(time.perf_counter())
        vae_s, text_s, flow_s = (b - a for a, b in zip(times, times[1:]))
        return {"seconds": times[-1] - times[0], "vae_s": vae_s, "text_s": text_s, "flow_s": flow_s, "loss": value}


def reply(**values):
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(values | {"rss_bytes": rss}), flush=True)


def main():
    setup = json.loads(sys.stdin.readline())
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    epoch = Epoch(setup)
    costs = {}
    for layout in FORMATS:
        epoch.use(layout)
        epoch.step()
        costs[layout] = epoch.step()["seconds"]
    best = min(costs, key=costs.get)
    epoch.use(best)
    epoch.step()
    about = {"version": torch.__version__, "threads": torch.get_num_threads(), "layout": best}
    reply(others=costs, about=about)
    for _ in sys.stdin:
        reply(**epoch.step())


if __name__ == "__main__":
    main()
