import { callable, show } from "../arguments.js";
import { check, LtxError } from "../errors.js";
import type { Tensor } from "./tensor.js";

let current: Set<Tensor> | null = null;

/** @internal Makes the innermost scope, if any, the owner of a new tensor. */
export function adopt(tensor: Tensor): void {
  current?.add(tensor);
}

/** @internal Whether the innermost scope owns the tensor, i.e. it was made inside and not by an enclosing scope. */
export function ownedByScope(tensor: Tensor): boolean {
  return current?.has(tensor) ?? false;
}

/** Keeps a tensor that was made in the innermost scope alive past its end. */
export function keep<T extends Tensor>(tensor: T): T {
  check(isTensor(tensor), "invalid_argument", () => `[keep] expects a tensor, got ${show(tensor)}`);
  current?.delete(tensor);
  return tensor;
}

/**
 * Runs `body` and frees every tensor made inside except those found in what it returns (a tensor, or an array or plain
 * object of them, nested), which the enclosing scope then owns. On an error everything made inside is freed.
 * `body` must be synchronous: work is only queued, so nothing in it needs to wait.
 */
export function scope<T>(body: () => T): T {
  callable("scope", "body", body);
  const outer = current;
  const mine = new Set<Tensor>();
  current = mine;
  let result: T;
  try {
    result = body();
    if (result instanceof Promise) {
      throw new LtxError("invalid_argument", "[scope] the body must be synchronous: await outside of the scope");
    }
  } catch (error) {
    current = outer;
    for (const tensor of mine) tensor.dispose();
    throw error;
  }
  current = outer;
  visitTensors(result, (tensor) => {
    if (mine.delete(tensor)) outer?.add(tensor);
  });
  for (const tensor of mine) tensor.dispose();
  return result;
}

function visitTensors(value: unknown, visit: (tensor: Tensor) => void): void {
  if (value === null || typeof value !== "object") return;
  if (isTensor(value)) {
    visit(value);
  } else if (Array.isArray(value)) {
    for (const item of value) visitTensors(item, visit);
  } else if (isPlain(value)) {
    for (const item of Object.values(value)) visitTensors(item, visit);
  }
}

// The class itself can't be imported here: tensor.ts imports this file.
function isTensor(value: unknown): value is Tensor {
  return typeof value === "object" && value !== null && "handle" in value && "dispose" in value;
}

function isPlain(value: object): boolean {
  const prototype = Object.getPrototypeOf(value);
  return prototype === null || prototype === Object.prototype;
}
