import { callable, list } from "../arguments.js";
import { check } from "../errors.js";
import { Node, nextOrder, propagate, reachable, record, wantsGrad, withGrad } from "./autograd.js";
import { checkOperands } from "./operands.js";
import { scope } from "./scope.js";
import { alias, type Tensor, withMemoryGroup } from "./tensor.js";

type Inputs = readonly (Tensor | null)[];

/**
 * Runs `body` and forgets what happened inside: of all that backward would need, only `inputs` stay in memory, and
 * `body` runs once more when the gradients are wanted (Chen et al. 2016, "Training deep nets with sublinear memory cost").
 * Gradients equal those without a checkpoint.
 *
 * `body` gets the inputs (null where one is) under handles of its own. It must compute the same whenever it runs. Every
 * tensor inside that wants a gradient must be among `inputs` or, leaves alone, `parameters`; any other tensor that `body`
 * reads must live until the backward pass.
 * @throws {LtxError} `invalid_argument` when `body` used a tensor that wants a gradient and was not named.
 */
export function checkpoint<const T extends Inputs>(
  body: (...inputs: T) => Tensor,
  inputs: T,
  parameters: readonly Tensor[] = [],
): Tensor {
  callable("checkpoint", "body", body);
  list<unknown>("checkpoint", "inputs", inputs);
  list("checkpoint", "parameters", parameters);
  const named = [...inputs, ...parameters];
  checkOperands("checkpoint", {}, Object.fromEntries(named.map((tensor, i) => [`tensor ${i}`, tensor])));
  if (!wantsGrad(...named)) return body(...inputs);
  // Recorded, and dropped at once: ops may round otherwise where nothing is recorded.
  const y = scope(() => {
    const own = handles(inputs);
    for (const [i, tensor] of own.entries()) if (tensor) tensor.requiresGrad = inputs[i]?.tracked ?? false;
    const first = nextOrder();
    const inside = body(...own);
    checkNamed(inside, [...own, ...parameters], first);
    return alias(inside, inside.shape);
  });
  return record("checkpoint", y, named, inputs, (grad, needs, into, exclusive) =>
    scope(() => {
      const own = handles(inputs);
      for (const [i, tensor] of own.entries()) if (tensor) tensor.requiresGrad = needs[i];
      const again = withGrad(() => withMemoryGroup("activations", () => body(...own)));
      const sources = [...own, ...parameters];
      const wanted = sources.flatMap((tensor, i) => (tensor && needs[i] ? [{ tensor, i }] : []));
      const root = again.gradFn;
      if (!root) return sources.map((tensor, i) => (tensor === again && needs[i] ? grad : null));
      // From here on the graph alone holds the values, and lets go of them on the way.
      root.retain();
      again.dispose();
      try {
        const grads = propagate(
          root,
          { tensor: grad, exclusive },
          wanted.map(({ tensor }) => tensor),
          { into: wanted.map(({ i }) => into[i]), free: true },
        );
        const result: (Tensor | null)[] = sources.map(() => null);
        for (const [at, { i }] of wanted.entries()) result[i] = grads[at];
        return result;
      } finally {
        root.release();
      }
    }),
  );
}

const handles = <T extends Inputs>(inputs: T): T => inputs.map((x) => x && alias(x, x.shape)) as unknown as T;

/** A gradient of a tensor that was not named would be lost in silence; `first` is the order of the body's first op. */
function checkNamed(result: Tensor, sources: Inputs, first: number): void {
  const root = result.gradFn ?? (result.requiresGrad ? result : null);
  const edges = [root, ...(root instanceof Node ? reachable(root).flatMap((node) => node.edges) : [])];
  const named = new Set<Node | Tensor | null>(sources);
  for (const edge of edges) {
    check(edge === null || (edge instanceof Node ? edge.order >= first : named.has(edge)), "invalid_argument", () => {
      const what = edge instanceof Node ? `the result of ${edge.name}` : `${edge}`;
      return `[checkpoint] the body reads ${what}, which wants a gradient: name it among the inputs or parameters`;
    });
  }
}
