/**
 * Weights of 8 bits that other tensors complete: scaled fp8 as ComfyUI and its tools write it, with a factor for each
 * weight or for each of its rows. Other quantised forms are recognised, and refused by name.
 */
import { check, LtxError } from "../errors.js";
import { DTYPE_BITS, fromFloat32, isFloat, type SafetensorsDtype } from "./dtypes.js";
import type { TensorEntry, TensorFile } from "./tensor-file.js";

/** Factors of the weight beside them, by the names of both generations of ComfyUI's files. */
const WEIGHT_SCALES = ["scale_weight", "weight_scale"];
/** Of activations: they cancel out where these are not rounded. */
const INPUT_SCALES = ["scale_input", "input_scale"];
/** A weight's form, as JSON in bytes. */
const FORM = "comfy_quant";
/** Says that a file has scales; its type and number of elements concern how others compute with it. */
const MARKER = /(?:^|\.)scaled_fp8$/;
/** The forms of the weights of a file, in its metadata. */
const FORMS_METADATA = "_quantization_metadata";
/** What the forms are called whose weights are products of their elements and a scale. */
const SCALED_FORMS = ["float8_e4m3fn", "float8_e5m2", "int8_tensorwise"];

/** Names that only quantised forms have which are not read, and what those are called. */
const OTHER_FORMS: readonly (readonly [RegExp, string])[] = [
  [/\.weight\._(?:data|scale|shift|packed|scale_and_zero)$/, "quanto"],
  [
    /\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+|SCB|weight_format)$/,
    "bitsandbytes",
  ],
  [/\.(?:qweight|qzeros|g_idx)$/, "GPTQ or AWQ"],
  [/\.(?:wscales|wtscale|wcscales|smooth_factor|smooth_factor_orig)$/, "SVDQuant (nunchaku)"],
  [/\.(?:weight_scale_2|pre_quant_scale)$/, "nvfp4"],
  [/\.weight_scale_inv$/, "fp8 with a scale for each block"],
  [/\.(?:weight_packed|weight_shape|weight_zero_point)$/, "compressed-tensors"],
];

/**
 * A file's tensors with the scales multiplied into the weights that they are for, and without the tensors that say so.
 * `readF32` gives the product in float32; an entry of 8 bits that has a scale becomes one of bf16, which `read` rounds to.
 * A file without such tensors is given back as it is.
 * @param path names the file in messages
 * @throws LtxError `checkpoint` for a quantised form that is not read, naming it, or a scale that doesn't fit its weight;
 *   `file_format`, `io`
 */
export async function unscaled(file: TensorFile, path: string): Promise<TensorFile> {
  const names = [...file.tensors.keys()];
  refuseOtherForms(names, path);
  const forms = new Map(metadataForms(file, path));
  for (const [layer, form] of forms) checkForm(form, `${path}: its metadata for ${layer}`);
  const scales = new Map<string, string>();
  const companions = new Set<string>();
  for (const name of names) {
    if (MARKER.test(name)) companions.add(name);
    const module = ownerOf(name, file.tensors);
    if (module === undefined) continue;
    companions.add(name);
    const kind = name.slice(module.length + 1);
    if (kind === FORM) {
      forms.set(module, await formOf(file, name, path));
      checkForm(forms.get(module), `${path}: ${name}`);
    } else if (WEIGHT_SCALES.includes(kind)) addScale(scales, `${module}.weight`, name, file, path);
    else {
      const what = `tensor "${name}" stands beside the 8-bit weight "${module}.weight"`;
      check(
        INPUT_SCALES.includes(kind),
        "checkpoint",
        () => `[weights] ${path}: ${what}, and what it does to it is not known. ${TAKE_OTHER}`,
      );
    }
  }
  refuseIntegers(file, path, (weight) => scales.has(weight) && forms.has(weight.slice(0, -".weight".length)));
  if (companions.size === 0 && !(FORMS_METADATA in file.metadata)) return file;
  return view(file, scales, companions, path);
}

const TAKE_OTHER = "Take a file in bf16, fp16, or fp8 with one scale a weight or a row";

function refuseOtherForms(names: readonly string[], path: string): void {
  for (const [pattern, form] of OTHER_FORMS) {
    const name = names.find((name) => pattern.test(name));
    check(name === undefined, "checkpoint", () => {
      return `[weights] ${path} is quantised by ${form} ("${name}"), which is not read. ${TAKE_OTHER}`;
    });
  }
}

/** The module whose weight a tensor says something of: the scale of any, and whatever stands beside one of 8 bits. */
function ownerOf(name: string, tensors: TensorFile["tensors"]): string | undefined {
  const last = name.lastIndexOf(".");
  const [module, kind] = [name.slice(0, Math.max(last, 0)), name.slice(last + 1)];
  if ([...WEIGHT_SCALES, ...INPUT_SCALES, FORM].includes(kind)) return module;
  if (kind === "weight" || kind === "bias") return undefined;
  for (let end = last; end > 0; end = name.lastIndexOf(".", end - 1)) {
    const entry = tensors.get(`${name.slice(0, end)}.weight`);
    if (entry && is8Bit(entry.dtype)) return name.slice(0, end);
  }
  return undefined;
}

const is8Bit = (dtype: SafetensorsDtype): boolean => DTYPE_BITS[dtype] === 8 && dtype !== "BOOL";

