/** What a file is, told from how it begins: so that a refusal can name what it found. */
import { open, stat } from "node:fs/promises";
import { extname } from "node:path";

export interface FileKind {
  /** What this package reads under that word; `other` for what it doesn't. */
  readonly type: "safetensors" | "pickle" | "zip" | "npy" | "image" | "video" | "json" | "text" | "other";
  /** With its article, such as "a GGUF file". */
  readonly what: string;
  /** What to do about it, for kinds that are found in the place of others. */
  readonly remedy?: string;
}

/** How much of a file tells its kind. */
export const KIND_BYTES = 4096;

/** Begins, as latin1, with `signature` at `offset`. */
type Signature = readonly [type: FileKind["type"], what: string, signature: string, offset?: number, remedy?: string];

const QUANTIZED = "take the model's .safetensors file instead";
const UNPACK = "unpack it first";
const CONVERTED = "take the model's safetensors or PyTorch file instead";

const SIGNATURES: readonly Signature[] = [
  ["other", "a GGUF file (quantized weights), which is not supported", "GGUF", 0, QUANTIZED],
  ...["ggml", "lmgg", "tjgg", "algg", "fmgg"].map(
    (magic): Signature => ["other", "a GGML file (quantized weights), which is not supported", magic, 0, QUANTIZED],
  ),
  ["npy", "a NumPy array (.npy)", "\x93NUMPY"],
  ["zip", "a zip archive", "PK\x03\x04"],
  ["zip", "an empty zip archive", "PK\x05\x06"],
  ["other", "an HDF5 file (Keras, TensorFlow or MATLAB)", "\x89HDF\r\n\x1a\n", 0, CONVERTED],
  ["other", "a TensorFlow Lite model", "TFL3", 4, CONVERTED],
  ["other", "a gzip archive", "\x1f\x8b", 0, UNPACK],
  ["other", "a 7z archive", "7z\xbc\xaf\x27\x1c", 0, UNPACK],
  ["other", "a RAR archive", "Rar!\x1a\x07", 0, UNPACK],
  ["other", "an xz archive", "\xfd7zXZ\0", 0, UNPACK],
  ["other", "a Zstandard archive", "\x28\xb5\x2f\xfd", 0, UNPACK],
  ["other", "an LZ4 archive", "\x04\x22\x4d\x18", 0, UNPACK],
  ["other", "a bzip2 archive", "BZh", 0, UNPACK],
  ["other", "a tar archive", "ustar", 257, UNPACK],
  ["other", "a PDF document", "%PDF-"],
  ["image", "a PNG picture", "\x89PNG\r\n\x1a\n"],
  ["image", "a JPEG picture", "\xff\xd8\xff"],
  ["image", "a GIF picture", "GIF8"],
  ["image", "a WebP picture", "WEBP", 8],
  ["image", "a TIFF picture", "II*\0"],
  ["image", "a TIFF picture", "MM\0*"],
  ["image", "an AVIF picture", "ftypavif", 4],
  ["image", "a HEIC picture", "ftypheic", 4],
  ["image", "a HEIC picture", "ftypmif1", 4],
  ["image", "a JPEG XL picture", "\0\0\0\x0cJXL \r\n\x87\n"],
  ["other", "a Photoshop document", "8BPS"],
  ["video", "an MP4 or MOV video", "ftyp", 4],
  ["video", "a QuickTime video", "moov", 4],
  ["video", "a Matroska or WebM video", "\x1a\x45\xdf\xa3"],
  ["video", "an AVI video", "AVI ", 8],
  ["other", "a WAV sound", "WAVE", 8],
  ["other", "a FLAC sound", "fLaC"],
  ["other", "an Ogg file", "OggS"],
  ["other", "an MP3 sound", "ID3"],
  ["other", "an SQLite database", "SQLite format 3\0"],
  ["other", "a Parquet file", "PAR1"],
  ["other", "an Arrow file", "ARROW1"],
  ["other", "a BitTorrent file", "d8:announce", 0, "download what it describes"],
  ["other", "a program for Linux (ELF)", "\x7fELF"],
  ["other", "a program for Windows", "MZ\x90\0"],
  [
    "other",
    "what macOS keeps beside a file (AppleDouble)",
    "\0\x05\x16\x07",
    0,
    "take the file without ._ before its name",
  ],
];

/** Kinds without a signature of their own, by what stands behind the last dot. */
const EXTENSIONS: Readonly<Record<string, string>> = {
  onnx: "an ONNX model",
  pb: "a TensorFlow model",
  tflite: "a TensorFlow Lite model",
  msgpack: "Flax weights",
  mlmodel: "a Core ML model",
  engine: "a TensorRT engine",
  plan: "a TensorRT engine",
  pdparams: "a PaddlePaddle model",
  pdmodel: "a PaddlePaddle model",
};

/** Endings that browsers and download tools give what has not arrived yet. */
const UNFINISHED = /\.(part|partial|crdownload|download|incomplete|aria2|opdownload|!ut|!qb)$/i;
const AGAIN = "download it to its end";

/**
 * The kind of a file.
 * @param start its first {@link KIND_BYTES} bytes, or all of it
 * @param path its name says what its contents don't, such as that it is a download that goes on
 * @returns undefined for contents that nothing here knows
 */
