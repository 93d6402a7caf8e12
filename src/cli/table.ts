// SPDX-License-Identifier: Apache-2.0
/**
 * Every command, option and positional, once.  Parsing (`parse.ts`), help
 * (`help.ts`) and shell completions (`completion.ts`) are made from this
 * table, so that they cannot disagree (spec/tools.md, sections 2 to 8).
 *
 * @module
 */

import { CTL_ACTIONS } from "./ctl_actions.ts";

/** What a value must look like. */
interface ValueSpec {
  help: string;
  /**
   * `file`: an existing file, checked while parsing; `path`: a name that the
   * command itself looks at; `uuid`: 8-4-4-4-12 hex digits or nothing.
   */
  kind: "text" | "path" | "file" | "int" | "uuid";
  required?: true;
  /** shown in help and offered by completions; checked by the command */
  choices?: readonly string[];
  /**
   * Smallest integer, refused as CLI11 refuses it: validators run before
   * conversion, so that text is out of range (105) and 1.5 is not an
   * integer (104).
   */
  min?: number;
  /** largest integer */
  max?: number;
}

/** A positional argument; `many`: it takes all that are left. */
export interface PositionalSpec extends ValueSpec {
  many?: true;
}

/** An option with a value. */
export interface ValueOptionSpec extends ValueSpec {
  /** `-p`, `--parent-uuid`; the first long one is the name in messages */
  names: readonly string[];
  /** what stands for the value in help */
  value: string;
}

/** An option that is on or off, `--flag=false` included. */
export interface FlagSpec {
  names: readonly string[];
  kind: "flag";
  help: string;
  /** what it is when not given */
  initially?: true;
}

export type OptionSpec = ValueOptionSpec | FlagSpec;

/** One command, under its own name and maybe under the original's. */
export interface CommandSpec {
  /** the original's program name */
  original?: string;
  /** one line for the overview */
  summary: string;
  /** more for `--help` */
  details?: string;
  positionals: Readonly<Record<string, PositionalSpec>>;
  options: Readonly<Record<string, OptionSpec>>;
  /** each a complete command line without the program's name */
  examples: readonly (readonly [line: string, says: string])[];
  /** arguments that nobody knows are ignored, as `overlaybd-tcmu` does */
  ignoresUnknown?: true;
}

/** Disks end at 2^50 sectors (spec/lsmt.md, section 12): in GiB. */
export const MAX_GIB = 2 ** 29;

/** More threads than this help nobody. */
export const MAX_THREADS = 256;

const verbose = {
  names: ["--verbose"],
  kind: "flag",
  help: "say on stderr what is done",
} as const;

const json = {
  names: ["--json"],
  kind: "flag",
  help: "print the result as JSON",
} as const;

const turboOci = {
  names: ["--turboOCI", "--fastoci"],
  kind: "flag",
  help: "a turboOCI layer (not built yet: exits 255)",
} as const;

const algorithm = {
  names: ["--algorithm"],
  value: "NAME",
  kind: "text",
  choices: ["lz4", "zstd"],
  help: "compression algorithm, lz4 by default",
} as const;

const blockSize = {
  names: ["--bs"],
  value: "KIB",
  kind: "int",
  choices: ["4", "8", "16", "32", "64"],
  help: "block size in KiB, 4 by default",
} as const;

const threads = {
  names: ["--compress_threads", "--threads"],
  value: "N",
  kind: "int",
  min: 1,
  max: MAX_THREADS,
  help: "threads that compress; the output does not depend on it",
} as const;

const serviceConfig = {
  names: ["--service_config_path"],
  value: "FILE",
  kind: "file",
  help: "service configuration; without it /etc/overlaybd/overlaybd.json, " +
    "or defaults where that is missing",
} as const;

