/** What there is at a path. */
import type { Stats } from "node:fs";
import { stat } from "node:fs/promises";

const about = (path: string, fits: (info: Stats) => boolean): Promise<boolean> => stat(path).then(fits, () => false);

export const exists = (path: string): Promise<boolean> => about(path, () => true);
export const isFile = (path: string): Promise<boolean> => about(path, (info) => info.isFile());
export const isFolder = (path: string): Promise<boolean> => about(path, (info) => info.isDirectory());
