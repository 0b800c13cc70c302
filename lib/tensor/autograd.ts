/**
 * Reverse-mode differentiation. An op records a {@link Node} when one of its inputs is tracked; the node owns what its
 * backward pass needs and frees it as soon as that pass is over, or when nothing can reach it any more.
 */
import { callable, checkOptions, list } from "../arguments.js";
import { check, LtxError } from "../errors.js";
import { checkOperands } from "./operands.js";
import { keep, ownedByScope, scope } from "./scope.js";
import { alias, checkTensor, empty, launch, type Tensor, withMemoryGroup } from "./tensor.js";

/**
 * Gradients for a node's inputs, in order; null where none flows. `needs[i]` says whether input i wants one. `into[i]`,
 * where it is there, is the sum so far of what flows to input i: an op that can add to it in place does so and returns
 * it, which saves a pass over memory; any other tensor that is returned is added to it. `exclusive` says that nobody else
 * will read the memory of `grad`.
 */
export type Backward = (
  grad: Tensor,
  needs: readonly boolean[],
  into: readonly (Tensor | null)[],
  exclusive: boolean,
) => readonly (Tensor | null)[];

/** @internal Where a gradient goes: to the op that made a tensor, or to a leaf. */
export type Target = Node | Tensor;
type Edge = Target | null;

let recording = true;
let sequence = 0;

function setRecording<T>(on: boolean, body: () => T): T {
  const before = recording;
  recording = on;
  try {
    return body();
  } finally {
    recording = before;
  }
}

/** @internal The order of the node that will be recorded next. */
export const nextOrder = (): number => sequence;

/** Runs `body` without recording. */
export function noGrad<T>(body: () => T): T {
  callable("no_grad", "body", body);
  return setRecording(false, body);
}

/** @internal Runs `body` with recording on, whatever surrounds it. */
export const withGrad = <T>(body: () => T): T => setRecording(true, body);

export function isRecording(): boolean {
  return recording;
}

/** Whether an op on these inputs will be recorded, i.e. must keep what its backward pass needs. */
export function wantsGrad(...inputs: (Tensor | null | undefined)[]): boolean {
  return recording && inputs.some((input) => input?.tracked);
}

/** One op on the tape. */
export class Node {
  readonly order = sequence++;
  private users = 1; // the output tensor, and every node that has an edge here
  private saved: readonly Tensor[];
  /** @internal */ edges: readonly Edge[];
  private run: Backward | null;

  constructor(
    readonly name: string,
    inputs: readonly (Tensor | null | undefined)[],
    saved: readonly (Tensor | null | undefined)[],
    run: Backward,
  ) {
    this.edges = inputs.map((input) => input?.gradFn ?? (input?.requiresGrad ? input : null));
    for (const edge of this.edges) {
      if (edge instanceof Node) edge.users++;
      else edge?.hold();
    }
    this.saved = saved.filter((tensor) => tensor !== null && tensor !== undefined).map((tensor) => tensor.hold());
    this.run = run;
  }

  /** @internal Whether what backward needs is gone. */
  get freed(): boolean {
    return this.run === null;
  }

  /** @internal */
  backward(...[grad, needs, into, exclusive]: Parameters<Backward>): ReturnType<Backward> {
    if (!this.run) throw freed("backward", this);
    return this.run(grad, needs, into, exclusive);
  }

  /** @internal Lets go of what backward needed. */
  free(): void {
    this.run = null;
    const { saved, edges } = this;
    this.saved = [];
    this.edges = [];
    for (const tensor of saved) tensor.unhold();
    for (const edge of edges) {
      if (edge instanceof Node) edge.release();
      else edge?.unhold();
    }
  }

  /** @internal One user more: a backward pass that has yet to reach this node. */
  retain(): void {
    this.users++;
  }

  /** @internal One user less; the last one frees the node and what only it reaches. */
  release(): void {
    if (--this.users === 0 && this.run) this.free();
  }
}

const freed = (op: string, node: Node): LtxError =>
  new LtxError("invalid_argument", `[${op}] the graph behind ${node.name} was already freed by an earlier backward`);

/**
 * Puts an op on the tape: `output` was made from `inputs`, and `backward` will use `saved`.
 * Does nothing while recording is off or no input is tracked.
 */
export function record(
  name: string,
  output: Tensor,
  inputs: readonly (Tensor | null | undefined)[],
  saved: readonly (Tensor | null | undefined)[],
  backward: Backward,
): Tensor {
  if (wantsGrad(...inputs)) output.gradFn = new Node(name, inputs, saved, backward);
  return output;
}

/** @internal A gradient on its way: `exclusive` when nobody else sees the memory, so that it may be added to in place. */
export interface Pending {
  tensor: Tensor;
  exclusive: boolean;
}

