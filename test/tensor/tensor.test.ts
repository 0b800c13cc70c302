import { describe, expect, it, vi } from "vitest";
import { affine, cast, full, reshape } from "../../lib/ops/index.js";
import { backends, device, empty, narrow, Tensor, widen } from "../../lib/tensor/index.js";
import { expectError, some } from "../support/gradcheck.js";

describe("Tensor.from and read", () => {
  it("round trips every dtype", async () => {
    const cases = [
      [Float32Array.of(1.5, -2, 3e-40), "f32"],
      [Int32Array.of(1, -2, 2 ** 31 - 1), "i32"],
      [Uint8Array.of(0, 1, 255), "u8"],
    ] as const;
    for (const [data, dtype] of cases) {
      const t = Tensor.from(data, [3]);
      expect(t.dtype).toBe(dtype);
      expect(await t.read()).toEqual(data);
    }
    expect([...(await Tensor.from([1, 2], [2]).read())]).toEqual([1, 2]);
  });

  it("converts where the dtype differs", async () => {
    expect([...(await Tensor.from(Int32Array.of(1, -2), [2], { dtype: "f32" }).read())]).toEqual([1, -2]);
    expect([...(await Tensor.from([1.004, -3.3], [2], { dtype: "bf16" }).read())]).toEqual([1.0078125, -3.296875]);
  });

  it("takes Uint16Array as bf16 bits, whatever the dtype asked for", async () => {
    const bits = Uint16Array.of(0x3f80, 0xc040);
    const t = Tensor.from(bits, [2]);
    expect(t.dtype).toBe("bf16");
    expect([...(await t.read())]).toEqual([1, -3]);
    expect([...(await Tensor.from(bits, [2], { dtype: "f32" }).read())]).toEqual([1, -3]);
    expect([...(await t.readBytes())]).toEqual([0x80, 0x3f, 0x40, 0xc0]);
  });

  it("holds scalars, empty tensors and slices of larger buffers", async () => {
    expect(await Tensor.from([7], []).item()).toBe(7);
    expect((await Tensor.from([], [0, 3]).read()).length).toBe(0);
    expect((await Tensor.from([], [0, 3], { dtype: "bf16" }).read()).length).toBe(0);
    const part = Float32Array.of(1, 2, 3, 4).subarray(1, 3);
    expect([...(await Tensor.from(part, [2]).read())]).toEqual([2, 3]);
  });

  it("copies: later changes of the array are not seen", async () => {
    const data = Float32Array.of(1, 2);
    const t = Tensor.from(data, [2]);
    data[0] = 9;
    expect([...(await t.read())]).toEqual([1, 2]);
    const read = (await t.read()) as Float32Array;
    read[0] = 8;
    expect([...(await t.read())]).toEqual([1, 2]);
  });

  it("says what is wrong", async () => {
    expectError("shape_mismatch", /\[tensor\] shape \[2,2\] holds 4 values, got 3/, () =>
      Tensor.from([1, 2, 3], [2, 2]),
    );
    expectError("invalid_argument", /\[tensor\] shape \[2,-1\] is not a list/, () => empty([2, -1]));
    expectError("invalid_argument", /\[tensor\] shape \[1.5\]/, () => empty([1.5]));
    expectError("invalid_argument", /\[tensor\] shape/, () => empty([1, 1, 1, 1, 1, 1, 1, 1, 1]));
    expectError("shape_mismatch", /\[write\] tensor \[2\] holds 2 values, got 3/, () => some([2]).write([1, 2, 3]));
    await expect(some([2, 3]).item()).rejects.toMatchObject({
      code: "shape_mismatch",
      message: expect.stringMatching(/\[item\] .*\[2,3\]/),
    });
  });
});

describe("reads", () => {
  it("see the values of their place in the queue, and resolve in order", async () => {
    const x = full([3], 0);
    const order: number[] = [];
    const reads = Array.from({ length: 20 }, (_, i) => {
      x.write([i, i + 1, i + 2]);
      return x.read().then((values) => {
        order.push(i);
        return [...values];
      });
    });
    expect(await Promise.all(reads)).toEqual(Array.from({ length: 20 }, (_, i) => [i, i + 1, i + 2]));
    expect(order).toEqual(Array.from({ length: 20 }, (_, i) => i));
  });

  it("survive the tensor's disposal", async () => {
    const x = full([1000], 5);
    const values = x.read();
    x.dispose();
    for (let i = 0; i < 20; i++) full([1000], i).dispose();
    expect(new Set(await values)).toEqual(new Set([5]));
  });

  it("see writes through views", async () => {
    const x = full([2, 3], 1);
    const y = reshape(x, [3, 2]);
    x.write([1, 2, 3, 4, 5, 6]);
    expect([...(await y.read())]).toEqual([1, 2, 3, 4, 5, 6]);
  });
});

