"""The video VAE of ltx-native in plain PyTorch, as a user would write it. State-dict keys are the reference's.

Covers what the measured configuration uses: pixel norm, residual, strided and depth-to-space blocks, a timestep-conditioned
decoder, and the loss without its learned terms. Videos are (B, C, F, H, W).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

STRIDES = {"compress_time": (2, 1, 1), "compress_space": (1, 2, 2), "compress_all": (2, 2, 2)}


def params_of(params):
    return {"num_layers": params} if isinstance(params, int) else params


def pixel_norm(x, shift=None, scale=None):
    x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)
    return x if scale is None else x * (1 + scale) + shift


def rows(table, embedding, dtype):
    """Table (R, C) plus embedding (B, R*C), as R tensors (B, C, 1, 1, 1)."""
    ada = (embedding.view(-1, *table.shape) + table).to(dtype)
    return ada[..., None, None, None].unbind(1)


class CausalConv3d(nn.Module):
    """Kernel 3; time is padded by repeated frames: both in front when causal, else one on each side."""

    def __init__(self, inputs, outputs, stride=(1, 1, 1), causal=True):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=(0, 1, 1))
        self.causal = causal

    def forward(self, x):
        first, last = x[:, :, :1], x[:, :, -1:]
        return self.conv(torch.cat([first, first, x] if self.causal else [first, x, last], dim=2))


class TimestepEmbedding(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.timestep_embedder = nn.ModuleDict({"linear_1": nn.Linear(256, width), "linear_2": nn.Linear(width, width)})

    def forward(self, t):
        exponents = torch.arange(128, dtype=torch.float32, device=t.device) * (-math.log(10000) / 128)
        angles = t[:, None].float() * torch.exp(exponents)
        features = torch.cat([angles.cos(), angles.sin()], dim=1)
        features = features.to(self.timestep_embedder["linear_1"].weight.dtype)
        return self.timestep_embedder["linear_2"](F.silu(self.timestep_embedder["linear_1"](features)))


class ChannelNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x):
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class ResnetBlock3D(nn.Module):
    def __init__(self, inputs, outputs, causal=True, conditioned=False):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(4, inputs) / inputs**0.5) if conditioned else None
        self.conv1 = CausalConv3d(inputs, outputs, causal=causal)
        self.conv2 = CausalConv3d(outputs, outputs, causal=causal)
        self.conv_shortcut = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else None
        self.norm3 = ChannelNorm(inputs) if inputs != outputs else None

    def forward(self, x, embedding=None):
        shift1 = scale1 = shift2 = scale2 = None
        if self.scale_shift_table is not None:
            shift1, scale1, shift2, scale2 = rows(self.scale_shift_table, embedding, x.dtype)
        h = self.conv1(F.silu(pixel_norm(x, shift1, scale1)))
        h = self.conv2(F.silu(pixel_norm(h, shift2, scale2)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(self.norm3(x)))


class UNetMidBlock3D(nn.Module):
    def __init__(self, channels, layers, causal=True, conditioned=False):
        super().__init__()
        self.time_embedder = TimestepEmbedding(4 * channels) if conditioned else None
        self.res_blocks = nn.ModuleList(ResnetBlock3D(channels, channels, causal, conditioned) for _ in range(layers))

    def forward(self, x, timestep=None):
        embedding = self.time_embedder(timestep) if self.time_embedder is not None else None
        for block in self.res_blocks:
            x = block(x, embedding)
        return x


def depth_to_space(x, stride, drop_first):
    t, h, w = stride
    b, c, frames, height, width = x.shape
    x = x.view(b, c // (t * h * w), t, h, w, frames, height, width).permute(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.reshape(b, -1, frames * t, height * h, width * w)
    return x[:, :, 1:] if drop_first else x


class DepthToSpaceUpsample(nn.Module):
    def __init__(self, channels, stride, causal, residual=False, factor=1):
        super().__init__()
        self.stride, self.residual = stride, residual
        self.repeat = math.prod(stride) // factor
        self.conv = CausalConv3d(channels, math.prod(stride) * channels // factor, causal=causal)

    def forward(self, x):
        drop_first = self.stride[0] == 2
        y = depth_to_space(self.conv(x), self.stride, drop_first)
        if self.residual:
            y = y + depth_to_space(x, self.stride, drop_first).repeat(1, self.repeat, 1, 1, 1)
        return y


class Encoder(nn.Module):
    def __init__(self, in_channels, latents, blocks, width, patch, latent_log_var):
        super().__init__()
        self.patch, self.uniform = patch, latent_log_var == "uniform"
        self.conv_in = CausalConv3d(in_channels * patch**2, width)
        self.down_blocks = nn.ModuleList()
        for name, params in blocks:
            params = params_of(params)
            wide = width * params.get("multiplier", 2) if name.endswith("_x_y") else width
            if name == "res_x":
                block = UNetMidBlock3D(width, params["num_layers"])
            elif name == "res_x_y":
                block = ResnetBlock3D(width, wide)
            else:
                block = CausalConv3d(width, wide, STRIDES[name.removesuffix("_x_y")])
            self.down_blocks.append(block)
            width = wide
        outputs = {"uniform": latents + 1, "per_channel": 2 * latents}[latent_log_var]
        self.conv_out = CausalConv3d(width, outputs)

    def forward(self, x):
        p = self.patch
        b, c, frames, height, width = x.shape
        x = x.view(b, c, frames, height // p, p, width // p, p).permute(0, 1, 6, 4, 2, 3, 5)
        x = self.conv_in(x.reshape(b, c * p * p, frames, height // p, width // p))
        for block in self.down_blocks:
            x = block(x)
        moments = self.conv_out(F.silu(pixel_norm(x)))
        if self.uniform:
            means, logvar = moments[:, :-1], moments[:, -1:]
            moments = torch.cat([means, logvar.expand_as(means)], dim=1)
        return moments


class Decoder(nn.Module):
    def __init__(self, latents, out_channels, blocks, width, patch, causal, conditioned):
        super().__init__()
        self.patch = patch
        divisors = [params_of(p).get("multiplier", {"res_x_y": 2}.get(name, 1)) for name, p in blocks]
        width *= math.prod(divisors)
        self.timestep_scale_multiplier = nn.Parameter(torch.tensor(1000.0)) if conditioned else None
        self.conv_in = CausalConv3d(latents, width, causal=causal)
        self.up_blocks = nn.ModuleList()
        for (name, params), divisor in zip(blocks, divisors):
            params = params_of(params)
            if name == "res_x":
                block = UNetMidBlock3D(width, params["num_layers"], causal, conditioned)
            elif name == "res_x_y":
                block = ResnetBlock3D(width, width // divisor, causal)
            else:
                block = DepthToSpaceUpsample(width, STRIDES[name], causal, params.get("residual", False), divisor)
            self.up_blocks.append(block)
            width //= divisor
        self.conv_out = CausalConv3d(width, out_channels * patch**2, causal=causal)
        self.last_scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5) if conditioned else None
        self.last_time_embedder = TimestepEmbedding(2 * width) if conditioned else None

    def forward(self, z, timestep=None):
        if self.timestep_scale_multiplier is not None:
            timestep = timestep * self.timestep_scale_multiplier
        h = self.conv_in(z)
        for block in self.up_blocks:
            h = block(h, timestep) if isinstance(block, UNetMidBlock3D) else block(h)
        shift = scale = None
        if self.last_time_embedder is not None:
            shift, scale = rows(self.last_scale_shift_table, self.last_time_embedder(timestep), h.dtype)
        y = self.conv_out(F.silu(pixel_norm(h, shift, scale)))
        p = self.patch
        b, c, frames, height, width = y.shape
        y = y.view(b, c // (p * p), p, p, frames, height, width).permute(0, 1, 4, 5, 3, 6, 2)
        return y.reshape(b, c // (p * p), frames, height * p, width * p)


def decoder_of(config):
    return Decoder(
        config["in_channels"],
        config["out_channels"],
        config["blocks"],
        config["base_channels"],
        config["patch_size"],
        config["causal"],
        config["timestep_conditioning"],
    )


class VideoVae(nn.Module):
    """Built from the resolved configuration (the keys of `vae_config.params`)."""

    def __init__(self, config):
        super().__init__()
        if config["norm_layer"] != "pixel_norm" or config.get("use_quant_conv"):
            raise ValueError("this peer knows norm_layer pixel_norm without quant convolutions")
        base = config.get("base_channels", 128)
        latents, patch = config["latent_channels"], config["patch_size"]
        encoder_base = config.get("encoder_base_channels") or base
        decoder_base = config.get("decoder_base_channels") or base
        self.encoder = Encoder(
            config["in_channels"], latents, config["encoder_blocks"], encoder_base, patch, config["latent_log_var"]
        )
        self.decoder = Decoder(
            latents,
            config["out_channels"],
            config["decoder_blocks"],
            decoder_base,
            patch,
            config["causal_decoder"],
            config["timestep_conditioning"],
        )

    def encode_moments(self, video):
        """Video in [0, 1] to (B, 2C, f, h, w) f32."""
        return self.encoder(video * 2 - 1).float()

    def decode(self, z, timestep):
        """Latents to a video around [0, 1], not cut, as in training."""
        return self.decoder(z, timestep).float() * 0.5 + 0.5


def haar_loss(x, y):
    """Mean |difference| of the Haar coefficients, over bands and positions: (B, C, 1, 1, 1)."""
    d = x - y  # the transform is linear
    frames, height, width = d.shape[2:]
    d = F.pad(d, (0, width % 2, 0, height % 2, 0, frames % 2))
    bands = [d]
    for axis in (2, 3, 4):
        halves = []
        for band in bands:
            even, odd = band.unflatten(axis, (-1, 2)).unbind(axis + 1)
            halves += [(even + odd) * 0.5**0.5, (even - odd) * 0.5**0.5]
        bands = halves
    return torch.stack([band.abs().mean((2, 3, 4), keepdim=True) for band in bands]).mean(0)


def vae_loss(video, reconstruction, moments, config):
    """The element and wavelet losses, under the posterior's mean log-variance or as they are, plus the weighted KL."""
    if config["learned_logvar"]:
        raise ValueError("this peer knows no learned_logvar")
    difference = reconstruction - video
    error = difference.square() if config["rec_loss"] == "l2" else difference.abs()
    if config["wavelet_loss_weight"]:
        error = error + config["wavelet_loss_weight"] * haar_loss(reconstruction, video)
    mean, logvar = moments.chunk(2, dim=1)
    logvar = logvar.clamp(-30, 20)
    if config["use_nll"]:
        level = logvar.mean((1, 2, 3, 4), keepdim=True)
        loss = (error / level.exp() + level).sum() / video.shape[0]
    else:
        loss = error.mean() if config["rec_reduction"] == "mean" else error.sum() / video.shape[0]
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum() / video.shape[0]
    return loss + config["kl_weight"] * kl


def sample(moments, noise):
    mean, logvar = moments.chunk(2, dim=1)
    return mean + (0.5 * logvar.clamp(-30, 20)).exp() * noise


def training_loss(vae, video, config, amplitude=0.2):
    """One training forward with fresh noise."""
    moments = vae.encode_moments(video)
    z = sample(moments, torch.randn_like(moments[:, : moments.shape[1] // 2]))
    timestep = None
    if config["vae"]["timestep_conditioning"]:
        timestep = amplitude * torch.rand(video.shape[0], device=video.device)
        z = z + timestep.view(-1, 1, 1, 1, 1) * torch.randn_like(z)
    return vae_loss(video, vae.decode(z, timestep), moments, config["loss"])
