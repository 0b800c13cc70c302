import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import sharp from "sharp";
import { afterAll, describe, expect, it } from "vitest";
import { fileKind, KIND_BYTES, kindOfFile } from "../lib/file-kind.js";
import { openTensorFile } from "../lib/formats/tensor-file.js";
import { failure } from "./support/failure.js";

const folder = mkdtempSync(join(tmpdir(), "ltx-kind-"));
afterAll(() => rmSync(folder, { recursive: true }));
const at = (name: string) => join(folder, name);
const latin1 = (text: string) => Buffer.from(text, "latin1");

/** Contents, and what a reader of weights says they are. */
const cases: readonly [name: string, bytes: Buffer, what: string][] = [
  ["model.gguf", latin1("GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0"), "a GGUF file (quantized weights)"],
  ["gguf-renamed.safetensors", latin1("GGUF\x02\0\0\0{\0\0\0"), "a GGUF file (quantized weights)"],
  ["model.bin", latin1("lmgg\x01\0\0\0"), "a GGML file"],
  ["page.safetensors", latin1("\n <!DOCTYPE html><html><head>"), "a web page (HTML)"],
  ["commented.safetensors", latin1("<!-- saved -->\n<html lang=en>"), "a web page (HTML)"],
  ["utf8-bom.safetensors", Buffer.from("\ufeff<html>"), "a web page (HTML)"],
  [
    "denied.safetensors",
    latin1("Access to model x is restricted. You must be authenticated"),
    "an error message of a server",
  ],
  ["missing.safetensors", latin1("Entry not found"), "an error message of a server"],
  ["answer.safetensors", latin1('{"error":"Repository not found"}'), "an error message of a server (JSON)"],
  ["xml.safetensors", latin1('<?xml version="1.0"?><Error><Code>AccessDenied</Code>'), "an XML file"],
  ["drawing.svg", latin1('<?xml version="1.0"?>\n<svg xmlns="x"/>'), "an SVG drawing"],
  [
    "pointer.safetensors",
    latin1("version https://git-lfs.github.com/spec/v1\noid sha256:4d\n"),
    "a pointer of Git LFS",
  ],
  ["model.safetensors.index.json", latin1('{"metadata":{},"weight_map":{"a":"b"}}'), "an index of shards (JSON)"],
  ["workflow.json", latin1('{"last_node_id":9,"nodes":[]}'), "a ComfyUI workflow (JSON)"],
  ["api.json", latin1('{"3":{"class_type":"KSampler"}}'), "a ComfyUI workflow (JSON)"],
  ["config.json", latin1('{\n "_class_name": "LTXVideoTransformer3DModel"}'), "a model's configuration (JSON)"],
  ["adapter_config.json", latin1('{"peft_type": "LORA"}'), "the configuration of a PEFT adapter (JSON)"],
  ["list.json", latin1("[1, 2]"), "a JSON file"],
  ["notes.safetensors", latin1("to be downloaded later"), 'a text that begins with "to be downloaded later"'],
  ["empty.safetensors", Buffer.alloc(0), "empty (0 bytes)"],
  ["zeros.safetensors", Buffer.alloc(5000), "a file that begins with zeros"],
  ["model.safetensors.part", latin1("\x08\0\0\0\0\0\0\0{}      "), "a download that is not complete"],
  ["model.crdownload", latin1("abc"), "a download that is not complete"],
  ["0a1b.incomplete", Buffer.alloc(20), "a download that is not complete"],
  ["net.onnx", latin1("\x08\x07\x12\x05other"), "an ONNX model"],
  ["exported", latin1("\x08\x08\x12\x07pytorch\x1a\x05"), "an ONNX model"],
  ["saved_model.pb", latin1("\x08\x01\x12\xaf"), "a TensorFlow model"],
  ["weights.h5", latin1("\x89HDF\r\n\x1a\n\0\0"), "an HDF5 file"],
  ["lite.bin", latin1("\x1c\0\0\0TFL3"), "a TensorFlow Lite model"],
  ["flax_model.msgpack", latin1("\x81\xa5layer"), "Flax weights"],
  ["array.npy", latin1("\x93NUMPY\x01\0"), "a NumPy array"],
  ["weights.tar.gz", gzipSync("x"), "a gzip archive"],
  ["weights.tar", Buffer.concat([Buffer.alloc(257, "a"), latin1("ustar\0")]), "a tar archive"],
  ["weights.7z", latin1("7z\xbc\xaf\x27\x1c\0\x04"), "a 7z archive"],
  ["weights.rar", latin1("Rar!\x1a\x07\x01\0"), "a RAR archive"],
  ["weights.xz", latin1("\xfd7zXZ\0\0\x04"), "an xz archive"],
  ["weights.zst", latin1("\x28\xb5\x2f\xfd\0\0"), "a Zstandard archive"],
  ["paper.pdf", latin1("%PDF-1.7\n"), "a PDF document"],
  ["photo.jpg", latin1("\xff\xd8\xff\xe0\0\x10JFIF"), "a JPEG picture"],
  ["clip.webp", latin1("RIFF\x10\0\0\0WEBPVP8 "), "a WebP picture"],
  ["phone.heic", latin1("\0\0\0\x18ftypheic"), "a HEIC picture"],
  ["clip.mp4", latin1("\0\0\0\x20ftypisom"), "an MP4 or MOV video"],
  ["clip.mkv", latin1("\x1a\x45\xdf\xa3\x9f"), "a Matroska or WebM video"],
  ["program", latin1("\x7fELF\x02\x01\x01\0"), "a program for Linux"],
  ["._model.safetensors", latin1("\0\x05\x16\x07\0\x02"), "what macOS keeps beside a file"],
  ["noise", latin1("\x01\x02\x03\xff\xfe\x80\x99\x10\x11\x12"), "a file that begins with 01 02 03 ff fe 80 99 10 11"],
];

