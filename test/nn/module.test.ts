import { describe, expect, it } from "vitest";
import { moduleEntries } from "../../lib/formats/checkpoint.js";
import {
  BatchNorm,
  CausalConv3d,
  Conv2d,
  Conv3d,
  Initializer,
  LayerNorm,
  Linear,
  Module,
  type Parameter,
  TimestepEmbedding,
} from "../../lib/nn/index.js";
import { normal } from "../../lib/ops/index.js";
import { backward, device, narrow, scope, Tensor, widen } from "../../lib/tensor/index.js";
import { arr, draw, map, relativeError } from "../support/arrays.js";
import { expectError, fromArr, liveBytes } from "../support/gradcheck.js";
import * as reference from "../support/reference.js";

class Block extends Module {
  norm: LayerNorm;
  blocks: Module[];
  scale: Parameter;
  private _hidden: Linear;

  constructor(init: Initializer) {
    super();
    this.norm = new LayerNorm(4, init);
    this.blocks = [new Linear(4, 3, init), new CausalConv3d(2, 5, init), new Linear(3, 4, init, { bias: false })];
    this.scale = init.constant([2], 3);
    this._hidden = new Linear(1, 1, init);
  }

  disposeAll(): void {
    this.dispose();
    this._hidden.dispose();
  }
}

const make = (seed = 1) => new Block(new Initializer(device(), seed));

describe("Module", () => {
  it("names parameters by their properties, in order, without private ones", () => {
    const names = [...make().namedParameters("model.")].map(([name]) => name);
    expect(names).toEqual([
      "model.norm.weight",
      "model.norm.bias",
      "model.blocks.0.weight",
      "model.blocks.0.bias",
      "model.blocks.1.conv.weight",
      "model.blocks.1.conv.bias",
      "model.blocks.2.weight",
      "model.scale",
    ]);
    expect(make().parameterCount).toBe(4 + 4 + 12 + 3 + 5 * 27 * 2 + 5 + 12 + 2);
  });

  it("round trips its state, also into another module", async () => {
    const [a, b] = [make(1), make(2)];
    const state = await a.stateDict("x.");
    b.loadStateDict(state, "x.");
    const copy = await b.stateDict("x.");
    expect([...copy.keys()]).toEqual([...state.keys()]);
    for (const [key, { shape, data }] of state) {
      expect(copy.get(key)?.shape).toEqual(shape);
      expect(copy.get(key)?.data).toEqual(data);
    }
  });

  it("stores convolution weights as (O, I, T, Y, X)", async () => {
    const conv = new Conv3d(2, 3, [1, 2, 3], new Initializer(device(), 1));
    const memory = arr([3, 1, 2, 3, 2], await conv.weight.read());
    const stored = (await conv.stateDict()).get("weight");
    expect(stored?.shape).toEqual([3, 2, 1, 2, 3]);
    let i = 0;
    for (let o = 0; o < 3; o++) {
      for (let c = 0; c < 2; c++) {
        for (let k = 0; k < 6; k++) expect(stored?.data[i++]).toBe(memory.data[(o * 6 + k) * 2 + c]);
      }
    }
  });

  it("stores the weights of 2D convolutions as (O, I, Y, X)", async () => {
    const conv = new Conv2d(2, 3, 3, new Initializer(device(), 1), { stride: 2, padding: 1 });
    const memory = arr([3, 1, 3, 3, 2], await conv.weight.read());
    const state = await conv.stateDict();
    const stored = state.get("weight");
    expect(stored?.shape).toEqual([3, 2, 3, 3]);
    let i = 0;
    for (let o = 0; o < 3; o++) {
      for (let c = 0; c < 2; c++) {
        for (let k = 0; k < 9; k++) expect(stored?.data[i++]).toBe(memory.data[(o * 9 + k) * 2 + c]);
      }
    }
    const copy = new Conv2d(2, 3, 3, new Initializer(device(), 2));
    copy.loadStateDict(state);
    expect(await copy.weight.read()).toEqual(await conv.weight.read());
    const x = fromArr(draw([2, 3, 6, 7, 2], 1));
    expect(conv.forward(x).shape).toEqual([2, 3, 3, 4, 3]);
    expect(copy.forward(x).shape).toEqual([2, 3, 4, 5, 3]);
  });

  it("loads nothing from a state that does not fit, and lists what is wrong", async () => {
    const model = make(1);
    const state = await make(2).stateDict();
    const before = await model.stateDict();
    state.delete("norm.bias");
    state.set("extra", { shape: [1], data: Float32Array.of(1) });
    state.set("scale", { shape: [3], data: new Float32Array(3) });
    state.set("blocks.1.conv.weight", { shape: [5, 3, 3, 3, 2], data: new Float32Array(270) });
    let message = "";
    try {
      model.loadStateDict(state);
    } catch (error) {
      message = (error as Error).message;
      expect(error).toMatchObject({ name: "LtxError", code: "checkpoint" });
    }
    expect(message).toContain("norm.bias is missing (expected [4])");
    expect(message).toContain("scale has shape [3], expected [2]");
    expect(message).toContain("blocks.1.conv.weight has shape [5,3,3,3,2], expected [5,2,3,3,3]");
    expect(message).toContain("extra is not part of this model");
    for (const [key, { data }] of await model.stateDict()) expect(data).toEqual(before.get(key)?.data);
  });

  it("rejects an entry whose data is shorter than its shape says", async () => {
    const model = make(1);
    const state = await model.stateDict();
    state.set("scale", { shape: [2], data: new Float32Array(1) });
    expectError("checkpoint", /scale holds 1 values for shape \[2\]/, () => model.loadStateDict(state));
  });

  it("shows the first five of many problems", () => {
    expectError("checkpoint", /does not fit the model: (norm.weight.*;.*){4}.* and 3 more$|and 3 more$/, () =>
      make().loadStateDict(new Map()),
    );
  });

  it("switches and clears gradients, and frees everything", async () => {
    const start = await liveBytes();
    const init = new Initializer(device(), 1);
    const layer = new Linear(3, 2, init);
    const x = fromArr(draw([4, 3], 1));
    scope(() => backward(layer.forward(x), fromArr(draw([4, 2], 2))));
    expect(layer.weight.grad?.shape).toEqual([2, 3]);
    layer.zeroGrad();
    expect(layer.weight.grad).toBeNull();
    layer.requiresGrad(false);
    scope(() => expect(layer.forward(x).tracked).toBe(false));
    layer.dispose();
    x.dispose();
    expect(await liveBytes()).toBe(start);
  });
});

