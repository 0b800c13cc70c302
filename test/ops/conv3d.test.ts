import fc from "fast-check";
import { describe, expect, it } from "vitest";
import * as ops from "../../lib/ops/index.js";
import { backward, device, Tensor } from "../../lib/tensor/index.js";
import { type Arr, arr, draw, relativeError } from "../support/arrays.js";
import { checkOp, expectError, fromArr, input, parameter, some } from "../support/gradcheck.js";
import * as reference from "../support/reference.js";

type Triple = [number, number, number];
interface Variant {
  x: number[];
  outputs: number;
  kernel: Triple;
  stride?: Triple;
  padTime?: [number, number];
  padSpace?: [number, number];
  replicate?: boolean;
  bias?: boolean;
  residual?: boolean;
  gradient?: boolean;
}

async function verify(v: Variant): Promise<void> {
  const {
    x,
    outputs,
    kernel,
    stride = [1, 1, 1],
    padTime = [0, 0],
    padSpace = [0, 0],
    replicate = false,
    bias = true,
  } = v;
  const options = { stride, padTime, padSpace, replicate };
  const weight = [outputs, ...kernel, x[4]];
  const shape = ops.conv3dShape(x, weight, options);
  const bound = 2 / Math.sqrt(Math.max(1, kernel[0] * kernel[1] * kernel[2] * x[4]));
  await checkOp({
    operands: {
      x: input(draw(x, 1)),
      w: parameter(draw(weight, 2, -bound, bound)),
      bias: bias ? parameter(draw([outputs], 3)) : null,
      residual: v.residual ? input(draw(shape, 4)) : null,
    },
    run: ({ x, w, bias, residual }) => ops.conv3d(x, w, bias, options, residual),
    reference: ({ x, w, bias, residual }) => reference.linear.conv3d(x, w, bias, residual, options),
    tolerance: { gradientBf16: 1.5e-2 },
    gradient: v.gradient,
  });
}

const causal = { padTime: [2, 0] as [number, number], padSpace: [1, 1] as [number, number], replicate: true };
const symmetric = { padTime: [1, 1] as [number, number], padSpace: [1, 1] as [number, number], replicate: true };
const zeros = { ...symmetric, replicate: false };

