/** How many blocks of a kernel an SM of the A10 (sm_86) holds at once, by the limits of the CUDA programming guide. */
const sm86 = {
  registers: 65536,
  warps: 48,
  blocks: 16,
  /** Registers are handed out to a warp in pieces of this size. */
  registerUnit: 256,
  /** Each warp scheduler has a quarter of the registers, so warps come in fours. */
  schedulers: 4,
  shared: 102400,
  /** Taken by the driver for every block. */
  reservedShared: 1024,
  sharedUnit: 128,
};

/** The most that a block may have on sm_86 and sm_89, the tightest of the supported chips. */
export const maxSharedOfBlock = 101376;

export interface Occupancy {
  blocks: number;
  warps: number;
  /** Warps of the SM's 48. */
  fraction: number;
  limit: "registers" | "shared memory" | "threads" | "blocks";
}

const roundUp = (value: number, unit: number) => Math.ceil(value / unit) * unit;

export function occupancy(threads: number, registers: number, shared: number): Occupancy {
  const warpsOfBlock = Math.ceil(threads / 32);
  const perScheduler = Math.floor(sm86.registers / sm86.schedulers / roundUp(registers * 32, sm86.registerUnit));
  const limits: [Occupancy["limit"], number][] = [
    ["threads", Math.floor(sm86.warps / warpsOfBlock)],
    ["blocks", sm86.blocks],
    ["registers", Math.floor((perScheduler * sm86.schedulers) / warpsOfBlock)],
    ["shared memory", Math.floor(sm86.shared / (roundUp(shared, sm86.sharedUnit) + sm86.reservedShared))],
  ];
  const [limit, blocks] = limits.reduce((least, next) => (next[1] < least[1] ? next : least));
  return { blocks, warps: blocks * warpsOfBlock, fraction: (blocks * warpsOfBlock) / sm86.warps, limit };
}
