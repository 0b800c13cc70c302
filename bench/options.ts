/** Options of the commands in this folder. */
import { InvalidArgumentError } from "commander";

export const list = (value: string): string[] => value.split(",").map((item) => item.trim());

export function positive(value: string): number {
  const number = Number(value);
  if (!Number.isInteger(number) || number < 1)
    throw new InvalidArgumentError(`expected a whole number from 1, got ${value}`);
  return number;
}

export function seconds(value: string): number {
  const number = Number(value);
  if (!(number > 0 && number < Number.POSITIVE_INFINITY))
    throw new InvalidArgumentError(`expected a number above 0, got ${value}`);
  return number;
}

export const numbers = (value: string): number[] => list(value).map(positive);

export const oneOf =
  <T extends string>(allowed: readonly T[]) =>
  (value: string): T[] => {
    const items = list(value);
    for (const item of items) {
      if (!(allowed as readonly string[]).includes(item))
        throw new InvalidArgumentError(`${item} is not one of ${allowed.join(", ")}`);
    }
    return items as T[];
  };

export function deviceName(value: string): string {
  if (!/^(auto|cpu|emulator|cuda(:\d+)?)$/.test(value))
    throw new InvalidArgumentError(`expected auto, cpu, cuda, cuda:N or emulator, got ${value}`);
  return value;
}