describe("buffers and counters", () => {
  class Normed extends Module {
    norms: (BatchNorm | null)[];
    constructor(init: Initializer) {
      super();
      this.norms = [null, new BatchNorm(2, init)];
    }
  }
  const create = () => new Normed(new Initializer(device()));
  const keys = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"].map(
    (name) => `norms.1.${name}`,
  );

  it("belong to the state, and not to what is trained", async () => {
    const model = create();
    expect([...model.namedParameters()].map(([key]) => key)).toEqual(keys.slice(0, 2));
    expect([...model.namedState()].map(([key]) => key).sort()).toEqual([...keys].sort());
    expect(model.parameterCount).toBe(4);
    const x = Tensor.from([1, 10, 3, 30], [2, 2]);
    model.norms[1]?.forward(x);
    const state = await model.stateDict();
    expect([...(state.get("norms.1.running_mean")?.data ?? [])]).toEqual([Math.fround(0.2), 2]);
    expect(state.get("norms.1.num_batches_tracked")).toEqual({ shape: [], data: Float32Array.of(1) });
    const copy = create();
    copy.loadStateDict(state);
    expect(await copy.stateDict()).toEqual(state);
    for (const owner of [model, copy, x]) owner.dispose();
  });

  it("takes a state without counters, as older files are, but not one without buffers", async () => {
    const model = create();
    const state = await model.stateDict();
    state.delete("norms.1.num_batches_tracked");
    model.loadStateDict(state);
    state.delete("norms.1.running_var");
    expectError("checkpoint", /norms.1.running_var is missing \(expected \[2\]\)/, () => model.loadStateDict(state));
    model.dispose();
  });

  it("evaluates with the running statistics once training is switched off, everywhere inside", async () => {
    const model = create().train(false);
    const x = Tensor.from([1, 10, 3, 30], [2, 2]);
    const y = model.norms[1]?.forward(x) as Tensor;
    const scale = 1 / Math.sqrt(1 + 1e-5);
    expect(relativeError(await y.read(), [scale, 10 * scale, 3 * scale, 30 * scale])).toBeLessThan(1e-6);
    expect((await model.stateDict()).get("norms.1.num_batches_tracked")?.data[0]).toBe(0);
    expect(model.train().norms[1]?.training).toBe(true);
    for (const owner of [model, x, y]) owner.dispose();
  });

  it("are written to checkpoints, the counter as int64", async () => {
    const model = create();
    const norm = model.norms[1] as BatchNorm;
    norm.num_batches_tracked.value = 3_000_000_000;
    const entries = moduleEntries(model, "loss.");
    expect(entries.map(({ name }) => name).sort()).toEqual(keys.map((key) => `loss.${key}`).sort());
    const [counter] = entries.filter(({ name }) => name.endsWith("tracked"));
    expect(counter).toMatchObject({ dtype: "I64", shape: [] });
    expect(new BigInt64Array((counter.data as Uint8Array).buffer)[0]).toBe(3_000_000_000n);
    model.dispose();
  });
});

