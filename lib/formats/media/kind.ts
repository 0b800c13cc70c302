/** What a file is, by its first bytes: its name says what someone thought it was. */
import { open, stat } from "node:fs/promises";
import { extname } from "node:path";
import { check, LtxError } from "../../errors.js";

export interface Kind {
  /** `other` is not read. */
  type: "image" | "video" | "other";
  /** For messages: `a PNG image`. */
  name: string;
  /** Of an image, sharp's name of it; of a video, ffmpeg's of what takes it apart. */
  format?: string;
  /** What helps with one that is not read. */
  remedy?: string;
}

export const IMAGE_TYPES = [".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif", ".tif", ".tiff"];
export const VIDEO_TYPES = [".mp4", ".mov", ".webm", ".mkv", ".m4v", ".avi"];
/** What is read, for messages. */
export const READABLE =
  "images are PNG, JPEG, WebP, GIF, AVIF and TIFF files, videos MP4, MOV, WebM, MKV and AVI files";

const HEAD_BYTES = 4096;
const image = (name: string, format: string): Kind => ({ type: "image", name, format });
const video = (name: string, format: string): Kind => ({ type: "video", name, format });
const other = (name: string, remedy?: string): Kind => ({ type: "other", name, remedy });

const TO_PNG = "convert it to PNG or JPEG";
const TO_MP4 = "convert it (ffmpeg -i FILE out.mp4)";
const PLAYLIST = "give the video itself: what a playlist names is not opened";
const DRAWING = "convert it to PNG at the size that you want";

/** Beginnings of binary files: patterns of their hexadecimal digits. */
const BEGINNINGS: readonly (readonly [string, Kind])[] = [
  ["89504e470d0a1a0a", image("a PNG image", "png")],
  ["ffd8ff", image("a JPEG image", "jpeg")],
  ["474946383761", image("a GIF image", "gif")],
  ["474946383961", image("a GIF image", "gif")],
  ["52494646........57454250", image("a WebP image", "webp")],
  ["49492a00........4352", other("a camera's raw file", TO_PNG)],
  ["49492a00", image("a TIFF image", "tiff")],
  ["4d4d002a", image("a TIFF image", "tiff")],
  ["49492b00", image("a TIFF image", "tiff")],
  ["4d4d002b", image("a TIFF image", "tiff")],
  ["1a45dfa3", video("a Matroska or WebM video", "matroska")],
  ["52494646........415649", video("an AVI video", "avi")],
  ["52494646........57415645", other("a sound file (WAV)")],
  ["494433", other("a sound file (MP3)")],
  ["664c6143", other("a sound file (FLAC)")],
  ["4f676753", other("an Ogg file", TO_MP4)],
  ["464c56", other("an FLV video", TO_MP4)],
  ["3026b2758e66cf11", other("a Windows Media file", TO_MP4)],
  ["000001ba", other("an MPEG program stream", TO_MP4)],
  ["000001b3", other("an MPEG video stream", TO_MP4)],
  ["00000001", other("a raw video stream", TO_MP4)],
  ["424d", other("a BMP image", TO_PNG)],
  ["00000100", other("an icon (ICO)", TO_PNG)],
  ["38425053", other("a Photoshop file", TO_PNG)],
  ["0000000c6a502020", other("a JPEG 2000 image", TO_PNG)],
  ["ff4fff51", other("a JPEG 2000 image", TO_PNG)],
  ["0000000c4a584c20", other("a JPEG XL image", TO_PNG)],
  ["ff0a", other("a JPEG XL image", TO_PNG)],
  ["762f3101", other("an OpenEXR image", TO_PNG)],
  ["255044462d", other("a PDF document", TO_PNG)],
  ["25215053", other("a PostScript document", TO_PNG)],
  ["c5d0d3c6", other("a PostScript document", TO_PNG)],
  ["504b0304", other("a ZIP archive", "unpack it and give the folder")],
  ["1f8b", other("a gzip archive", "unpack it")],
  ["377abcaf271c", other("a 7-Zip archive", "unpack it and give the folder")],
  ["526172211a07", other("a RAR archive", "unpack it and give the folder")],
  ["503[1-7](09|0a|0d|20)", other("a netpbm image", TO_PNG)],
  ["934e554d5059", other("a NumPy array")],
  ["47475546", other("a model's weights (GGUF)")],
];
const MAGIC = BEGINNINGS.map(([digits, kind]) => [new RegExp(`^${digits}`), kind] as const);

