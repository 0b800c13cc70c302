/**
 * What a cubin's machine code holds. The CUDA packages that CI installs have no disassembler, and for the question "does
 * this kernel use tensor cores" the opcodes are enough: every instruction since sm_70 is 16 bytes, its opcode the low 12
 * bits. The ELF readers on npm are years old; sections and their names are all that is needed here.
 */

/** The opcodes that are counted; a test compiles kernels that must and must not have them. */
export const opcodes = { HMMA: 0x23c, LDSM: 0x83b, LDGSTS: 0xfae } as const;
export type Opcode = keyof typeof opcodes;
export type OpcodeCounts = Record<Opcode, number>;

const instructionBytes = 16;

/** The sections of a 64-bit little-endian ELF file, by name. */
export function elfSections(file: Buffer): Map<string, Buffer> {
  if (file.length < 64 || file.readUInt32BE(0) !== 0x7f454c46 || file[4] !== 2 || file[5] !== 1) {
    throw new Error("not a 64-bit little-endian ELF file");
  }
  const table = Number(file.readBigUInt64LE(0x28));
  const entryBytes = file.readUInt16LE(0x3a);
  const count = file.readUInt16LE(0x3c);
  const header = (index: number) => {
    const at = table + index * entryBytes;
    const start = Number(file.readBigUInt64LE(at + 24));
    const noBits = file.readUInt32LE(at + 4) === 8; // takes no room in the file
    const bytes = noBits ? 0 : Number(file.readBigUInt64LE(at + 32));
    return { name: file.readUInt32LE(at), data: file.subarray(start, start + bytes) };
  };
  const names = header(file.readUInt16LE(0x3e)).data;
  const sections = new Map<string, Buffer>();
  for (let i = 1; i < count; i++) {
    const { name, data } = header(i);
    sections.set(names.toString("latin1", name, names.indexOf(0, name)), data);
  }
  return sections;
}

/** How often each of `opcodes` stands in the code of each kernel, by mangled name. */
export function countOpcodes(cubin: Buffer): Map<string, OpcodeCounts> {
  const counts = new Map<string, OpcodeCounts>();
  for (const [section, code] of elfSections(cubin)) {
    const kernel = /^\.text\.(.+)$/.exec(section)?.[1];
    if (kernel === undefined) continue;
    const found: OpcodeCounts = { HMMA: 0, LDSM: 0, LDGSTS: 0 };
    for (let at = 0; at + instructionBytes <= code.length; at += instructionBytes) {
      const opcode = code.readUInt16LE(at) & 0xfff;
      for (const name of Object.keys(opcodes) as Opcode[]) if (opcodes[name] === opcode) found[name]++;
    }
    counts.set(kernel, found);
  }
  return counts;
}