function accumulate(pending: Pending | undefined, grad: Tensor, exclusive: boolean): Pending {
  if (!pending) return { tensor: grad.hold(), exclusive };
  if (pending.exclusive) {
    launch("axpby", [pending.tensor, grad, pending.tensor], [1, 1]);
    return pending;
  }
  const sum = empty(grad.shape, { dtype: grad.dtype, device: grad.device }).hold();
  launch("axpby", [pending.tensor, grad, sum], [1, 1]);
  pending.tensor.unhold();
  return { tensor: sum, exclusive: true };
}

/** A walk from a root towards the leaves. */
interface Pass {
  /** What has reached each op's output so far; without `leaf`, each leaf too. */
  readonly sums: Map<Target, Pending>;
  /** Whether a gradient is to flow there. */
  wants(target: Target): boolean;
  /** Whether the sum of an op that was visited is a result. */
  keeps(node: Node): boolean;
  /** Takes what reaches a leaf. */
  readonly leaf?: (leaf: Tensor, grad: Tensor, shared: boolean) => void;
  /** Whether a node is freed once it was visited. */
  readonly free: boolean;
}

function checkRoot(op: string, root: Tensor, gradient: Tensor | undefined): void {
  checkOperands(op, { root }, { gradient });
  check(root.tracked, "invalid_argument", () => `[${op}] nothing behind ${root} requires a gradient`);
  check(gradient ? gradient.size === root.size : root.size === 1, "shape_mismatch", () => {
    return gradient
      ? `[${op}] gradient [${gradient.shape}] does not fit root [${root.shape}]`
      : `[${op}] root has shape [${root.shape}]: give a gradient, or reduce it to one element`;
  });
  check(!gradient || gradient.dtype === root.dtype, "dtype_mismatch", () => {
    return `[${op}] the gradient is ${gradient?.dtype}, the root ${root.dtype}: cast it`;
  });
}

function ones(root: Tensor): Tensor {
  const seed = empty(root.shape, { dtype: root.dtype, device: root.device });
  launch("fill", [seed], [1]);
  return seed;
}

/**
 * Adds d(root)/d(leaf) to the `grad` of every leaf that requires one, and frees the graph piece by piece.
 * `root` must hold one element unless `gradient` (of root's shape) is given.
 */
export function backward(root: Tensor, gradient?: Tensor): void {
  checkRoot("backward", root, gradient);
  const run = () =>
    scope(() => {
      const seed = gradient ? alias(gradient, root.shape) : ones(root);
      if (!root.gradFn) return deposit(root, seed, true);
      const sums = new Map<Target, Pending>([[root.gradFn, accumulate(undefined, seed, false)]]);
      walk(reachable(root.gradFn), { sums, wants: () => true, keeps: () => false, leaf: deposit, free: true });
    });
  noGrad(() => withMemoryGroup("gradients", run));
  root.gradFn = null;
}

/**
 * d(root)/d(input) for each input, a leaf that requires a gradient or a tensor that an op made from one: tensors of the
 * inputs' shapes and dtypes that belong to the current scope, zeros where root does not depend on an input. Only the ops
 * between the inputs and `root` are visited; the graph stays, and no leaf's `grad` is touched.
 * `root` must hold one element unless `gradient` (of root's shape) is given.
 * @throws {LtxError} `invalid_argument` when an input or the root is not tracked, or the graph was freed by `backward`.
 */
export function gradients(root: Tensor, inputs: readonly Tensor[], options: { gradient?: Tensor } = {}): Tensor[] {
  checkOptions("gradients", options, ["gradient"]);
  const { gradient } = options;
  checkRoot("gradients", root, gradient);
  for (const input of list("gradients", "inputs", inputs)) {
    checkTensor("gradients", "an input", input);
    check(input.tracked, "invalid_argument", () => {
      return `[gradients] ${input} has no gradient: it requires none, was made without recording, or its graph was freed`;
    });
  }
  const run = () =>
    scope(() => {
      const seed = { tensor: gradient ? alias(gradient, root.shape) : ones(root), exclusive: false };
      return propagate(root.gradFn ?? root, seed, inputs).map((grad, i) => {
        if (grad) return grad;
        const zeros = empty(inputs[i].shape, { dtype: inputs[i].dtype, device: inputs[i].device });
        launch("fill", [zeros], [0]);
        return zeros;
      });
    });
  return noGrad(() => withMemoryGroup("gradients", run));
}

/**
 * @internal What flows from `root` to each input, on top of `into` where that is there (in place); null where nothing
 * does. The results are the current scope's. `free` frees the graph on the way.
 */
