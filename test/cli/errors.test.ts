/** What a user can do wrong, and the exit code and words that answer it. */
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it, vi } from "vitest";
import {
  call,
  eventsOf,
  testFolder,
  tinyFile,
  tinyFlowYaml,
  tinyVaeYaml,
  tinyYaml,
  writeYaml,
} from "../support/tiny.js";

const folder = testFolder();
const run = join(folder, "run");
let count = 0;
/** A path that nothing is at. */
const fresh = () => join(folder, `out-${count++}`);

beforeAll(async () => {
  expect((await call("train", "--config", tinyFile, "--out", run)).code).toBe(0);
});

/** Expects that code, each fragment on standard error, nothing on standard output, and no stack. */
async function fails(code: number, argv: string[], ...fragments: (string | RegExp)[]): Promise<string> {
  const outcome = await call(...argv);
  for (const fragment of fragments)
    expect(outcome.stderr).toMatch(fragment instanceof RegExp ? fragment : literal(fragment));
  expect(outcome).toMatchObject({ code, stdout: "" });
  expect(outcome.stderr).not.toMatch(/^\s+at /m);
  return outcome.stderr;
}

const literal = (text: string) => new RegExp(text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));

describe("options", () => {
  const cases: [argv: string, ...fragments: string[]][] = [
    ["trian", "unknown command 'trian'", "Did you mean train?"],
    ["train --step 3", "unknown option '--step'", "Did you mean --steps?"],
    ["train extra", "too many arguments"],
    ["train --steps", "argument missing"],
    ["train --steps -5", 'expected a whole number of at least 1, got "-5"'],
    ["train --steps 0", 'expected a whole number of at least 1, got "0"'],
    ["train --steps 1.5", 'expected a whole number of at least 1, got "1.5"'],
    ["train --steps many", 'expected a whole number of at least 1, got "many"'],
    ["train --batch-size -1", 'expected a whole number of at least 1, got "-1"'],
    ["train --seed -1", 'expected a whole number of at least 0, got "-1"'],
    ["sample", "required option '--checkpoint <path>' not specified"],
    ["sample --checkpoint x --guidance -1", 'expected a number of at least 0, got "-1"'],
    ["sample --checkpoint x --num-samples 0", 'expected a whole number of at least 1, got "0"'],
    ["train --batch-size 1000000 --config configs/quickstart.yaml --out OUT", "batch_size"],
    ["train --config configs/quickstart.yaml --out=", "option '--out <dir>' argument '' is invalid. expected a path"],
    ["sample --checkpoint= --out x", "expected a path, got nothing"],
    ["generate --prompt x --output-path=", "expected a path, got nothing"],
    ["generate --prompt x --timesteps [1,0.5", "--timesteps [1,0.5: ", 'Put lists in quotes: --timesteps "[1, 0.5]"'],
    ["generate --prompt x --first-pass {a", "--first-pass {a: "],
    ["plan --stg-scale &", "--stg-scale &: "],
    ["reconstruct", "required option '--checkpoint <path>' not specified"],
    ["info --jsn", "unknown option '--jsn'"],
  ];
  for (const [argv, ...fragments] of cases) {
    it(`refuses: ${argv}`, async () => {
      // What was trained in this checkout must not be in the way.
      const words = argv.split(" ").map((word) => (word === "OUT" ? fresh() : word));
      await fails(2, words, ...fragments);
    });
  }

  it("explains itself without a command, with code 2", async () => {
    const outcome = await call();
    expect(outcome.code).toBe(2);
    expect(outcome.stderr).toContain("Usage: ltx-native");
  });

  it("prints help and version with code 0", async () => {
    expect(await call("--help")).toMatchObject({ code: 0, stderr: "" });
    expect((await call("train", "--help")).stdout).toContain("--resume <dir>");
    const { version } = JSON.parse(readFileSync(join(__dirname, "..", "..", "package.json"), "utf8"));
    expect(await call("--version")).toEqual({ code: 0, stdout: `${version}\n`, stderr: "" });
  });

  for (const option of ["--config x", "--out x", "--seed 1", "--batch-size 2", "--force"]) {
    it(`refuses --resume together with ${option}`, async () => {
      const name = option.split(" ")[0];
      await fails(
        2,
        ["train", "--resume", run, ...option.split(" ")],
        "--resume continues the run as it was configured",
        `leave out ${name}`,
      );
    });
  }

  for (const command of ["train", "sample", "reconstruct"]) {
    it(`says which devices there are: ${command}`, async () => {
      const out = fresh();
      const rest = command === "train" ? ["--config", tinyFile] : ["--checkpoint", run];
      await fails(
        2,
        [command, ...rest, "--out", out, "--device", "gpu"],
        'unknown device "gpu"',
        "expected auto, cpu, cuda or cuda:N",
      );
      expect(existsSync(out)).toBe(false);
    });

    it(`says why a GPU cannot be used: ${command}`, async () => {
      const out = fresh();
      const rest = command === "train" ? ["--config", tinyFile] : ["--checkpoint", run];
      // No machine has as many.
      await fails(1, [command, ...rest, "--out", out, "--device", "cuda:9999"], "device cuda:9999 cannot be used: ");
      expect(existsSync(out)).toBe(false);
    });
  }
});

