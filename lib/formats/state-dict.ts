/** The tensors of a PyTorch checkpoint by name, wherever it keeps them. */
import { check } from "../errors.js";
import { Opaque } from "./pickle.js";
import { elementBytes, PytorchTensor, show, storageBytes, UnreadableTensor } from "./pytorch-pickle.js";

/** Under what a checkpoint's dict holds its state dict, in the order of preference. */
const PLACES = [
  "model_state_dict",
  "state_dict",
  "model",
  "module",
  "net",
  "network",
  "generator",
  "ema_state_dict",
  "model_ema",
  "ema_model",
  "ema",
];
/** Trainers nest no deeper. */
const MAX_DEPTH = 3;

/** Tensors may share their storage; a file whose tensors repeat it more often than this is made to fill the memory. */
const MAX_SHARING = 16;
const ALWAYS_ALLOWED_BYTES = 64 * 2 ** 20;

type Dict = ReadonlyMap<unknown, unknown>;

/**
 * The tensors of a checkpoint by name: of its entry `model_state_dict`, `state_dict`, `model`, `module` or of those that
 * trainers keep averages in, if one holds tensors, else of the object itself. What distributed training, `torch.compile`
 * and checkpointing of activations add to the names is taken away.
 * @param path what messages call the file
 * @throws LtxError `checkpoint` when there are none or one of them cannot be read, `file_format` when their sizes are
 *   absurd or two have one name
 */
export function stateDictOf(root: unknown, path: string): Map<string, PytorchTensor> {
  const found = namedTensors(root, MAX_DEPTH);
  check(found, "checkpoint", () => {
    return `[pt] ${path} holds no state dict: expected model_state_dict or tensors by name, found ${contents(root)}`;
  });
  const tensors = new Map<string, PytorchTensor>();
  for (const [name, tensor] of found) {
    if (typeof name !== "string") continue;
    check(!(tensor instanceof UnreadableTensor), "checkpoint", () => {
      return `[pt] ${path}: ${show(name)} is ${(tensor as UnreadableTensor).what} which cannot be read; save it as a dense tensor of float32, float16 or bfloat16`;
    });
    if (!(tensor instanceof PytorchTensor)) continue;
    const own = unwrapped(name);
    check(!tensors.has(own), "file_format", () => {
      return `[pt] ${path} holds ${show(own)} twice, once of them as ${show(name)}; save the unwrapped model's state dict`;
    });
    tensors.set(own, tensor);
  }
  checkSharing([...tensors.values()], path);
  return tensors;
}

/** The first dict with tensors in it, those at the usual places before the one that holds them. */
function namedTensors(value: unknown, depth: number): Dict | undefined {
  if (!(value instanceof Map)) return undefined;
  for (const place of PLACES) {
    const found = depth > 1 ? namedTensors(value.get(place), depth - 1) : undefined;
    if (found) return found;
  }
  const isTensor = (item: unknown) => item instanceof PytorchTensor || item instanceof UnreadableTensor;
  for (const [name, item] of value) if (typeof name === "string" && isTensor(item)) return value;
  return undefined;
}

/**
 * Without `module.` in front (DistributedDataParallel, DataParallel) and the names that torch.compile, FSDP and
 * checkpoint_wrapper put before those of any submodule.
 */
function unwrapped(name: string): string {
  const parts = name.split(".").filter((part) => !WRAPPERS.has(part));
  while (parts.length > 1 && parts[0] === "module") parts.shift();
  return parts.join(".");
}

const WRAPPERS: ReadonlySet<string> = new Set(["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]);

function checkSharing(tensors: readonly PytorchTensor[], path: string): void {
  const storages = new Set(tensors.map(({ storage }) => storage));
  const stored = [...storages].reduce((n, storage) => n + storage.length * storageBytes(storage), 0);
  const bytes = tensors.reduce((n, tensor) => n + tensor.size * elementBytes(tensor.dtype), 0);
  check(bytes <= MAX_SHARING * stored + ALWAYS_ALLOWED_BYTES, "file_format", () => {
    return `[pt] ${path}: its tensors unfold to ${bytes} bytes from ${stored} that are stored; the file is damaged or made to do harm`;
  });
}

function contents(root: unknown): string {
  if (root instanceof Map) {
    return (
      [...root.keys()]
        .slice(0, 5)
        .map((key) => show(key))
        .join(", ") || "an empty dict"
    );
  }
  if (root instanceof Opaque) return `a ${root.what}: a whole object, save its state_dict() instead`;
  if (root instanceof PytorchTensor || root instanceof UnreadableTensor) return "a single tensor without a name";
  return Array.isArray(root) ? "a list, no dict" : `no dict (${show(root)})`;
}