async function formOf(file: TensorFile, name: string, path: string): Promise<unknown> {
  try {
    return JSON.parse(Buffer.from(await file.read(name)).toString("utf8"));
  } catch (cause) {
    if (cause instanceof LtxError) throw cause;
    throw new LtxError("file_format", `[weights] ${path}: tensor "${name}" is not JSON: it is damaged`, { cause });
  }
}

function metadataForms(file: TensorFile, path: string): [string, unknown][] {
  const text = file.metadata[FORMS_METADATA];
  if (text === undefined) return [];
  let layers: unknown;
  try {
    layers = JSON.parse(text)?.layers;
  } catch (cause) {
    throw new LtxError("file_format", `[weights] ${path}: its ${FORMS_METADATA} is not JSON: it is damaged`, { cause });
  }
  check(typeof layers === "object" && layers !== null && !Array.isArray(layers), "file_format", () => {
    return `[weights] ${path}: its ${FORMS_METADATA} has no "layers": it is damaged`;
  });
  return Object.entries(layers);
}

interface Form {
  format?: unknown;
  convrot?: unknown;
  params?: { convrot?: unknown } | null;
}

/** `{ format, ... }`, or the format alone. */
function checkForm(form: unknown, where: string): void {
  const { format, convrot, params } = (typeof form === "string" ? { format: form } : (form ?? {})) as Form;
  const name = (convrot ?? params?.convrot) ? `${String(format)} with ConvRot` : String(format);
  check(SCALED_FORMS.includes(name), "checkpoint", () => {
    return `[weights] ${where} says that the weight is quantised as ${name}, which is not read. ${TAKE_OTHER}`;
  });
}

function addScale(scales: Map<string, string>, weight: string, name: string, file: TensorFile, path: string): void {
  const [entry, scale] = [file.tensors.get(weight), file.tensors.get(name) as TensorEntry];
  check(entry, "checkpoint", () => `[weights] ${path}: tensor "${name}" scales "${weight}", which is not there`);
  check(!scales.has(weight), "checkpoint", () => {
    return `[weights] ${path}: "${scales.get(weight)}" and "${name}" both scale "${weight}"`;
  });
  const { shape } = scale;
  const count = shape.reduce((n, d) => n * d, 1);
  const rows = shape.length > 0 && shape[0] === entry.shape[0] && count === shape[0];
  check((count === 1 || rows) && isFloat(scale.dtype), "checkpoint", () => {
    return `[weights] ${path}: the scale "${name}" is ${scale.dtype} [${shape}] for a weight [${entry.shape}]: only one number for the weight or for each row is read`;
  });
  scales.set(weight, name);
}

/** Integers are codes of something: without a scale and a form nothing says of what. */
function refuseIntegers(file: TensorFile, path: string, known: (weight: string) => boolean): void {
  for (const [name, { dtype, shape }] of file.tensors) {
    const codes = shape.length >= 2 && name.endsWith(".weight") && !isFloat(dtype) && !known(name);
    check(!codes, "checkpoint", () => {
      return `[weights] ${path}: "${name}" is ${dtype}, and nothing says what its numbers stand for: it is quantised in a form that is not read. ${TAKE_OTHER}`;
    });
  }
}

function view(
  file: TensorFile,
  scales: ReadonlyMap<string, string>,
  companions: ReadonlySet<string>,
  path: string,
): TensorFile {
  const tensors = new Map<string, TensorEntry>();
  for (const [name, entry] of file.tensors) {
    if (!companions.has(name)) tensors.set(name, scales.has(name) ? widened(entry) : entry);
  }
  const readF32 = async (name: string) => {
    const values = await file.readF32(name);
    const scale = scales.get(name);
    return scale === undefined ? values : multiplied(values, await file.readF32(scale), scale, path);
  };
  const { [FORMS_METADATA]: _, ...metadata } = file.metadata;
  return {
    metadata,
    tensors,
    readF32,
    async read(name) {
      const entry = tensors.get(name);
      if (!entry || !scales.has(name)) return file.read(name);
      const bytes = fromFloat32(await readF32(name), entry.dtype as "F32" | "BF16" | "F16");
      check(bytes, "dtype_mismatch", () => {
        return `[weights] ${path}: "${name}" has values beyond the range of f16 once it is multiplied by its scale`;
      });
      return bytes;
    },
    locate: (name) => (scales.has(name) ? undefined : file.locate?.(name)),
    close: () => file.close(),
  };
}

/** As an entry of at least 16 bits; doubles become floats, as `readF32` gives them. */
function widened({ dtype, shape }: TensorEntry): TensorEntry {
  const wide = dtype === "F64" ? "F32" : DTYPE_BITS[dtype] > 8 ? dtype : "BF16";
  return { dtype: wide, shape, byteLength: (DTYPE_BITS[wide] / 8) * shape.reduce((n, d) => n * d, 1) };
}

function multiplied(values: Float32Array, scale: Float32Array, name: string, path: string): Float32Array {
  const row = values.length / scale.length;
  const result = new Float32Array(values.length);
  for (const [r, factor] of scale.entries()) {
    check(Number.isFinite(factor), "non_finite", () => `[weights] ${path}: the scale "${name}" holds ${factor}`);
    for (let i = r * row; i < (r + 1) * row; i++) result[i] = values[i] * factor;
  }
  return result;
}