describe("a file in the place of weights", () => {
  it.each(cases)("%s", async (name, bytes, what) => {
    writeFileSync(at(name), bytes);
    const error = await failure(() => openTensorFile(at(name)));
    expect(error.code).toBe("file_format");
    expect(error.message).toContain(`[checkpoint] ${at(name)} is ${what}`);
    expect(error.message).toContain("expected weights: a safetensors file or a PyTorch checkpoint");
  });

  it("a picture with ComfyUI's workflow in it", async () => {
    const png = await sharp({ create: { width: 8, height: 8, channels: 3, background: "red" } })
      .png()
      .toBuffer();
    const chunk = Buffer.concat([latin1("\0\0\0\x0ctEXtworkflow\0{}}"), Buffer.alloc(4)]);
    // Behind the first chunk, which is 25 bytes long and stands behind the signature of 8.
    const bytes = Buffer.concat([png.subarray(0, 33), chunk, png.subarray(33)]);
    expect(fileKind(png, "a.png")?.what).toBe("a PNG picture");
    expect(fileKind(bytes, "a.png")?.what).toBe("a PNG picture with a ComfyUI workflow in it");
  });

  it("a folder, a device", async () => {
    mkdirSync(at("model"));
    expect((await failure(() => openTensorFile(at("model")))).message).toBe(
      `[checkpoint] ${at("model")} is a folder, expected a file: name the file inside it`,
    );
    expect((await failure(() => openTensorFile("/dev/null"))).message).toContain("device, pipe or socket");
    expect(await kindOfFile(at("model"))).toMatchObject({ what: "a folder" });
    expect(await kindOfFile(at("nowhere"))).toBeUndefined();
  });
});

describe("fileKind", () => {
  it("knows safetensors by the header's length and its bracket, and PyTorch's files", () => {
    const header = Buffer.alloc(64, " ");
    header.writeBigUInt64LE(56n);
    header.write("{", 8);
    expect(fileKind(header, "x")?.type).toBe("safetensors");
    header.writeBigUInt64LE(100_000_001n);
    expect(fileKind(header, "x")?.type).not.toBe("safetensors");
    expect(fileKind(latin1("PK\x03\x04rest"), "x.pt")?.type).toBe("zip");
    expect(fileKind(latin1("\x80\x02\x8a\x0al\xfc"), "x.pt")?.type).toBe("pickle");
  });

  it("takes a character that the cut halves for text", () => {
    const bytes = Buffer.from("ä".repeat(KIND_BYTES)).subarray(0, KIND_BYTES - 1);
    expect(fileKind(bytes, "x")?.type).toBe("text");
  });

  it("takes names of JavaScript's objects for no extension", () => {
    for (const name of ["x.constructor", "x.toString", "x.__proto__"]) {
      expect(fileKind(Uint8Array.of(1, 2, 0xff), name)).toBeUndefined();
    }
  });
});
