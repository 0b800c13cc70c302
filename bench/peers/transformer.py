"""The LTX-Video transformer of ltx-native in plain PyTorch, as a user would write it. Keys are the reference's.

Covers what the measured configuration uses: rotary positions, RMS norms, adaLN single with scale and shift.
Latents are (B, C, F, H, W).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from vae import TimestepEmbedding


def rope_tables(grid, dim, theta, max_pos):
    """Cosines and sines (L, D): pair p turns with frequency p // 3 of axis p % 3."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    positions = torch.stack([axis.flatten() / limit for axis, limit in zip(axes, max_pos)], dim=1)
    frequencies = theta ** torch.linspace(0, 1, dim // 6, dtype=torch.float64) * (math.pi / 2)
    angles = (frequencies[:, None] * (2 * positions[:, None, :] - 1)).flatten(1).repeat_interleave(2, dim=1)
    angles = F.pad(angles, (dim % 6, 0))
    return angles.cos().float(), angles.sin().float()


def rotate(x, cos, sin):
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack([-b, a], dim=-1).flatten(-2) * sin


class RmsNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), eps=1e-5)


class Attention(nn.Module):
    def __init__(self, dim, heads, bias):
        super().__init__()
        self.heads = heads
        self.q_norm, self.k_norm = RmsNorm(dim), RmsNorm(dim)
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim, bias=bias) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, x, context, rope=None, mask=None):
        q, k, v = self.q_norm(self.to_q(x)), self.k_norm(self.to_k(context)), self.to_v(context)
        if rope is not None:
            cos, sin = (table.to(q.dtype) for table in rope)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        mask = None if mask is None else mask.to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out[0](y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, dim):
        super().__init__()
        up = nn.ModuleDict({"proj": nn.Linear(dim, 4 * dim)})
        self.net = nn.ModuleList([up, nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x):
        return self.net[2](F.gelu(self.net[0]["proj"](x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, dim, heads, bias, eps):
        super().__init__()
        self.eps = eps
        self.attn1, self.attn2 = Attention(dim, heads, bias), Attention(dim, heads, bias)
        self.ff = FeedForward(dim)
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)

    def forward(self, x, ada, rope, text, mask):
        table = (ada + self.scale_shift_table).to(x.dtype)[:, :, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = table.unbind(1)
        h = F.rms_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale1) + shift1
        x = x + gate1 * self.attn1(h, h, rope)
        x = x + self.attn2(x, text, mask=mask)
        h = F.rms_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale2) + shift2
        return x + gate2 * self.ff(h)


class LtxVideoTransformer(nn.Module):
    """Built from the resolved configuration (the keys of `score_network.params`)."""

    def __init__(self, config):
        super().__init__()
        known = {
            "adaptive_norm": "single_scale_shift",
            "standardization_norm": "rms_norm",
            "qk_norm": "rms_norm",
            "positional_embedding_type": "rope",
            "norm_elementwise_affine": False,
        }
        for key, value in known.items():
            if config[key] != value:
                raise ValueError(f"this peer knows {key} {value}, got {config[key]}")
        self.config = config
        heads = config["num_attention_heads"]
        dim = heads * config["attention_head_dim"]
        self.dim = dim
        self.patchify_proj = nn.Linear(config["input_channels"], dim)
        self.adaln_single = nn.ModuleDict({"emb": TimestepEmbedding(dim), "linear": nn.Linear(dim, 6 * dim)})
        text = config["caption_channels"]
        self.caption_projection = nn.ModuleDict({"linear_1": nn.Linear(text, dim), "linear_2": nn.Linear(dim, dim)})
        blocks = range(config["num_layers"])
        bias, eps = config["attention_bias"], config["norm_eps"]
        self.transformer_blocks = nn.ModuleList(Block(dim, heads, bias, eps) for _ in blocks)
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)
        self.proj_out = nn.Linear(dim, config["out_channels"])
        self.ropes = {}

    def rope(self, grid):
        if grid not in self.ropes:
            config = self.config
            theta, max_pos = config["positional_embedding_theta"], config["positional_embedding_max_pos"]
            tables = rope_tables(grid, self.dim, theta, max_pos)
            self.ropes[grid] = tuple(table.to(self.proj_out.weight.device) for table in tables)
        return self.ropes[grid]

    def forward(self, latents, t, text, mask=None):
        """Latents (B, C, F, H, W), t (B), text (B, L, Ct), mask (B, L) with 1 for tokens that count: the velocity."""
        grid = tuple(latents.shape[2:])
        x = self.patchify_proj(latents.flatten(2).transpose(1, 2))
        embedded = self.adaln_single["emb"](t * self.config["timestep_scale_multiplier"])
        ada = self.adaln_single["linear"](F.silu(embedded)).unflatten(1, (6, self.dim))
        project = self.caption_projection
        text = project["linear_2"](F.gelu(project["linear_1"](text), approximate="tanh"))
        bias = None if mask is None else ((1 - mask) * -10000)[:, None, None]
        rope = self.rope(grid)
        for block in self.transformer_blocks:
            x = block(x, ada, rope, text, bias)
        shift, scale = (embedded[:, None] + self.scale_shift_table).to(x.dtype)[:, :, None].unbind(1)
        x = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
        return self.proj_out(x).float().transpose(1, 2).unflatten(2, grid)


def training_loss(model, x0, text, mask):
    """One training forward of rectified flow with fresh times (logit-normal) and noise."""
    t = torch.randn(x0.shape[0], device=x0.device).sigmoid()
    noise = torch.randn_like(x0)
    at = t.view(-1, 1, 1, 1, 1)
    velocity = model(at * x0 + (1 - at) * noise, t, text, mask)
    return F.mse_loss(velocity, x0 - noise)
