/** LPIPS: the distance of two videos as a VGG16 sees them (Zhang et al. 2018, reference LPIPS). */
import { check, LtxError } from "../errors.js";
import { readTensors } from "../formats/checkpoint.js";
import { Conv2d, Initializer, Module } from "../nn/index.js";
import { add, cast, linear, lpipsDistance, maxPool2d, relu, reshape } from "../ops/index.js";
import { checkpoint, type Device, keep, device as openDevice, type Shape, scope, Tensor } from "../tensor/index.js";

/** torchvision's numbers of the convolutions in `vgg16.features`, by slice; a slice's output is compared. */
const SLICES = [
  [0, 2],
  [5, 7],
  [10, 12, 14],
  [17, 19, 21],
  [24, 26, 28],
] as const;

/** What LPIPS subtracts from pixels in [-1, 1] and divides them by: ImageNet's mean and deviation. */
const SHIFT = [-0.03, -0.088, -0.188];
const SCALE = [0.458, 0.448, 0.45];

/** Frames are halved four times. */
const SMALLEST = 16;

export type LpipsState = ReadonlyMap<string, { shape: Shape; data: Float32Array }>;

export interface LpipsOptions {
  device?: Device;
  /** What pixels in [0, 1] become first: `symmetric` [-1, 1], which the weights were trained for; `unit` stay as they are. */
  range?: "symmetric" | "unit";
  /** The dtype of activations. */
  computeDtype?: "f32" | "bf16";
  /** Whether backward computes each slice's inside anew instead of keeping it. */
  gradientCheckpointing?: boolean;
}

/** Pixels to the network's inputs: weights (3, 1) for gray, (3, 3) for colour, and a bias (3). */
interface InputMap {
  gray: Tensor;
  colour: Tensor;
  bias: Tensor;
}

/** Convolutions under torchvision's numbers. */
class Slice extends Module {
  [index: number]: Conv2d;
}

/** The five slices of the network. */
class Vgg16 extends Module {
  slice1 = new Slice();
  slice2 = new Slice();
  slice3 = new Slice();
  slice4 = new Slice();
  slice5 = new Slice();
}

/** The weights of one slice's channels; `model.0` is the dropout of the reference, which acts in no evaluation. */
class Weighting extends Module {
  model: [null, Conv2d];

  constructor(channels: number, init: Initializer) {
    super();
    this.model = [null, new Conv2d(channels, 1, 1, init, { bias: false })];
  }
}

/** LPIPS with frozen weights. Its widths are those of the weights, the layout is VGG16's. */
export class Lpips extends Module {
  net = new Vgg16();
  lin0: Weighting;
  lin1: Weighting;
  lin2: Weighting;
  lin3: Weighting;
  lin4: Weighting;
  private _options: LpipsOptions;
  private _inputs: InputMap;

  /**
   * @param state tensors by key: `net.sliceS.N` or torchvision's `features.N`, `linK.model.1`, and where it is there
   * `scaling_layer`; others are passed over
   * @throws {LtxError} `checkpoint` when weights are missing or don't fit each other
   */
  constructor(state: LpipsState, options: LpipsOptions = {}, source = "the checkpoint") {
    super();
    const own = canonical(state);
    const missing = wantedKeys().filter((key) => !own.has(key));
    check(missing.length === 0, "checkpoint", () => {
      return (
        `[lpips] ${source} lacks ${missing.slice(0, 3).join(", ")}${missing.length > 3 ? ` and ${missing.length - 3} more` : ""}: ` +
        "the perceptual loss needs VGG16 (net.sliceS.N, or torchvision's features.N) and the LPIPS weights (linK.model.1), " +
        "in one file or in a list of files"
      );
    });
    const device = options.device ?? openDevice();
    const init = new Initializer(device);
    let channels = 3;
    const lins: Weighting[] = [];
    for (const [s, numbers] of SLICES.entries()) {
      for (const n of numbers) {
        const width = own.get(sliceKey(s, n, "weight"))?.shape[0] ?? 0;
        this.net[sliceName(s)][n] = new Conv2d(channels, width, 3, init, { padding: 1 });
        channels = width;
      }
      lins.push(new Weighting(channels, init));
    }
    [this.lin0, this.lin1, this.lin2, this.lin3, this.lin4] = lins;
    this.train(false).requiresGrad(false);
    for (const parameter of this.parameters()) parameter.trainable = false;
    this._options = options;
    this._inputs = init.whole(() => {
      this.loadStateDict(new Map([...own].filter(([key]) => !key.startsWith("scaling_layer."))));
      return scope(() => inputMap(own, options.range ?? "symmetric", device));
    });
    for (const tensor of Object.values(this._inputs)) keep(tensor);
  }

  /**
   * Reads the weights from one file, or from several that complete each other.
   * @throws {LtxError} `checkpoint`, `io`, `file_format`
   */
  static async load(paths: string | readonly string[], options: LpipsOptions = {}): Promise<Lpips> {
    const files = typeof paths === "string" ? [paths] : paths;
    const state = new Map<string, { shape: Shape; data: Float32Array }>();
    for (const path of files) {
      const { tensors } = await readTensors(path, (name) => canonicalKey(name) !== null);
      for (const [name, value] of tensors) state.set(name, value);
    }
    return new Lpips(state, options, files.join(", "));
  }

