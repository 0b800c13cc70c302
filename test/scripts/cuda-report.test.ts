import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { type Ceilings, compare, format, renew, setDynamicShared } from "../../scripts/cuda-report/ceilings.js";
import { type Compiled, compile } from "../../scripts/cuda-report/compile.js";
import { elfSections } from "../../scripts/cuda-report/cubin.js";
import { parseCommand } from "../../scripts/cuda-report/flags.js";
import { type Kernel, kernelsOf } from "../../scripts/cuda-report/kernels.js";
import { occupancy } from "../../scripts/cuda-report/occupancy.js";
import { parsePtxas, shortName } from "../../scripts/cuda-report/ptxas.js";
import { markdown } from "../../scripts/cuda-report/table.js";
import { testFolder } from "../support/folder.js";

const nvcc = ["nvcc", "/usr/local/cuda/bin/nvcc"].find((name) => spawnSync(name, ["--version"]).status === 0);

const kernel = (change: Partial<Kernel> = {}, registers = 40): Kernel => ({
  file: "norm.cu",
  name: "norm<bf16>",
  threads: 256,
  dynamicShared: false,
  architectures: new Map(
    ["sm_80", "sm_86"].map((name, index) => [
      name,
      {
        registers: registers - index,
        shared: 512,
        stack: 0,
        spillStores: 0,
        spillLoads: 0,
        opcodes: { HMMA: 0, LDSM: 0, LDGSTS: 0 },
      },
    ]),
  ),
  ...change,
});

const ceilings = (change: object = {}): Ceilings => ({
  nvcc: "13.0",
  kernels: { "norm.cu": { "norm<bf16>": { registers: 40, shared: 512, ...change } } },
});

describe("the ceilings", () => {
  it("hold a kernel that uses as much as before", () => {
    expect(compare([kernel()], ceilings())).toEqual([]);
  });

  it("name what has grown, and where", () => {
    expect(compare([kernel({}, 48)], ceilings())).toEqual([
      "norm.cu norm<bf16>: 48 registers on sm_80, ceiling 40",
      "norm.cu norm<bf16>: 47 registers on sm_86, ceiling 40",
    ]);
    const stacked = kernel();
    stacked.architectures.get("sm_86")!.stack = 16;
    expect(compare([stacked], ceilings())).toEqual(["norm.cu norm<bf16>: 16 bytes of stack on sm_86, ceiling 0"]);
    expect(compare([kernel()], ceilings({ shared: 256 }))).toHaveLength(2);
  });

  it("allow no spill, whatever the file says", () => {
    const spilling = kernel();
    spilling.architectures.get("sm_80")!.spillStores = 8;
    spilling.architectures.get("sm_80")!.spillLoads = 12;
    const renewed = renew([spilling], ceilings(), "13.0");
    expect(compare([spilling], renewed)).toEqual([
      "norm.cu norm<bf16>: spills 8 bytes, loads 12 on sm_80; may not spill",
    ]);
  });

  it("miss a new kernel and one that is gone", () => {
    const [fresh, gone] = compare([kernel({ name: "norm<float>" })], ceilings());
    expect(fresh).toMatch(/^norm\.cu norm<float>: has no ceiling/);
    expect(gone).toMatch(/^norm\.cu norm<bf16>: is gone/);
  });

  it("want the size of dynamic shared memory, which only a person can know, and keep it", () => {
    const dynamic = kernel({ dynamicShared: true });
    const renewed = renew([dynamic], ceilings(), "13.0");
    expect(compare([dynamic], renewed)[0]).toMatch(/has dynamic shared memory; write its largest size/);
    expect(setDynamicShared(renewed, "norm<float", 65536)).toBe(0);
    expect(setDynamicShared(renewed, "norm<", 65536)).toBe(1);
    const again = renew([dynamic], renewed, "13.0");
    expect(again).toEqual(renewed);
    expect(compare([dynamic], again)).toEqual([]);
    expect(compare([kernel()], again)[0]).toMatch(/has no dynamic shared memory/);
    again.kernels["norm.cu"]["norm<bf16>"].dynamic_shared = 100 * 1024;
    expect(compare([dynamic], again)[0]).toMatch(/102912 bytes of shared memory, a block has at most 101376/);
  });

  it("want tensor-core instructions where they once were", () => {
    const mma = kernel();
    for (const used of mma.architectures.values()) used.opcodes.HMMA = 64;
    const renewed = renew([mma], { nvcc: "13.0", kernels: {} }, "13.0");
    expect(renewed.kernels["norm.cu"]["norm<bf16>"].tensor).toBe(true);
    expect(compare([mma], renewed)).toEqual([]);
    const lost = renew([kernel()], renewed, "13.0");
    expect(compare([kernel()], lost)).toEqual([
      "norm.cu norm<bf16>: no tensor-core instruction on sm_80",
      "norm.cu norm<bf16>: no tensor-core instruction on sm_86",
    ]);
  });

  it("are written a line a kernel and read back the same", () => {
    const file = renew([kernel(), kernel({ name: "a", dynamicShared: true })], ceilings(), "13.0");
    expect(JSON.parse(format(file))).toEqual(file);
    expect(format(file)).toContain('      "norm<bf16>": { "registers": 40, "shared": 512 }\n');
    expect(JSON.parse(format({ nvcc: "13.0", kernels: {} }))).toEqual({ nvcc: "13.0", kernels: {} });
  });
});

