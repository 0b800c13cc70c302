/** Prints why the device named by the argument can't be used, or nothing. */
import { unavailable } from "./device.js";

process.stdout.write(unavailable(process.argv[2]) ?? "");