/** Options of registry uploads. */
const upload = {
  upload: {
    names: ["--upload"],
    value: "URL",
    kind: "text",
    help: "upload the output there, too: .../v2/NAME/blobs/uploads/; " +
      "prints its digest",
  },
  upload_bs: {
    names: ["--upload_bs"],
    value: "KIB",
    kind: "int",
    min: 1,
    help: "upload chunk size, 262144 by default",
  },
  cred_file_path: {
    names: ["--cred_file_path"],
    value: "FILE",
    kind: "file",
    help: "credentials for --upload, those of the service configuration by " +
      "default",
  },
  tls_key_path: {
    names: ["--tls_key_path"],
    value: "FILE",
    kind: "file",
    help: "TLS client key for --upload",
  },
  tls_cert_path: {
    names: ["--tls_cert_path"],
    value: "FILE",
    kind: "file",
    help: "TLS client certificate for --upload",
  },
} as const;

const IMAGE_OR_LAYER = "an image configuration, a layer file, or a raw image";

/** The table. */
export const COMMANDS = {
  create: {
    original: "overlaybd-create",
    summary: "make a writable layer",
    details: "Makes both files of a writable layer, or neither. A size of 0 " +
      "is taken from the layers below when the layer is first opened.",
    positionals: {
      data_file: {
        kind: "path",
        required: true,
        help: "data file to create",
      },
      index_file: {
        kind: "path",
        required: true,
        help: "index file to create",
      },
      vsize: {
        kind: "int",
        required: true,
        min: 0,
        max: MAX_GIB,
        help: "size of the disk in GiB, 0 to inherit it",
      },
    },
    options: {
      parent: {
        names: ["-u"],
        value: "UUID",
        kind: "uuid",
        help: "uuid of the layer below",
      },
      sparse: {
        names: ["-s"],
        kind: "flag",
        help: "sparse layer: written in place, cannot record a discard",
      },
      turboOci,
      raw: {
        names: ["--raw"],
        kind: "flag",
        help: "a plain file of that size and an empty index file",
      },
      mkfs: {
        names: ["--mkfs"],
        kind: "flag",
        help: "make an ext4 file system (not built yet: exits 255)",
      },
      verbose,
    },
    examples: [
      ["create upper.data upper.index 64", "a new layer of 64 GiB"],
      ["create -s top.data top.index 0", "a sparse one, to be stacked"],
    ],
  },
  commit: {
    original: "overlaybd-commit",
    summary: "turn a writable layer into a read-only one",
    details: "Refused while somebody else has the layer open for writing.",
    positionals: {
      data_file: {
        kind: "file",
        required: true,
        help: "data file of the writable layer",
      },
      index_file: {
        kind: "path",
        help: "its index file; with --commit_sealed the output",
      },
      commit_file: { kind: "path", help: "layer file to create" },
    },
    options: {
      message: {
        names: ["-m"],
        value: "TEXT",
        kind: "text",
        help: "user tag, at most 256 bytes",
      },
      uuid: {
        names: ["--uuid"],
        value: "UUID",
        kind: "uuid",
        help: "uuid of the layer, zero by default",
      },
      parent: {
        names: ["-p", "--parent-uuid"],
        value: "UUID",
        kind: "uuid",
        help: "uuid of the layer below, as created by default",
      },
      compress: {
        names: ["-z"],
        kind: "flag",
        help: "compress: the output is a ZFile",
      },
      tar: {
        names: ["-t"],
        kind: "flag",
        help: "wrap the output in a tar header; only with -z",
      },
      force: {
        names: ["-f"],
        kind: "flag",
        help: "replace the output if it exists",
      },
      algorithm,
      blockSize,
      turboOci,
      seal: {
        names: ["--seal"],
        kind: "flag",
        help: "seal the data file in place, no other output",
      },
      commitSealed: {
        names: ["--commit_sealed"],
        kind: "flag",
        help: "data_file is sealed, the second argument is the output",
      },
      threads,
      fill: {
        names: ["--fill"],
        value: "CONFIG",
        kind: "file",
        help: "close gaps between records with data of this image, where " +
          "the index would have more than 1,000,000 records; remote lowers " +
          "are fetched then",
      },
      serviceConfig,
      ...upload,
      verbose,
    },
    examples: [
      [
        "commit -z -m 'nightly' upper.data upper.index layer",
        "a compressed layer",
      ],
      ["commit --seal upper.data upper.index", "read-only, in place"],
      [
        "commit -z -t --commit_sealed upper.data layer.tar",
        "then compressed, in a tar wrapper",
      ],
    ],
  },
  zfile: {
    original: "overlaybd-zfile",
    summary: "compress, extract or verify a ZFile",
    details: "With one argument, and neither -x nor --verify, compresses " +
      "standard input to it.",
    positionals: {
      source_file: { kind: "path", required: true, help: "what to read" },
      target_file: { kind: "path", help: "what to create" },
    },
    options: {
      extract: {
        names: ["-x"],
        kind: "flag",
        help: "extract source to target",
      },
      tar: {
        names: ["-t"],
        kind: "flag",
        help: "wrap the target in a tar header; extracting: unwrap",
      },
      verify: {
        names: ["--verify"],
        kind: "flag",
        help: "check every block's checksum",
      },
      force: {
        names: ["-f"],
        kind: "flag",
        help: "replace the target if it exists",
      },
      algorithm,
      blockSize,
      threads: { ...threads, help: "threads that compress or extract" },
      verbose,
    },
    examples: [
      ["zfile disk.img disk.zf", "compress"],
      ["zfile -x disk.zf disk.img", "extract"],
      ["zfile --verify disk.zf", "check"],
    ],
  },
  merge: {
    original: "overlaybd-merge",
    summary: "flatten an image into one layer",
    details: "An existing output is replaced once the new one is on disk. " +
      "Remote lowers are fetched to their end before.",
    positionals: {
      image_config_path: {
        kind: "file",
        required: true,
        help: "image configuration",
      },
      output: { kind: "path", help: "layer file to write" },
    },
    options: {
      compress: {
        names: ["--compress"],
        kind: "flag",
        initially: true,
        help: "compress with lz4, on by default; --compress=false: plain",
      },
      tar: { names: ["-t"], kind: "flag", help: "no effect, as it always had" },
      threads,
      serviceConfig,
      ...upload,
      verbose,
    },
    examples: [
      ["merge config.v1.json flat.layer", "all layers in one, compressed"],
      ["merge --compress=false config.v1.json flat.lsmt", "not compressed"],
    ],
  },
  resize: {
    original: "overlaybd-resize",
    summary: "change the size of an image's disk",
    details: "Grows the disk of the writable layer on top. The file system " +
      "on it is not touched: a shrink is refused, and after a growth the " +
      "file system has to be grown from inside.",
    positionals: {},
    options: {
      config: {
        names: ["--config"],
        value: "FILE",
        kind: "path",
        required: true,
        help: "image configuration",
      },
      size: {
        names: ["--size"],
        value: "GIB",
        kind: "text",
        required: true,
        help: "new size in GiB",
      },
      serviceConfig,
      verbose,
    },
    examples: [["resize --config config.v1.json --size 128", "to 128 GiB"]],
  },
  image: {
    summary: "make the configuration of an image in a registry",
    details:
      "Asks the registry for the manifest, in an index for that of the " +
      "platform, and prints the config.v1.json that opens the image. Without " +
      "a registry REF means docker.io, without a tag `latest`. A scheme in " +
      "front decides between https and http. Credentials and certificates are " +
      "those of the service configuration.",
    positionals: {
      reference: {
        kind: "text",
        required: true,
        help: "[REGISTRY/]NAME[:TAG|@DIGEST]",
      },
    },
    options: {
      output: {
        names: ["--output", "-o"],
        value: "FILE",
        kind: "path",
        help: "write the configuration there in place of printing it",
      },
      dir: {
        names: ["--dir"],
        value: "DIR",
        kind: "path",
        help: "give each layer a directory of its own below DIR, where a " +
          "background download puts it",
      },
      platform: {
        names: ["--platform"],
        value: "OS/ARCH",
        kind: "text",
        help: "which manifest of an index, linux on this machine's " +
          "architecture by default",
      },
      serviceConfig,
      json,
    },
    examples: [
      ["image overlaybd/redis:6.2.1_obd -o redis.json", "of Docker Hub"],
      [
        "image --json http://127.0.0.1:5000/app@sha256:…",
        "with the manifest's digest",
      ],
    ],
  },
  serve: {
    summary: "serve images over NBD",
    details: "One export for each image, named by its dev_id or else by the " +
      "full path of its configuration; the oldest is the default export. " +
      "Prints `ready URI` once it listens. SIGTERM and SIGINT write " +
      "everything to disk and end it, SIGHUP reads the service " +
      "configuration again. With --listen, or without anything, it answers " +
      "`overlaybd ctl`, which attaches and detaches images.",
    positionals: {
      config: {
        kind: "text",
        many: true,
        help: "image configuration, or CONFIG;dev_id",
      },
    },
    options: {
      nbd: {
        names: ["--nbd"],
        value: "ADDRESS",
        kind: "text",
        help: "path of a unix socket, or HOST:PORT; nbd.sock beside the " +
          "API's socket by default",
      },
      listen: {
        names: ["--listen"],
        value: "ADDRESS",
        kind: "text",
        help: "where the API listens: path of a unix socket, or HOST:PORT; " +
          "apiConfig.address by default",
      },
      insecure: {
        names: ["--insecure"],
        kind: "flag",
        help: "allow an NBD address that other machines can reach: there is " +
          "neither encryption nor authentication",
      },
      serviceConfig,
      verbose,
    },
    examples: [
      ["serve --nbd /run/image.sock config.v1.json", "one image"],
      [
        "serve --nbd 127.0.0.1:10809 a.json 'b.json;second'",
        "two, the second as `second`",
      ],
      ["serve", "none yet: `overlaybd ctl attach CONFIG` brings them"],
    ],
  },
  ctl: {
    summary: "ask a running service: devices, images, its configuration",
    details: "ACTION is: " +
      Object.entries(CTL_ACTIONS).map(([name, { needs, takes }]) =>
        [name, ...needs, ...takes.map((word) => `[${word}]`)].join(" ")
      ).join("; ") +
      ". A DEVICE is named by its dev_id, its configuration or its id.",
    positionals: {
      action: {
        kind: "text",
        required: true,
        choices: Object.keys(CTL_ACTIONS),
        help: "what to do",
      },
      argument: { kind: "text", many: true, help: "what it needs" },
    },
    options: {
      api: {
        names: ["--api"],
        value: "ADDRESS",
        kind: "text",
        help: "path of a unix socket, HOST:PORT, or an https:// URL; " +
          "apiConfig.address by default",
      },
      force: {
        names: ["--force"],
        kind: "flag",
        help: "detach: also while clients use it",
      },
      transport: {
        names: ["--transport"],
        value: "KIND",
        kind: "text",
        choices: ["nbd", "tcmu"],
        help: "attach: how it is shown",
      },
      noWait: {
        names: ["--no-wait"],
        kind: "flag",
        help: "pull: print its number, and let it go on",
      },
      tokenFile: {
        names: ["--token-file"],
        value: "FILE",
        kind: "path",
        help: "its first line is the token; apiConfig.tokenFile by default",
      },
      caFile: {
        names: ["--ca"],
        value: "FILE",
        kind: "path",
        help: "PEM: the CA of the service's certificate",
      },
      certFile: {
        names: ["--cert"],
        value: "FILE",
        kind: "path",
        help: "PEM: our certificate",
      },
      keyFile: {
        names: ["--key"],
        value: "FILE",
        kind: "path",
        help: "PEM: its key",
      },
      serviceConfig,
      json,
    },
    examples: [
      ["ctl attach 'config.v1.json;web'", "a device called web"],
      ["ctl devices", "all, with their addresses"],
      ["ctl resize web 20G", "while it is used"],
      ["ctl detach web", "when nobody uses it any more"],
      ["ctl pull config.v1.json", "all of it into the cache"],
    ],
  },
  inspect: {
    summary: "show what a file is: headers, sizes, compression, uuids",
    positionals: {
      file: {
        kind: "path",
        required: true,
        help:
          "layer, writable layer's data or index, ZFile, tar-wrapped or not",
      },
    },
    options: { json },
    examples: [["inspect layer", "every field"]],
  },
  map: {
    summary: "show which layer serves which range of an image",
    details: "Of remote lowers only the indexes are fetched.",
    positionals: {
      config: {
        kind: "path",
        required: true,
        help: "image configuration",
      },
    },
    options: { serviceConfig, json },
    examples: [["map config.v1.json", "offset, length, layer"]],
  },
  check: {
    summary: "check a layer or an image: every rule, every checksum",
    details: "Remote lowers of an image are fetched to their end, and their " +
      "digests checked. Exit code 0: sound; 2: damaged; 1: could not be " +
      "checked.",
    positionals: {
      file: {
        kind: "path",
        required: true,
        help: "image configuration or layer file",
      },
    },
    options: { serviceConfig, json },
    examples: [
      ["check layer", "one layer"],
      ["check config.v1.json", "an image with all its layers"],
    ],
  },
  diff: {
    summary: "show the ranges in which two disks differ",
    details: "What is data in an image's remote lowers is fetched as it is " +
      "compared. Exit code 0: the same; 1: different; 2: trouble.",
    positionals: {
      a: { kind: "path", required: true, help: IMAGE_OR_LAYER },
      b: { kind: "path", required: true, help: IMAGE_OR_LAYER },
    },
    options: { serviceConfig, json },
    examples: [["diff config.v1.json disk.img", "an image and a raw disk"]],
  },
  tcmu: {
    original: "overlaybd-tcmu",
    summary: "show images as SCSI disks of this host, through TCMU",
    details:
      "Serves every device of the kernel's configfs whose dev_config begins " +
      "with overlaybd/, and takes over those that a former daemon served: " +
      "their requests wait meanwhile. SIGTERM and SIGINT end it, the devices " +
      "stay; SIGHUP reads the configuration again. Without service_config: " +
      "/etc/overlaybd/overlaybd.json. It needs root and target_core_user; " +
      "there is one for a host.",
    positionals: {
      service_config: { kind: "path", help: "service configuration" },
    },
    options: {},
    examples: [
      ["tcmu", "with the host's configuration"],
      ["tcmu ./overlaybd.json", "with another"],
    ],
    ignoresUnknown: true,
  },
  attach: {
    summary: "make an image a disk of this machine",
    details: "overlaybd-tcmu must run. Prints the disk, /dev/sdX. What was " +
      "made is removed again when a step fails.",
    positionals: {
      config: {
        kind: "text",
        required: true,
        help: "image configuration, with ;dev_id if it is to have one",
      },
    },
    options: {
      id: {
        names: ["--id"],
        value: "ID",
        kind: "text",
        help: "1 to 13 letters, digits, - or _; by default one that the " +
          "configuration's path gives",
      },
      json,
    },
    examples: [
      ["attach image.json", "prints /dev/sda"],
      ["attach image.json --id 7", "a second disk of the same image"],
    ],
  },
  detach: {
    summary: "take an attached disk away",
    details: "Refused while it is mounted or otherwise in use.",
    positionals: {
      device: {
        kind: "text",
        required: true,
        help: "its id, its /dev/sdX, or its image configuration",
      },
    },
    options: {},
    examples: [["detach /dev/sda", "or: detach image.json"]],
  },
  ls: {
    summary: "list images that are disks of this machine",
    positionals: {},
    options: { json },
    examples: [["ls --json", "id, disk, config, size, state, mounted"]],
  },
  doctor: {
    summary: "say what this machine lacks to serve disks, and what mends it",
    details: "Looks at permissions, kernel modules, configfs, the daemon, " +
      "certificates, the caches' file systems, logs, limits and the " +
      "configuration. Exit code 0: nothing that is needed is missing; 1: " +
      "something is, with the command that mends it.",
    positionals: {},
    options: { serviceConfig, json },
    examples: [["doctor", "a line for each check"]],
  },
  config: {
    summary: "check the service configuration, or show what it means",
    details: "check looks at the addresses and files that are named, too. " +
      "show prints every value that counts and where it came from: " +
      "default, file, or the older key that decides it. Without FILE: " +
      "/etc/overlaybd/overlaybd.json, or defaults where that is missing.",
    positionals: {
      action: {
        kind: "text",
        required: true,
        choices: ["check", "show"],
        help: "check or show",
      },
      file: { kind: "path", help: "service configuration" },
    },
    options: { json },
    examples: [
      ["config check", "say what is wrong in it"],
      ["config show overlaybd.json", "every value that counts"],
    ],
  },
  cache: {
    summary: "look at the cache of remote layers, check it, make room in it",
    details: "ls: every blob and how much of it is here; stat: the whole; " +
      "verify: sha256 of blobs that are whole, wrong ones are dropped (exit " +
      "code 2); prune: drops the blobs named, or what was used longest ago; " +
      "pin and unpin: what is pinned is not evicted. While a service holds " +
      "the cache it is asked.",
    positionals: {
      action: {
        kind: "text",
        required: true,
        choices: ["ls", "stat", "verify", "prune", "pin", "unpin"],
        help: "ls, stat, verify, prune, pin or unpin",
      },
      names: {
        kind: "text",
        many: true,
        help: "blobs, sha256:HEX; all of them by default",
      },
    },
    options: {
      to: {
        names: ["--to"],
        value: "GIB",
        kind: "text",
        help: "prune: how much may stay, by default 90 % of cacheSizeGB",
      },
      serviceConfig,
      json,
    },
    examples: [
      ["cache ls", "digest, size, how much is here, last use"],
      ["cache prune --to 0", "everything that is not pinned or in use"],
    ],
  },
  pull: {
    summary: "fetch all of an image's remote layers into the cache",
    details: "What is here already is not fetched again. Each layer's sha256 " +
      "is checked once it is whole.",
    positionals: {
      config: { kind: "path", required: true, help: "image configuration" },
    },
    options: { serviceConfig, json },
    examples: [["pull config.v1.json", "what was fetched, layer by layer"]],
  },
  completion: {
    summary: "print a completion script for a shell",
    positionals: {
      shell: {
        kind: "text",
        required: true,
        choices: ["bash", "zsh"],
        help: "bash or zsh",
      },
    },
    options: {},
    examples: [["completion bash", "use it: . <(overlaybd completion bash)"]],
  },
  version: {
    summary: "print the version",
    positionals: {},
    options: { json },
    examples: [],
  },
  help: {
    summary: "explain a command",
    positionals: {
      command: { kind: "text", help: "its name" },
    },
    options: {},
    examples: [["help commit", "the same as commit --help"]],
  },
} as const satisfies Record<string, CommandSpec>;