export function propagate(
  root: Target,
  seed: Pending,
  inputs: readonly Tensor[],
  options: { into?: readonly (Tensor | null)[]; free?: boolean } = {},
): (Tensor | null)[] {
  const { into = [], free = false } = options;
  const targets = inputs.map((input) => input.gradFn ?? input);
  const wanted = new Set(targets);
  const nodes = root instanceof Node ? reachable(root) : [];
  const leading = new Set<Target>();
  for (const node of [...nodes].reverse()) {
    if (node.freed && !wanted.has(node)) throw freed("gradients", node);
    if (node.edges.some((edge) => edge && (wanted.has(edge) || leading.has(edge)))) leading.add(node);
  }
  const sums = new Map<Target, Pending>();
  for (const [i, target] of targets.entries()) {
    const sum = into[i];
    if (sum) sums.set(target, { tensor: sum.hold(), exclusive: true });
  }
  sums.set(root, accumulate(sums.get(root), seed.tensor, seed.exclusive));
  const pass: Pass = {
    sums,
    wants: (target) => wanted.has(target) || leading.has(target),
    keeps: (node) => wanted.has(node),
    free,
  };
  const results = () =>
    inputs.map((input, i) => {
      const sum = sums.get(targets[i]);
      return sum && sum.tensor !== into[i] ? handOut(sum, input) : (into[i] ?? null);
    });
  return walk(
    nodes.filter((node) => leading.has(node)),
    pass,
    results,
  );
}

/** A handle of the current scope's on a sum, in the shape and dtype of `like`; a copy where others see the memory. */
function handOut({ tensor, exclusive }: Pending, like: Tensor): Tensor {
  if (exclusive && tensor.dtype === like.dtype) {
    const own = alias(tensor, like.shape);
    own.isView = false; // the pass lets go of its own handle
    return own;
  }
  const copy = empty(like.shape, { dtype: like.dtype, device: like.device });
  launch("cast", [tensor, copy], [1, 0]);
  return copy;
}

/** Visits the nodes, which must be sorted, and returns what `finish` makes of the sums before those are let go. */
function walk<T = void>(nodes: readonly Node[], pass: Pass, finish?: () => T): T {
  // Outputs of inner ops may be gone already, so that freeing a node would free those behind it before their turn.
  for (const node of nodes) node.retain();
  try {
    for (const node of nodes) visit(node, pass);
    return finish?.() as T;
  } finally {
    for (const { tensor } of pass.sums.values()) tensor.unhold();
    for (const node of nodes) node.release();
  }
}

/** Passes a node's gradient on to its edges. */
function visit(node: Node, pass: Pass): void {
  const { sums } = pass;
  const entry = sums.get(node);
  if (entry) {
    const kept = pass.keeps(node);
    const passable = entry.exclusive && !kept;
    // An inner scope frees the op's temporaries at once; the gradients outlive it by their holds.
    scope(() => {
      const needs = node.edges.map((edge) => edge !== null && pass.wants(edge));
      const into = node.edges.map((edge, i) => {
        const sum = edge && needs[i] && node.edges.indexOf(edge) === i ? sums.get(edge) : undefined;
        return sum?.exclusive ? sum.tensor : null;
      });
      const grads = node.backward(entry.tensor, needs, into, passable);
      node.edges.forEach((edge, i) => {
        const grad = grads[i];
        if (!edge || !needs[i] || !grad || grad === into[i]) return; // the last: added in place already
        // Memory that only this edge gets, fresh or passed on; anything else may be read by others later.
        const once = grads.indexOf(grad) === grads.lastIndexOf(grad);
        const exclusive = once && (grad === entry.tensor ? passable : ownedByScope(grad) && !grad.isView);
        if (edge instanceof Node || !pass.leaf) sums.set(edge, accumulate(sums.get(edge), grad, exclusive));
        else pass.leaf(edge, grad, !exclusive);
      });
    });
    if (!kept) {
      sums.delete(node);
      entry.tensor.unhold();
    }
  }
  if (pass.free) node.free();
}

/** Adds to a leaf's gradient, which lives until it is disposed. Memory that others see too (`shared`) is copied first. */
function deposit(leaf: Tensor, grad: Tensor, shared: boolean): void {
  if (leaf.grad) {
    launch("axpby", [leaf.grad, grad, leaf.grad], [1, 1]);
    return;
  }
  let own: Tensor;
  if (shared || grad.dtype !== leaf.dtype) {
    own = empty(leaf.shape, { dtype: leaf.dtype, device: leaf.device });
    launch("cast", [grad, own], [1, 0]);
  } else {
    own = alias(grad, leaf.shape); // a handle of the leaf's own: the engine's belongs to a scope
  }
  leaf.grad = keep(own);
}

/** @internal All nodes behind `root`, itself included, latest first: creation order is a topological order. */
export function reachable(root: Node): Node[] {
  const seen = new Set<Node>([root]);
  const stack = [root];
  for (let node = stack.pop(); node; node = stack.pop()) {
    for (const edge of node.edges) {
      if (edge instanceof Node && !seen.has(edge)) {
        seen.add(edge);
        stack.push(edge);
      }
    }
  }
  return [...seen].sort((a, b) => b.order - a.order);
}