/** Beginnings of texts. */
const TEXTS: readonly (readonly [RegExp, Kind])[] = [
  [/^#EXTM3U|^#EXT-X-/i, other("an HLS playlist", PLAYLIST)],
  [/^ffconcat\b/i, other("an ffmpeg concat list", PLAYLIST)],
  [/^\[playlist\]|^\[reference\]/i, other("a playlist", PLAYLIST)],
  [/^v=0\r?\no=/, other("an SDP session description", PLAYLIST)],
  [/<svg[\s>]/i, other("an SVG drawing", DRAWING)],
  [/<MPD[\s>]/, other("a DASH manifest", PLAYLIST)],
  [/<SmoothStreamingMedia[\s>]|<smil[\s>]|<asx[\s>]|xspf/i, other("a playlist", PLAYLIST)],
  [/^<!doctype html|^<html/i, other("a web page", "download the file itself")],
  [/^<\?xml/i, other("an XML document")],
  [/^version https:\/\/git-lfs/, other("a Git LFS pointer", "fetch the file itself (git lfs pull)")],
  [/^YUV4MPEG2/, other("a YUV4MPEG video", TO_MP4)],
  [/^#\?(RADIANCE|RGBE)/, other("a Radiance image", TO_PNG)],
  [/^\s*[{[]/, other("a JSON document")],
];

/** Boxes with which MP4 and MOV files begin. */
const BOXES = ["ftyp", "styp", "moov", "moof", "mdat", "free", "skip", "wide", "pnot", "sidx", "uuid"];
const HEIC = ["heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs"];
/** TIFF inside, but what a reader of TIFF finds first is often a thumbnail. */
const RAW_TYPES = [".dng", ".nef", ".nrw", ".cr2", ".arw", ".sr2", ".orf", ".rw2", ".pef", ".srw"];

/**
 * What the file is; only of an `image` and a `video` may a reader be called, and only the one for its `format`.
 * @throws LtxError `io` where there is no such file or it can't be read
 */
export async function kindOf(path: string): Promise<Kind> {
  const fail = (cause: Error) => new LtxError("io", `[media] cannot read ${path}: ${cause.message}`, { cause });
  const info = await stat(path).catch((cause) => {
    throw fail(cause);
  });
  // Opening a pipe or a device may wait for ever.
  check(
    info.isFile(),
    "io",
    () => `[media] ${path} is not a regular file: give an image, a video or a folder of images`,
  );
  const head = Buffer.alloc(Math.min(HEAD_BYTES, info.size));
  try {
    const file = await open(path, "r");
    try {
      const { bytesRead } = await file.read(head, 0, head.length, 0);
      return kindOfBytes(head.subarray(0, bytesRead), extname(path).toLowerCase());
    } finally {
      await file.close();
    }
  } catch (cause) {
    throw fail(cause as Error);
  }
}

/** @throws LtxError `file_format` unless the file is an image or a video */
export function checkReadable(path: string, { type, name, remedy }: Kind): void {
  check(type !== "other", "file_format", () => {
    return `[media] ${path} is ${name}, which is not read as an image or a video: ${remedy ?? READABLE}`;
  });
}

function kindOfBytes(head: Buffer, extension: string): Kind {
  if (head.length === 0) return other("an empty file");
  const hex = head.subarray(0, 32).toString("hex");
  const [, found] = MAGIC.find(([magic]) => magic.test(hex)) ?? [];
  if (found)
    return found.format === "tiff" && RAW_TYPES.includes(extension) ? other("a camera's raw file", TO_PNG) : found;
  const box = head.toString("latin1", 4, 8);
  if (BOXES.includes(box)) return box === "ftyp" ? brandOf(head) : video("an MP4 or MOV video", "mov");
  if (head[0] === 0x47 && (head.length <= 188 || head[188] === 0x47)) return other("an MPEG transport stream", TO_MP4);
  // UTF-16 and UTF-8 with their marks; what has zeros otherwise is no text.
  const utf16 = (head[0] === 0xff && head[1] === 0xfe) || (head[0] === 0xfe && head[1] === 0xff);
  if (!utf16 && head.includes(0)) return other("a file of an unknown kind");
  const text = head
    .toString("latin1")
    .replace(/[\0\xfe\xff]|^\xef\xbb\xbf/g, "")
    .trimStart();
  return (
    TEXTS.find(([pattern]) => pattern.test(text))?.[1] ?? other(isText(head) ? "a text" : "a file of an unknown kind")
  );
}

/** Whether there are no control characters but spaces and ends of lines. */
const isText = (head: Buffer): boolean => head.every((byte) => byte >= 0x20 || (byte >= 9 && byte <= 13));

/** By the brands of its first box: pictures are stored as videos are. */
function brandOf(head: Buffer): Kind {
  const size = Math.min(head.length, head.readUInt32BE(0));
  const [major = "", , ...compatible] = head.toString("latin1", 8, Math.max(12, size)).match(/.{4}/gs) ?? [];
  const brands = [major, ...compatible];
  if (major === "avif" || major === "avis") return image("an AVIF image", "heif");
  if (HEIC.includes(major)) return other("a HEIC image", "convert it to JPEG or PNG");
  if (major === "mif1" || major === "msf1") {
    if (brands.includes("avif")) return image("an AVIF image", "heif");
    return other("a HEIF image", "convert it to JPEG or PNG");
  }
  if (major === "crx ") return other("a camera's raw file", TO_PNG);
  return video("an MP4 or MOV video", "mov");
}
