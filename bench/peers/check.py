"""Checks that the peers compute what ltx-native computes: python3 bench/peers/check.py FILE.safetensors...

Files are golden fixtures of the kinds x-vae-encode, x-vae-decode, x-vae-full-hash, x-transformer[-full-hash], and x-vae-loss
before its adversarial start, whose options the peers know. Prints the relative L2 error of each output, and the worst one among
the gradients; exits with 1 when one is too large.
"""

import json
import math
import struct
import sys

import numpy as np
import torch

from transformer import LtxVideoTransformer
from vae import Encoder, VideoVae, decoder_of, sample, vae_loss


def read(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
    metadata = header.pop("__metadata__")
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = np.frombuffer(data[begin:end], dtype={"F32": "<f4", "I64": "<i8"}[entry["dtype"]])
        tensors[name] = torch.from_numpy(values.copy()).reshape(entry["shape"])
    return metadata, tensors


def hash_parameter(key, shape):
    """The fixtures' rule for parameters that are not stored: FNV-1a of the name seeds splitmix64."""
    h = 0xCBF29CE484222325
    for byte in key.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        steps = np.arange(1, math.prod(shape) + 1, dtype=np.uint64)
        z = np.uint64(h) + steps * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    u = 2 * (z >> np.uint64(40)).astype(np.float64) / 2**24 - 1
    if key.endswith("timestep_scale_multiplier"):
        values = np.full_like(u, 1000)
    elif key.endswith("scale_shift_table"):
        values = 0.3 * u
    elif len(shape) >= 2:
        values = u * math.sqrt(3 / math.prod(shape[1:]))
    else:
        values = 1 + 0.1 * u if key.endswith("weight") else 0.1 * u
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def load(module, metadata, tensors, prefix=""):
    if metadata.get("params") == "hash":
        shapes = json.loads(metadata["param_shapes"])
        state = {key: hash_parameter(key, shape) for key, shape in shapes.items()}
    else:
        state = {key[len("param/") :]: value for key, value in tensors.items() if key.startswith("param/")}
    module.load_state_dict({key.removeprefix(prefix): value for key, value in state.items()})


def run(kind, config, metadata, tensors):
    """The outputs to compare, and what to differentiate for the stored gradients."""

    def given(name):
        return tensors[f"input/{name}"]

    if kind == "x-vae-encode":
        model = Encoder(
            config["in_channels"],
            config["out_channels"],
            config["blocks"],
            config["base_channels"],
            config["patch_size"],
            config["latent_log_var"],
        )
        load(model, metadata, tensors, "encoder.")
        moments = model(given("x"))
        drawn = sample(moments, given("posterior_noise"))
        mean, logvar = moments.chunk(2, dim=1)
        logvar = logvar.clamp(-30, 20)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum((1, 2, 3, 4))
        outputs = {"moments": moments, "sample": drawn, "kl": kl}
        loss = sum((value * given(f"cotangent_{name}")).sum() for name, value in outputs.items())
        return model, outputs, loss
    if kind == "x-vae-decode":
        model = decoder_of(config)
        load(model, metadata, tensors, "decoder.")
        y = model(given("z"), tensors.get("input/timestep"))
        return model, {"y": y}, (y * given("cotangent")).sum()
    if kind == "x-vae-full-hash":
        model = VideoVae(config)
        load(model, metadata, tensors)
        moments = model.encode_moments(given("x"))
        drawn = sample(moments, given("posterior_noise"))
        noised = drawn + given("timestep").view(-1, 1, 1, 1, 1) * given("epsilon")
        outputs = {"moments": moments, "sample": drawn, "noised_latent": noised}
        if "output/decoded" in tensors:
            outputs["decoded"] = model.decoder(noised, given("timestep"))
        return model, outputs, None
    if kind == "x-vae-loss":
        options = {"use_nll": True, "wavelet_loss_weight": 0} | config["loss_config"]
        if config["global_step"] >= options["adversarial_start"] or options["perceptual_weight"]:
            raise ValueError("this peer knows neither the adversarial nor the perceptual term")
        found = vae_loss(given("inputs"), tensors["output/reconstructions"], given("moments"), options)
        return None, {"loss_documented": found}, None
    if kind in ("x-transformer", "x-transformer-full-hash"):
        model = LtxVideoTransformer(config)
        load(model, metadata, tensors)
        mask = tensors.get("input/text_attention_mask")
        velocity = model(given("x"), given("timestep"), given("text_embeddings"), None if mask is None else mask.float())
        loss = (velocity * given("cotangent")).sum() if "input/cotangent" in tensors else None
        return model, {"velocity": velocity}, loss
    raise ValueError(f"case {kind} has no peer")


def error(found, expected):
    norm = expected.norm()
    return ((found - expected).norm() / (norm if norm > 0 else 1)).item()


def main():
    failed = False
    for path in sys.argv[1:]:
        metadata, tensors = read(path)
        kind = metadata["case"]
        model, outputs, loss = run(kind, json.loads(metadata["config"]), metadata, tensors)
        checks = {name: error(value, tensors[f"output/{name}"]) for name, value in outputs.items()}
        if loss is not None:
            loss.backward()
            grads = {name: p.grad for name, p in model.named_parameters()}
            whole = json.loads(metadata["config"]).get("hash_prefix", "")
            stored = {
                key[len("grad/") :].removeprefix(whole): value for key, value in tensors.items() if key.startswith("grad/")
            }
            # Relative to all of them: some are rounding noise by themselves.
            norm = torch.cat([value.flatten() for value in stored.values()]).norm()
            checks[f"{len(stored)} gradients"] = max(((grads[key] - v).norm() / norm).item() for key, v in stored.items())
        for name, value in checks.items():
            ok = value < 1e-4
            failed |= not ok
            print(f"{kind:24} {name:16} {value:.2e} {'ok' if ok else 'FAIL'}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
