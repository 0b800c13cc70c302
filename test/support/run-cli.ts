/** What bin/ltx-native.js does, with the sources instead of dist/. */
import { main } from "../../lib/cli/main.js";

main(process.argv.slice(2)).then(
  (code) => {
    process.exitCode = code;
  },
  (error) => {
    console.error(error);
    process.exitCode = 1;
  },
);
