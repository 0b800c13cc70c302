/** Which models of a pipeline are on the device. */
import { check, stopIfAborted } from "../../errors.js";
import { SharedLoad, until } from "../../formats/shared-load.js";

/** How a model comes onto the device; stopped when nobody waits for it any more. */
export type Loader<Part> = (signal: AbortSignal) => Promise<Part>;

/**
 * Loads models when they are needed and keeps them. With `offload` one alone is there at a time: they take turns, and
 * those who ask for another one wait until it is free. Models are changed between videos only.
 */
export class Residency<Parts extends { [Name in keyof Parts]: { dispose(): void } }> {
  private readonly parts: { [Name in keyof Parts]: SharedLoad<Parts[Name]> };
  private turn: Promise<unknown> = Promise.resolve();
  private changes: Promise<unknown> | null = null;
  private users = 0;
  private videos = 0;
  private disposed = false;
  private readonly last: (() => void)[] = [];

  constructor(
    loaders: { readonly [Name in keyof Parts]: Loader<Parts[Name]> },
    readonly offload = false,
    /** What the loaders need is let go with the models. */
    private readonly close: () => Promise<void> = async () => {},
  ) {
    const names = Object.keys(loaders) as (keyof Parts)[];
    this.parts = Object.fromEntries(names.map((name) => [name, new SharedLoad(loaders[name])])) as typeof this.parts;
  }

  /**
   * Draws a video: from its beginning to its end no model is changed. It waits for changes under way.
   * @throws {LtxError} `aborted` as soon as the signal stops the wait
   */
  async video<T>(body: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    while (this.changes) await until(this.changes, signal);
    this.videos++;
    try {
      return await body();
    } finally {
      this.videos--;
    }
  }

  /**
   * Changes models: changes follow one another, and videos that are asked for meanwhile wait for them.
   * @throws {LtxError} `invalid_argument` while a video is drawn
   */
  async change(body: () => Promise<void>): Promise<void> {
    check(this.videos === 0, "invalid_argument", () => "[pipeline] LoRAs can't be changed while a video is drawn");
    const mine = (this.changes ?? Promise.resolve()).then(body);
    const settled = mine.then(
      () => {},
      () => {},
    );
    this.changes = settled;
    try {
      await mine;
    } finally {
      if (this.changes === settled) this.changes = null;
    }
  }

  /**
   * Runs `body` with a model, which stays at least until it ends. A signal stops the wait for it, at once.
   * @throws {LtxError} `disposed`, `aborted`, and from loading
   */
  async use<Name extends keyof Parts, T>(
    name: Name,
    body: (part: Parts[Name]) => Promise<T>,
    signal?: AbortSignal,
  ): Promise<T> {
    this.users++;
    const before = this.turn;
    let end = () => {};
    if (this.offload) {
      const mine = new Promise<void>((resolve) => {
        end = resolve;
      });
      this.turn = before.then(() => mine);
    }
    try {
      stopIfAborted(signal);
      if (this.offload) {
        await until(before, signal);
        for (const other of this.names()) if (other !== name) await this.unload(other);
      }
      check(!this.disposed, "disposed", () => "[pipeline] it was disposed");
      return await body(await this.parts[name].get(signal));
    } finally {
      end();
      this.users--;
      if (this.disposed && this.users === 0) this.unloadAll();
    }
  }

  private names(): (keyof Parts)[] {
    return Object.keys(this.parts) as (keyof Parts)[];
  }

  /** Frees a model; the next one who asks loads it anew. */
  async unload(name: keyof Parts): Promise<void> {
    (await this.parts[name].forget())?.dispose();
  }

  private unloadAll(): void {
    for (const name of this.names()) void this.unload(name);
    void this.close();
    for (const then of this.last.splice(0)) then();
  }

  /** Frees everything, or when what is under way ends; `then` is called after that. */
  dispose(then?: () => void): void {
    if (then) this.last.push(then);
    if (this.disposed && this.users > 0) return;
    this.disposed = true;
    if (this.users === 0) this.unloadAll();
  }
}