describe("occupancy on sm_86", () => {
  // By hand from the programming guide's limits: 1,536 threads, 65,536 registers, 100 KB shared, 16 blocks.
  it.each([
    [256, 32, 0, 6, "threads"],
    [32, 32, 0, 16, "blocks"],
    [256, 64, 0, 4, "registers"],
    [256, 65, 0, 3, "registers"], // 72 registers a thread are taken: 28 warps fit
    [128, 255, 0, 2, "registers"],
    [128, 128, 48 * 1024, 2, "shared memory"],
    [256, 128, 99 * 1024, 1, "shared memory"],
    [256, 32, 100 * 1024, 0, "shared memory"],
  ])("%i threads, %i registers, %i bytes: %i blocks by %s", (threads, registers, shared, blocks, limit) => {
    const found = occupancy(threads, registers, shared);
    expect(found).toEqual({ blocks, warps: (blocks * threads) / 32, fraction: (blocks * threads) / 1536, limit });
  });
});

describe("the compiler's words", () => {
  it("name a kernel without what changes from build to build", () => {
    const names = [
      [
        "void ltx::cuda::(anonymous namespace)::norm<ltx::cuda::bf16, 8, true>(ltx::cuda::bf16*, int)",
        "norm<bf16, 8, true>",
      ],
      ["ltx::cuda::fill(float*, void (*)(int))", "fill"],
      ["void f<A<B<C<int> > >, D<E<1> > >(int)", "f<A<B<C<int>>>, D<E<1>>>"],
      ["void scale<(Act)1>(float)", "scale<(Act)1>"],
      ["plain", "plain"],
    ];
    for (const [full, short] of names) expect(shortName(full)).toBe(short);
  });

  it("fail when ptxas reports in another form", () => {
    expect(() => parsePtxas("ptxas info : Compiling entry function '_Z1av' for 'sm_86'\n")).toThrow(/no registers/);
  });

  it("take flags and architectures from CMake's command, and leave the emulator's alone", () => {
    const command =
      'cd /b && /usr/bin/nvcc -forward-unknown-to-host-compiler -DA=\\"x\\ y\\" -O3 "--generate-code=arch=compute_80,code=[sm_80]" ' +
      '"--generate-code=arch=compute_90,code=[compute_90,sm_90]" -Xcompiler=-fPIC -MD -MT o.o -MF o.d -x cu -c /s/a.cu -o o.o';
    expect(parseCommand(command, "/s/a.cu", "/b")).toEqual({
      path: "/s/a.cu",
      nvcc: "/usr/bin/nvcc",
      flags: ["-forward-unknown-to-host-compiler", '-DA="x y"', "-O3", "-Xcompiler=-fPIC"],
      architectures: ["sm_80", "sm_90"],
    });
    expect(parseCommand("/usr/bin/g++ -x c++ -c /s/a.cu -o a.o", "/s/a.cu", "/b")).toBeUndefined();
  });

  it("refuse what is no ELF file", () => {
    expect(() => elfSections(Buffer.from("#!/bin/sh\n".repeat(10)))).toThrow(/not a 64-bit/);
  });
});

