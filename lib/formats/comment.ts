/** Texts about a picture inside of its file. */

/** `value` as JSON in ASCII, which every reader of metadata shows alike. */
export function commentJson(value: unknown): string {
  return JSON.stringify(value).replace(/[\u007f-\uffff]/g, (char) => {
    return `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
}

const GIF_TRAILER = 0x3b;
/** Bytes in one block of a GIF extension. */
const GIF_BLOCK = 255;

/** A GIF with a comment extension at its end. */
export function gifWithComment(gif: Buffer, text: string): Buffer {
  const bytes = Buffer.from(text);
  const end = gif.lastIndexOf(GIF_TRAILER);
  const blocks: Buffer[] = [];
  for (let at = 0; at < bytes.length; at += GIF_BLOCK) {
    const block = bytes.subarray(at, at + GIF_BLOCK);
    blocks.push(Buffer.of(block.length), block);
  }
  return Buffer.concat([gif.subarray(0, end), Buffer.of(0x21, 0xfe), ...blocks, Buffer.of(0), gif.subarray(end)]);
}