  /**
   * @param a video (B,F,H,W,C) f32 in [0,1], C 1 or 3
   * @param b alike
   * @returns (B) f32: the mean over frames of each frame's distance
   * @throws {LtxError} `shape_mismatch`
   */
  forward(a: Tensor, b: Tensor): Tensor {
    check(a.shape.join() === b.shape.join() && [1, 3].includes(a.shape[4]), "shape_mismatch", () => {
      return `[lpips] expects two videos (B,F,H,W,1 or 3) of one shape, got [${a.shape}] and [${b.shape}]`;
    });
    check(Math.min(a.shape[2], a.shape[3]) >= SMALLEST, "shape_mismatch", () => {
      return `[lpips] height and width must be ${SMALLEST} or more, got [${a.shape}]`;
    });
    return scope(() => {
      const [left, right] = [this.features(a), this.features(b)];
      const lins = [this.lin0, this.lin1, this.lin2, this.lin3, this.lin4];
      return lins
        .map(({ model: [, conv] }, s) => lpipsDistance(left[s], right[s], reshape(conv.weight, [conv.weight.size])))
        .reduce(add);
    });
  }

  /** The output of each slice. */
  private features(video: Tensor): Tensor[] {
    const { computeDtype = "f32", gradientCheckpointing } = this._options;
    const { gray, colour, bias } = this._inputs;
    let x = scope(() => cast(linear(video, video.shape[4] === 1 ? gray : colour, bias), computeDtype));
    return SLICES.map((_, s) => {
      const run = (x: Tensor) => this.slice(s, x);
      x = gradientCheckpointing ? checkpoint(run, [x]) : run(x);
      return x;
    });
  }

  private slice(s: number, x: Tensor): Tensor {
    return scope(() => {
      let y = s > 0 ? maxPool2d(x) : x;
      for (const n of SLICES[s]) y = relu(this.net[sliceName(s)][n].forward(y));
      return y;
    });
  }

  override dispose(): void {
    super.dispose();
    const { gray, colour, bias } = this._inputs;
    for (const tensor of [gray, colour, bias]) tensor.dispose();
  }
}

const sliceName = (s: number) => `slice${s + 1}` as keyof Vgg16 & `slice${1 | 2 | 3 | 4 | 5}`;
const sliceKey = (s: number, n: number, part: string): string => `net.${sliceName(s)}.${n}.${part}`;

function wantedKeys(): string[] {
  const convolutions = SLICES.flatMap((numbers, s) =>
    numbers.flatMap((n) => ["weight", "bias"].map((part) => sliceKey(s, n, part))),
  );
  return [...convolutions, ...SLICES.map((_, k) => `lin${k}.model.1.weight`)];
}

const WANTED = new Set([...wantedKeys(), "scaling_layer.shift", "scaling_layer.scale"]);

/** A tensor's key here, whichever way a file calls it, or null. */
function canonicalKey(name: string): string | null {
  const bare = name.replace(/^(?:module\.)?(?:loss\.)?(?:perceptual_loss\.)?/, "");
  const [, number, part] = /^features\.(\d+)\.(weight|bias)$/.exec(bare) ?? [];
  const s = SLICES.findIndex((numbers) => numbers.some((n) => n === Number(number)));
  const key = s < 0 ? bare : sliceKey(s, Number(number), part);
  return WANTED.has(key) ? key : null;
}

function canonical(state: LpipsState): Map<string, { shape: Shape; data: Float32Array }> {
  const own = [...state].map(([name, value]) => [canonicalKey(name), value] as const);
  return new Map(own.filter((entry): entry is [string, (typeof entry)[1]] => entry[0] !== null));
}

/** (pixel - shift) / scale, of pixels brought to the range first; gray is given to all three colours. */
function inputMap(state: LpipsState, range: "symmetric" | "unit", device: Device): InputMap {
  const shift = [...(state.get("scaling_layer.shift")?.data ?? SHIFT)];
  const scale = [...(state.get("scaling_layer.scale")?.data ?? SCALE)];
  if (shift.length !== 3 || scale.length !== 3 || scale.some((v) => v === 0)) {
    throw new LtxError(
      "checkpoint",
      `[lpips] scaling_layer expects three shifts and three scales other than 0, got ${shift} and ${scale}`,
    );
  }
  const [factor, offset] = range === "symmetric" ? [2, -1] : [1, 0];
  const constant = (values: number[], shape: Shape) => Tensor.from(values, shape, { device });
  return {
    gray: constant(
      scale.map((v) => factor / v),
      [3, 1],
    ),
    colour: constant(
      scale.flatMap((v, i) => [0, 1, 2].map((k) => (k === i ? factor / v : 0))),
      [3, 3],
    ),
    bias: constant(
      scale.map((v, i) => (offset - shift[i]) / v),
      [3],
    ),
  };
}