describe("Initializer", () => {
  it("draws each parameter from a stream of its own, the same for the same seed", async () => {
    const read = async (seed: number) => {
      const init = new Initializer(device(), seed);
      return [await init.normal([50], 1).read(), await init.normal([50], 1).read()].map((v) => [...v]);
    };
    const [a, b] = await read(1);
    expect(a).not.toEqual(b);
    expect(await read(1)).toEqual([a, b]);
    expect((await read(2))[0]).not.toEqual(a);
    expect(a).toEqual([...(await normal([50], { seed: 1, step: 0, purpose: 0 }).read())]);
  });

  it("stores the weights of products in bf16 where it is told to, for inference", async () => {
    const start = await liveBytes();
    const build = (weights: "f32" | "bf16") => {
      const init = new Initializer(device(), 2, { weights });
      return [new Linear(64, 48, init), new Conv3d(8, 16, [3, 3, 3], init), new LayerNorm(4, init)] as const;
    };
    const [full, half] = [build("f32"), build("bf16")];
    const stored = half.flatMap((layer) => layer.parameters().map(({ dtype }) => dtype));
    expect(stored).toEqual(["bf16", "f32", "bf16", "f32", "f32", "f32"]);
    const trained = (layer: Module) =>
      layer
        .requiresGrad(true)
        .parameters()
        .map((p) => p.requiresGrad && p.trainable);
    expect(half.flatMap(trained)).toEqual([false, true, false, true, true, true]);
    expect(full.flatMap(trained)).toEqual(full.flatMap((layer) => layer.parameters().map(() => true)));
    for (const [i, layer] of half.entries()) {
      for (const [key, { shape, data }] of await layer.stateDict()) {
        const other = (await full[i].stateDict()).get(key);
        expect(shape).toEqual(other?.shape);
        const rounds = key === "weight" && i < 2;
        expect(data).toEqual(rounds ? widen(narrow(other?.data as Float32Array)) : other?.data);
      }
      layer.loadStateDict(await full[i].stateDict());
    }
    for (const layer of [...full, ...half]) layer.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("draws nothing where a checkpoint follows, but sets what is constant", async () => {
    device().startProfile();
    const init = new Initializer(device(), 2, { values: false });
    const layers = [new Linear(5, 3, init), new LayerNorm(4, init)];
    expect(await layers[1].parameters()[0].read()).toEqual(Float32Array.of(1, 1, 1, 1));
    expect(device().stopProfile()).toMatchObject([{ op: "fill", calls: 2 }]);
    for (const layer of layers) layer.dispose();
  });

  it("keeps to PyTorch's bounds, and leaves nothing behind", async () => {
    const start = await liveBytes();
    const conv = new Conv3d(4, 50, [3, 3, 3], new Initializer(device(), 3));
    const values = (await conv.weight.read()) as Float32Array;
    const bound = 1 / Math.sqrt(4 * 27);
    expect(Math.max(...values)).toBeLessThanOrEqual(bound);
    expect(Math.max(...values)).toBeGreaterThan(0.95 * bound);
    expect(Math.min(...values)).toBeLessThan(-0.95 * bound);
    expect(device().memory().groups.parameters).toBeGreaterThanOrEqual(values.length * 4);
    conv.dispose();
    expect(await liveBytes()).toBe(start);
  });
});

describe("layers", () => {
  const init = new Initializer(device(), 5);
  const values = async (t: Tensor) => arr(t.shape, await t.read());

  it("Linear", async () => {
    const layer = new Linear(5, 3, init);
    const x = draw([2, 5], 1);
    const expected = reference.linear.linear(x, await values(layer.weight), await values(layer.bias as Parameter));
    const gelu = map(expected, reference.elementwise.activations.gelu_tanh);
    expect(relativeError(await layer.forward(fromArr(x)).read(), expected.data)).toBeLessThan(1e-6);
    expect(relativeError(await layer.forward(fromArr(x), "gelu_tanh").read(), gelu.data)).toBeLessThan(1e-5);
  });

  it("CausalConv3d pads in front, or half on each side", async () => {
    const x = draw([1, 3, 4, 4, 2], 1);
    for (const [causal, padTime] of [
      [true, [2, 0]],
      [false, [1, 1]],
    ] as const) {
      for (const stride of [
        [1, 1, 1],
        [2, 2, 2],
      ] as const) {
        const { conv } = new CausalConv3d(2, 3, init, { causal, stride });
        const [w, b] = [await values(conv.weight), await values(conv.bias as Parameter)];
        const expected = reference.linear.conv3d(x, w, b, null, { stride, padTime, padSpace: [1, 1], replicate: true });
        expect(relativeError(await conv.forward(fromArr(x)).read(), expected.data)).toBeLessThan(1e-5);
      }
    }
  });

  it("LayerNorm", async () => {
    const x = draw([3, 6], 1);
    const expected = reference.norm.normalize(x, "layer_norm", 1e-6);
    for (const affine of [true, false]) {
      const layer = new LayerNorm(6, init, { affine });
      expect(layer.parameters().length).toBe(affine ? 2 : 0);
      expect(relativeError(await layer.forward(fromArr(x)).read(), expected.data)).toBeLessThan(1e-5);
    }
  });

  it("TimestepEmbedding has PixArt's keys and is two linear layers on sinusoids", async () => {
    const layer = new TimestepEmbedding(6, init);
    expect([...layer.namedParameters()].map(([key]) => key)).toEqual([
      "timestep_embedder.linear_1.weight",
      "timestep_embedder.linear_1.bias",
      "timestep_embedder.linear_2.weight",
      "timestep_embedder.linear_2.bias",
    ]);
    const { linear_1: first, linear_2: second } = layer.timestep_embedder;
    const t = [0, 250, 999];
    const angle = (i: number, j: number) => t[i] * 10000 ** (-(j % 128) / 128);
    const features = arr(
      [3, 256],
      t.flatMap((_, i) => Array.from({ length: 256 }, (_, j) => (j < 128 ? Math.cos : Math.sin)(angle(i, j)))),
    );
    const hidden = reference.linear.linear(features, await values(first.weight), await values(first.bias as Parameter));
    const active = map(hidden, reference.elementwise.activations.silu);
    const expected = reference.linear.linear(
      active,
      await values(second.weight),
      await values(second.bias as Parameter),
    );
    const y = layer.forward(fromArr(arr([3], t)));
    expect(y.shape).toEqual([3, 6]);
    expect(relativeError(await y.read(), expected.data)).toBeLessThan(1e-5);
  });
});