describe("configurations", () => {
  const train = async (text: string, ...fragments: (string | RegExp)[]) => {
    const out = fresh();
    const file = writeYaml(folder, "wrong.yaml", text);
    await fails(2, ["train", "--config", file, "--out", out], "[config] ", file, ...fragments);
    expect(existsSync(out)).toBe(false);
  };
  // biome-ignore lint/suspicious/noExplicitAny: YAML.
  const edit = (change: (file: any) => void) => tinyYaml(change);

  it("a missing file", async () => {
    await fails(2, ["train", "--config", join(folder, "none.yaml")], "none.yaml", "no such file");
  });
  it("an unknown key", () =>
    train(
      edit((f) => {
        f.vae.training.batchsize = 2;
      }),
      "vae.training.batchsize",
      'did you mean "batch_size"?',
    ));
  it("a wrong type", () =>
    train(
      edit((f) => {
        f.flow.training.learning_rate = "fast";
      }),
      "flow.training.learning_rate",
      'found "fast" (text), expected a number',
    ));
  it("a number out of range", () =>
    train(
      edit((f) => {
        f.vae.training.steps = -3;
      }),
      "vae.training.steps: found -3, expected at least 1, nearest 1",
    ));
  it("frames that the VAE cannot take", () =>
    train(
      edit((f) => {
        f.data.frames = 6;
        f.vae.vae_config.params.input_number_of_frames = 6;
      }),
      /frames.*6.*2k\s*\+\s*1.*nearest 5 or 7/,
    ));
  it("a width that the VAE cannot take", () =>
    train(
      edit((f) => {
        f.data.width = 20;
      }),
      /width.*20.*nearest 16 or 24/,
    ));
  it("digits larger than the frame", () =>
    train(
      edit((f) => {
        f.data.digit_size = 17;
      }),
      /digit_size.*17.*16/,
    ));
  it("several faults at once, each with its line", () =>
    train(
      edit((f) => {
        f.vae.training.steps = 0;
        f.flow.training.stepz = 1;
      }),
      "vae.training.steps",
      "flow.training.stepz",
    ));
  it("no YAML", () => train("a: [1", "wrong.yaml"));

  it("a transformer's run without a VAE", async () => {
    const out = fresh();
    const file = writeYaml(folder, "flow.yaml", tinyFlowYaml());
    await fails(2, ["train", "--config", file, "--out", out], "a flow run needs a trained VAE: give --vae");
    expect(existsSync(out)).toBe(false);
  });

  it("a VAE for runs that train their own", async () => {
    const file = writeYaml(folder, "vae.yaml", tinyVaeYaml());
    for (const config of [file, tinyFile]) {
      await fails(
        2,
        ["train", "--config", config, "--vae", run, "--out", fresh()],
        "--vae is for a transformer's run",
        "leave it out",
      );
    }
  });

  it("a text encoder that is not there", async () => {
    const file = join(__dirname, "..", "..", "configs", "moving_mnist", "ltx_video.yaml");
    const out = fresh();
    for (const name of ["HF_HOME", "HF_HUB_CACHE", "LTX_TEXT_ENCODERS"]) vi.stubEnv(name, folder);
    const argv = ["train", "--config", file, "--vae", run, "--out", out];
    await fails(1, argv, "google/t5-v1_1-base was not found", "--text-encoder");
    vi.unstubAllEnvs();
    expect(existsSync(out)).toBe(false);
  });
});

