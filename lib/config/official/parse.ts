import type { z } from "zod";
import { LtxError } from "../../errors.js";
import { formatPath, problemsOf, safeParse } from "../problems.js";

/**
 * Checks a section of an official checkpoint's configuration and fills in what it leaves out.
 * @param source stands in the messages
 * @throws LtxError `config`, listing every problem
 */
export function parseOfficial<Schema extends z.ZodType>(
  schema: Schema,
  value: unknown,
  source: string,
): z.output<Schema> {
  const parsed = safeParse(schema, value, source);
  if (parsed.success) return parsed.data;
  const problems = problemsOf(parsed.error, value).map(({ path, message }) =>
    path.length > 0 ? `${formatPath(path)}: ${message}` : message,
  );
  throw new LtxError("config", `[config] ${source}: ${problems.join("; ")}`);
}
