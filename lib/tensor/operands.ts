/** Checks of an op's operands, which come before anything is made of them. */
import { list } from "../arguments.js";
import { check, LtxError } from "../errors.js";
import type { Device } from "./device.js";
import { checkTensor, type Tensor } from "./tensor.js";

type Named<T = Tensor> = Readonly<Record<string, T>>;
type Optional = Named<Tensor | null | undefined>;

/** Throws unless these are tensors that were not disposed, all on one device; `optional` ones may be left out. */
export function checkOperands(op: string, required: Named, optional: Optional = {}): void {
  let first: Tensor | undefined;
  for (const name in required) {
    checkTensor(op, name, required[name]);
    first ??= required[name];
    checkDevice(op, first, required[name]);
  }
  for (const name in optional) {
    const tensor = optional[name];
    if (tensor === null || tensor === undefined) continue;
    checkTensor(op, name, tensor);
    first ??= tensor;
    checkDevice(op, first, tensor);
  }
}

function checkDevice(op: string, a: Tensor, b: Tensor): void {
  if (a.device === b.device) return;
  throw new LtxError("invalid_argument", `[${op}] operands are on ${a.device} and ${b.device}`);
}

/** Throws unless all tensors share one device. */
export function sameDevice(op: string, ...tensors: (Tensor | null | undefined)[]): Device {
  checkOperands(op, {}, Object.fromEntries(tensors.map((tensor, i) => [`operand ${i}`, tensor])));
  const first = tensors.find((tensor) => tensor);
  check(first, "invalid_argument", () => `[${op}] expects at least one tensor`);
  return first.device;
}

/** {@link checkOperands}, and throws unless all are f32 or bf16. */
export function checkFloats(op: string, required: Named, optional: Optional = {}): void {
  checkOperands(op, required, optional);
  for (const name in required) checkFloat(op, name, required[name]);
  for (const name in optional) checkFloat(op, name, optional[name]);
}

function checkFloat(op: string, name: string, tensor: Tensor | null | undefined): void {
  check(!tensor || tensor.dtype === "f32" || tensor.dtype === "bf16", "dtype_mismatch", () => {
    return `[${op}] expects f32 or bf16, got ${tensor} as ${name}`;
  });
}

/** Throws unless these operands, where given, are f32: kernels read them as such whatever the input's dtype. */
export function checkSingles(op: string, operands: Optional): void {
  for (const name in operands) {
    const dtype = operands[name]?.dtype;
    check(!dtype || dtype === "f32", "dtype_mismatch", () => `[${op}] ${name} must be f32, got ${dtype}`);
  }
}

/** Throws unless these are lists of tensors on one device, f32 all of them, as long as each other and of equal sizes. */
export function checkLists(op: string, lists: Readonly<Record<string, readonly Tensor[]>>): void {
  const [[leader, leading], ...others] = Object.entries(lists);
  let first: Tensor | undefined;
  for (const [name, tensors] of Object.entries(lists)) {
    for (const [i, tensor] of list(op, name, tensors).entries()) {
      checkTensor(op, `${name}[${i}]`, tensor);
      checkSingles(op, { [`${name}[${i}]`]: tensor });
      first ??= tensor;
      checkDevice(op, first, tensor);
    }
  }
  for (const [name, tensors] of others) {
    check(tensors.length === leading.length, "shape_mismatch", () => {
      return `[${op}] ${name} holds ${tensors.length} tensors, ${leader} ${leading.length}: expected one for each`;
    });
    for (const [i, tensor] of tensors.entries()) {
      check(tensor.size === leading[i].size, "shape_mismatch", () => {
        return `[${op}] ${name}[${i}] has shape [${tensor.shape}], ${leader}[${i}] [${leading[i].shape}]: expected the same`;
      });
    }
  }
}