describe("conv3d", () => {
  // A clip alone, or few, takes another road through a backend than many copies of it, which must give the same.
  async function agreesAmongCopies(
    channels: number,
    kernel: Triple,
    copies: number,
    padding: Pick<typeof causal, "padTime" | "replicate"> & { padSpace?: [number, number] },
    dtype: "f32" | "bf16",
  ): Promise<void> {
    const clip = draw([1, 3, 2, 2, channels], 1);
    const weight = draw([channels, ...kernel, channels], 2, -0.05, 0.05);
    const results = async (count: number) => {
      const values = Float32Array.from({ length: clip.data.length * count }, (_, i) => clip.data[i % clip.data.length]);
      const x = ops.cast(Tensor.from(values, [count, 3, 2, 2, channels]), dtype);
      const w = Tensor.from(Float32Array.from(weight.data), weight.shape);
      x.requiresGrad = w.requiresGrad = true;
      const y = ops.conv3d(x, w, null, padding);
      backward(y, y);
      const [output, dx, dw] = await Promise.all([y.read(), x.grad!.read(), w.grad!.read()]);
      const last = <T extends { length: number; slice(from: number): T }>(a: T, length: number) =>
        a.slice(a.length - length);
      return [last(output, y.size / count), last(dx, clip.data.length), dw.map((v) => v / count)];
    };
    const [alone, among] = [await results(1), await results(copies)];
    for (const [i, found] of alone.entries()) {
      const error = relativeError(found, among[i]);
      expect(error, `${channels} channels, kernel ${kernel}, ${dtype}, ${i}`).toBeLessThan(
        dtype === "f32" ? 1e-5 : 5e-3,
      );
    }
  }

  it("gives a wide clip alone, a product of columns, what it gives that clip among copies, a convolution", async () => {
    for (const padding of [causal, symmetric]) {
      for (const dtype of ["f32", "bf16"] as const) await agreesAmongCopies(64, [3, 3, 3], 70, padding, dtype);
    }
  });

  it("gives the same in tiles of any size, and with the sums divided among blocks", async () => {
    const inTime = { padTime: [2, 0] as [number, number], replicate: true };
    for (const channels of [16, 64, 128]) await agreesAmongCopies(channels, [3, 1, 1], 400, inTime, "bf16");
    await agreesAmongCopies(128, [3, 1, 1], 400, inTime, "f32");
    await agreesAmongCopies(128, [3, 3, 3], 10, symmetric, "bf16");
  });

  for (const [name, padding] of Object.entries({ causal, symmetric, zeros, unpadded: {} })) {
    it(`${name}, kernel 3, with and without bias and residual`, async () => {
      for (const bias of [false, true]) {
        for (const residual of [false, true]) {
          await verify({ x: [2, 3, 3, 3, 2], outputs: 3, kernel: [3, 3, 3], bias, residual, ...padding });
        }
      }
    });

    it(`${name}, strides`, async () => {
      for (const stride of [
        [1, 2, 2],
        [2, 1, 1],
        [2, 2, 2],
      ] as Triple[]) {
        await verify({ x: [1, 4, 5, 3, 3], outputs: 2, kernel: [3, 3, 3], stride, ...padding });
      }
    });
  }

  it("kernel 1 is a linear layer", async () => {
    await verify({ x: [2, 2, 2, 3, 5], outputs: 3, kernel: [1, 1, 1], residual: true });
    await verify({ x: [1, 3, 3, 3, 3], outputs: 2, kernel: [1, 1, 1], stride: [2, 2, 2] });
  });

  it("kernels 4, uneven and larger than the frame count", async () => {
    await verify({ x: [1, 1, 4, 4, 2], outputs: 2, kernel: [1, 4, 4], stride: [1, 2, 2], padSpace: [1, 1] });
    await verify({
      x: [1, 4, 4, 4, 1],
      outputs: 2,
      kernel: [4, 4, 4],
      stride: [2, 2, 2],
      padTime: [1, 1],
      padSpace: [1, 1],
    });
    await verify({ x: [1, 2, 3, 2, 3], outputs: 1, kernel: [1, 3, 1], padSpace: [1, 0] });
    await verify({
      x: [1, 1, 2, 2, 2],
      outputs: 2,
      kernel: [5, 3, 3],
      padTime: [4, 0],
      padSpace: [1, 1],
      replicate: true,
    });
  });

  it("what discriminators are made of: 4×4×4 kernels, zeros in time too, stride 2 and 1, few channels", async () => {
    const down = {
      kernel: [4, 4, 4] as Triple,
      stride: [2, 2, 2] as Triple,
      padTime: zeros.padTime,
      padSpace: zeros.padSpace,
    };
    const last = { ...down, stride: [1, 1, 1] as Triple };
    for (const channels of [1, 2, 3, 6]) {
      await verify({ x: [1, 4, 4, 5, channels], outputs: 2, ...down });
      await verify({ x: [2, 3, 4, 3, channels], outputs: 1, ...last });
      await verify({ x: [2, 9, 17, 12, channels], outputs: 16, ...down, gradient: false });
    }
    await verify({ x: [1, 5, 8, 8, 32], outputs: 48, ...down, gradient: false });
    await verify({ x: [2, 4, 6, 5, 64], outputs: 1, ...last, gradient: false });
  });

  it("images as videos of one frame: 3×3, and 4×4 with stride 2 and 1", async () => {
    for (const channels of [1, 2, 3, 6]) {
      const x = [4, 1, 5, 4, channels];
      await verify({ x, outputs: 3, kernel: [1, 3, 3], padSpace: [1, 1] });
      await verify({ x, outputs: 2, kernel: [1, 4, 4], stride: [1, 2, 2], padSpace: [1, 1] });
      await verify({ x, outputs: 1, kernel: [1, 4, 4], padSpace: [1, 1] });
      await verify({ x: [6, 1, 32, 31, channels], outputs: 64, kernel: [1, 3, 3], padSpace: [1, 1], gradient: false });
    }
  });

  it("one frame, one pixel, odd channels", async () => {
    for (const padding of [causal, symmetric, zeros]) {
      await verify({ x: [1, 1, 1, 1, 17], outputs: 5, kernel: [3, 3, 3], residual: true, ...padding });
      await verify({ x: [2, 1, 2, 1, 5], outputs: 17, kernel: [3, 3, 3], ...padding, gradient: false });
      await verify({ x: [1, 2, 1, 2, 1], outputs: 1, kernel: [3, 3, 3], ...padding });
    }
  });

  describe("with enough rows and channels for whole tiles and parts of them", () => {
    const kernel: Triple = [3, 3, 3];
    const variants: Variant[] = [
      { x: [1, 3, 7, 7, 33], outputs: 35, kernel, ...causal },
      { x: [2, 1, 9, 8, 32], outputs: 65, kernel, ...symmetric },
      { x: [1, 2, 9, 9, 40], outputs: 33, kernel, ...zeros },
      { x: [2, 6, 9, 10, 33], outputs: 34, kernel, stride: [2, 1, 1], ...causal },
      { x: [3, 3, 14, 14, 32], outputs: 32, kernel, stride: [1, 2, 2], ...causal },
    ];
    for (const variant of variants) {
      const { x: shape, outputs, stride = [1, 1, 1], padTime = [0, 0], padSpace = [0, 0], replicate = false } = variant;
      it(`${shape} to ${outputs} by ${stride}`, async () => {
        await verify({ ...variant, residual: true, gradient: false });
        const options = { stride, padTime, padSpace, replicate };
        const weight = [outputs, ...kernel, shape[4]];
        const [x, w] = [draw(shape, 1), draw(weight, 2, -0.1, 0.1)];
        const dy = draw(ops.conv3dShape(shape, weight, options), 3);
        const dot = (a: ArrayLike<number>, b: ArrayLike<number>) => {
          let sum = 0;
          for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
          return sum;
        };
        const size = (a: ArrayLike<number>) => Math.sqrt(dot(a, a));
        for (const [dtype, tolerance] of [
          ["f32", 1e-5],
          ["bf16", 1e-2],
        ] as const) {
          const [input, kernels] = [fromArr(x, dtype), fromArr(w)];
          input.requiresGrad = kernels.requiresGrad = true;
          backward(ops.conv3d(input, kernels, null, options), fromArr(dy, dtype));
          const [dx, dw] = [await input.grad!.read(), await kernels.grad!.read()];
          // The product is linear in each operand: along any direction its change is known.
          for (let k = 10; k < 14; k++) {
            const [v, u] = [draw(shape, k), draw(weight, k, -0.1, 0.1)];
            const alongX = reference.linear.conv3d(v, w, null, null, options);
            const alongW = reference.linear.conv3d(x, u, null, null, options);
            const near = (got: number, expected: number, scale: number) =>
              expect(Math.abs(got - expected)).toBeLessThan(tolerance * scale);
            near(dot(dx, v.data), dot(dy.data, alongX.data), size(dx) * size(v.data) * 0.1);
            near(dot(dw, u.data), dot(dy.data, alongW.data), size(dw) * size(u.data) * 0.1);
          }
        }
      });
    }
  });

  it("an empty batch", async () => {
    await verify({ x: [0, 3, 4, 4, 3], outputs: 2, kernel: [3, 3, 3], residual: true, ...causal });
  });

  it("keeps its accuracy at working sizes", async () => {
    await verify({ x: [2, 5, 9, 7, 32], outputs: 48, kernel: [3, 3, 3], ...causal, gradient: false });
    await verify({
      x: [1, 4, 8, 8, 17],
      outputs: 33,
      kernel: [3, 3, 3],
      stride: [2, 2, 2],
      ...causal,
      gradient: false,
    });
  });

  it("fits its reference for drawn shapes", async () => {
    const size = (max: number) => fc.integer({ min: 1, max });
    const shapes = fc.record({
      x: fc.tuple(size(2), size(3), size(3), size(3), size(3)),
      outputs: size(3),
      kernel: fc.tuple(fc.constantFrom(1, 3), fc.constantFrom(1, 3), fc.constantFrom(1, 3)),
      stride: fc.tuple(size(2), size(2), size(2)),
      front: fc.integer({ min: 0, max: 2 }),
      replicate: fc.boolean(),
      bias: fc.boolean(),
      residual: fc.boolean(),
    });
    const check = fc.asyncProperty(shapes, async ({ front, kernel, ...rest }) => {
      const padTime: [number, number] = [front, kernel[0] - 1];
      await verify({ ...rest, kernel, padTime, padSpace: [kernel[1] >> 1, kernel[2] >> 1] });
    });
    await fc.assert(check, { seed: 11, numRuns: 10 });
  });

  it("gives a wide or long layer's weights the gradients of narrow layers", async () => {
    const channels = (a: Arr, first: number, count: number) => {
      const size = a.shape[a.shape.length - 1];
      const data = Array.from(a.data).filter((_, i) => i % size >= first && i % size < first + count);
      return arr([...a.shape.slice(0, -1), count], data);
    };
    const gradient = async (x: Arr, dy: Arr, dtype: "f32" | "bf16") => {
      const w = Tensor.from(new Float32Array(dy.shape[4] * 9 * x.shape[4]), [dy.shape[4], 1, 3, 3, x.shape[4]]);
      w.requiresGrad = true;
      backward(ops.conv3d(fromArr(x, dtype), w, null, { padSpace: [1, 1] }), fromArr(dy, dtype));
      return w.grad!.read();
    };
    for (const [positions, inputs, outputs] of [
      [[1, 1, 8, 8], 392, 392],
      [[1, 2, 60, 61], 24, 40],
    ] as [number[], number, number][]) {
      const [x, dy] = [draw([...positions, inputs], 1), draw([...positions, outputs], 2)];
      const [first, count] = [inputs - 6, 5];
      for (const dtype of ["f32", "bf16"] as const) {
        const wide = await gradient(x, dy, dtype);
        const narrow = await gradient(channels(x, first, count), channels(dy, first, count), dtype);
        const part = Array.from(narrow, (_, i) => {
          const [row, tap, column] = [Math.floor(i / (9 * count)), Math.floor(i / count) % 9, i % count];
          return wide[((first + row) * 9 + tap) * inputs + first + column];
        });
        expect(relativeError(part, narrow), dtype).toBeLessThan(1e-5);
      }
    }
  });

  it("states its output shape", () => {
    expect(ops.conv3dShape([2, 9, 16, 17, 3], [8, 3, 3, 3, 3], { stride: [2, 2, 2], ...causal })).toEqual([
      2, 5, 8, 9, 8,
    ]);
  });

  it("rejects what does not fit", () => {
    const x = () => some([1, 3, 4, 4, 3]);
    const w = () => some([2, 3, 3, 3, 3]);
    expectError("shape_mismatch", /\[conv3d\] expects input \(B,F,H,W,C\).*got \[3,4,4,3\]/, () =>
      ops.conv3d(some([3, 4, 4, 3]), w()),
    );
    expectError(
      "shape_mismatch",
      /\[conv3d\] weight expects 5 input channels, got 3 \(input shape \[1,3,4,4,3\]\)/,
      () => {
        ops.conv3d(x(), some([2, 3, 3, 3, 5]));
      },
    );
    expectError("shape_mismatch", /\[conv3d\] bias expects \[2\], got \[3\]/, () => ops.conv3d(x(), w(), some([3])));
    expectError("shape_mismatch", /\[conv3d\] kernel extents and input channels must be positive/, () =>
      ops.conv3d(some([1, 3, 4, 4, 0]), some([2, 3, 3, 3, 0])),
    );
    expectError("dtype_mismatch", /\[conv3d\] bias must be f32/, () => ops.conv3d(x(), w(), some([2], "bf16")));
    expectError("dtype_mismatch", /\[conv3d\] expects f32 or bf16, got Tensor\(i32/, () =>
      ops.conv3d(x(), some([2, 3, 3, 3, 3], "i32")),
    );
    expectError("invalid_argument", /\[conv3d\] stride \[0,1,1\] must be positive/, () =>
      ops.conv3d(x(), w(), null, { stride: [0, 1, 1] }),
    );
    expectError("invalid_argument", /\[conv3d\] padding \[-1,0,0,0\]/, () =>
      ops.conv3d(x(), w(), null, { padTime: [-1, 0] }),
    );
    expectError("shape_mismatch", /\[conv3d\] kernel \[3,5,5\] is larger than the padded input/, () =>
      ops.conv3d(x(), some([2, 3, 5, 5, 3])),
    );
    expectError("shape_mismatch", /\[conv3d\] residual expects \[1,1,2,2,2\], got \[1,1,2,2,3\]/, () => {
      ops.conv3d(x(), w(), null, {}, some([1, 1, 2, 2, 3]));
    });
    expectError("dtype_mismatch", /\[conv3d\] .*i32/, () => ops.conv3d(some([1, 3, 4, 4, 3], "i32"), w()));
  });
});

describe.runIf(device().name === "cpu")("sums in f32 on the CPU", () => {
  /** Terms of both signs and six magnitudes that almost cancel. */
  const terms = (count: number) =>
    Float32Array.from(
      { length: count },
      (_, i) => (i % 2 ? -1 : 1) * (1 + Math.sin(Math.floor(i / 2) * 3.7)) * 1000 + Math.cos(i),
    );

  it("are right to the last digit over few channels, whatever cancels", async () => {
    const [frames, height, width, channels, outputs] = [3, 4, 4, 3, 2];
    const x = terms(frames * height * width * channels);
    const w = Float32Array.from({ length: outputs * 27 * channels }, (_, i) => 1 + (i % 3) * 2 ** -12);
    const y = await ops
      .conv3d(
        Tensor.from(x, [1, frames, height, width, channels]),
        Tensor.from(w, [outputs, 3, 3, 3, channels]),
        null,
        {
          stride: [1, 1, 1],
          padTime: [0, 0],
          padSpace: [0, 0],
        },
      )
      .read();
    let at = 0;
    for (let i = 0; i < height - 2; i++)
      for (let j = 0; j < width - 2; j++)
        for (let o = 0; o < outputs; o++, at++) {
          let sum = 0;
          for (let k = 0; k < 27 * channels; k++) {
            const [t, v, u, c] = [
              Math.floor(k / (9 * channels)),
              Math.floor(k / (3 * channels)) % 3,
              Math.floor(k / channels) % 3,
              k % channels,
            ];
            sum += x[((t * height + i + v) * width + j + u) * channels + c] * w[o * 27 * channels + k];
          }
          expect(y[at]).toBe(Math.fround(sum));
        }
  });

  it("of a bias's gradient are right to the last digits, whatever cancels", async () => {
    for (const [inputs, outputs] of [
      [3, 2],
      [16, 24],
    ]) {
      const shape = [2, 3, 8, 8, outputs];
      const dy = terms(2 * 3 * 8 * 8 * outputs);
      const x = Tensor.from(new Float32Array(2 * 5 * 10 * 10 * inputs).fill(0.5), [2, 5, 10, 10, inputs]);
      const w = Tensor.from(new Float32Array(outputs * 27 * inputs).fill(0.1), [outputs, 3, 3, 3, inputs]);
      const bias = Tensor.from(new Float32Array(outputs), [outputs]);
      bias.requiresGrad = true;
      const y = ops.conv3d(x, w, bias, { stride: [1, 1, 1], padTime: [0, 0], padSpace: [0, 0] });
      backward(y, Tensor.from(dy, shape));
      const found = await (bias.grad as Tensor).read();
      for (let o = 0; o < outputs; o++) {
        let sum = 0;
        for (let i = o; i < dy.length; i += outputs) sum += dy[i];
        expect(Math.abs(found[o] - sum)).toBeLessThan(1e-6 * Math.abs(sum) + 1e-9);
      }
    }
  });
});
