import { basename } from "node:path";
import { check } from "../../../lib/errors.js";
import { readSafetensors, type SafetensorsHeader } from "../../../lib/formats/safetensors.js";
import { hashParameter } from "./hash-params.js";

/** A module's values by key, as `Module.loadStateDict` takes them. */
export type State = Map<string, { shape: readonly number[]; data: Float32Array }>;

/** Computes all that a fixture stores: `output/…`, `grad/…` and `grad_input/…` by full name, in the reference's layout. */
export type GoldenCase = (fixture: Fixture) => Promise<Map<string, Float32Array>>;

/** One golden file in memory. */
export class Fixture {
  /** The file's name without its extension. */
  readonly name: string;
  /** The case kind. */
  readonly kind: string;
  // The shape of a configuration is the case's own business.
  // biome-ignore lint/suspicious/noExplicitAny: JSON
  readonly config: any;
  readonly note: string;
  private readonly tolerance: number;
  private readonly tolerances: [prefix: string, tolerance: number][];
  private readonly hashed: Record<string, number[]> | null;

  private constructor(
    readonly path: string,
    private readonly header: SafetensorsHeader,
    private readonly values: Map<string, Float32Array>,
  ) {
    const { metadata } = header;
    for (const key of ["case", "tolerance"]) {
      check(
        metadata[key] !== undefined,
        "file_format",
        () => `[golden] ${path} is no golden fixture: it has no "${key}" in its metadata`,
      );
    }
    this.name = basename(path, ".safetensors");
    this.kind = metadata.case;
    this.config = JSON.parse(metadata.config ?? "{}");
    this.note = metadata.note ?? "";
    this.tolerance = Number(metadata.tolerance);
    this.tolerances = Object.entries(JSON.parse(metadata.tolerances ?? "{}"));
    this.hashed = metadata.params === "hash" ? JSON.parse(metadata.param_shapes) : null;
  }

  static async open(path: string): Promise<Fixture> {
    const file = await readSafetensors(path);
    try {
      const values = new Map<string, Float32Array>();
      for (const name of file.tensors.keys()) values.set(name, await file.readF32(name));
      return new Fixture(path, file, values);
    } finally {
      await file.close();
    }
  }

  /** Full names that start with `prefix`, e.g. `input/`. */
  names(prefix = ""): string[] {
    return [...this.header.tensors.keys()].filter((name) => name.startsWith(prefix));
  }

  has(name: string): boolean {
    return this.header.tensors.has(name);
  }

  shape(name: string): readonly number[] {
    const entry = this.header.tensors.get(name);
    check(entry, "file_format", () => `[golden] ${this.path} has no tensor "${name}"`);
    return entry.shape;
  }

  data(name: string): Float32Array {
    const values = this.values.get(name);
    check(values, "file_format", () => `[golden] ${this.path} has no tensor "${name}"`);
    return values;
  }

  /** The tensors that a case must reproduce. */
  get expected(): string[] {
    return this.names().filter((name) => /^(output|grad|grad_input)\//.test(name));
  }

  /** The parameters whose key starts with `prefix`, keyed by what follows it; hashed ones are made when their data is read. */
  state(prefix = ""): State {
    const result: State = new Map();
    for (const [key, shape] of this.parameterShapes()) {
      if (!key.startsWith(prefix)) continue;
      const make = () => (this.hashed ? hashParameter(key, shape) : this.data(`param/${key}`));
      const entry = {
        shape,
        get data() {
          return make();
        },
      };
      result.set(key.slice(prefix.length), entry);
    }
    return result;
  }

  /** Shapes by parameter key. */
  parameterShapes(): [key: string, shape: readonly number[]][] {
    if (this.hashed) return Object.entries(this.hashed);
    return this.names("param/").map((name) => [name.slice("param/".length), this.shape(name)]);
  }

  /** The largest relative error allowed for a tensor: the longest matching prefix of `tolerances`, else `tolerance`. */
  toleranceOf(name: string): number {
    const matching = this.tolerances.filter(([prefix]) => name.startsWith(prefix));
    const [longest] = matching.sort(([a], [b]) => b.length - a.length);
    return longest ? longest[1] : this.tolerance;
  }
}
