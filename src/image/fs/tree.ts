// SPDX-License-Identifier: Apache-2.0
/**
 * A file system on a disk, as far as it takes to find where files lie.  Names
 * and paths are their bytes, one character each (latin1).
 *
 * @module
 */
import { FormatError } from "../../format/error.ts";

/**
 * Bytes of the disk.
 *
 * @throws {FormatError} the range leaves the disk
 */
export type ReadDisk = (at: number, length: number) => Promise<Uint8Array>;

/** A part of a file; all numbers are bytes. */
export interface Run {
  /** in the file */
  from: number;
  /** on the disk */
  at: number;
  length: number;
}

/** A file, a directory, or something else. */
export interface FsNode {
  /** its number: inode or nid */
  id: number;
  kind: "file" | "directory" | "link" | "other";
  /** bytes */
  size: number;
  /**
   * Where its content lies, holes left out, in order; of a compressed file
   * what that is decoded from.
   */
  runs(): Promise<Run[]>;
}

/** One name in a directory. */
export interface DirEntry {
  name: string;
  id: number;
}

/** A file system that was recognised. */
export interface FileSystem {
  type: "ext4" | "erofs";
  root: number;
  /** @throws {FormatError} there is no such node, or it is damaged */
  node(id: number): Promise<FsNode>;
  /** The entries of a directory, given its content; `.` and `..` too. */
  entries(content: Uint8Array): DirEntry[];
}

const MAX_CONTENT = 64 << 20;
/** Links followed on the way to one file, as Linux does. */
const MAX_LINKS = 40;
/** Runs of one file; the rest of it is not looked at. */
export const MAX_RUNS = 1 << 18;

/** The little-endian fields of some bytes. */
export function fields(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** A number of at most 2^53. */
export function u64(view: DataView, at: number): number {
  return Number(view.getBigUint64(at, true));
}

/** Bytes as text, one character each. */
export function latin1(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return text;
}

/** What `mode` says an inode is. */
export function kindOf(mode: number): FsNode["kind"] {
  const TYPE = 0o170000;
  switch (mode & TYPE) {
    case 0o100000:
      return "file";
    case 0o040000:
      return "directory";
    case 0o120000:
      return "link";
    default:
      return "other";
  }
}

/** All bytes of a directory or a link. */
async function content(read: ReadDisk, node: FsNode): Promise<Uint8Array> {
  if (node.size > MAX_CONTENT) {
    throw new FormatError(`inode ${node.id} has ${node.size} bytes`);
  }
  const bytes = new Uint8Array(node.size);
  for (const { from, at, length } of await node.runs()) {
    if (from >= node.size) break;
    const part = Math.min(length, node.size - from);
    bytes.set(await read(at, part), from);
  }
  return bytes;
}

/** Looks for files by their paths. */
export interface FileTree {
  /**
   * The node at a path, links followed; undefined: there is none.
   *
   * @throws {FormatError} the file system is damaged on the way
   */
  find(path: string): Promise<FsNode | undefined>;
  /** Every file below a directory; links are not followed. */
  files(directory: FsNode): AsyncGenerator<FsNode>;
}

/** Walks a file system. */
export function createTree(fs: FileSystem, read: ReadDisk): FileTree {
  const list = async (directory: FsNode) =>
    fs.entries(await content(read, directory));

  const find = async (path: string): Promise<FsNode | undefined> => {
    const todo = path.split("/").reverse();
    const way: FsNode[] = [await fs.node(fs.root)];
    for (let links = 0; todo.length > 0;) {
      const name = todo.pop() ?? "";
      const here = way.at(-1);
      if (name === "" || name === "." || here === undefined) continue;
      if (name === "..") {
        if (way.length > 1) way.pop();
        continue;
      }
      if (here.kind !== "directory") return undefined;
      const entry = (await list(here)).find((entry) => entry.name === name);
      if (entry === undefined) return undefined;
      const node = await fs.node(entry.id);
      if (node.kind !== "link") {
        way.push(node);
        continue;
      }
      if (++links > MAX_LINKS) return undefined;
      const target = latin1(await content(read, node));
      if (target.startsWith("/")) way.length = 1;
      todo.push(...target.split("/").reverse());
    }
    return way.at(-1);
  };

  async function* files(directory: FsNode): AsyncGenerator<FsNode> {
    const seen = new Set([directory.id]);
    const todo = [directory];
    for (let here = todo.pop(); here !== undefined; here = todo.pop()) {
      for (const { name, id } of await list(here)) {
        if (name === "." || name === ".." || seen.has(id)) continue;
        seen.add(id);
        const node = await fs.node(id);
        if (node.kind === "directory") todo.push(node);
        if (node.kind === "file") yield node;
      }
    }
  }
  return { find, files };
}