export function fileKind(start: Uint8Array, path: string): FileKind | undefined {
  if (start.length === 0) return { type: "other", what: "empty (0 bytes)", remedy: "get it again" };
  if (UNFINISHED.test(path)) return { type: "other", what: "a download that is not complete", remedy: AGAIN };
  if (isSafetensors(start)) return { type: "safetensors", what: "a safetensors file" };
  const text = Buffer.from(start.buffer, start.byteOffset, start.byteLength);
  for (const [type, what, signature, offset = 0, remedy] of SIGNATURES) {
    if (text.toString("latin1", offset, offset + signature.length) !== signature) continue;
    return type === "image" ? picture(what, text) : { type, what, remedy };
  }
  if (start.every((byte) => byte === 0)) {
    return { type: "other", what: "a file that begins with zeros, as a download that is not complete", remedy: AGAIN };
  }
  // After the others: two bytes are a weak sign, and those of ONNX are weaker.
  if (start[0] === 0x80 && start[1] >= 2 && start[1] <= 5) return { type: "pickle", what: "a Python pickle" };
  const extension = extname(path).slice(1).toLowerCase();
  if (Object.hasOwn(EXTENSIONS, extension)) return { type: "other", what: EXTENSIONS[extension], remedy: CONVERTED };
  if (start[0] === 8 && start[1] < 32 && text.toString("latin1", 2, 12).includes("pytorch")) {
    return { type: "other", what: EXTENSIONS.onnx, remedy: CONVERTED };
  }
  return textKind(start);
}

/** A header's length below the format's bound, then the "{" that it begins with. */
function isSafetensors(start: Uint8Array): boolean {
  if (start.length < 9 || start[8] !== 0x7b) return false;
  return new DataView(start.buffer, start.byteOffset).getBigUint64(0, true) <= 100_000_000n;
}

/** ComfyUI writes the workflow that drew a picture into it, and people hand pictures on as workflows. */
function picture(what: string, start: Buffer): FileKind {
  const workflow = /tEXt(workflow|prompt)\0|"class_type"/.test(start.toString("latin1"));
  return { type: "image", what: workflow ? `${what} with a ComfyUI workflow in it` : what };
}

function textKind(start: Uint8Array): FileKind | undefined {
  let text: string;
  try {
    // With `stream` a character that the cut halves is no fault.
    text = new TextDecoder("utf-8", { fatal: true }).decode(start, { stream: true }).trimStart();
  } catch {
    const utf16 = (start[0] === 0xff && start[1] === 0xfe) || (start[0] === 0xfe && start[1] === 0xff);
    return utf16 ? { type: "text", what: "a text in UTF-16", remedy: "save it as UTF-8" } : undefined;
  }
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they tell binary data from text
  if (/[\0-\x08\x0e-\x1a\x1c-\x1f]/.test(text)) return undefined;
  const is = (pattern: RegExp) => pattern.test(text);
  if (is(/^version https?:\/\/(git-lfs|hawser)\./)) {
    return { type: "text", what: "a pointer of Git LFS, not the file itself", remedy: 'get that with "git lfs pull"' };
  }
  if (is(/^(<!--[\s\S]*?-->\s*)?<(!doctype html|html|head|body|script|meta)\b/i)) {
    const remedy = "the link led to a page or asked for a login: take the link of the file itself";
    return { type: "text", what: "a web page (HTML)", remedy };
  }
  if (is(/^(<\?xml[\s\S]*?\?>\s*)?(<!--[\s\S]*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg\b/i))
    return { type: "text", what: "an SVG drawing" };
  if (is(/^<\?xml\b/)) return { type: "text", what: "an XML file" };
  if (is(/^[{[]/)) return jsonKind(text);
  if (is(/^#EXTM3U|^ffconcat /)) return { type: "text", what: "a playlist" };
  if (is(/^\[InternetShortcut\]/)) return { type: "text", what: "a shortcut to a web address" };
  const what = `a text that begins with ${JSON.stringify(text.slice(0, 40))}`;
  // What the hub answers instead of a file, saved under its name.
  const answer = is(
    /^(Entry|Repository|Revision|File) not found|^Access to |^Invalid (username|credentials)|^Not Found/i,
  );
  return { type: "text", what: answer ? `an error message of a server (${JSON.stringify(text.slice(0, 40))})` : what };
}

function jsonKind(text: string): FileKind {
  const has = (pattern: RegExp) => pattern.test(text);
  const kind = (what: string, remedy?: string): FileKind => ({ type: "json", what, remedy });
  if (has(/"weight_map"\s*:/)) return kind("an index of shards (JSON)", "give the folder it lies in, with its shards");
  if (has(/"(last_node_id|class_type)"\s*:/)) return kind("a ComfyUI workflow (JSON)");
  if (has(/"(lora_alpha|peft_type)"\s*:/)) return kind("the configuration of a PEFT adapter (JSON)");
  if (has(/"_diffusers_version"\s*:|"(_class_name|architectures|model_type)"\s*:/)) {
    return kind("a model's configuration (JSON)", "give the folder it lies in, or the file of weights beside it");
  }
  if (has(/^\{\s*"(error|message|detail|errors)"\s*:/)) return kind("an error message of a server (JSON)");
  return kind("a JSON file");
}

/** The kind of the file at `path`; undefined when it cannot be read or is unknown. */
export async function kindOfFile(path: string): Promise<FileKind | undefined> {
  const info = await stat(path).catch(() => null);
  if (info?.isDirectory()) return { type: "other", what: "a folder" };
  if (!info?.isFile()) return undefined;
  const file = await open(path, "r").catch(() => null);
  try {
    const { buffer, bytesRead } = (await file?.read(Buffer.alloc(KIND_BYTES), 0, KIND_BYTES, 0)) ?? {};
    return buffer && fileKind(buffer.subarray(0, bytesRead), path);
  } catch {
    return undefined;
  } finally {
    await file?.close();
  }
}

/** The sentence of a refusal: what the file is, what was expected, what to do. */
export function mistaken(path: string, { what, remedy }: FileKind, expected: string): string {
  return `${path} is ${what}, expected ${expected}${remedy ? `: ${remedy}` : ""}`;
}
