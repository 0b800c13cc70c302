/** Building what consists of several parts that own memory. */

interface Disposable {
  dispose(): void;
}

/**
 * Runs `body`, which hands each part to `own` as soon as it is made and returns what owns them from then on. When it
 * throws, or its promise rejects, the parts made so far are disposed of, the last first.
 */
export function owning<T>(body: (own: <P extends Disposable>(part: P) => P) => T): T {
  const parts: Disposable[] = [];
  const undo = (error: unknown): never => {
    for (const part of parts.reverse()) part.dispose();
    throw error;
  };
  const own = <P extends Disposable>(part: P): P => {
    parts.push(part);
    return part;
  };
  try {
    const result = body(own);
    return result instanceof Promise ? (result.catch(undo) as T) : result;
  } catch (error) {
    return undo(error);
  }
}
