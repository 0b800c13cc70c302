import { beforeEach, describe, expect, it } from "vitest";
import { add, full, silu } from "../../lib/ops/index.js";
import { keep, scope, type Tensor } from "../../lib/tensor/index.js";
import { expectError, liveBytes } from "../support/gradcheck.js";

let start = 0;
/** What a tensor of a few values takes. */
let small = 0;
beforeEach(async () => {
  start = await liveBytes();
  const tensor = full([4], 0);
  small = (await liveBytes()) - start;
  tensor.dispose();
});

describe("scope", () => {
  it("frees what is not returned", async () => {
    const y = scope(() => add(full([4], 1), silu(full([4], 0))));
    expect(await liveBytes()).toBe(start + small);
    expect([...(await y.read())]).toEqual([1, 1, 1, 1]);
    y.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("lets tensors escape from nested arrays and plain objects, and leaves other values alone", async () => {
    const made = scope(() => {
      full([4], 9);
      return {
        a: full([4], 1),
        list: [full([4], 2), { b: full([4], 3) }],
        n: 5,
        none: null,
        map: new Map(),
        bare: Object.create(null),
      };
    });
    const [second, third] = made.list as [Tensor, { b: Tensor }];
    expect([await made.a.read(), await second.read(), await third.b.read()].map((v) => v[0])).toEqual([1, 2, 3]);
    expect(await liveBytes()).toBe(start + 3 * small);
    for (const t of [made.a, second, third.b]) t.dispose();
  });

  it("hands what escapes to the enclosing scope", async () => {
    const y = scope(() => {
      const inner = scope(() => full([4], 2));
      scope(() => full([4], 3));
      return silu(inner);
    });
    expect(await liveBytes()).toBe(start + small);
    y.dispose();
  });

  it("keeps what it is told to keep", async () => {
    let kept: Tensor | undefined;
    scope(() => {
      kept = keep(full([4], 7));
      full([4], 8);
    });
    expect((await kept?.read())?.[0]).toBe(7);
    kept?.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("does not touch tensors from outside", async () => {
    const x = full([4], 1);
    scope(() => [x, silu(x)]).forEach((t) => {
      t.dispose();
    });
    expect(await liveBytes()).toBe(start);
  });

  it("frees everything when the body throws, and passes the error on", async () => {
    expect(() =>
      scope(() => {
        keep(full([4], 1)).dispose();
        full([4], 2);
        scope(() => full([4], 3));
        throw new Error("inside");
      }),
    ).toThrow("inside");
    expect(await liveBytes()).toBe(start);
    const after = full([4], 1); // made outside of any scope again
    expect((await after.read())[0]).toBe(1);
    after.dispose();
  });

  it("rejects asynchronous bodies", async () => {
    expectError("invalid_argument", /\[scope\] the body must be synchronous/, () => scope(async () => full([4], 1)));
    expect(await liveBytes()).toBe(start);
  });

  it("tolerates tensors that were disposed inside", async () => {
    scope(() => full([4], 1).dispose());
    expect(await liveBytes()).toBe(start);
  });
});

describe("dispose", () => {
  it("may be repeated", async () => {
    const x = full([4], 1);
    x.dispose();
    x.dispose();
    x[Symbol.dispose]();
    expect(await liveBytes()).toBe(start);
  });

  it("ends use: ops, reads and writes say so", async () => {
    const x = full([2, 3], 1);
    x.dispose();
    expectError("disposed", /tensor \[2,3\] was used after it was disposed/, () => silu(x));
    expectError("disposed", /disposed/, () => x.write([1, 2, 3, 4, 5, 6]));
    await expect(x.read()).rejects.toMatchObject({ code: "disposed" });
    await expect(x.readBytes()).rejects.toMatchObject({ code: "disposed" });
  });

  it("does not disturb work that was queued before", async () => {
    const x = full([1000], 3);
    const y = silu(x);
    x.dispose();
    const others = Array.from({ length: 50 }, (_, i) => full([1000], i));
    expect((await y.read())[999]).toBeCloseTo(3 / (1 + Math.exp(-3)), 5);
    for (const t of [y, ...others]) t.dispose();
  });
});
