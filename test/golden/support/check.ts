import { caseOf } from "../cases/index.js";
import type { Fixture } from "./fixture.js";

/** How one tensor of a fixture came out. */
export interface Result {
  /** The fixture's name. */
  fixture: string;
  tensor: string;
  /** ‖actual - expected‖ / ‖expected‖, or the absolute norm where the expected one is 0; NaN when nothing was compared. */
  error: number;
  tolerance: number;
  ok: boolean;
  /** Why there was nothing to compare. */
  reason?: string;
}

/** Runs the fixture's case and compares each of its tensors. Problems become failed results, nothing is thrown. */
export async function checkFixture(fixture: Fixture): Promise<Result[]> {
  const run = caseOf(fixture.kind);
  if (!run) return [failed(fixture.name, "case", `unknown case kind ${JSON.stringify(fixture.kind)}`)];
  const expected = fixture.expected;
  if (expected.length === 0) return [failed(fixture.name, "case", "the file holds nothing to compare with")];
  let actual: Map<string, Float32Array>;
  try {
    actual = await run(fixture);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    return expected.map((tensor) => failed(fixture.name, tensor, reason));
  }
  return expected.map((tensor) => compare(fixture, tensor, actual.get(tensor)));
}

export function failed(fixture: string, tensor: string, reason: string): Result {
  return { fixture, tensor, error: Number.NaN, tolerance: Number.NaN, ok: false, reason };
}

function compare(fixture: Fixture, tensor: string, actual: Float32Array | undefined): Result {
  const reference = fixture.data(tensor);
  if (!actual) return failed(fixture.name, tensor, "the case does not compute this tensor");
  if (actual.length !== reference.length) {
    return failed(fixture.name, tensor, `${actual.length} values were computed, ${reference.length} expected`);
  }
  const error = relativeError(actual, reference);
  const tolerance = fixture.toleranceOf(tensor);
  return { fixture: fixture.name, tensor, error, tolerance, ok: error <= tolerance };
}

/** ‖a - b‖ / ‖b‖ in L2, or ‖a‖ where ‖b‖ is 0. */
export function relativeError(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < b.length; i++) {
    difference += (a[i] - b[i]) ** 2;
    norm += b[i] ** 2;
  }
  return norm > 0 ? Math.sqrt(difference / norm) : Math.sqrt(difference);
}