/** Name of a command. */
export type CommandName = keyof typeof COMMANDS;

type ValueOf<S> = S extends { kind: "flag" } ? boolean
  : S extends { many: true } ? readonly string[]
  :
    | (S extends { kind: "int" } ? number : string)
    | (S extends { required: true } ? never : undefined);

/** The arguments of a command, by the table's keys. */
export type Args<Name extends CommandName> =
  & {
    -readonly [K in keyof (typeof COMMANDS)[Name]["positionals"]]: ValueOf<
      (typeof COMMANDS)[Name]["positionals"][K]
    >;
  }
  & {
    -readonly [K in keyof (typeof COMMANDS)[Name]["options"]]: ValueOf<
      (typeof COMMANDS)[Name]["options"][K]
    >;
  };

/** A command's row of the table, with what is optional in it. */
export function commandSpec(name: CommandName): CommandSpec {
  return COMMANDS[name];
}

/** All names, in the order of the overview. */
export function commandNames(): CommandName[] {
  return Object.keys(COMMANDS) as CommandName[];
}

/** True for the name of a command. */
export function isCommandName(name: string): name is CommandName {
  return Object.hasOwn(COMMANDS, name);
}

/** The command that a program name of the original stands for. */
export function commandOfProgram(program: string): CommandName | undefined {
  return commandNames().find((name) => commandSpec(name).original === program);
}
