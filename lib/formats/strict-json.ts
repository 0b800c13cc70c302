/** JSON read as strictly as safetensors asks: what `JSON.parse` lets pass silently is an error here. */

/**
 * Parses `text`, which must hold unique keys in every object, well-formed Unicode, and no numbers but plain
 * non-negative integers (no sign, fraction or exponent).
 * @throws SyntaxError saying what is wrong
 */
export function parseStrictJson(text: string): unknown {
  const value: unknown = JSON.parse(text);
  checkTokens(text);
  return value;
}

/** Walks the tokens of `text`, which is known to be valid JSON, so only what JSON.parse forgives needs looking at. */
function checkTokens(text: string): void {
  // One entry an open bracket: the keys seen so far in an object, undefined for an array.
  const open: (Set<string> | undefined)[] = [];
  for (let i = 0; i < text.length; ) {
    const char = text[i];
    if (char === '"') {
      const end = stringEnd(text, i);
      const string = JSON.parse(text.slice(i, end)) as string;
      if (/\p{Surrogate}/u.test(string)) throw new SyntaxError(`string ${text.slice(i, end)} is no valid Unicode`);
      i = end;
      while (isSpace(text[i])) i++;
      if (text[i] === ":") {
        const keys = open.at(-1) as Set<string>;
        if (keys.has(string)) throw new SyntaxError(`duplicate key ${JSON.stringify(string)}`);
        keys.add(string);
      }
    } else if (char === "-" || (char >= "0" && char <= "9")) {
      const start = i;
      while (i < text.length && isNumberPart(text[i])) i++;
      const number = text.slice(start, i);
      if (!/^\d{1,20}$/.test(number)) throw new SyntaxError(`number ${number} is no plain non-negative integer`);
    } else {
      if (char === "{") open.push(new Set());
      else if (char === "[") open.push(undefined);
      else if (char === "}" || char === "]") open.pop();
      i++;
    }
  }
}

function stringEnd(text: string, start: number): number {
  let i = start + 1;
  while (text[i] !== '"') i += text[i] === "\\" ? 2 : 1;
  return i + 1;
}

function isSpace(char: string | undefined): boolean {
  return char === " " || char === "\n" || char === "\r" || char === "\t";
}

function isNumberPart(char: string): boolean {
  return (char >= "0" && char <= "9") || char === "-" || char === "+" || char === "." || char === "e" || char === "E";
}
