import { stopIfAborted } from "../errors.js";

/**
 * What `promise` gives, unless the signal comes first: then who waits leaves at once.
 * @throws LtxError `aborted`
 */
export async function until<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  stopIfAborted(signal);
  if (!signal) return promise;
  let leave = () => {};
  const stopped = new Promise<never>((_, reject) => {
    leave = () => {
      try {
        stopIfAborted(signal);
      } catch (error) {
        reject(error);
      }
    };
    signal.addEventListener("abort", leave, { once: true });
  });
  try {
    return await Promise.race([promise, stopped]);
  } finally {
    signal.removeEventListener("abort", leave);
  }
}

/** A load under way, or what it gave. */
interface Load<T> {
  result: Promise<T>;
  stop: AbortController;
  waiting: number;
}

/** Something that is loaded when it is first asked for, once for all who ask. */
export class SharedLoad<T> {
  private current: Load<T> | null = null;

  constructor(private readonly load: (signal: AbortSignal) => Promise<T>) {}

  /**
   * Waits for it, or leaves when the signal comes; the last one who leaves stops the load. After a failure the next one
   * who asks tries again.
   * @throws LtxError `aborted`, and from loading
   */
  async get(signal?: AbortSignal): Promise<T> {
    for (;;) {
      stopIfAborted(signal);
      this.current ??= this.begin();
      const mine = this.current;
      mine.waiting++;
      try {
        return await until(mine.result, signal);
      } catch (error) {
        // It was stopped for the sake of others, who left before this one came.
        if (mine.stop.signal.aborted && !signal?.aborted) continue;
        throw error;
      } finally {
        if (--mine.waiting === 0) mine.stop.abort();
      }
    }
  }

  private begin(): Load<T> {
    const stop = new AbortController();
    const load: Load<T> = { result: this.load(stop.signal), stop, waiting: 0 };
    load.result.catch(() => {
      if (this.current === load) this.current = null;
    });
    return load;
  }

  /** Whether it is there, or on its way. */
  get held(): boolean {
    return this.current !== null;
  }

  /** Forgets it: the next one who asks loads it anew. @returns what is to be freed, if it comes to be there */
  forget(): Promise<T | null> {
    const { current } = this;
    this.current = null;
    return current ? current.result.catch(() => null) : Promise.resolve(null);
  }
}
