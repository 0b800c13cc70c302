// `npm run gpu-report -- DIR`, or `node bench/gpu-report.mjs DIR` in an unpacked archive: TypeScript runs as it is.
import { require } from "tsx/cjs/api";

require("./report/main.ts", import.meta.url);
