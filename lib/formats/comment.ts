/** Texts about a picture inside of its file. */
import { escapeXml } from "./text.js";

/** `value` as JSON in ASCII, which every reader of metadata shows alike. */
export function commentJson(value: unknown): string {
  return JSON.stringify(value).replace(/[\u007f-\uffff]/g, (char) => {
    return `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
}

/** An XMP packet with a description (Dublin Core). */
export function xmpWithDescription(text: string): string {
  const rdf = "http://www.w3.org/1999/02/22-rdf-syntax-ns#";
  return (
    `<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="${rdf}">` +
    '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:description><rdf:Alt>' +
    `<rdf:li xml:lang="x-default">${escapeXml(text)}</rdf:li></rdf:Alt></dc:description></rdf:Description>` +
    "</rdf:RDF></x:xmpmeta>"
  );
}

const GIF_EXTENSION = 0x21;
const GIF_APPLICATION = 0xff;
const GIF_COMMENT = 0xfe;
/** Bytes in one block of a GIF extension. */
const GIF_BLOCK = 255;

/** A GIF with a comment before its first frame, where readers look that open one frame only. */
export function gifWithComment(gif: Uint8Array, text: string): Buffer {
  const bytes = Buffer.from(text);
  const blocks: Buffer[] = [];
  for (let at = 0; at < bytes.length; at += GIF_BLOCK) {
    const block = bytes.subarray(at, at + GIF_BLOCK);
    blocks.push(Buffer.of(block.length), block);
  }
  const at = beforeFrames(gif);
  const comment = [Buffer.of(GIF_EXTENSION, GIF_COMMENT), ...blocks, Buffer.of(0)];
  return Buffer.concat([gif.subarray(0, at), ...comment, gif.subarray(at)]);
}

/** Behind the header, the common colours and the extensions of applications, of which one makes the animation loop. */
function beforeFrames(gif: Uint8Array): number {
  const [header, flags] = [13, gif[10]];
  let at = header + (flags & 0x80 ? 3 * 2 ** ((flags & 7) + 1) : 0);
  while (gif[at] === GIF_EXTENSION && gif[at + 1] === GIF_APPLICATION) {
    at += 2;
    while (gif[at] > 0) at += gif[at] + 1;
    at++;
  }
  return at;
}

const EXIF_MARK = Buffer.from("Exif\0\0");

/** A WebP whose EXIF chunk begins with the TIFF header, as its format has it, without JPEG's mark before that. */
export function webpWithPlainExif(webp: Buffer): Buffer {
  for (let at = 12; at + 8 <= webp.length; ) {
    const size = webp.readUInt32LE(at + 4);
    const end = at + 8 + size;
    if (webp.toString("latin1", at, at + 4) === "EXIF" && webp.subarray(at + 8, at + 14).equals(EXIF_MARK)) {
      const head = Buffer.from(webp.subarray(0, at + 8));
      head.writeUInt32LE(size - EXIF_MARK.length, at + 4);
      head.writeUInt32LE(webp.readUInt32LE(4) - EXIF_MARK.length, 4);
      return Buffer.concat([head, webp.subarray(at + 8 + EXIF_MARK.length)]);
    }
    // Chunks begin at even places.
    at = end + (size % 2);
  }
  return webp;
}
