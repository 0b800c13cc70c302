/** The notices of what a prebuild carries: the distribution's own copyright files of exactly the packages that are in it. */
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, realpathSync } from "node:fs";
import { join } from "node:path";

interface Package {
  name: string;
  version: string;
  source: string;
  sourceVersion: string;
  copyright: string;
}

function query(command: string, ...args: string[]): string {
  try {
    return execFileSync(command, args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] }).trim();
  } catch (error) {
    throw new Error(
      `${command} ${args.join(" ")} failed (${(error as Error).message.split("\n")[0]}): ` +
        "prebuilds are made on Debian or Ubuntu, whose packages say what their licences are",
    );
  }
}

/** The distribution's package that a file belongs to. */
function packageOf(file: string): Package {
  // dpkg knows a file under the path it was packed with, which a merged /usr may no longer show.
  const paths = [file, realpathSync(file)].flatMap((path) => [path, path.replace(/^\/usr\/lib\//, "/lib/")]);
  let owner: string | undefined;
  for (const path of paths) {
    try {
      owner = query("dpkg", "-S", path).split(":")[0];
      break;
    } catch (error) {
      if (path === paths.at(-1)) throw error;
    }
  }
  const format = ["Version", "source:Package", "source:Version"].map((field) => `\${${field}}`).join("\n");
  const [version, source, sourceVersion] = query("dpkg-query", "-W", "-f", format, owner!).split("\n");
  const copyright = readFileSync(join("/usr/share/doc", owner!, "copyright"), "utf8");
  return { name: owner!, version, source, sourceVersion, copyright };
}

const rule = "=".repeat(100);
const section = (title: string, text: string) => `${rule}\n${title}\n${rule}\n\n${text.trim()}\n\n`;

const cudaRuntime = `libltx_cuda.so contains the static CUDA runtime (libcudart_static.a) of NVIDIA's CUDA Toolkit, in object form
and linked in. Copyright NVIDIA Corporation. The CUDA Toolkit's End User License Agreement lists that library among
those that may be passed on as part of an application, provided that the application does something of its own beyond
it, that the library is used by that application only, and that whoever passes it on keeps to the agreement. Whoever
passes on this package with libltx_cuda.so in it therefore passes on NVIDIA's library under that agreement, not under
the Apache License of the rest. NVIDIA gives no warranty for it.

The agreement, with the list in its Attachment A: https://docs.nvidia.com/cuda/eula/

cuBLASLt, the driver and its libraries are not part of this package.`;

/**
 * `libraries` are the files as the distribution installed them, `root` the package with its node_modules. Throws where
 * the distribution does not say who made a file.
 */
export function notices(libraries: { name: string; path: string }[], root: string, withCuda: boolean): string {
  const packages = libraries.map(({ name, path }) => ({ file: name, ...packageOf(path) }));
  const list = packages.map(
    ({ file, name, version, source, sourceVersion }) =>
      `${file}: package ${name} ${version}, built by the distribution from its source package ${source} ${sourceVersion}`,
  );
  const distribution = /^PRETTY_NAME="?([^"\n]*)/m.exec(readFileSync("/etc/os-release", "utf8"))?.[1] ?? "unknown";
  const common = "/usr/share/common-licenses";
  const licences = ["Apache-2.0", "GPL-3"].map((name) =>
    section(`The text of ${name}`, readFileSync(join(common, name), "utf8")),
  );
  const nodeAddonApi = join(root, "node_modules", "node-addon-api", "LICENSE.md");
  if (!existsSync(nodeAddonApi)) throw new Error(`${nodeAddonApi} is missing: run npm ci`);
  return [
    section(
      "What this folder carries from others",
      `The libraries below are files of ${distribution}, unchanged:

${list.join("\n")}

The sources of these versions: https://snapshot.debian.org for Debian, https://launchpad.net/ubuntu/+source for Ubuntu.
libgomp is under the GNU General Public License, version 3, with the GCC Runtime Library Exception, version 3.1: it may
be used with programs of any licence. Its sources can be had at the places named above, and on request from the
maintainers of this package.

The addon contains node-addon-api (MIT License).${
        withCuda ? "\nlibltx_cuda.so contains NVIDIA's static CUDA runtime." : ""
      }
The copyright notices and licences of all of them follow.`,
    ),
    ...packages.map(({ file, name, version, copyright }) => section(`${file}: ${name} ${version}`, copyright)),
    ...licences,
    section("node-addon-api", readFileSync(nodeAddonApi, "utf8")),
    ...(withCuda ? [section("NVIDIA CUDA runtime", cudaRuntime)] : []),
  ].join("");
}