describe("run folders", () => {
  const marker = join(run, "vae", "checkpoints", "step-00000012", "manifest.json");

  it("another run is never overwritten", async () => {
    await fails(
      2,
      ["train", "--config", tinyFile, "--out", run],
      `${run} holds another run`,
      `--resume ${run}`,
      "--force",
    );
    expect(existsSync(marker)).toBe(true);
  });

  it("--force replaces a run, but not when the new one cannot start", async () => {
    const other = join(folder, "forced");
    cpSync(run, other, { recursive: true });
    await fails(
      2,
      ["train", "--config", tinyFile, "--out", other, "--force", "--device", "tpu"],
      'unknown device "tpu"',
    );
    expect(existsSync(join(other, "flow", "samples.gif"))).toBe(true);
    const vae = writeYaml(folder, "forced.yaml", tinyVaeYaml());
    expect((await call("train", "--config", vae, "--out", other, "--force")).code).toBe(0);
    expect(existsSync(join(other, "flow"))).toBe(false);
    expect(existsSync(join(other, "reconstructions.gif"))).toBe(true);
  });

  it("--force does not touch a folder that holds no run", async () => {
    const other = fresh();
    mkdirSync(other);
    writeFileSync(join(other, "thesis.tex"), "years of work");
    await fails(
      2,
      ["train", "--config", tinyFile, "--out", other, "--force"],
      "is not empty and holds no run (thesis.tex)",
    );
    expect(readdirSync(other)).toEqual(["thesis.tex"]);
  });

  it("a file in place of a folder", async () => {
    const file = writeYaml(folder, "file", "");
    await fails(1, ["train", "--config", tinyFile, "--out", file], `cannot use ${file} as a run directory`, "ENOTDIR");
    await fails(
      1,
      ["sample", "--checkpoint", run, "--prompt", "1", "--out", file],
      `${file} cannot be written to: a file`,
    );
    await fails(1, ["reconstruct", "--checkpoint", run, "--out", file], `${file} cannot be written to: a file`);
  });

  it("--resume where no run is", async () => {
    await fails(1, ["train", "--resume", fresh()], "holds no run to continue (no readable run.json)");
  });
});

