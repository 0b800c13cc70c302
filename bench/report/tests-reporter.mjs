import { appendFileSync } from "node:fs";

/** Appends a line of JSON for each test to the file named by LTX_TEST_LINES, so that a run which is cut off keeps them. */
export default class LinesReporter {
  write(line) {
    appendFileSync(process.env.LTX_TEST_LINES, `${JSON.stringify(line)}\n`);
  }

  onTestModuleStart(module) {
    this.write({ kind: "file", file: module.relativeModuleId });
  }

  onTestCaseResult(test) {
    const { state, errors = [] } = test.result();
    const error = errors[0]?.message;
    this.write({ kind: "test", file: test.module.relativeModuleId, name: test.fullName, state, error });
  }

  onTestModuleEnd(module) {
    for (const { message } of module.errors()) this.failed(module.relativeModuleId, message);
    this.write({ kind: "end", file: module.relativeModuleId });
  }

  onTestRunEnd(_, unhandledErrors) {
    for (const { message } of unhandledErrors) this.failed("", message);
  }

  failed(file, error) {
    this.write({ kind: "test", file, name: file || "outside of any test", state: "failed", error });
  }
}
