/**
 * Reverse-mode differentiation. An op records a {@link Node} when one of its inputs is tracked; the node owns what its
 * backward pass needs and frees it as soon as that pass is over, or when nothing can reach it any more.
 */
import { check, LtxError } from "../errors.js";
import { keep, ownedByScope, scope } from "./scope.js";
import { alias, empty, launch, type Tensor, withMemoryGroup } from "./tensor.js";

/**
 * Gradients for a node's inputs, in order; null where none flows. `needs[i]` says whether input i wants one. `into[i]`,
 * where it is there, is the sum so far of what flows to input i: an op that can add to it in place does so and returns
 * it, which saves a pass over memory; any other tensor that is returned is added to it.
 */
export type Backward = (
  grad: Tensor,
  needs: readonly boolean[],
  into: readonly (Tensor | null)[],
) => readonly (Tensor | null)[];

type Edge = Node | Tensor | null;

let recording = true;
let sequence = 0;

/** Runs `body` without recording. */
export function noGrad<T>(body: () => T): T {
  const before = recording;
  recording = false;
  try {
    return body();
  } finally {
    recording = before;
  }
}

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

  /** @internal */
  backward(grad: Tensor, into: readonly (Tensor | null)[]): readonly (Tensor | null)[] {
    if (!this.run) {
      throw new LtxError(
        "invalid_argument",
        `[backward] the graph behind ${this.name} was already freed by an earlier backward`,
      );
    }
    return this.run(
      grad,
      this.edges.map((edge) => edge !== null),
      into,
    );
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

/** A gradient on its way: `exclusive` when nobody else sees the memory, so that it may be added to in place. */
interface Pending {
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

/**
 * Adds d(root)/d(leaf) to the `grad` of every leaf that requires one, and frees the graph piece by piece.
 * `root` must hold one element unless `gradient` (of root's shape) is given.
 */
export function backward(root: Tensor, gradient?: Tensor): void {
  check(root.tracked, "invalid_argument", () => `[backward] nothing behind ${root} requires a gradient`);
  check(gradient ? gradient.size === root.size : root.size === 1, "shape_mismatch", () => {
    return gradient
      ? `[backward] gradient [${gradient.shape}] does not fit root [${root.shape}]`
      : `[backward] root has shape [${root.shape}]: give a gradient, or reduce it to one element`;
  });
  const run = () =>
    scope(() => {
      const seed = gradient ?? empty(root.shape, { dtype: root.dtype, device: root.device });
      if (!gradient) launch("fill", [seed], [1]);
      if (!root.gradFn) return deposit(root, seed, true);
      const pending = new Map<Node, Pending>([[root.gradFn, accumulate(undefined, seed, false)]]);
      const nodes = reachable(root.gradFn);
      // Outputs of inner ops may be gone already, so that freeing a node would free those behind it before their turn.
      for (const node of nodes) node.retain();
      try {
        for (const node of nodes) visit(node, pending);
      } finally {
        for (const { tensor } of pending.values()) tensor.unhold();
        for (const node of nodes) node.release();
      }
    });
  noGrad(() => withMemoryGroup("gradients", run));
  root.gradFn = null;
}

/** Passes a node's gradient on to its edges and frees the node. */
function visit(node: Node, pending: Map<Node, Pending>): void {
  const entry = pending.get(node);
  if (entry) {
    // An inner scope frees the op's temporaries at once; the gradients outlive it by their holds.
    scope(() => {
      const into = node.edges.map((edge, i) => {
        const sum = edge instanceof Node && node.edges.indexOf(edge) === i ? pending.get(edge) : undefined;
        return sum?.exclusive ? sum.tensor : null;
      });
      const grads = node.backward(entry.tensor, into);
      node.edges.forEach((edge, i) => {
        const grad = grads[i];
        if (!edge || !grad || grad === into[i]) return; // the last: added in place already
        // Memory that only this edge gets, fresh or passed on; anything else may be read by others later.
        const once = grads.indexOf(grad) === grads.lastIndexOf(grad);
        const exclusive = once && (grad === entry.tensor ? entry.exclusive : ownedByScope(grad) && !grad.isView);
        if (edge instanceof Node) pending.set(edge, accumulate(pending.get(edge), grad, exclusive));
        else deposit(edge, grad, !exclusive);
      });
    });
    pending.delete(node);
    entry.tensor.unhold();
  }
  node.free();
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

/** All nodes behind `root`, latest first: creation order is a topological order. */
function reachable(root: Node): Node[] {
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