const source = `
#include <cstdint>
namespace ltx::cuda {
namespace {
template <typename T, int kSize>
__global__ void __launch_bounds__(96) rotate(T* x, int n) {
  __shared__ T tile[kSize];
  extern __shared__ float dynamic[];
  tile[threadIdx.x % kSize] = x[threadIdx.x];
  dynamic[threadIdx.x] = static_cast<float>(n);
  __syncthreads();
  x[threadIdx.x] = tile[(threadIdx.x + 1) % kSize] + static_cast<T>(dynamic[threadIdx.x ^ 1]);
}
__global__ void product(const uint4* in, float* out) {
  __shared__ uint4 rows[32];
  const uint32_t row = static_cast<uint32_t>(__cvta_generic_to_shared(rows + threadIdx.x));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(row), "l"(in + threadIdx.x));
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  uint32_t a, b, c, d;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "r"(row));
  float y[4] = {};
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%4,%5}, {%0,%1,%2,%3};"
      : "+f"(y[0]), "+f"(y[1]), "+f"(y[2]), "+f"(y[3]) : "r"(a), "r"(b), "r"(c), "r"(d));
  out[threadIdx.x] = y[0] + y[1] + y[2] + y[3];
}
__global__ void __launch_bounds__(1024) indexed(float* x, const int* order) {
  float local[64];
  for (int i = 0; i < 64; i++) local[order[i]] = x[i];
  for (int i = 0; i < 64; i++) x[order[i]] = local[order[i] ^ 5];
}
}
void use() {
  rotate<float, 100><<<1, 96, 4096>>>(nullptr, 1);
  rotate<int, 7><<<1, 96, 4096>>>(nullptr, 1);
  product<<<1, 32>>>(nullptr, nullptr);
  indexed<<<1, 1>>>(nullptr, nullptr);
}
}
`;

describe.skipIf(nvcc === undefined)("kernels compiled for the purpose", { timeout: 240_000 }, () => {
  const folder = testFolder();
  const architectures = ["sm_80", "sm_86", "sm_89", "sm_90"];
  const file = join(folder, "probe.cu");
  const build = (architecture: string): Promise<Compiled> =>
    compile(
      { path: file, nvcc: nvcc!, flags: ["-std=c++20", "-O3"], architectures },
      architecture,
      join(folder, "cache"),
      folder,
    );

  it("show registers, memory, launch bounds and opcodes on every architecture", async () => {
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, "size.cuh"), "constexpr int kUnused = 1;\n");
    writeFileSync(file, `#include "size.cuh"\n${source}`);
    const compiled = new Map<string, Compiled>();
    for (const architecture of architectures) compiled.set(architecture, await build(architecture));
    const kernels = kernelsOf("probe.cu", compiled);
    expect(kernels.map(({ name }) => name)).toEqual(["indexed", "product", "rotate<float, 100>", "rotate<int, 7>"]);
    const [indexed, product, rotate, small] = kernels;
    expect([indexed, product, rotate, small].map(({ threads }) => threads)).toEqual([1024, undefined, 96, 96]);
    expect(kernels.map(({ dynamicShared }) => dynamicShared)).toEqual([false, false, true, true]);
    for (const name of architectures) {
      expect(product.architectures.get(name)!.opcodes).toEqual({ HMMA: 1, LDSM: 1, LDGSTS: 1 });
      expect(product.architectures.get(name)!.shared).toBeGreaterThanOrEqual(512);
      const used = rotate.architectures.get(name)!;
      expect(used.opcodes).toEqual({ HMMA: 0, LDSM: 0, LDGSTS: 0 });
      expect(used).toMatchObject({ stack: 0, spillStores: 0, spillLoads: 0 });
      expect(used.shared - small.architectures.get(name)!.shared).toBeGreaterThanOrEqual((100 - 7) * 4 - 12);
      expect(used.registers).toBeGreaterThan(4);
      expect(indexed.architectures.get(name)!.stack).toBe(256);
    }
    const table = markdown(kernels, renew(kernels, { nvcc: "13.0", kernels: {} }, "13.0"), architectures, "13.0");
    expect(table).toMatch(
      /\| probe\.cu \| `indexed` \| 1024 \| .* \| 67 % \(1 × 32 warps, threads\) \| 0 \/ 0 \/ 0 \|/,
    );
  });

  it("are compiled again only after a change of the source or a header", async () => {
    expect((await build("sm_86")).seconds).toBe(0);
    writeFileSync(join(folder, "size.cuh"), "constexpr int kUnused = 2;\n");
    expect((await build("sm_86")).seconds).toBeGreaterThan(0);
    expect((await build("sm_86")).seconds).toBe(0);
  });

  it("report the compiler's error for a source that does not compile", async () => {
    writeFileSync(file, "__global__ void broken() { nothing(); }\n");
    await expect(build("sm_86")).rejects.toThrow(/nothing/);
  });
});