describe("checkpoints", () => {
  const file = (of: string, name: string, step = 12) =>
    join(of, "checkpoints", `step-000000${String(step).padStart(2, "0")}`, name);
  const copyOf = (stage: string) => {
    const other = fresh();
    cpSync(join(run, stage), other, { recursive: true });
    return other;
  };
  function flip(path: string, at = 0.7): void {
    const bytes = readFileSync(path);
    bytes[Math.floor(bytes.length * at)] ^= 1;
    writeFileSync(path, bytes);
  }

  it("a path that is not there", async () => {
    for (const command of ["sample", "reconstruct"]) {
      await fails(1, [command, "--checkpoint", join(folder, "nothing")], `${join(folder, "nothing")} does not exist`);
    }
  });

  it("a folder without a checkpoint", async () => {
    await fails(1, ["sample", "--checkpoint", folder], "holds no complete checkpoint of a flow run");
    await fails(1, ["reconstruct", "--checkpoint", folder], "holds no complete checkpoint of a vae run");
  });

  it("a VAE's checkpoint where a text-to-video model is wanted", async () => {
    await fails(
      1,
      ["sample", "--checkpoint", file(join(run, "vae"), "model.safetensors")],
      "is a vae checkpoint, expected one of a flow run",
    );
  });

  it("a file that is no checkpoint", async () => {
    const path = writeYaml(folder, "x.safetensors", "this is not a checkpoint at all");
    await fails(1, ["sample", "--checkpoint", path], path);
    await fails(1, ["reconstruct", "--checkpoint", path], path);
  });

  it("a flipped bit", async () => {
    const other = copyOf("flow");
    flip(file(other, "model.safetensors"));
    const wanted = [file(other, "model.safetensors"), "is damaged", "SHA-256"];
    await fails(1, ["sample", "--checkpoint", other, "--out", fresh()], ...wanted);
    await fails(
      1,
      ["sample", "--checkpoint", join(other, "checkpoints", "step-00000012"), "--out", fresh()],
      ...wanted,
    );
    await fails(1, ["sample", "--checkpoint", file(other, "model.safetensors"), "--out", fresh()], ...wanted);
    await fails(1, ["reconstruct", "--checkpoint", other, "--out", fresh()], ...wanted);
  });

  it("a cut-off file, with or without its manifest", async () => {
    const other = copyOf("flow");
    const path = file(other, "model.safetensors");
    truncateSync(path, 1000);
    await fails(1, ["sample", "--checkpoint", other], path, "is damaged: 1000 bytes");
    const alone = join(folder, "cut.safetensors");
    writeFileSync(alone, readFileSync(path));
    await fails(1, ["sample", "--checkpoint", alone], alone);
  });

  it("a missing file and a manifest without hashes", async () => {
    const other = copyOf("flow");
    truncateSync(file(other, "manifest.json"), 0);
    await fails(1, ["sample", "--checkpoint", other], "no readable manifest.json");
    writeFileSync(file(other, "manifest.json"), "{}");
    await fails(1, ["sample", "--checkpoint", other], "says nothing of model.safetensors");
  });

  it("--resume falls back to the newest whole one and says so", async () => {
    const other = copyOf("vae");
    const before = readFileSync(file(other, "model.safetensors"));
    flip(file(other, "training.safetensors"));
    const { code, stdout, stderr } = await call("train", "--resume", other, "--json");
    expect(code).toBe(0);
    expect(stderr).toMatch(
      /step-00000012\/training\.safetensors is damaged: \d+ bytes with SHA-256 [0-9a-f]{64}, expected/,
    );
    expect(eventsOf(stdout)[0]).toMatchObject({ type: "start", step: 8 });
    expect(readFileSync(file(other, "model.safetensors"))).toEqual(before);
  });

  it("--resume with nothing whole names every damaged one, and never begins again", async () => {
    const other = copyOf("vae");
    for (const step of [8, 12]) flip(file(other, "model.safetensors", step));
    const { code, stdout, stderr } = await call("train", "--resume", other, "--json");
    expect(code).toBe(1);
    expect(stderr.match(/model\.safetensors is damaged/g)).toHaveLength(2);
    expect(stderr).toContain("every checkpoint in");
    expect(stdout).toBe("");
  });

  it("one of another shape, with the first keys that differ", async () => {
    const config = writeYaml(
      folder,
      "wide.yaml",
      tinyFlowYaml((f) => {
        f.diffusion.latent_encoder.params.base_channels = 16;
      }),
    );
    const out = fresh();
    await fails(
      1,
      ["train", "--config", config, "--vae", run, "--out", out],
      "the checkpoint does not fit the model",
      /encoder\.\S+ has shape \[8,[\d,]+\], expected \[16,/,
      /and \d+ more/,
    );
    expect(existsSync(out)).toBe(false);
  });
});