describe("bf16", () => {
  const values = [
    1,
    -1,
    0,
    -0,
    1.00390625,
    1.01171875,
    3.4e38,
    -3.4e38,
    1e-40,
    Number.POSITIVE_INFINITY,
    Number.NEGATIVE_INFINITY,
    0.1,
    65536.5,
  ];

  it("rounds to nearest, ties to even; overflow gives infinity", () => {
    const one = 0x3f80;
    expect([...narrow(Float32Array.of(1, 1 + 2 ** -8, 1 + 3 * 2 ** -8, 1 + 2 ** -8 + 2 ** -20))]).toEqual([
      one,
      one,
      one + 2,
      one + 1,
    ]);
    expect([...narrow(Float32Array.of(3.4028234e38, -3.4028234e38, Number.POSITIVE_INFINITY))]).toEqual([
      0x7f80, 0xff80, 0x7f80,
    ]);
    expect([...narrow(Float32Array.of(0, -0))]).toEqual([0, 0x8000]);
  });

  it("keeps NaN a NaN, also where only low bits tell it from infinity", () => {
    const bits = new Float32Array(Uint32Array.of(0x7f800001, 0xff800001, 0x7fc00000, 0x7fffffff, 0xffffffff).buffer);
    for (const v of widen(narrow(bits))) expect(v).toBeNaN();
  });

  it("tells a host without room as an LtxError", () => {
    const [bits, bytes] = [new Uint16Array(5), new Uint8Array(5)];
    class Full {
      constructor() {
        throw new RangeError("Array buffer allocation failed");
      }
    }
    try {
      vi.stubGlobal("Uint32Array", Full);
      expectError("out_of_memory", /\[widen\] the host has no room for 20 bytes: Array buffer/, () => widen(bits));
      vi.stubGlobal("Float32Array", Full);
      const options = { dtype: "f32" } as const;
      expectError("out_of_memory", /\[tensor\] .* 20 bytes/, () => Tensor.from(bytes, [5], options));
    } finally {
      vi.unstubAllGlobals();
    }
    expect(widen(bits)).toHaveLength(5);
  });

  it("takes an array whose memory was handed over for an empty one", () => {
    const values = new Float32Array(3);
    structuredClone(values.buffer, { transfer: [values.buffer] });
    expect(narrow(values)).toHaveLength(0);
  });

  it("widens exactly, and narrows back to the same bits", () => {
    const all = Uint16Array.from({ length: 65536 }, (_, i) => i);
    const wide = widen(all);
    narrow(wide).forEach((bits, i) => {
      if (Number.isNaN(wide[i])) expect(bits & 0x7f80).toBe(0x7f80);
      else if (bits !== i) throw new Error(`bits ${i} came back as ${bits}`);
    });
  });

  it("is rounded the same on the device", async () => {
    const f32 = Float32Array.from(values);
    const bytes = await cast(Tensor.from(f32, [values.length]), "bf16").readBytes();
    expect([...new Uint16Array(bytes.buffer)]).toEqual([...narrow(f32)]);
    const nan = cast(Tensor.from([Number.NaN], [1]), "bf16");
    expect(await nan.item()).toBeNaN();
    expect(await affine(nan, 1, 0, "f32").item()).toBeNaN();
  });
});

describe("device", () => {
  it("describes itself and is opened once", () => {
    expect(device()).toBe(device(process.env.LTX_DEVICE || "auto"));
    expect(device("cpu")).toBe(device("cpu"));
    expect(device("cpu").describe()).toMatchObject({
      isa: expect.stringMatching(/^avx/),
      threads: expect.any(Number),
    });
    expect(backends().some((b) => b.available)).toBe(true);
  });

  it("rejects unknown names", () => {
    expectError("invalid_argument", /unknown device "tpu": expected auto, cpu, cuda or cuda:N/, () => device("tpu"));
  });

  it("profiles ops by name", async () => {
    device().startProfile();
    const x = full([10], 1);
    affine(x, 2);
    await device().synchronize();
    const profile = device().stopProfile();
    expect(Object.fromEntries(profile.map(({ op, calls }) => [op, calls]))).toEqual({ fill: 1, cast: 1 });
    expect(profile.every(({ seconds }) => seconds >= 0 && seconds < 1)).toBe(true);
  });
});
