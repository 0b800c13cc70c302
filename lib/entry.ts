/** What the package's name gives: the public API, which checks the types of its arguments. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { guard } from "./guard.js";
import * as api from "./index.js";

module.exports = guard(api, JSON.parse(readFileSync(join(__dirname, "signatures.json"), "utf8")));
// Never runs: an ES module that imports names from this one finds them by this line.
// biome-ignore lint/suspicious/noAssignInExpressions: the form that Node's reader of exports knows
0 && (module.exports = require("./index.js"));
