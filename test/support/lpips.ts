/** Random LPIPS weights of a few channels, and as files. */
import { writeSafetensors } from "../../lib/formats/safetensors.js";
import { normal } from "../../lib/ops/index.js";

export type State = Map<string, { shape: number[]; data: Float32Array }>;

/** torchvision's numbers of VGG16's convolutions, by slice. */
const SLICES = [
  [0, 2],
  [5, 7],
  [10, 12, 14],
  [17, 19, 21],
  [24, 26, 28],
];
const WIDTHS = [3, 4, 5, 6, 6];

async function draw(shape: number[], scale: number, purpose: number): Promise<Float32Array> {
  const values = normal(shape, { seed: 2, step: 0, purpose });
  const data = Float32Array.from(await values.read(), (v) => v * scale);
  values.dispose();
  return data;
}

/** The network under LPIPS's keys and under torchvision's, and the layers on top. */
export async function tinyLpips(): Promise<{ net: State; torchvision: State; layers: State }> {
  const parts = { net: new Map() as State, torchvision: new Map() as State, layers: new Map() as State };
  let purpose = 0;
  let inputs = 3;
  for (const [s, numbers] of SLICES.entries()) {
    const width = WIDTHS[s];
    for (const n of numbers) {
      const shapes = { weight: [width, inputs, 3, 3], bias: [width] };
      for (const [part, shape] of Object.entries(shapes)) {
        const data = await draw(shape, part === "weight" ? 1 / Math.sqrt(9 * inputs) : 0.1, purpose++);
        parts.net.set(`net.slice${s + 1}.${n}.${part}`, { shape, data });
        parts.torchvision.set(`features.${n}.${part}`, { shape, data });
      }
      inputs = width;
    }
    const shape = [1, width, 1, 1];
    parts.layers.set(`lin${s}.model.1.weight`, { shape, data: (await draw(shape, 1, purpose++)).map(Math.abs) });
  }
  return parts;
}

/** Writes a state as a safetensors file. */
export function writeState(path: string, state: State): Promise<void> {
  const tensors = [...state].map(([name, { shape, data }]) => ({
    name,
    dtype: "F32" as const,
    shape,
    data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
  }));
  return writeSafetensors(path, tensors, {});
}
