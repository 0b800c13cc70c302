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
