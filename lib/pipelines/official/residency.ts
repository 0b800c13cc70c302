/** Which models of a pipeline are on the device. */
import { check } from "../../errors.js";
import { stopIfAborted } from "./denoise.js";

/** How a model comes onto the device. */
export type Loader<Part> = () => Promise<Part>;

/**
 * Loads models when they are needed and keeps them. With `offload` one alone is there at a time: they take turns, and
 * those who ask for another one wait until it is free.
 */
export class Residency<Parts extends { [Name in keyof Parts]: { dispose(): void } }> {
  private readonly resident = new Map<keyof Parts, Promise<Parts[keyof Parts]>>();
  private turn: Promise<unknown> = Promise.resolve();
  private users = 0;
  private disposed = false;

  constructor(
    private readonly loaders: { readonly [Name in keyof Parts]: Loader<Parts[Name]> },
    readonly offload = false,
    /** What the loaders need is let go with the models. */
    private readonly close: () => Promise<void> = async () => {},
  ) {}

  /**
   * Runs `body` with a model, which stays at least until it ends. A signal stops the wait for it.
   * @throws {LtxError} `disposed`, and from loading
   */
  async use<Name extends keyof Parts, T>(
    name: Name,
    body: (part: Parts[Name]) => Promise<T>,
    signal?: AbortSignal,
  ): Promise<T> {
    this.users++;
    try {
      if (!this.offload) {
        stopIfAborted(signal);
        return await body(await this.load(name));
      }
      const mine = this.turn.then(async () => {
        stopIfAborted(signal);
        for (const other of [...this.resident.keys()]) if (other !== name) await this.unload(other);
        return body(await this.load(name));
      });
      this.turn = mine.catch(() => {});
      return await mine;
    } finally {
      this.users--;
      if (this.disposed && this.users === 0) this.unloadAll();
    }
  }

  /** Whether a model is in use. */
  get busy(): boolean {
    return this.users > 0;
  }

  private load<Name extends keyof Parts>(name: Name): Promise<Parts[Name]> {
    check(!this.disposed, "disposed", () => "[pipeline] it was disposed");
    let part = this.resident.get(name) as Promise<Parts[Name]> | undefined;
    if (!part) {
      part = this.loaders[name]();
      this.resident.set(name, part);
      // A failure is told to who asked; the next one tries again.
      part.catch(() => this.resident.delete(name));
    }
    return part;
  }

  /** Frees a model; the next one who asks loads it anew. */
  async unload(name: keyof Parts): Promise<void> {
    const part = this.resident.get(name);
    this.resident.delete(name);
    await part?.then(
      (loaded) => loaded.dispose(),
      () => {},
    );
  }

  private unloadAll(): void {
    for (const name of [...this.resident.keys()]) void this.unload(name);
    void this.close();
  }

  /** Frees everything, or when what is under way ends. */
  dispose(): void {
    this.disposed = true;
    if (this.users === 0) this.unloadAll();
  }
}
